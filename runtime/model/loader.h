// From a checkpoint to a Runner: reads, packs, builds the program, compiles.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/device/backend.h"
#include "runtime/model/config.h"
#include "runtime/model/plan.h"
#include "runtime/weights/format.h"

namespace nibble {

// Stage is "weights" or "compile"; called from loading threads, seldom, and must be quick.
// Returning false cancels: the load ends with Cancelled and gives everything back.
using LoadProgress =
    std::function<bool(const char* stage, std::int64_t done_bytes, std::int64_t total_bytes)>;

// Blocks for the time of the load; reads with several threads. Errors name the tensor.
absl::StatusOr<std::unique_ptr<Runner>> LoadRunner(const ModelConfig& config,
                                                   const Checkpoint& checkpoint,
                                                   const WeightFormat& format,
                                                   const MemoryPlan& plan, Backend& backend,
                                                   const LoadProgress& progress);

}  // namespace nibble
