// The engine on its thread, with clients on theirs: for the thread sanitizer, and for what only
// real time shows.
#include <atomic>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "runtime/device/async_runner.h"
#include "tests/engine/engine_harness.h"
#include "tests/engine/stream_reader.h"

namespace nibble {
namespace {

class EngineThreadTest : public testing::TestWithParam<int> {
 protected:
  EngineThreadTest() {
    HarnessOptions options = SmallHarness(GetParam());
    options.real_clock = true;
    options.max_queue = 10'000;
    options.runner.num_pages = 50;
    options.runner.model.eos_one_in = 30;
    harness_ = std::make_unique<Harness>(options);
    auto random = std::make_shared<std::mt19937>(GetParam() + 1);
    harness_->runner->on_collect = [random] {
      if ((*random)() % 4 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds((*random)() % 200));
    };
  }
  void Stop() {
    harness_->engine->Close(absl::UnavailableError("stopped"));
    harness_->engine->Join();
    EXPECT_EQ(harness_->runner->violation(), absl::OkStatus());
    EXPECT_EQ(harness_->pool_used(), 0);
    EXPECT_EQ(harness_->metrics->requests_running->Value(), 0);
    EXPECT_EQ(harness_->metrics->requests_waiting->Value(), 0);
  }

  std::unique_ptr<Harness> harness_;
};
INSTANTIATE_TEST_SUITE_P(Depth, EngineThreadTest, testing::Values(0, 1),
                         [](const auto& test) { return "Depth" + std::to_string(test.param); });

TEST_P(EngineThreadTest, ManyClientsGetTheirOwnAnswers) {
  harness_->engine->Start();
  std::atomic<std::int64_t> tokens{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      for (int i = 0; i < 40; ++i) {
        Request request =
            Ask(Prompt(1 + static_cast<int>(random() % 60), static_cast<int>(random() % 4)),
                1 + random() % 40);
        request.sampling.temperature = 1;
        request.sampling.seed = random() % 100;
        request.output.num_outputs = 1 + random() % 3;
        auto reader = StreamReader::Attach(std::make_shared<TokenStream>(1 << 20));
        auto stream = std::shared_ptr<TokenStream>(reader, &reader->stream());
        const int kind = static_cast<int>(random() % 4);
        if (kind == 1) request.deadline = absl::Now() + absl::Microseconds(random() % 5000);
        ASSERT_EQ(harness_->Submit(request, stream), absl::OkStatus());
        if (kind == 0) {
          reader->ReadUntil([&](const Seen& seen) { return seen.tokens() >= 3; });
          reader->stream().Cancel();
        }
        const Seen& seen = reader->ReadAll();
        tokens += seen.tokens();
        for (std::uint32_t index = 0; index < request.output.num_outputs; ++index) {
          if (!seen.finished.count(index)) continue;
          ASSERT_EQ(seen.ids.at(index),
                    Expected(harness_->options_.runner.model, request, index,
                             static_cast<std::int32_t>(*request.stopping.max_tokens)));
        }
        if (kind >= 2) {
          ASSERT_EQ(seen.end, absl::OkStatus());
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  Stop();
  EXPECT_EQ(harness_->metrics->output_tokens->Value(), static_cast<double>(tokens.load()));
}

TEST_P(EngineThreadTest, IdleItIsAliveAndSleeps) {
  harness_->engine->Start();
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_TRUE(harness_->engine->Alive(absl::Milliseconds(1)));
  Stop();
  EXPECT_TRUE(harness_->engine->done());
}

TEST_P(EngineThreadTest, AHangingDeviceIsNotAlive) {
  std::mutex mutex;
  std::condition_variable changed;
  bool hanging = false, release = false;
  harness_->runner->on_collect = [&] {
    std::unique_lock lock(mutex);
    hanging = true;
    changed.notify_all();
    changed.wait(lock, [&] { return release; });
  };
  harness_->engine->Start();
  auto reader = StreamReader::Attach(std::make_shared<TokenStream>(1 << 20));
  ASSERT_EQ(
      harness_->Submit(Ask(Prompt(5), 3), std::shared_ptr<TokenStream>(reader, &reader->stream())),
      absl::OkStatus());
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return hanging; });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(harness_->engine->Alive(absl::Milliseconds(10)));
  EXPECT_TRUE(harness_->engine->Alive(absl::Hours(1)));
  {
    std::lock_guard lock(mutex);
    release = true;
  }
  changed.notify_all();
  EXPECT_EQ(reader->ReadAll().end, absl::OkStatus());
  Stop();
}

TEST_P(EngineThreadTest, AbortReachesEverybody) {
  harness_->engine->Start();
  std::vector<std::shared_ptr<StreamReader>> readers;
  for (int i = 0; i < 30; ++i) {
    Request request = Ask(Prompt(20, i), 150);
    request.stopping.ignore_eos = true;
    readers.push_back(StreamReader::Attach(std::make_shared<TokenStream>(1 << 20)));
    ASSERT_EQ(
        harness_->Submit(request, std::shared_ptr<TokenStream>(readers[i], &readers[i]->stream())),
        absl::OkStatus());
  }
  readers[0]->ReadUntil([](const Seen& seen) { return seen.tokens() > 2; });
  harness_->engine->Abort(absl::UnavailableError("enough"));
  int aborted = 0;
  for (auto& reader : readers) {
    const Seen& seen = reader->ReadAll();
    ASSERT_TRUE(seen.end.has_value());
    aborted += seen.end->ok() ? 0 : 1;
  }
  EXPECT_GT(aborted, 20);
  Stop();
}

// Over the wrapper that answers from another thread, with delays.
TEST(EngineAsyncRunnerTest, AnswersAreThoseOfTheSynchronousDevice) {
  FakeRunner::Options options = SmallHarness().runner;
  options.num_pages = 40;
  KvLayout kv{.num_layers = 1,
              .num_pages = options.num_pages,
              .num_kv_heads = 1,
              .head_dim = 1,
              .page_tokens = options.page_tokens};
  auto fake = std::make_unique<FakeRunner>(options);
  std::mt19937 random(2);
  Metrics metrics({"test", "", "fake"});
  auto model_metrics = metrics.ForModel("fake");
  auto runner = std::make_unique<AsyncRunner>(
      std::move(fake), StepChecker(options.limits, options.model.vocab, kv),
      AsyncRunner::Options{.depth = 1, .before_step = [&random](std::uint64_t) {
                             std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
                           }});
  Engine engine({.limits = options.limits,
                 .num_pages = options.num_pages,
                 .page_tokens = options.page_tokens,
                 .vocab = options.model.vocab},
                {.model = "fake",
                 .revision = "r1",
                 .tokenizer = std::make_shared<FakeTokenizer>(),
                 .eos_ids = {300},
                 .metrics = model_metrics},
                std::move(runner));
  ASSERT_EQ(engine.WarmUp(absl::Milliseconds(50), nullptr), absl::OkStatus());
  engine.Start();
  std::vector<Request> requests;
  std::vector<std::shared_ptr<StreamReader>> readers;
  for (int i = 0; i < 40; ++i) {
    requests.push_back(Ask(Prompt(5 + 3 * (i % 20), i % 3), 30));
    readers.push_back(StreamReader::Attach(std::make_shared<TokenStream>(1 << 20)));
    ASSERT_EQ(engine.queue()->Push(requests[i],
                                   std::shared_ptr<TokenStream>(readers[i], &readers[i]->stream())),
              absl::OkStatus());
  }
  for (int i = 0; i < 40; ++i) {
    if (i % 5 == 4) {
      readers[i]->stream().Cancel();
      readers[i]->ReadAll();
      continue;
    }
    const Seen& seen = readers[i]->ReadAll();
    EXPECT_EQ(seen.end, absl::OkStatus());
    EXPECT_EQ(seen.ids.at(0), Expected(options.model, requests[i], 0, 30));
  }
  engine.Close(absl::UnavailableError("stopped"));
  engine.Join();
}

}  // namespace
}  // namespace nibble
