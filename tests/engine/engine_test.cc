#include "runtime/engine/engine.h"

#include <limits>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_harness.h"

namespace nibble {
namespace {

using testing::HasSubstr;

// The same behaviour is asked of a device that runs a step ahead.
class EngineTest : public testing::TestWithParam<int> {
 protected:
  HarnessOptions Options() const { return SmallHarness(/*depth=*/GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Depth, EngineTest, testing::Values(0, 1),
                         [](const auto& test) { return "Depth" + std::to_string(test.param); });

TEST_P(EngineTest, AnAnswerHasAllItsEvents) {
  Harness harness(Options());
  const Request request = Ask(Prompt(10), 20);
  const Seen seen = harness.Run(request);
  EXPECT_EQ(seen.end, absl::OkStatus());
  ASSERT_TRUE(seen.started.has_value());
  EXPECT_EQ(seen.started->model, "fake");
  EXPECT_EQ(seen.started->prompt_tokens, 10);
  EXPECT_EQ(seen.started->cached_prompt_tokens, 0);
  const auto expected = Expected(harness.options_.runner.model, request, 0, 20);
  EXPECT_EQ(seen.ids.at(0), expected);
  EXPECT_EQ(seen.text.at(0), ExpectedText(expected));
  const FinishedEvent& finished = seen.finished.at(0);
  EXPECT_EQ(finished.reason, FinishReason::kLength);
  EXPECT_EQ(finished.completion_tokens, 20);
  EXPECT_GT(finished.timing.time_to_first_token, absl::ZeroDuration());
  EXPECT_GT(finished.timing.decode, absl::ZeroDuration());
  EXPECT_EQ(harness.engine->pool().used(), 0);
}

TEST_P(EngineTest, EosEndsAndIsCountedButNotShown) {
  HarnessOptions options = Options();
  options.runner.model.eos_one_in = 8;
  Harness harness(options);
  for (int i = 0; i < 20; ++i) {
    Request request = Ask(Prompt(5, i), 60);
    const auto expected = Expected(options.runner.model, request, 0, 60);
    const Seen seen = harness.Run(request);
    EXPECT_EQ(seen.ids.at(0), expected);
    EXPECT_EQ(seen.text.at(0), ExpectedText(expected));
    const FinishedEvent& finished = seen.finished.at(0);
    EXPECT_EQ(finished.completion_tokens, static_cast<std::int32_t>(expected.size()));
    if (expected.back() == 300) {
      EXPECT_EQ(finished.reason, FinishReason::kStop);
      EXPECT_EQ(finished.eos_token_id, 300);
    }
    request.output.keep_special_tokens = true;
    if (expected.back() == 300) {
      EXPECT_THAT(harness.Run(request).text.at(0), testing::EndsWith("</s>"));
    }
    request.stopping.ignore_eos = true;
    EXPECT_EQ(harness.Run(request).finished.at(0).completion_tokens, 60);
  }
}

TEST_P(EngineTest, MinTokensBanTheStops) {
  HarnessOptions options = Options();
  options.runner.model.eos_one_in = 3;
  Harness harness(options);
  for (int i = 0; i < 10; ++i) {
    Request request = Ask(Prompt(5, i), 40);
    request.stopping.min_tokens = 15;
    request.stopping.stop_token_ids = {7, 8, 9};
    const Seen seen = harness.Run(request);
    EXPECT_EQ(seen.ids.at(0), Expected(options.runner.model, request, 0, 40));
    EXPECT_GT(seen.finished.at(0).completion_tokens, 15);
  }
}

TEST_P(EngineTest, StopTokenIdsEndAndAreShown) {
  Harness harness(Options());
  Request request = Ask(Prompt(5), 60);
  const auto all = Expected(harness.options_.runner.model, request, 0, 60);
  request.stopping.stop_token_ids = {all[9]};
  const auto expected = Expected(harness.options_.runner.model, request, 0, 60);
  const Seen seen = harness.Run(request);
  EXPECT_EQ(seen.ids.at(0), expected);
  EXPECT_EQ(seen.finished.at(0).stop_token_id, all[9]);
  EXPECT_FALSE(seen.finished.at(0).eos_token_id.has_value());
}

TEST_P(EngineTest, StopStringsMatchAcrossTokensAndNeverLeak) {
  Harness harness(Options());
  Request request = Ask(Prompt(5), 60);
  const std::string all = ExpectedText(Expected(harness.options_.runner.model, request, 0, 60));
  for (std::size_t at : {1u, 10u, 33u}) {
    const std::string stop = all.substr(at, 3);
    const std::size_t first = all.find(stop);
    request.stopping.stop_strings = {"never there", stop};
    request.stopping.include_stop_string = false;
    Seen seen = harness.Run(request);
    EXPECT_EQ(seen.text[0], all.substr(0, first));
    EXPECT_EQ(seen.finished.at(0).stop_string, stop);
    EXPECT_EQ(seen.finished.at(0).reason, FinishReason::kStop);
    EXPECT_EQ(seen.finished.at(0).completion_tokens, static_cast<std::int32_t>(seen.ids[0].size()));
    request.stopping.include_stop_string = true;
    EXPECT_EQ(harness.Run(request).text[0], all.substr(0, first + 3));
  }
}

TEST_P(EngineTest, TextHeldForAStopStringIsFlushedAtTheEnd) {
  Harness harness(Options());
  Request request = Ask(Prompt(5), 12);
  const std::string all = ExpectedText(Expected(harness.options_.runner.model, request, 0, 12));
  request.stopping.stop_strings = {all.substr(all.size() - 2) + "but then something else"};
  const Seen seen = harness.Run(request);
  EXPECT_EQ(seen.text.at(0), all);
  EXPECT_EQ(seen.finished.at(0).reason, FinishReason::kLength);
}

TEST_P(EngineTest, OutputsDifferByIndexAndEachEndsOnItsOwn) {
  HarnessOptions options = Options();
  options.runner.model.eos_one_in = 12;
  Harness harness(options);
  Request request = Ask(Prompt(30), 25);
  request.sampling.temperature = 1;
  request.sampling.seed = 99;
  request.output.num_outputs = 20;  // more than there are slots
  const Seen seen = harness.Run(request);
  EXPECT_EQ(seen.end, absl::OkStatus());
  std::set<std::vector<std::int32_t>> distinct;
  for (std::uint32_t i = 0; i < 20; ++i) {
    EXPECT_EQ(seen.ids.at(i), Expected(options.runner.model, request, i, 25)) << i;
    EXPECT_EQ(seen.finished.at(i).completion_tokens,
              static_cast<std::int32_t>(seen.ids.at(i).size()));
    distinct.insert(seen.ids.at(i));
  }
  EXPECT_GT(distinct.size(), 15u);
}

TEST_P(EngineTest, TheContextEndsAnAnswer) {
  Harness harness(Options());
  Request request = Ask(Prompt(190), 0);
  request.stopping.max_tokens.reset();
  const Seen seen = harness.Run(request);
  EXPECT_EQ(seen.finished.at(0).reason, FinishReason::kContext);
  EXPECT_EQ(seen.finished.at(0).completion_tokens, 10);
  request.stopping.max_tokens = 10;
  EXPECT_EQ(harness.Run(request).finished.at(0).reason, FinishReason::kLength);
  request.stopping.max_tokens = 11;  // clamped
  EXPECT_EQ(harness.Run(request).finished.at(0).reason, FinishReason::kContext);
}

TEST_P(EngineTest, ZeroMaxTokensScoresThePrompt) {
  Harness harness(Options());
  Request request = Ask(Prompt(50), 0);
  request.output.prompt_top_logprobs = 2;
  request.output.prompt_token_ids = true;
  for (int repeat = 0; repeat < 2;
       ++repeat) {  // the second finds the prefix cached, and must not use it
    const Seen seen = harness.Run(request);
    EXPECT_EQ(seen.finished.at(0).reason, FinishReason::kLength);
    EXPECT_EQ(seen.finished.at(0).completion_tokens, 0);
    EXPECT_TRUE(seen.chunks.empty());
    EXPECT_EQ(seen.started->cached_prompt_tokens, 0);
    std::int32_t at = 0;
    std::uint64_t history = kEmptyHistory;
    for (const PromptEvent& piece : seen.prompt) {
      ASSERT_EQ(piece.offset, at);
      ASSERT_EQ(piece.token_ids.size(), piece.logprobs.size());
      for (std::size_t i = 0; i < piece.token_ids.size(); ++i, ++at) {
        EXPECT_EQ(piece.token_ids[i], request.prompt[at]);
        EXPECT_EQ(piece.logprobs[i].token, request.prompt[at]);
        if (at > 0) {
          EXPECT_EQ(piece.logprobs[i].logprob,
                    harness.options_.runner.model.Logprob(history, request.prompt[at]));
          EXPECT_EQ(piece.logprobs[i].top.size(), 2u);
        }
        history = ChainHash(history, request.prompt[at]);
      }
    }
    EXPECT_EQ(at, 50);
  }
  request.output.prompt_top_logprobs.reset();
  request.output.prompt_token_ids = false;
  const Seen plain = harness.Run(request);
  EXPECT_EQ(plain.end, absl::OkStatus());
  EXPECT_EQ(plain.finished.size(), 1u);
}

TEST_P(EngineTest, LogprobsCarryTheBytesOfTheirTokens) {
  Harness harness(Options());
  Request request = Ask(Prompt(5), 30);
  request.output.top_logprobs = 3;
  const Seen seen = harness.Run(request);
  ASSERT_EQ(seen.logprobs.at(0).size(), 30u);
  const FakeTokenizer tokenizer;
  for (std::size_t i = 0; i < 30; ++i) {
    const TokenLogprob& logprob = seen.logprobs.at(0)[i];
    EXPECT_EQ(logprob.token, seen.ids.at(0)[i]);
    EXPECT_EQ(logprob.bytes, tokenizer.TokenBytes(logprob.token));
    ASSERT_EQ(logprob.top.size(), 3u);
    EXPECT_EQ(logprob.top[2].bytes, tokenizer.TokenBytes(logprob.top[2].token));
  }
}

TEST_P(EngineTest, SlotsAreToldWhatSamplingNeeds) {
  Harness harness(Options());
  std::vector<SlotInit> inits;
  std::vector<std::pair<std::int32_t, float>> bias;
  std::vector<std::int32_t> banned;
  harness.runner->on_launch = [&](const StepInput& input) {
    for (const SlotInit& init : input.slot_inits) {
      inits.push_back(init);
      bias.assign(init.logit_bias.begin(), init.logit_bias.end());
      banned.assign(init.banned_until_min_tokens.begin(), init.banned_until_min_tokens.end());
    }
  };
  Request request = Ask(Prompt(5), 8);
  request.sampling = {.temperature = 0.5f,
                      .top_k = 7,
                      .top_p = 0.9f,
                      .min_p = 0.01f,
                      .repetition_penalty = 1.5f,
                      .presence_penalty = 0.25f,
                      .frequency_penalty = -0.5f,
                      .seed = 1234};
  request.logit_bias = {{3, 1.5f}, {4, -2.0f}};
  request.stopping.min_tokens = 3;
  request.stopping.stop_token_ids = {11};
  request.output.top_logprobs = 4;
  harness.Run(request);
  ASSERT_EQ(inits.size(), 1u);
  const SamplingParams& sampling = inits[0].sampling;
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_EQ(sampling.top_k, 7);
  EXPECT_EQ(sampling.top_p, 0.9f);
  EXPECT_EQ(sampling.min_p, 0.01f);
  EXPECT_EQ(sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(sampling.presence_penalty, 0.25f);
  EXPECT_EQ(sampling.frequency_penalty, -0.5f);
  EXPECT_EQ(sampling.seed, 1234u);
  EXPECT_EQ(sampling.top_logprobs, 4);
  EXPECT_EQ(sampling.min_tokens, 3);
  EXPECT_EQ(bias, request.logit_bias);
  EXPECT_EQ(banned, (std::vector<std::int32_t>{300, 11}));
}

TEST_P(EngineTest, FinalOnlyIsOneChunkAnOutput) {
  Harness harness(Options());
  Request request = Ask(Prompt(5), 30);
  const Seen streamed = harness.Run(request);
  request.output.final_only = true;
  request.output.num_outputs = 2;
  const Seen seen = harness.Run(request);
  EXPECT_EQ(seen.chunks.at(0), 1);
  EXPECT_EQ(seen.chunks.at(1), 1);
  EXPECT_EQ(seen.text.at(0), streamed.text.at(0));
  EXPECT_EQ(seen.ids.at(1), streamed.ids.at(0)) << "greedy: both say the same";
}

TEST_P(EngineTest, NothingIsAskedNothingIsPushed) {
  Harness harness(Options());
  Request request = Ask(Prompt(5), 30);
  request.output.output_token_ids = false;
  const Seen seen = harness.Run(request);
  EXPECT_TRUE(seen.ids.at(0).empty());
  EXPECT_TRUE(seen.logprobs.at(0).empty());
  EXPECT_EQ(seen.finished.at(0).completion_tokens, 30);
  EXPECT_EQ(harness.metrics->output_tokens->Value(), 30);
}

TEST_P(EngineTest, PromptIdsComeBackBeforeTheFirstChunk) {
  Harness harness(Options());
  Request request = Ask(Prompt(60), 5);
  request.output.prompt_token_ids = true;
  const Seen seen = harness.Run(request);
  ASSERT_EQ(seen.prompt.size(), 1u);
  EXPECT_EQ(seen.prompt[0].token_ids, request.prompt);
  EXPECT_TRUE(seen.prompt[0].logprobs.empty());
}

TEST_P(EngineTest, CachedPrefixesAreReportedAndDoNotChangeAnswers) {
  Harness harness(Options());
  Request request = Ask(Prompt(41), 12);
  const Seen first = harness.Run(request);
  const Seen second = harness.Run(request);
  EXPECT_EQ(first.started->cached_prompt_tokens, 0);
  EXPECT_EQ(second.started->cached_prompt_tokens, 40);
  EXPECT_EQ(second.ids, first.ids);
  request.cache_salt = "mine";
  const Seen salted = harness.Run(request);
  EXPECT_EQ(salted.started->cached_prompt_tokens, 0);
  EXPECT_EQ(salted.ids, first.ids);
  EXPECT_EQ(harness.Run(request).started->cached_prompt_tokens, 40);
  // The answer itself is a prefix, too, as far as it was fed back: 41 + 11 tokens, 13 blocks.
  Request longer = Ask(request.prompt, 3);
  longer.prompt.insert(longer.prompt.end(), first.ids.at(0).begin(), first.ids.at(0).end());
  EXPECT_EQ(harness.Run(longer).started->cached_prompt_tokens, 52);
}

TEST_P(EngineTest, BadLogitsEndOneRequestAndAreNeverCached) {
  HarnessOptions options = Options();
  options.runner.model.poison = 250;
  Harness harness(options);
  Request bad = Ask(Prompt(40), 10);
  bad.prompt[20] = 250;
  const Request good = Ask(Prompt(40, 3), 30);
  auto good_stream = harness.MustSubmit(good);
  auto bad_stream = harness.MustSubmit(bad);
  harness.RunUntilIdle();
  Seen good_seen, bad_seen;
  Drain(*good_stream, good_seen);
  Drain(*bad_stream, bad_seen);
  EXPECT_EQ(good_seen.ids.at(0), Expected(options.runner.model, good, 0, 30));
  EXPECT_EQ(good_seen.end, absl::OkStatus());
  EXPECT_EQ(bad_seen.end->code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ReasonOf(*bad_seen.end), "NAN_LOGITS");
  EXPECT_TRUE(bad_seen.chunks.empty());
  EXPECT_EQ(harness.pool_used(), 0);
  EXPECT_EQ(harness.metrics->vllm_corrupted_requests->Value(), 1);
  // The clean part of the same prompt was not kept either: its numbers were never vouched for.
  Request prefix = Ask(std::vector<std::int32_t>(bad.prompt.begin(), bad.prompt.begin() + 20), 4);
  EXPECT_EQ(harness.Run(prefix).started->cached_prompt_tokens, 0);
}

TEST_P(EngineTest, ASlowReaderIsAbortedAndOthersAreNot) {
  Harness harness(Options());
  Request request = Ask(Prompt(10), 100);
  auto slow = harness.MustSubmit(request, /*max_bytes=*/600);
  auto quick = harness.MustSubmit(request);
  harness.RunUntilIdle();
  Seen slow_seen, quick_seen;
  Drain(*slow, slow_seen);
  Drain(*quick, quick_seen);
  EXPECT_EQ(slow_seen.end->code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(*slow_seen.end), "SLOW_CONSUMER");
  EXPECT_GT(slow_seen.tokens(), 0);
  EXPECT_LT(slow_seen.tokens(), 12);
  EXPECT_EQ(quick_seen.tokens(), 100);
  EXPECT_EQ(harness.metrics->output_tokens->Value(), static_cast<double>(100 + slow_seen.tokens()));
  EXPECT_EQ(harness.pool_used(), 0);
}

TEST_P(EngineTest, AFinalOnlyAnswerLargerThanTheStreamArrivesWhole) {
  Harness harness(Options());
  Request request = Ask(Prompt(10), 100);
  request.output.final_only = true;
  auto stream = harness.MustSubmit(request, /*max_bytes=*/64);
  harness.RunUntilIdle();
  Seen seen;
  Drain(*stream, seen);
  EXPECT_EQ(seen.end, absl::OkStatus());
  EXPECT_EQ(seen.tokens(), 100);
}

TEST_P(EngineTest, CancelWorksAtEveryStep) {
  HarnessOptions options = Options();
  const Request victim = Ask(Prompt(100), 30);
  const Request canary = Ask(Prompt(23, 5), 50);
  for (int turns = 0; turns < 40; ++turns) {
    Harness harness(options);
    auto other = harness.MustSubmit(canary);
    auto stream = harness.MustSubmit(victim);
    for (int i = 0; i < turns; ++i) harness.engine->Turn();
    stream->Cancel();
    harness.engine->Turn();
    harness.Check();
    Seen seen;
    Drain(*stream, seen);
    if (seen.finished.empty()) {
      ASSERT_EQ(seen.end->code(), absl::StatusCode::kCancelled) << turns;
    }
    if (GetParam() == 1) harness.engine->Turn();  // the step that was in flight
    // Only the canary holds blocks now.
    EXPECT_LE(harness.pool_used(), harness.engine->pool().BlocksFor(23 + 50));
    harness.RunUntilIdle();
    Seen other_seen;
    Drain(*other, other_seen);
    EXPECT_EQ(other_seen.ids.at(0), Expected(options.runner.model, canary, 0, 50)) << turns;
    EXPECT_EQ(harness.pool_used(), 0);
    EXPECT_EQ(harness.metrics->requests_running->Value(), 0);
    EXPECT_EQ(harness.metrics->requests_waiting->Value(), 0);
  }
}

TEST_P(EngineTest, CancelBeforeTheEngineLooksLeavesNoTrace) {
  Harness harness(Options());
  auto stream = std::make_shared<TokenStream>(1 << 20);
  stream->Cancel();
  ASSERT_EQ(harness.Submit(Ask(Prompt(5), 5), stream), absl::OkStatus());
  harness.RunUntilIdle();
  Seen seen;
  Drain(*stream, seen);
  EXPECT_FALSE(seen.started.has_value());
  EXPECT_EQ(seen.end->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(harness.runner->launches(), 0);
}

TEST_P(EngineTest, DeadlinesHoldInTheQueueAndWhileDecoding) {
  Harness harness(Options());
  Request request = Ask(Prompt(10), 100);
  request.deadline = harness.now() - absl::Seconds(1);
  Seen passed = harness.Run(request);
  EXPECT_EQ(passed.end->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(passed.started.has_value());
  EXPECT_EQ(harness.runner->launches(), 0);

  request.deadline = harness.now() + absl::Milliseconds(30);
  Seen cut = harness.Run(request);
  EXPECT_EQ(cut.end->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(*cut.end), "DEADLINE");
  EXPECT_GT(cut.tokens(), 5);
  EXPECT_LT(cut.tokens(), 60);

  request.deadline = harness.now() + absl::Hours(24 * 365 * 10);
  EXPECT_EQ(harness.Run(request).end, absl::OkStatus());
}

TEST_P(EngineTest, MaxDurationIsAnOrderlyEnd) {
  Harness harness(Options());
  Request request = Ask(Prompt(10), 150);
  request.stopping.max_duration = absl::Milliseconds(40);
  request.stopping.stop_strings = {"zzzzzzzz"};
  request.output.num_outputs = 3;
  Seen seen = harness.Run(request);
  EXPECT_EQ(seen.end, absl::OkStatus());
  ASSERT_EQ(seen.finished.size(), 3u);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(seen.finished.at(i).reason, FinishReason::kTimeLimit);
    EXPECT_EQ(seen.text[i], ExpectedText(seen.ids[i])) << "held text was flushed";
    EXPECT_EQ(seen.finished.at(i).completion_tokens, static_cast<std::int32_t>(seen.ids[i].size()));
  }
  EXPECT_GT(seen.ids[0].size(), 5u);
  // Over before it came out of the queue.
  request.stopping.max_duration = absl::ZeroDuration();
  seen = harness.Run(request);
  EXPECT_TRUE(seen.started.has_value());
  EXPECT_EQ(seen.end, absl::OkStatus());
  EXPECT_EQ(seen.finished.at(2).completion_tokens, 0);
}

TEST_P(EngineTest, WhatCanNeverRunIsRefusedAtOnce) {
  Harness harness(Options());
  const auto refuse = [&](const Request& request) {
    auto stream = std::make_shared<TokenStream>(1 << 20);
    const absl::Status status = harness.Submit(request, stream);
    EXPECT_FALSE(status.ok());
    return status;
  };
  EXPECT_EQ(refuse(Ask({}, 5)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refuse(Ask({1, 310}, 5)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refuse(Ask({1, -1}, 5)).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status context = refuse(Ask(Prompt(200), 5));
  EXPECT_EQ(ReasonOf(context), "CONTEXT_EXCEEDED");
  EXPECT_THAT(std::string(context.message()), HasSubstr("200"));
  Request many = Ask(Prompt(5), 5);
  many.output.num_outputs = 1'000'000;
  EXPECT_EQ(refuse(many).code(), absl::StatusCode::kInvalidArgument);

  HarnessOptions tight = Options();
  tight.runner.num_pages = 10;  // 40 tokens
  Harness small(tight);
  auto stream = std::make_shared<TokenStream>(1 << 20);
  const absl::Status pool = small.Submit(Ask(Prompt(20), 22), stream);
  EXPECT_EQ(pool.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(pool), "EXCEEDS_KV_POOL");
  EXPECT_THAT(std::string(pool.message()), HasSubstr("holds 40"));
  EXPECT_EQ(small.Run(Ask(Prompt(20), 21)).tokens(), 21) << "the last token needs no place";
  Request open = Ask(Prompt(20), 0);
  open.stopping.max_tokens.reset();
  const Seen seen = small.Run(open);
  EXPECT_EQ(seen.finished.at(0).reason, FinishReason::kContext);
  EXPECT_EQ(seen.tokens(), 21);
}

TEST_P(EngineTest, NumbersThatADeviceWouldRefuseStopAtTheDoor) {
  Harness harness(Options());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<Request> bad;
  for (float value : {nan, infinity, -infinity, -1.0f}) {
    for (float SamplingParams::* field :
         {&SamplingParams::temperature, &SamplingParams::top_p, &SamplingParams::min_p,
          &SamplingParams::repetition_penalty}) {
      bad.push_back(Ask({1}, 1));
      bad.back().sampling.*field = value;
    }
    if (value == -1.0f) continue;
    for (float SamplingParams::* field :
         {&SamplingParams::presence_penalty, &SamplingParams::frequency_penalty}) {
      bad.push_back(Ask({1}, 1));
      bad.back().sampling.*field = value;
    }
    if (value == -infinity) continue;
    bad.push_back(Ask({1}, 1));
    bad.back().logit_bias = {{1, value}};
  }
  bad.push_back(Ask({1}, 1));
  bad.back().logit_bias = {{310, 1.0f}};
  bad.push_back(Ask({1}, 1));
  bad.back().stopping.stop_token_ids = {-1};
  bad.push_back(Ask({1}, 1));
  bad.back().stopping.stop_strings = {"a", ""};
  bad.push_back(Ask({1}, 1));
  bad.back().output.top_logprobs = 21;
  bad.push_back(Ask({1}, 1));
  bad.back().output.prompt_top_logprobs = 1000;
  for (std::size_t i = 0; i < bad.size(); ++i) {
    const absl::Status status = harness.Submit(bad[i], std::make_shared<TokenStream>(1000));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << i;
    EXPECT_EQ(ReasonOf(status), "INVALID_FIELD") << i;
  }
  harness.RunUntilIdle();
  EXPECT_EQ(harness.runner->launches(), 0);
  EXPECT_EQ(harness.metrics->requests_waiting->Value(), 0);
}

TEST_P(EngineTest, AFullQueueRefusesWithARetry) {
  HarnessOptions options = Options();
  options.max_queue = 2;
  Harness harness(options);
  auto first = harness.MustSubmit(Ask(Prompt(5), 5));
  auto second = harness.MustSubmit(Ask(Prompt(5), 5));
  auto third = std::make_shared<TokenStream>(1 << 20);
  const absl::Status full = harness.Submit(Ask(Prompt(5), 5), third);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), "QUEUE_FULL");
  EXPECT_TRUE(RetryOf(full).has_value());
  harness.RunUntilIdle();
  EXPECT_EQ(harness.Submit(Ask(Prompt(5), 5), third), absl::OkStatus());
  harness.RunUntilIdle();
}

TEST_P(EngineTest, PreemptedAnswersAreTheSame) {
  HarnessOptions options = Options();
  options.runner.num_pages = 24;  // 96 tokens for eight that want 65
  Harness harness(options);
  // Short answers first: it expects more of them.
  for (int i = 0; i < 60; ++i) harness.Run(Ask({1, 2, i}, 1));
  std::vector<std::shared_ptr<TokenStream>> streams;
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(Ask(Prompt(15 + i, i), 50));
    requests.back().output.top_logprobs = 1;
    if (i % 2) requests.back().output.prompt_top_logprobs = 0;
    streams.push_back(harness.MustSubmit(requests.back()));
  }
  harness.RunUntilIdle();
  std::int64_t recomputed = 0;
  for (int i = 0; i < 8; ++i) {
    Seen seen;
    Drain(*streams[i], seen);
    EXPECT_EQ(seen.end, absl::OkStatus());
    EXPECT_EQ(seen.ids.at(0), Expected(options.runner.model, requests[i], 0, 50)) << i;
    std::size_t scored = 0;
    for (const PromptEvent& piece : seen.prompt) scored += piece.logprobs.size();
    EXPECT_EQ(scored, i % 2 ? requests[i].prompt.size() : 0);
    recomputed += seen.finished.at(0).recomputed_tokens;
  }
  EXPECT_GT(harness.metrics->preemptions->Value(), 0);
  EXPECT_EQ(harness.metrics->recomputed_tokens->Value(), static_cast<double>(recomputed));
  EXPECT_GT(recomputed, 0);
  EXPECT_EQ(harness.pool_used(), 0);
}

TEST_P(EngineTest, ALostDeviceEndsEverythingTruthfully) {
  for (bool at_launch : {true, false}) {
    SCOPED_TRACE(at_launch);
    Harness harness(Options());
    (at_launch ? harness.runner->fail_launch_at : harness.runner->fail_collect_at) = 8;
    auto running = harness.MustSubmit(Ask(Prompt(10), 50));
    for (int i = 0; i < 5; ++i) harness.engine->Turn();
    auto fresh = harness.MustSubmit(Ask(Prompt(180, 3), 10));
    harness.RunUntilIdle();
    Seen running_seen, fresh_seen;
    Drain(*running, running_seen);
    Drain(*fresh, fresh_seen);
    EXPECT_EQ(running_seen.end->code(), absl::StatusCode::kInternal);
    EXPECT_EQ(ReasonOf(*running_seen.end), "DEVICE_FAULT");
    EXPECT_FALSE(RetryOf(*running_seen.end).has_value());
    EXPECT_TRUE(fresh_seen.chunks.empty());
    EXPECT_EQ(fresh_seen.end->code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(ReasonOf(*fresh_seen.end), "DEVICE_FAULT");
    EXPECT_TRUE(RetryOf(*fresh_seen.end).has_value());
    EXPECT_FALSE(harness.lost.ok());
    auto late = std::make_shared<TokenStream>(1 << 20);
    EXPECT_EQ(harness.Submit(Ask(Prompt(5), 5), late).code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(harness.metrics->requests_running->Value(), 0);
    harness.engine->Turn();
    EXPECT_TRUE(harness.engine->finished());
  }
}

TEST_P(EngineTest, ClosedItFinishesWhatItHas) {
  Harness harness(Options());
  auto stream = harness.MustSubmit(Ask(Prompt(10), 20));
  harness.engine->Turn();
  auto queued = harness.MustSubmit(Ask(Prompt(10), 20));
  harness.engine->Close(WithReason(absl::UnavailableError("draining"), "DRAINING"));
  auto late = std::make_shared<TokenStream>(1 << 20);
  const absl::Status refused = harness.Submit(Ask(Prompt(5), 5), late);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(refused), "DRAINING");
  harness.RunUntilIdle();
  EXPECT_TRUE(harness.engine->finished());
  for (auto& each : {stream, queued}) {
    Seen seen;
    Drain(*each, seen);
    EXPECT_EQ(seen.end, absl::OkStatus());
    EXPECT_EQ(seen.tokens(), 20);
  }
}

TEST_P(EngineTest, AbortEndsEverythingWithinAStep) {
  Harness harness(Options());
  auto stream = harness.MustSubmit(Ask(Prompt(10), 100));
  for (int i = 0; i < 6; ++i) harness.engine->Turn();
  harness.engine->Abort(absl::UnavailableError("too late"));
  harness.RunUntilIdle();
  EXPECT_TRUE(harness.engine->finished());
  Seen seen;
  Drain(*stream, seen);
  EXPECT_EQ(seen.end, absl::UnavailableError("too late"));
  EXPECT_EQ(harness.pool_used(), 0);
}

}  // namespace
}  // namespace nibble
