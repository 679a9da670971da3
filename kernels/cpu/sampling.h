// Sampling and scoring one row of logits, in the order kernels/sampling.h documents.
//
// Probabilities are integers, floor(2^40 e^((logit - max) / temperature)): their sums are exact and
// do not depend on the order of addition, so partial selection gives the very token that a full
// sort would.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "kernels/cpu/kernel_table.h"
#include "kernels/sampling.h"

namespace nibble::cpu {

struct Candidate {
  std::uint64_t mass;
  float logit;
  std::int32_t id;
};

// A token's history in one sequence: how often it was generated, and whether the prompt holds it.
inline constexpr std::uint16_t kInPrompt = 0x8000;
inline constexpr std::uint16_t kCountMask = 0x7fff;  // saturates

struct RowToSample {
  float* logits;  // [vocab]; overwritten
  std::int32_t vocab;
  const SamplingParams* params;
  std::int32_t output_position;
  const std::uint16_t* history;  // [vocab]; null: no penalties
  std::span<const std::pair<std::int32_t, float>> logit_bias;
  std::span<const std::int32_t> banned;  // while output_position < min_tokens
  Candidate* scratch;                    // [vocab]
  float* probabilities;                  // [vocab]
};

struct RowToScore {
  const float* logits;
  std::int32_t vocab;
  std::int32_t token;         // -1: none
  std::int32_t top_logprobs;  // -1: none
  Candidate* scratch;         // [vocab]
};

struct TopToken {
  std::int32_t id;
  float logprob;
};

struct SampledRow {
  std::int32_t token = -1;
  float logprob = 0.0f;
  bool bad_logits = false;  // NaN or +inf, or nothing left to choose
  std::int32_t num_top = 0;
  TopToken top[kMaxTopLogprobs] = {};
};

SampledRow SampleRow(const KernelTable& kernels, const RowToSample& row);
SampledRow ScoreRow(const KernelTable& kernels, const RowToScore& row);

constexpr bool HasPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace nibble::cpu
