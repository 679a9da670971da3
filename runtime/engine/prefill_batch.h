// The prefill phase of a step: which prompts go on in it, and how far. Pure arithmetic.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/device/backend.h"
#include "runtime/engine/batch.h"
#include "runtime/engine/cost_model.h"

namespace nibble {

struct PrefillBounds {
  StepLimits limits;
  std::int32_t fixed_chunk = 0;  // > 0: prompts advance in chunks that end at its multiples
  double seconds = 0.0;          // the step may take, as the cost model bounds it
};

// Makes `batch`, which is empty, a prefill step of the prompts that `running` (the most senior
// first) have still to compute, and moves their sequences on. The most senior of them always
// goes on by some tokens, whatever the time. False: no prompt is left.
bool FillPrefill(const PrefillBounds& bounds, const CostModel& cost,
                 std::span<Sequence* const> running, Batch* batch);

}  // namespace nibble
