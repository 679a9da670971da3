// An engine over the fake device, with a clock of its own: turned by hand, or on its thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/served_model.h"
#include "tests/engine/fake_runner.h"

namespace nibble {

// Ids 0..199 are text, among it the two halves of "é" (150, 151); 300 is a special token, "</s>".
class FakeTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<std::int32_t>> Encode(absl::string_view,
                                                   const EncodeOptions&) const override {
    return absl::UnimplementedError("not needed here");
  }
  std::string Decode(const std::vector<std::int32_t>& ids, bool skip_special) const override {
    std::string text;
    for (std::int32_t id : ids) {
      if (!(skip_special && IsSpecial(id))) text += TokenBytes(id);
    }
    return text;
  }
  std::string TokenBytes(std::int32_t id) const override {
    if (id == 300) return "</s>";
    if (id == 150) return "\xC3";
    if (id == 151) return "\xA9";
    if (id < 0 || id >= 310) return "";
    return std::string(1, static_cast<char>('a' + id % 26)) + (id >= 104 ? " " : "");
  }
  std::string Spelling(std::int32_t id) const override { return TokenBytes(id); }
  bool IsSpecial(std::int32_t id) const override { return id == 300; }
  std::int32_t vocab_size() const override { return 310; }
  bool StripsLeadingSpace() const override { return false; }
  std::optional<std::int32_t> bos() const override { return std::nullopt; }
  std::vector<std::int32_t> end_ids() const override { return {300}; }
  std::optional<std::int32_t> TokenId(absl::string_view) const override { return std::nullopt; }
  const std::map<std::string, std::string>& special_token_names() const override { return names_; }
  std::int64_t memory_bytes() const override { return 0; }

 private:
  std::map<std::string, std::string> names_;
};

// Everything a client saw of one request.
struct Seen {
  std::optional<StartedEvent> started;
  std::vector<PromptEvent> prompt;
  std::map<std::uint32_t, std::string> text;
  std::map<std::uint32_t, std::vector<std::int32_t>> ids;
  std::map<std::uint32_t, std::vector<TokenLogprob>> logprobs;
  std::map<std::uint32_t, int> chunks;
  std::map<std::uint32_t, FinishedEvent> finished;
  std::optional<absl::Status> end;

  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (const auto& [index, list] : ids) sum += static_cast<std::int64_t>(list.size());
    return sum;
  }
};

inline void Drain(TokenStream& stream, Seen& seen) {
  while (std::optional<StreamEvent> event = stream.Pop(&seen.end)) {
    if (auto* started = std::get_if<StartedEvent>(&*event)) {
      EXPECT_FALSE(seen.started.has_value());
      seen.started = *started;
      continue;
    }
    EXPECT_TRUE(seen.started.has_value()) << "something came before started";
    if (auto* prompt = std::get_if<PromptEvent>(&*event)) {
      EXPECT_TRUE(seen.chunks.empty()) << "the prompt came after a chunk";
      seen.prompt.push_back(*prompt);
    } else if (auto* chunk = std::get_if<ChunkEvent>(&*event)) {
      EXPECT_FALSE(seen.finished.count(chunk->output_index)) << "a chunk after its end";
      ++seen.chunks[chunk->output_index];
      seen.text[chunk->output_index] += chunk->text;
      auto& ids = seen.ids[chunk->output_index];
      ids.insert(ids.end(), chunk->token_ids.begin(), chunk->token_ids.end());
      auto& logprobs = seen.logprobs[chunk->output_index];
      logprobs.insert(logprobs.end(), chunk->logprobs.begin(), chunk->logprobs.end());
    } else {
      const auto& finished = std::get<FinishedEvent>(*event);
      EXPECT_FALSE(seen.finished.count(finished.output_index));
      seen.finished[finished.output_index] = finished;
    }
  }
}

struct HarnessOptions {
  FakeRunner::Options runner;
  std::int32_t max_queue = 256;
  absl::Duration max_itl = absl::Milliseconds(50);
  Admission admission = Admission::kOptimistic;
  bool deterministic = false;
  bool real_clock = false;
};

inline HarnessOptions SmallHarness(int depth = 0) {
  HarnessOptions options;
  options.runner.depth = depth;
  options.runner.num_pages = 64;
  options.runner.page_tokens = 4;
  options.runner.limits = {.max_tokens = 64,
                           .max_sequences = 8,
                           .max_slots = 8,
                           .max_logit_rows = 16,
                           .max_context = 200};
  return options;
}

class Harness {
 public:
  explicit Harness(HarnessOptions options = SmallHarness(), Metrics* shared_metrics = nullptr)
      : options_(options), own_metrics_({"test", "", "fake"}) {
    auto made = std::make_unique<FakeRunner>(options.runner);
    runner = made.get();
    if (!options.real_clock) {
      runner->on_seconds = [this](double seconds) { Advance(absl::Seconds(seconds)); };
    }
    EngineOptions engine_options{.limits = options.runner.limits,
                                 .num_pages = options.runner.num_pages,
                                 .page_tokens = options.runner.page_tokens,
                                 .vocab = options.runner.model.vocab,
                                 .max_queue = options.max_queue,
                                 .max_itl = options.max_itl,
                                 .admission = options.admission,
                                 .deterministic = options.deterministic};
    if (!options.real_clock) {
      engine_options.clock = {.monotonic = [this] { return now(); },
                              .wall = [this] { return now(); }};
    }
    engine_options.on_device_lost = [this](const absl::Status& status) { lost = status; };
    metrics = (shared_metrics == nullptr ? own_metrics_ : *shared_metrics).ForModel("fake");
    engine = std::make_unique<Engine>(std::move(engine_options),
                                      AnswerContext{.model = "fake",
                                                    .revision = "r1",
                                                    .tokenizer = std::make_shared<FakeTokenizer>(),
                                                    .eos_ids = {300},
                                                    .metrics = metrics},
                                      std::move(made));
  }

  absl::Time now() const { return absl::FromUnixNanos(now_ns_.load()); }
  void Advance(absl::Duration by) { now_ns_.fetch_add(absl::ToInt64Nanoseconds(by)); }

  absl::Status Submit(Request request, std::shared_ptr<TokenStream> stream) {
    return engine->queue()->Push(std::move(request), std::move(stream));
  }
  std::shared_ptr<TokenStream> MustSubmit(Request request, std::size_t max_bytes = 1 << 20) {
    auto stream = std::make_shared<TokenStream>(max_bytes);
    EXPECT_EQ(Submit(std::move(request), stream), absl::OkStatus());
    return stream;
  }

  // Turns until there is nothing to do, checking as it goes.
  void RunUntilIdle() {
    for (int turn = 0; turn < 1'000'000; ++turn) {
      const bool more = engine->Turn();
      Check();
      if (!more) return;
    }
    ADD_FAILURE() << "never idle";
  }
  void Check() {
    EXPECT_EQ(engine->scheduler().CheckIntegrity(), absl::OkStatus());
    EXPECT_EQ(runner->violation(), absl::OkStatus());
  }

  std::int32_t pool_used() { return engine->pool().used(); }

  Seen Run(Request request) {
    auto stream = MustSubmit(std::move(request));
    RunUntilIdle();
    Seen seen;
    Drain(*stream, seen);
    return seen;
  }

  const HarnessOptions options_;
  std::atomic<std::int64_t> now_ns_{absl::ToUnixNanos(absl::FromUnixSeconds(1'000'000))};
  Metrics own_metrics_;
  FakeRunner* runner = nullptr;
  std::shared_ptr<ModelMetrics> metrics;
  absl::Status lost;
  std::unique_ptr<Engine> engine;  // last: its thread uses what is above
};

inline Request Ask(std::vector<std::int32_t> prompt, std::uint32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.stopping.max_tokens = max_tokens;
  request.output.output_token_ids = true;
  return request;
}

inline std::vector<std::int32_t> Prompt(int size, int first = 1) {
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < size; ++i) prompt.push_back((first + i * 7) % 200);
  return prompt;
}

// What the fake model says after a prompt, computed without an engine: ids until eos (included) or
// `max_tokens`.
inline std::vector<std::int32_t> Expected(const FakeModel& model, const Request& request,
                                          std::uint32_t index, std::int32_t max_tokens) {
  SamplingParams sampling = request.sampling;
  sampling.output_index = index;
  sampling.min_tokens =
      static_cast<std::int32_t>(std::min<std::int64_t>(request.stopping.min_tokens, max_tokens));
  std::vector<std::int32_t> banned = request.stopping.stop_token_ids;
  if (!request.stopping.ignore_eos) banned.push_back(300);
  if (sampling.min_tokens == 0) banned.clear();
  std::uint64_t history = kEmptyHistory;
  for (std::int32_t token : request.prompt) history = ChainHash(history, token);
  std::vector<std::int32_t> ids;
  while (static_cast<std::int32_t>(ids.size()) < max_tokens) {
    const std::int32_t token =
        model.Next(history, sampling, static_cast<std::int32_t>(ids.size()), banned);
    ids.push_back(token);
    history = ChainHash(history, token);
    const bool may_stop = static_cast<std::int64_t>(ids.size()) > sampling.min_tokens;
    const auto& stops = request.stopping.stop_token_ids;
    if (may_stop && ((token == 300 && !request.stopping.ignore_eos) ||
                     std::find(stops.begin(), stops.end(), token) != stops.end())) {
      break;
    }
  }
  return ids;
}

// The text of ids as a client should see it: special tokens hidden, broken characters replaced.
inline std::string ExpectedText(const std::vector<std::int32_t>& ids) {
  const std::string bytes = FakeTokenizer().Decode(ids, /*skip_special=*/true);
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\xC3' && i + 1 < bytes.size() && bytes[i + 1] == '\xA9') {
      text += "\xC3\xA9";
      ++i;
    } else if (static_cast<unsigned char>(bytes[i]) >= 0x80) {
      text += "\xEF\xBF\xBD";
    } else {
      text += bytes[i];
    }
  }
  return text;
}

}  // namespace nibble
