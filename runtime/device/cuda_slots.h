// The slots of running sequences on a GPU: parameters, lists, last tokens and token counts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/model_ops.h"
#include "runtime/device/backend.h"
#include "runtime/device/cuda_raii.h"
#include "runtime/device/step.h"

namespace nibble {

// One thread calls it. The constructor only reserves device memory; Bind gives it.
class CudaSlots {
 public:
  // Most biased and banned ids of a slot; what requests may ask for is checked before.
  static constexpr int kMaxBias = 1024, kMaxBanned = 1024;
  static constexpr int kSets = 2;  // of host memory: steps in flight

  CudaSlots(std::int32_t vocab, const StepLimits& limits, CudaLayout& layout);
  absl::Status Bind(const CudaMemory& memory, cudaStream_t stream);

  // Launches what the new sequences of a step tell their slots. The host memory of `set` must be
  // free: the step that used it last was collected. InvalidArgument: lists too long.
  absl::Status Begin(std::span<const SlotInit> inits, int set, cudaStream_t stream);

  const SamplingParams* params() const { return args_.params; }
  const cuda::SlotLists* lists() const { return args_.lists; }
  std::uint16_t* history() const { return args_.history; }
  std::int32_t* last_tokens() const { return args_.last_tokens; }
  std::int64_t pinned_bytes() const { return pinned_.size(); }

 private:
  // What one launch carries; more needs a second launch, after the first has been copied.
  static constexpr int kUpdates = 64;
  static constexpr std::int64_t kData = 1 << 17;  // ids
  static constexpr std::int64_t kSetBytes =
      kUpdates * std::int64_t{sizeof(cuda::SlotUpdate)} + kData * 4;

  absl::Status Flush(int set, cudaStream_t stream, bool wait);
  std::int32_t Append(int set, std::span<const std::int32_t> ids);
  cuda::SlotUpdate* updates(int set) const { return pinned_.At<cuda::SlotUpdate>(set * kSetBytes); }
  std::int32_t* data(int set) const {
    return pinned_.At<std::int32_t>(set * kSetBytes +
                                    kUpdates * std::int64_t{sizeof(cuda::SlotUpdate)});
  }

  const std::int32_t slots_;
  cuda::SlotArgs args_;
  std::int64_t params_at_, lists_at_, last_tokens_at_, history_at_, bias_ids_at_, bias_values_at_,
      banned_at_, staged_at_;
  std::byte* staged_ = nullptr;  // device mirror of a set
  CudaMemory pinned_;            // [kSets][kSetBytes]
  int count_ = 0;                // updates staged
  std::int64_t used_ = 0;        // ids staged
};

}  // namespace nibble
