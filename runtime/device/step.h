// What changes from step to step: the inputs of one launch and its results. Plain spans; the engine
// fills them, a Runner copies them before Launch returns.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/sampling.h"

namespace nibble {

enum class Phase : std::uint8_t { kPrefill, kDecode };

// A *slot* is the device's memory of one running sequence: its last sampled token, its token counts
// for penalties, its parameters. Written once, in the first step that names the slot after
// (re)admission.
struct SlotInit {
  std::int32_t slot = 0;
  SamplingParams sampling;
  std::span<const std::int32_t> prompt;   // for the repetition penalty
  std::span<const std::int32_t> outputs;  // tokens already generated (after a preemption)
  std::span<const std::pair<std::int32_t, float>> logit_bias;
  std::span<const std::int32_t> banned_until_min_tokens;  // stop ids
};

// A row of logits wanted from this step.
struct LogitRow {
  std::int32_t token_index = 0;  // into StepInput::tokens: the logits after that token
  std::int32_t slot = 0;
  std::int32_t output_position = 0;  // index of the output token this row samples: the random key
  bool sample = true;                // false: score only
  std::int32_t score_token =
      -1;  // >= 0: report this id's log-probability (prompt log-probabilities)
  std::int32_t top_logprobs =
      -1;  // as SamplingParams; for scored rows (raw log-softmax of the logits)
};

struct StepInput {
  Phase phase = Phase::kDecode;
  std::uint64_t id = 0;  // increasing
  // One entry a token, sequences one after the other. kFromSlot: the slot's last sampled token,
  // which the CPU may not have seen yet.
  static constexpr std::int32_t kFromSlot = -1;
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> positions;
  // One entry a sequence.
  std::span<const std::int32_t> slots;
  std::span<const std::int32_t>
      query_lengths;  // tokens of the sequence in this step; decode: 1 (speculation: more)
  std::span<const std::int32_t>
      context_lengths;  // KV tokens visible after this step's are appended
  std::span<const std::int32_t> block_table_offsets;  // [sequences + 1] into block_tables
  std::span<const std::int32_t> block_tables;         // page ids, in order of position

  std::span<const SlotInit> slot_inits;
  std::span<const LogitRow> logit_rows;
};

struct TopLogprob {
  std::int32_t token = 0;
  float logprob = 0.0f;
};

struct RowResult {
  std::int32_t token = -1;  // sampled, or the scored token
  float logprob = 0.0f;     // of `token`, when asked for
  bool bad_logits =
      false;  // NaN, or nothing left to choose: the sequence must end, `token` is meaningless
  std::vector<TopLogprob> top;  // descending
};

struct StepResult {
  std::uint64_t id = 0;
  std::vector<RowResult> rows;  // one a LogitRow, in order
  double seconds = 0.0;         // device time of the step
};

}  // namespace nibble
