// What one step is to compute.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/engine/cost_model.h"
#include "runtime/engine/sequence.h"

namespace nibble {

// The tokens [begin, begin + count) of one sequence in a step, and its rows of logits:
// `scored_rows` that score the prompt tokens after `first_scored`, then one that samples (or only
// looks for bad logits, `checks`).
struct ScheduledSequence {
  Sequence* sequence = nullptr;
  std::int32_t begin = 0;
  std::int32_t count = 0;
  bool writes_slot = false;
  std::int32_t first_scored = 0;
  std::int32_t scored_rows = 0;
  bool samples = false;
  bool checks = false;

  std::int32_t rows() const { return scored_rows + (samples || checks ? 1 : 0); }
};

// One step: one phase, any number of sequences.
struct Batch {
  Phase phase = Phase::kDecode;
  std::uint64_t id = 0;
  StepShape shape;
  std::int32_t rows = 0;
  std::vector<ScheduledSequence> entries;
};

}  // namespace nibble
