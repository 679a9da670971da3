// Every moment at which something can end, and many requests at once.
#include <algorithm>
#include <map>
#include <random>

#include "gtest/gtest.h"
#include "tests/engine/engine_harness.h"

namespace nibble {
namespace {

class EngineStormTest : public testing::TestWithParam<int> {
 protected:
  HarnessOptions Options() const { return SmallHarness(/*depth=*/GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Depth, EngineStormTest, testing::Values(0, 1),
                         [](const auto& test) { return "Depth" + std::to_string(test.param); });

TEST_P(EngineStormTest, StopWorksAtEveryToken) {
  Harness harness(Options());
  const Request canary = Ask(Prompt(9, 4), 40);
  for (std::int32_t at = 0; at < 30; ++at) {
    Request request = Ask(Prompt(20, at), 35);
    request.stopping.stop_token_ids = {
        Expected(harness.options_.runner.model, request, 0, 35)[static_cast<std::size_t>(at)]};
    auto stream = harness.MustSubmit(request);
    auto other = harness.MustSubmit(canary);
    harness.RunUntilIdle();
    Seen seen, other_seen;
    Drain(*stream, seen);
    Drain(*other, other_seen);
    EXPECT_EQ(seen.ids.at(0), Expected(harness.options_.runner.model, request, 0, 35)) << at;
    EXPECT_EQ(other_seen.ids.at(0), Expected(harness.options_.runner.model, canary, 0, 40)) << at;
  }
}

// A pool of every size preempts at every moment, once it has learnt to expect short answers.
TEST_P(EngineStormTest, PreemptionWorksAtEveryMoment) {
  double preemptions = 0;
  for (std::int32_t pages = 14; pages < 50; ++pages) {
    HarnessOptions options = Options();
    options.runner.num_pages = pages;
    Harness harness(options);
    for (int i = 0; i < 60; ++i) harness.Run(Ask({1, 2, i}, 1));
    std::vector<Request> requests;
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < 5; ++i) {
      requests.push_back(Ask(Prompt(3 + 2 * i, i), static_cast<std::uint32_t>(44 - i)));
      requests.back().output.num_outputs = i == 2 ? 2 : 1;
      streams.push_back(harness.MustSubmit(requests.back()));
    }
    harness.RunUntilIdle();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      Seen seen;
      Drain(*streams[i], seen);
      ASSERT_EQ(seen.end, absl::OkStatus());
      for (const auto& [index, ids] : seen.ids) {
        EXPECT_EQ(ids, Expected(options.runner.model, requests[i], index, 44 - static_cast<int>(i)))
            << pages;
      }
    }
    preemptions += harness.metrics->preemptions->Value();
    EXPECT_EQ(harness.pool_used(), 0);
  }
  EXPECT_GT(preemptions, 30);
}

// Random requests with every option, at both depths, against the reference; the counters are
// compared with what the clients counted.
TEST_P(EngineStormTest, AStormAnswersEverybodyRightAndCountsExactly) {
  HarnessOptions options = Options();
  options.runner.num_pages = 70;
  options.runner.model.eos_one_in = 40;
  options.runner.model.poison = 250;
  options.max_queue = 1000;
  Harness harness(options);
  std::mt19937 random(23);
  struct Live {
    Request request;
    std::shared_ptr<TokenStream> stream;
    Seen seen;
    bool cancelled = false;
  };
  std::vector<Live> lives;
  for (int i = 0; i < 600; ++i) {
    Request request =
        Ask(Prompt(1 + static_cast<int>(random() % 90), static_cast<int>(random() % 5)),
            static_cast<std::uint32_t>(random() % 60));
    request.sampling.temperature = random() % 2 ? 1.0f : 0.0f;
    request.sampling.seed = random() % 3;
    if (random() % 12 == 0) request.prompt[random() % request.prompt.size()] = 250;
    if (random() % 5 == 0) request.output.num_outputs = 1 + random() % 6;
    if (random() % 5 == 0) request.output.prompt_top_logprobs = random() % 3;
    if (random() % 4 == 0) request.output.top_logprobs = random() % 3;
    if (random() % 6 == 0) request.output.final_only = true;
    if (random() % 4 == 0) request.stopping.stop_strings = {"ab", "m n"};
    if (random() % 5 == 0) request.stopping.min_tokens = random() % 10;
    if (random() % 9 == 0) request.cache_salt = "s";
    if (random() % 12 == 0) request.deadline = harness.now() + absl::Milliseconds(random() % 300);
    request.priority = static_cast<std::int32_t>(random() % 3);
    request.tenant = std::string(1, static_cast<char>('a' + random() % 3));
    auto stream = harness.MustSubmit(request, random() % 20 == 0 ? 300 : 1 << 20);
    lives.push_back({std::move(request), std::move(stream), {}, false});
    for (std::size_t turns = random() % 12; turns > 0; --turns) harness.engine->Turn();
    harness.Check();
    if (random() % 10 == 0) {
      Live& live = lives[random() % lives.size()];
      live.stream->Cancel();
      live.cancelled = true;
    }
    if (random() % 2 == 0) {
      Live& reader = lives[random() % lives.size()];
      Drain(*reader.stream, reader.seen);
    }
    ASSERT_FALSE(HasFailure());
  }
  harness.RunUntilIdle();
  EXPECT_EQ(harness.pool_used(), 0);

  std::int64_t output_tokens = 0, prompt_tokens = 0, cached_tokens = 0, recomputed = 0;
  std::map<std::pair<absl::StatusCode, std::string>, int> ends;
  for (Live& live : lives) {
    Drain(*live.stream, live.seen);
    const Seen& seen = live.seen;
    ASSERT_TRUE(seen.end.has_value());
    ++ends[{seen.end->code(), ReasonOf(*seen.end)}];
    if (seen.started.has_value()) {
      prompt_tokens += seen.started->prompt_tokens;
      cached_tokens += seen.started->cached_prompt_tokens;
    }
    const bool poisoned =
        std::count(live.request.prompt.begin(), live.request.prompt.end(), 250) > 0;
    if (seen.end->ok()) {
      EXPECT_FALSE(poisoned);
      EXPECT_EQ(seen.finished.size(), live.request.output.num_outputs);
    }
    for (std::uint32_t index = 0; index < live.request.output.num_outputs; ++index) {
      const auto ids = seen.ids.count(index) ? seen.ids.at(index) : std::vector<std::int32_t>();
      const std::string text = seen.text.count(index) ? seen.text.at(index) : "";
      const auto expected = Expected(options.runner.model, live.request, index,
                                     static_cast<std::int32_t>(*live.request.stopping.max_tokens));
      ASSERT_LE(ids.size(), expected.size());
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin()));
      const auto finished = seen.finished.find(index);
      output_tokens += static_cast<std::int64_t>(ids.size());
      if (finished == seen.finished.end()) continue;
      EXPECT_EQ(finished->second.completion_tokens, static_cast<std::int32_t>(ids.size()));
      recomputed += finished->second.recomputed_tokens;
      if (finished->second.stop_string.has_value()) {
        for (const std::string& stop : live.request.stopping.stop_strings) {
          const auto since = static_cast<std::size_t>(live.request.stopping.min_tokens);
          EXPECT_EQ(text.find(stop, 2 * since), std::string::npos);
        }
      } else {
        EXPECT_EQ(ids.size(), expected.size());
        EXPECT_EQ(text, ExpectedText(ids));
      }
    }
  }
  const ModelMetrics& metrics = *harness.metrics;
  EXPECT_EQ(metrics.output_tokens->Value(), static_cast<double>(output_tokens));
  EXPECT_EQ(metrics.vllm_generation_tokens->Value(), static_cast<double>(output_tokens));
  EXPECT_EQ(metrics.prompt_cached->Value(), static_cast<double>(cached_tokens));
  EXPECT_EQ(metrics.prompt_computed->Value(), static_cast<double>(prompt_tokens - cached_tokens));
  EXPECT_GE(metrics.recomputed_tokens->Value(), static_cast<double>(recomputed));
  EXPECT_EQ(metrics.requests_running->Value(), 0);
  EXPECT_EQ(metrics.requests_waiting->Value(), 0);
  EXPECT_EQ(metrics.kv_used->Value(), 0);
  int counted = 0;
  for (const auto& [outcome, count] : ends) {
    EXPECT_EQ(metrics.requests.Value(outcome.first, outcome.second), count) << outcome.second;
    counted += count;
  }
  EXPECT_EQ(counted, 600);
  EXPECT_GE(ends.size(), 5u) << "the storm should meet every kind of end";
}

}  // namespace
}  // namespace nibble
