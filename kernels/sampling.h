// Sampling: parameters and formulas shared by every backend, so that an answer is a function of
// (logits, parameters, seed, output, position) and of nothing else.
//
// Order: NaN check; + logit_bias; repetition penalty over prompt and output (divide positive
// logits, multiply negative ones), then frequency * count and presence over output; ban list while
// under min_tokens; log-softmax here gives the reported log-probabilities; greedy takes the
// smallest id of the largest logit; else / temperature, top_k, top_p (smallest prefix of the
// descending order whose mass reaches p), min_p (relative to the best), draw by inverse CDF in
// descending (logit, then ascending id) order.
#pragma once

#include <cstdint>

namespace nibble {

struct SamplingParams {
  float temperature = 1.0f;  // below kGreedyTemperature: greedy
  std::int32_t top_k = 0;    // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::uint64_t seed = 0;
  std::uint32_t output_index = 0;  // which of the n outputs
  std::int32_t top_logprobs =
      -1;  // -1: no log-probabilities; 0..20: the chosen token's and that many best
  std::int32_t min_tokens = 0;  // banned ids stay banned while fewer output tokens exist
};

inline constexpr float kGreedyTemperature =
    1e-4f;  // 1 / temperature would overflow f16 logits below
inline constexpr int kMaxTopLogprobs = 20;

constexpr bool IsGreedy(const SamplingParams& params) {
  return params.temperature < kGreedyTemperature;
}

// Uniform in [0, 1), a pure function of its keys: Philox4x32-10 (Salmon et al., SC 2011, "Parallel
// random numbers: as easy as 1, 2, 3"), counter (position, output, 0, 0), key (seed), first word,
// top 24 bits.
constexpr float UniformAt(std::uint64_t seed, std::uint32_t output, std::uint32_t position) {
  std::uint32_t c0 = position, c1 = output, c2 = 0, c3 = 0;
  auto k0 = static_cast<std::uint32_t>(seed);
  auto k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<float>(c0 >> 8) * 0x1p-24f;
}

}  // namespace nibble
