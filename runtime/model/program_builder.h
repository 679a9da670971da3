// From a configuration to the forward pass as data, and the weights it names.
#pragma once

#include "absl/status/statusor.h"
#include "runtime/device/program.h"
#include "runtime/model/config.h"
#include "runtime/model/weight_plan.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/format.h"

namespace nibble {

struct BuiltProgram {
  Program program;
  WeightPlan weights;
};

// Reads no tensor data: the checkpoint and the format tell only which of several spellings is
// there. Rotary tables are for sequences of at most `max_context`. Errors name tensors that are
// missing.
absl::StatusOr<BuiltProgram> BuildProgram(const ModelConfig& config, const Checkpoint& checkpoint,
                                          const WeightFormat& format, std::int64_t max_context);

}  // namespace nibble
