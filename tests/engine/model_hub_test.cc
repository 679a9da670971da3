// The hub over real tiny models on the CPU.
#include "runtime/engine/model_hub.h"

#include <atomic>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine/load_model.h"
#include "tests/engine/stream_reader.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using testing::HasSubstr;

class ModelHubTest : public testing::Test {
 protected:
  ModelHubTest() : metrics_({"test", "", "cpu"}) {
    WriteTinyModel(dir_.File("one"));
    WriteTinyModel(dir_.File("two"), {.seed = 2});
    ModelHub::Options options;
    options.drain_timeout = absl::Seconds(30);
    options.on_change = [this](const ModelStatus& status) {
      {
        std::lock_guard lock(mutex_);
        changes_.emplace_back(status.name, status.state);
      }
      if (at_change_) at_change_(status);
    };
    hub_ = std::make_unique<ModelHub>(std::move(options), &metrics_);
  }

  LoadSpec Spec(const std::string& name, const std::string& directory) {
    LoadSpec spec;
    spec.name = name;
    spec.path = dir_.File(directory);
    spec.backend = {.device = "cpu", .threads = 1, .compute = Compute::kF32};
    spec.plan.compute = Compute::kF32;
    spec.plan.max_context = 512;
    spec.plan.max_batch = 8;
    spec.plan.kv_bytes = 4 << 20;
    return spec;
  }
  std::shared_ptr<const ServedModel> MustLoad(const LoadSpec& spec) {
    auto loaded = hub_->Load(spec, nullptr);
    EXPECT_EQ(loaded.status(), absl::OkStatus());
    return loaded.ok() ? *loaded : nullptr;
  }
  static std::shared_ptr<StreamReader> Submit(const ServedModel& model, Request request) {
    auto reader = StreamReader::Attach(std::make_shared<TokenStream>(1 << 20));
    const absl::Status status = model.Submit(std::move(request), {reader, &reader->stream()});
    EXPECT_EQ(status, absl::OkStatus());
    return reader;
  }
  std::vector<std::pair<std::string, ModelState>> Changes() {
    std::lock_guard lock(mutex_);
    return changes_;
  }

  TempDir dir_;
  std::mutex mutex_;
  std::vector<std::pair<std::string, ModelState>> changes_;
  std::function<void(const ModelStatus&)> at_change_;  // set while nothing changes
  Metrics metrics_;
  std::unique_ptr<ModelHub> hub_;
};

Request Greedy(int first, std::uint32_t max_tokens, int size = 9) {
  Request request = Ask({}, max_tokens);
  for (int i = 0; i < size; ++i) request.prompt.push_back((first * 31 + i * 7) % 256);
  request.stopping.ignore_eos = true;
  return request;
}

TEST(ModelNameTest, NamesAreShapedAndNoServices) {
  for (const char* good : {"a", "smollm2", "org/Model-1.5_b", "7b"}) {
    EXPECT_EQ(ValidateModelName(good), absl::OkStatus()) << good;
  }
  for (const std::string& bad : {std::string(""), std::string("-a"), std::string("/etc"),
                                 std::string("a b"), std::string("\xC3\xA9"), std::string(129, 'a'),
                                 std::string("a\0b", 3), std::string("nibble.v1.GenerationService"),
                                 std::string("grpc.health.v1.Health"), std::string("live")}) {
    EXPECT_EQ(ValidateModelName(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(ModelHubTest, AModelIsLoadedAndAnswers) {
  std::set<std::string> stages;
  auto loaded =
      hub_->Load(Spec("tiny", "one"), [&](const std::string& stage, std::int64_t, std::int64_t) {
        stages.insert(stage);
        return true;
      });
  ASSERT_EQ(loaded.status(), absl::OkStatus());
  EXPECT_EQ(stages, (std::set<std::string>{"read", "plan", "weights", "compile", "warm up"}));
  const ServedModel& model = **loaded;
  EXPECT_EQ(model.info.context, 512);
  EXPECT_EQ(model.info.vocab, kTinyVocab);
  EXPECT_EQ(model.info.architecture, "llama");
  EXPECT_FALSE(model.info.revision.empty());
  EXPECT_THAT(model.eos_ids, testing::Contains(257));
  EXPECT_EQ(hub_->Find("tiny").value(), *loaded);
  EXPECT_EQ(hub_->Find("").value(), *loaded);
  const absl::Status missing = hub_->Find("nobody").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("'tiny'"));
  EXPECT_EQ(Changes(), (std::vector<std::pair<std::string, ModelState>>{
                           {"tiny", ModelState::kLoading}, {"tiny", ModelState::kServing}}));
  for (const char* kind : {"weights", "kv", "workspace"}) {
    std::vector<std::string> bytes;  // planned and actual
    std::istringstream lines(metrics_.Scrape());
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind("nibble_memory_bytes{", 0) == 0 &&
          line.find(absl::StrCat("kind=\"", kind, "\"")) != line.npos) {
        bytes.push_back(line.substr(line.rfind(' ')));
      }
    }
    ASSERT_EQ(bytes.size(), 2u) << kind;
    EXPECT_EQ(bytes[0], bytes[1]) << kind;
  }
  const Seen seen = Submit(model, Greedy(1, 12))->ReadAll();
  EXPECT_EQ(seen.end, absl::OkStatus());
  EXPECT_EQ(seen.ids.at(0).size(), 12u);
  EXPECT_EQ(seen.text.at(0), model.tokenizer->Decode(seen.ids.at(0), true));
  EXPECT_EQ(seen.started->model_revision, model.info.revision);
  EXPECT_TRUE(hub_->Alive(absl::Seconds(5)));
  EXPECT_EQ(hub_->Load(Spec("tiny", "two"), nullptr).status().code(),
            absl::StatusCode::kAlreadyExists);
}

// What is computed beside a request, what of it was cached and how often it was preempted must not
// show.
TEST_F(ModelHubTest, AnAnswerDoesNotDependOnItsBatch) {
  LoadSpec spec = Spec("tiny", "one");
  spec.plan.kv_bytes = 24 * KvBytesPerToken(2, 32, 4) * 64;  // 24 pages
  auto model = MustLoad(spec);
  std::vector<Request> requests;
  for (int i = 0; i < 24; ++i) {
    Request request = Greedy(i % 6, 60 + 5 * i, 20 + 9 * i);
    request.sampling = {.temperature = i % 2 ? 1.0f : 0.0f, .repetition_penalty = 1.1f, .seed = 7};
    request.output.num_outputs = i % 5 == 0 ? 3 : 1;
    request.output.top_logprobs = 1;
    requests.push_back(std::move(request));
  }
  std::vector<Seen> alone;
  for (const Request& request : requests) {
    Request salted = request;
    salted.cache_salt = "alone" + std::to_string(alone.size());
    alone.push_back(Submit(*model, salted)->ReadAll());
    ASSERT_EQ(alone.back().end, absl::OkStatus());
  }
  // Short answers, so that it admits more than will fit.
  for (int i = 0; i < 60; ++i) Submit(*model, Greedy(i, 1))->ReadAll();
  std::vector<std::shared_ptr<StreamReader>> readers;
  for (const Request& request : requests) readers.push_back(Submit(*model, request));
  for (std::size_t i = 0; i < readers.size(); ++i) {
    const Seen& together = readers[i]->ReadAll();
    ASSERT_EQ(together.end, absl::OkStatus());
    EXPECT_EQ(together.ids, alone[i].ids) << i;
    for (const auto& [index, logprobs] : together.logprobs) {
      for (std::size_t t = 0; t < logprobs.size(); ++t) {
        ASSERT_EQ(logprobs[t].logprob, alone[i].logprobs.at(index)[t].logprob) << i << " " << t;
      }
    }
  }
  EXPECT_GT(model->metrics->preemptions->Value(), 0);
  EXPECT_GT(model->metrics->prompt_cached->Value(), 0);
}

TEST_F(ModelHubTest, ReplacingLosesNoStream) {
  for (ReplacePolicy policy : {ReplacePolicy::kLoadThenDrain, ReplacePolicy::kDrainThenLoad}) {
    SCOPED_TRACE(static_cast<int>(policy));
    const std::string name = policy == ReplacePolicy::kLoadThenDrain ? "a" : "b";
    auto old_model = MustLoad(Spec(name, "one"));
    std::vector<std::shared_ptr<StreamReader>> readers;
    for (int i = 0; i < 40; ++i) readers.push_back(Submit(*old_model, Greedy(i, 40)));
    // Clients that go on asking while the model is swapped.
    std::atomic<bool> stop{false};
    std::atomic<int> on_old{0}, on_new{0}, wrong{0}, refused{0};
    std::thread client([&] {
      for (int i = 0; !stop.load() || on_new.load() == 0; ++i) {
        absl::StatusOr<std::shared_ptr<const ServedModel>> found = hub_->Find(name);
        auto reader = StreamReader::Attach(std::make_shared<TokenStream>(1 << 20));
        if (!found.ok() || !(*found)->Submit(Greedy(i, 5), {reader, &reader->stream()}).ok()) {
          ++refused;
          std::this_thread::yield();
          continue;
        }
        const Seen& seen = reader->ReadAll();
        if (!seen.end->ok() || seen.started->model_revision != (*found)->info.revision) ++wrong;
        ++(*found == old_model ? on_old : on_new);
      }
    });
    LoadSpec replacement = Spec(name, "two");
    replacement.replace = policy;
    auto new_model = MustLoad(replacement);
    stop.store(true);
    client.join();
    ASSERT_NE(new_model, nullptr);
    EXPECT_NE(new_model->info.revision, old_model->info.revision);
    for (auto& reader : readers) {
      const Seen& seen = reader->ReadAll();
      EXPECT_EQ(seen.end, absl::OkStatus());
      EXPECT_EQ(seen.started->model_revision, old_model->info.revision);
      EXPECT_EQ(seen.ids.at(0).size(), 40u);
    }
    EXPECT_EQ(wrong.load(), 0);
    EXPECT_GT(on_new.load(), 0);
    EXPECT_EQ(hub_->Find(name).value(), new_model);
    auto stream = std::make_shared<TokenStream>(1000);
    EXPECT_EQ(old_model->Submit(Greedy(1, 1), stream).code(), absl::StatusCode::kUnavailable);
  }
}

TEST_F(ModelHubTest, ACancelledLoadLeavesNoTrace) {
  for (const char* at : {"read", "plan", "weights", "warm up"}) {
    const absl::Status status =
        hub_->Load(Spec("tiny", "one"), [&](const std::string& stage, std::int64_t,
                                            std::int64_t) { return stage != at; })
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << at;
    EXPECT_TRUE(hub_->List().empty());
    EXPECT_THAT(metrics_.Scrape(), testing::Not(HasSubstr("\"tiny\"")));
  }
  EXPECT_EQ(Changes().back(), (std::pair<std::string, ModelState>{"tiny", ModelState::kUnloaded}));
  EXPECT_NE(MustLoad(Spec("tiny", "one")), nullptr);
}

TEST_F(ModelHubTest, AFailedReplacementKeepsTheOldModel) {
  auto model = MustLoad(Spec("tiny", "one"));
  LoadSpec broken = Spec("tiny", "nowhere");
  broken.replace = ReplacePolicy::kLoadThenDrain;
  const absl::Status status = hub_->Load(broken, nullptr).status();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(ReasonOf(status), "MODEL_UNUSABLE");
  EXPECT_EQ(hub_->Find("tiny").value(), model);
  EXPECT_EQ(Submit(*model, Greedy(1, 3))->ReadAll().end, absl::OkStatus());
  // The other policy has let go of it by then.
  broken.replace = ReplacePolicy::kDrainThenLoad;
  EXPECT_FALSE(hub_->Load(broken, nullptr).ok());
  const absl::Status gone = hub_->Find("tiny").status();
  EXPECT_EQ(gone.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(gone), "MODEL_FAILED");
  EXPECT_THAT(std::string(gone.message()), HasSubstr("nowhere"));
  ASSERT_EQ(hub_->List().size(), 1u);
  EXPECT_EQ(hub_->List()[0].state, ModelState::kFailed);
  EXPECT_NE(MustLoad(Spec("tiny", "one")), nullptr) << "a failed one is replaced without a policy";
}

// Whoever finds a name busy that will be free by itself is told to try again.
TEST_F(ModelHubTest, ANameIsBusyWhileItIsLoadedAndUnloaded) {
  const auto load = [&](ReplacePolicy policy) {
    LoadSpec spec = Spec("tiny", "two");
    spec.replace = policy;
    return hub_->Load(spec, nullptr).status();
  };
  const auto expect_busy = [](const absl::Status& status, const char* reason) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_EQ(ReasonOf(status), reason);
    EXPECT_TRUE(RetryOf(status).has_value());
  };
  int asked = 0;
  const auto loaded = hub_->Load(Spec("tiny", "one"), [&](const std::string& stage, auto, auto) {
    if (stage != "plan") return true;
    ++asked;
    expect_busy(hub_->Unload("tiny", absl::ZeroDuration()), "MODEL_LOADING");
    expect_busy(load(ReplacePolicy::kLoadThenDrain), "MODEL_LOADING");
    expect_busy(load(ReplacePolicy::kDrainThenLoad), "MODEL_LOADING");
    EXPECT_EQ(load(ReplacePolicy::kRefuse).code(), absl::StatusCode::kAlreadyExists);
    return true;
  });
  ASSERT_EQ(loaded.status(), absl::OkStatus());
  at_change_ = [&](const ModelStatus& status) {
    if (status.state != ModelState::kDraining) return;
    ++asked;
    expect_busy(hub_->Unload("tiny", absl::ZeroDuration()), "DRAINING");
    expect_busy(load(ReplacePolicy::kRefuse), "DRAINING");
    expect_busy(load(ReplacePolicy::kLoadThenDrain), "DRAINING");
  };
  EXPECT_EQ(hub_->Unload("tiny", absl::Seconds(30)), absl::OkStatus());
  EXPECT_EQ(asked, 2);
  at_change_ = nullptr;
  EXPECT_EQ(load(ReplacePolicy::kRefuse), absl::OkStatus());
}

TEST_F(ModelHubTest, UnloadDrainsThenFrees) {
  auto model = MustLoad(Spec("tiny", "one"));
  EXPECT_EQ(hub_->Unload("nobody", absl::Seconds(1)).code(), absl::StatusCode::kNotFound);
  auto reader = Submit(*model, Greedy(1, 100));
  EXPECT_EQ(hub_->Unload("tiny", absl::Seconds(30)), absl::OkStatus());
  EXPECT_EQ(reader->ReadAll().end, absl::OkStatus());
  EXPECT_EQ(reader->ReadAll().ids.at(0).size(), 100u);
  EXPECT_EQ(hub_->Find("tiny").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Changes().back(), (std::pair<std::string, ModelState>{"tiny", ModelState::kUnloaded}));
  model.reset();
  EXPECT_THAT(metrics_.Scrape(), testing::Not(HasSubstr("\"tiny\"")));

  model = MustLoad(Spec("tiny", "one"));
  for (int i = 0; i < 100; ++i)
    reader = Submit(*model, Greedy(i, 480));  // long enough for the last to be cut
  EXPECT_EQ(hub_->Unload("tiny", absl::ZeroDuration()), absl::OkStatus());
  const Seen& cut = reader->ReadAll();
  EXPECT_EQ(cut.end->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(*cut.end), "DRAINING");
  EXPECT_TRUE(RetryOf(*cut.end).has_value());
}

TEST_F(ModelHubTest, DrainFinishesStreamsUntilTheDeadline) {
  auto one = MustLoad(Spec("one", "one"));
  auto two = MustLoad(Spec("two", "two"));
  auto short_answer = Submit(*one, Greedy(1, 20));
  auto other_answer = Submit(*two, Greedy(2, 20));
  hub_->Drain(absl::Now() + absl::Seconds(30));
  EXPECT_EQ(short_answer->ReadAll().end, absl::OkStatus());
  EXPECT_EQ(other_answer->ReadAll().end, absl::OkStatus());
  EXPECT_EQ(hub_->Find("one").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(hub_->Load(Spec("three", "one"), nullptr).status()), "DRAINING");
  EXPECT_TRUE(hub_->Alive(absl::Milliseconds(1)));
}

TEST_F(ModelHubTest, DrainEndsWhatDoesNotEndAndCancelsLoads) {
  auto model = MustLoad(Spec("one", "one"));
  std::atomic<bool> loading{false};
  absl::Status load_status;
  std::thread loader([&] {
    load_status = hub_->Load(Spec("two", "two"),
                             [&](const std::string& stage, std::int64_t, std::int64_t) {
                               if (stage == "plan") {
                                 loading.store(true);
                                 while (hub_->Find("one").ok()) std::this_thread::yield();
                               }
                               return true;
                             })
                      .status();
  });
  while (!loading.load()) std::this_thread::yield();
  std::shared_ptr<StreamReader> reader;
  for (int i = 0; i < 100; ++i) reader = Submit(*model, Greedy(i, 480));
  hub_->Drain(absl::InfinitePast());
  loader.join();
  EXPECT_FALSE(load_status.ok());
  EXPECT_EQ(reader->ReadAll().end->code(), absl::StatusCode::kUnavailable);
}

TEST_F(ModelHubTest, APlanBesideWhatIsLoadedDecides) {
  LoadSpec spec = Spec("one", "one");
  const auto plan = hub_->Plan(spec);
  ASSERT_EQ(plan.status(), absl::OkStatus());
  spec.plan.memory_bytes = plan->total_bytes() * 3 / 2;
  MustLoad(spec);
  LoadSpec second = Spec("two", "two");
  second.plan.memory_bytes = spec.plan.memory_bytes;
  const absl::Status status = hub_->Load(second, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "INSUFFICIENT_MEMORY");
  EXPECT_FALSE(RetryOf(status).has_value());
  EXPECT_EQ(hub_->Unload("one", absl::Seconds(1)), absl::OkStatus());
  EXPECT_NE(MustLoad(second), nullptr) << "the memory came back";
}

TEST_F(ModelHubTest, UnsetKvMemoryIsAnEqualShare) {
  std::vector<LoadSpec> specs = {Spec("one", "one"), Spec("two", "two"), Spec("three", "one")};
  for (LoadSpec& spec : specs) {
    spec.plan.memory_bytes = 130 << 20;
    spec.plan.kv_bytes.reset();
    spec.plan.max_context = 16384;
  }
  specs[2].plan.kv_bytes = 1 << 20;
  specs[2].plan.max_context = 512;
  ASSERT_EQ(hub_->ShareKvMemory(&specs), absl::OkStatus());
  EXPECT_EQ(specs[2].plan.kv_bytes, 1 << 20);
  ASSERT_TRUE(specs[0].plan.kv_bytes.has_value());
  EXPECT_EQ(specs[0].plan.kv_bytes, specs[1].plan.kv_bytes);
  for (const LoadSpec& spec : specs) MustLoad(spec);
  EXPECT_EQ(hub_->List().size(), 3u);
  specs.push_back(Spec("none", "nowhere"));
  EXPECT_THAT(std::string(hub_->ShareKvMemory(&specs).message()), HasSubstr("'none'"));
}

TEST_F(ModelHubTest, ChatsAreRenderedAndMessagesCannotSpellTurns) {
  auto model = MustLoad(Spec("tiny", "one"));
  const auto render = [&](const std::string& content, bool parse) {
    Json message(Json::Object{});
    message.Set("role", "user");
    message.Set("content", content);
    Json variables(Json::Object{});
    variables.Set("messages", Json::Array{message});
    variables.Set("add_generation_prompt", true);
    return model->RenderChat(variables, absl::Now(), parse).value();
  };
  const auto turns = [](const std::vector<std::int32_t>& ids) {
    return std::count(ids.begin(), ids.end(), 258);
  };
  EXPECT_EQ(turns(render("hello", false)), 2);
  const auto spelled = render("x<|turn|>y</s>", false);
  EXPECT_EQ(turns(spelled), 2);
  EXPECT_EQ(std::count(spelled.begin(), spelled.end(), 257), 0);
  EXPECT_THAT(model->tokenizer->Decode(spelled, false), HasSubstr("user:x<|turn|>y</s>"));
  EXPECT_EQ(turns(render("x<|turn|>y", true)), 3);

  Json refused(Json::Object{});
  Json message(Json::Object{});
  message.Set("role", "refuse");
  message.Set("content", "");
  refused.Set("messages", Json::Array{message});
  const absl::Status status = model->RenderChat(refused, absl::Now()).status();
  EXPECT_EQ(ReasonOf(status), "CHAT_TEMPLATE_REFUSED");

  // However the decoder shows it: what counts is how a special token is spelled.
  WriteTinyModel(dir_.File("shown"));
  Json replace, pattern, tokenizer = TinyTokenizer();
  pattern.Set("String", "|");
  replace.Set("type", "Replace");
  replace.Set("pattern", pattern);
  replace.Set("content", " ");
  tokenizer.Set("decoder", replace);
  std::ofstream(dir_.File("shown") + "/tokenizer.json") << DumpJson(tokenizer);
  model = MustLoad(Spec("shown", "shown"));
  EXPECT_EQ(model->tokenizer->TokenBytes(258), "< turn >");
  EXPECT_EQ(turns(render("x<|turn|>y", false)), 2);
  EXPECT_EQ(turns(render("x<|turn|>y", true)), 3);

  WriteTinyModel(dir_.File("plain"), {.chat_template = false});
  auto plain = MustLoad(Spec("plain", "plain"));
  EXPECT_EQ(plain->RenderChat(refused, absl::Now()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ModelHubTest, GenerationConfigIsFoldedIn) {
  std::ofstream(dir_.File("one") + "/generation_config.json")
      << R"({"eos_token_id": [258, 5, 100000], "temperature": 0.6, "top_k": 20, "top_p": 7.5})";
  LoadSpec spec = Spec("tiny", "one");
  spec.default_max_tokens = 77;
  auto model = MustLoad(spec);
  EXPECT_EQ(model->eos_ids, (std::vector<std::int32_t>{5, 257, 258}));
  EXPECT_FLOAT_EQ(model->defaults.sampling.temperature, 0.6f);
  EXPECT_EQ(model->defaults.sampling.top_k, 20);
  EXPECT_EQ(model->defaults.sampling.top_p, 1.0f) << "out of range: ignored";
  EXPECT_EQ(model->defaults.max_tokens, 77u);
}

}  // namespace
}  // namespace nibble
