// The memory plan of a model on a device: pure arithmetic over headers, exact, made before a byte
// is allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/kv_layout.h"
#include "runtime/base/json.h"
#include "runtime/device/backend.h"
#include "runtime/model/config.h"
#include "runtime/weights/format.h"

namespace nibble {

// --prefill-weights: what steps of many tokens multiply by. kExpanded keeps a copy in 16 bits
// beside the packed weights, kAuto where the KV pool still gets most of what it would get without.
enum class PrefillWeights : std::uint8_t { kAuto, kPacked, kExpanded };
inline constexpr double kLeastKvShare = 0.85;  // that is most of it: the copy takes up to a tenth
                                               // off a prompt's time

struct PlanOptions {
  std::optional<std::int64_t> memory_bytes;  // --memory resolved; the device's 90% when unset
  // --kv-memory. Unset: what is left, but no more than max_batch sequences of max_context can use,
  // and on a host, whose memory is not ours alone, no more than 1 GiB and a quarter of the budget.
  std::optional<std::int64_t> kv_bytes;
  std::optional<DType> kv_dtype;            // --kv-dtype
  std::optional<std::int32_t> max_context;  // --max-context; unset: the model's
  std::optional<std::int32_t> max_batch;    // --max-batch; unset: 64 on a host, 256 on a card
  Compute compute = Compute::kAuto;
  PrefillWeights prefill_weights = PrefillWeights::kAuto;
  bool deterministic = false;  // --deterministic; then kAuto is kPacked
  std::int32_t page_tokens = 64;
};

struct MemoryPlan {
  std::int64_t weights_bytes = 0;
  std::int64_t expanded_bytes = 0;  // 0: prompts multiply by packed weights, like all else
  std::int64_t kv_bytes = 0;
  std::int64_t workspace_bytes = 0;
  std::int64_t graphs_bytes = 0;
  std::int64_t other_bytes = 0;  // tokenizer, tables, library handles, headroom
  // Of other_bytes, what all models of a device have in common: a card's context and libraries.
  std::int64_t shared_bytes = 0;
  std::int64_t budget_bytes = 0;
  std::int64_t fixed_bytes() const {  // all but the KV pool
    return weights_bytes + expanded_bytes + workspace_bytes + graphs_bytes + other_bytes;
  }
  std::int64_t total_bytes() const { return fixed_bytes() + kv_bytes; }
  std::int64_t own_bytes() const { return total_bytes() - shared_bytes; }

  KvLayout kv;
  StepLimits limits;
  std::int64_t kv_bytes_per_token = 0;
  std::int64_t kv_tokens = 0;  // that the pool holds
  double balance_batch = 0;  // sequences at which streaming weights and arithmetic take equal time
  double bits_per_weight = 0;
  std::int64_t parameters = 0;
  bool deterministic = false;  // CompileOptions::deterministic
};

// ResourceExhausted when not even one sequence of one page fits: names the sizes and the flag to
// change. Unimplemented and InvalidArgument: an expanded copy was asked for that the backend or
// --deterministic does not go with.
absl::StatusOr<MemoryPlan> PlanMemory(const ModelConfig& config, const Checkpoint& checkpoint,
                                      const WeightFormat& format, const Backend& backend,
                                      const PlanOptions& options);

Json ToJson(const MemoryPlan& plan);

// Textbook figures, also used by the plan.
constexpr std::int64_t KvBytesPerToken(std::int64_t layers, std::int64_t kv_dim,
                                       std::int64_t element_bytes) {
  return 2 * layers * kv_dim * element_bytes;
}
// FLOPS / (2 * bandwidth) for 16-bit weights, times bits / 16.
constexpr double BalanceBatch(double flops, double bandwidth, double bits_per_weight) {
  return flops / (2.0 * bandwidth) * (bits_per_weight / 16.0);
}

}  // namespace nibble
