#include "kernels/cpu/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "tests/kernels/isa_test.h"
#include "tests/kernels/reference.h"

namespace nibble {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Runs SampleRow over copies of logits.
class Sampler {
 public:
  Sampler(const cpu::KernelTable& kernels, std::int32_t vocab)
      : kernels_(kernels), vocab_(vocab), scratch_(vocab), probabilities_(vocab) {}

  cpu::SampledRow Run(std::vector<float> logits, const SamplingParams& p, int position = 0) {
    return cpu::SampleRow(
        kernels_, {logits.data(), vocab_, &p, position, history.empty() ? nullptr : history.data(),
                   bias, banned, scratch_.data(), probabilities_.data()});
  }
  cpu::SampledRow Score(const std::vector<float>& logits, std::int32_t token, int top) {
    return cpu::ScoreRow(kernels_, {logits.data(), vocab_, token, top, scratch_.data()});
  }

  std::vector<std::uint16_t> history;
  std::vector<std::pair<std::int32_t, float>> bias;
  std::vector<std::int32_t> banned;

 private:
  const cpu::KernelTable& kernels_;
  std::int32_t vocab_;
  std::vector<cpu::Candidate> scratch_;
  std::vector<float> probabilities_;
};

class SamplingTest : public IsaTest {};

TEST_P(SamplingTest, DrawsTheTokenOfAFullSort) {
  std::vector<SamplingParams> all(9);
  all[1].top_k = 5;
  all[2].top_p = 0.7f;
  all[3].min_p = 0.05f;
  all[4].top_k = 100, all[4].top_p = 0.9f, all[4].min_p = 0.01f;
  all[5].temperature = 0.3f;
  all[6].temperature = 3.0f;
  all[7].temperature = 5.0f, all[7].top_p = 0.99f;
  all[8].temperature = 0.0f;
  for (const int vocab : {1, 7, 100, 5000}) {
    Sampler sampler(kernels(), vocab);
    for (std::size_t i = 0; i < all.size(); ++i) {
      for (int seed = 0; seed < 40; ++seed) {
        SamplingParams p = all[i];
        p.seed = seed;
        const auto logits = reference::Random(vocab, seed, 3.0f);
        EXPECT_EQ(sampler.Run(logits, p, seed).token, reference::Sample(logits, p, seed))
            << "vocab " << vocab << " params " << i << " seed " << seed;
      }
    }
  }
}

TEST_P(SamplingTest, TiesGoToTheSmallerId) {
  Sampler sampler(kernels(), 100);
  SamplingParams greedy;
  greedy.temperature = 0.0f;
  EXPECT_EQ(sampler.Run(std::vector<float>(100, 1.5f), greedy).token, 0);
  SamplingParams top2;
  top2.top_k = 2;
  for (int seed = 0; seed < 20; ++seed) {
    top2.seed = seed;
    EXPECT_LT(sampler.Run(std::vector<float>(100, 1.5f), top2).token, 2);
  }
}

TEST_P(SamplingTest, FrequenciesFollowTheProbabilities) {
  Sampler sampler(kernels(), 4);
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f),
                                     std::log(0.3f)};
  std::map<int, int> counts;
  for (int position = 0; position < 20000; ++position)
    ++counts[sampler.Run(logits, {}, position).token];
  EXPECT_NEAR(counts[0], 2000, 200);
  EXPECT_NEAR(counts[1], 8000, 300);
  EXPECT_NEAR(counts[2], 4000, 250);
  EXPECT_NEAR(counts[3], 6000, 300);
}

TEST_P(SamplingTest, BiasThenPenaltiesThenBansChangeTheReportedProbabilities) {
  Sampler sampler(kernels(), 5);
  sampler.bias = {{0, 2.0f}};
  sampler.history = {0, cpu::kInPrompt, 3, cpu::kInPrompt | 1, 0};
  sampler.banned = {4};
  SamplingParams p;
  p.temperature = 0.0f;
  p.repetition_penalty = 2.0f;
  p.presence_penalty = 0.5f;
  p.frequency_penalty = 0.25f;
  p.top_logprobs = 5;
  p.min_tokens = 3;
  const std::vector<float> logits = {1.0f, 4.0f, 6.0f, -1.0f, 9.0f};
  const std::vector<float> expected = {3.0f, 2.0f, 3.0f - 0.75f - 0.5f, -2.0f - 0.25f - 0.5f};
  double sum = 0;
  for (float v : expected) sum += std::exp(v);
  const auto row = sampler.Run(logits, p, 2);
  ASSERT_EQ(row.num_top, 4);  // the banned one is not listed
  EXPECT_EQ(row.token, 0);
  EXPECT_NEAR(row.logprob, 3.0 - std::log(sum), 1e-5);
  const int order[] = {0, 1, 2, 3};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(row.top[i].id, order[i]);
    EXPECT_NEAR(row.top[i].logprob, expected[order[i]] - std::log(sum), 1e-5);
  }
  EXPECT_EQ(sampler.Run(logits, p, 3).token, 4);  // min_tokens reached
}

TEST_P(SamplingTest, BadLogitsAreReportedNotLaundered) {
  for (const int vocab : {3, 1000}) {
    Sampler sampler(kernels(), vocab);
    auto logits = reference::Random(vocab, 1);
    logits[vocab - 1] = std::nanf("");
    EXPECT_TRUE(sampler.Run(logits, {}).bad_logits);
    EXPECT_TRUE(sampler.Score(logits, 0, 1).bad_logits);
    logits[vocab - 1] = kInf;
    EXPECT_TRUE(sampler.Run(logits, {}).bad_logits);
    EXPECT_TRUE(sampler.Run(std::vector<float>(vocab, -kInf), {}).bad_logits);
    SamplingParams p;
    p.min_tokens = 1;
    for (int id = 0; id < vocab; ++id) sampler.banned.push_back(id);
    EXPECT_TRUE(sampler.Run(reference::Random(vocab, 2), p).bad_logits);  // nothing left to choose
  }
}

TEST_P(SamplingTest, ScoresAreOfTheRawLogits) {
  const int vocab = 3000;
  Sampler sampler(kernels(), vocab);
  sampler.bias = {{0, 100.0f}};
  const auto logits = reference::Random(vocab, 5, 2.0f);
  double sum = 0;
  for (float v : logits) sum += std::exp(double{v});
  const auto row = sampler.Score(logits, 17, 20);
  EXPECT_EQ(row.token, 17);
  EXPECT_NEAR(row.logprob, logits[17] - std::log(sum), 1e-5);
  ASSERT_EQ(row.num_top, 20);
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (int i = 0; i < 20; ++i) EXPECT_NEAR(row.top[i].logprob, sorted[i] - std::log(sum), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, SamplingTest, testing::ValuesIn(cpu::kAllIsas), IsaName);

}  // namespace
}  // namespace nibble
