// The CPU's Runner: a step runs inside Launch, so nothing is ever in flight beside it.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "runtime/device/backend.h"
#include "runtime/device/cpu_executor.h"
#include "runtime/device/cpu_sampler.h"
#include "runtime/device/host_memory.h"
#include "runtime/device/step_check.h"

namespace nibble {

// Owns weights, KV pool and workspace. One thread (the engine's) calls it. `context` must outlive
// it.
class CpuRunner final : public Runner {
 public:
  static absl::StatusOr<std::unique_ptr<CpuRunner>> Create(const CpuContext& context,
                                                           const Program& program,
                                                           ModelWeights weights, const KvLayout& kv,
                                                           const StepLimits& limits);
  // Exactly workspace_bytes() of such a runner.
  static std::int64_t WorkspaceBytes(const CpuContext& context, const Program& program,
                                     const StepLimits& limits);

  int depth() const override { return 0; }
  absl::Status Launch(const StepInput& input) override;
  absl::StatusOr<StepResult> Collect() override;
  int in_flight() const override { return result_.has_value() ? 1 : 0; }

  RunnerMemory memory() const override {
    return {.weights_bytes = weights_bytes_,
            .kv_bytes = kv_pool_.size(),
            .workspace_bytes = workspace_.size()};
  }

  std::int64_t workspace_bytes() const { return workspace_.size(); }

 private:
  CpuRunner(const CpuContext& context, const Program& program, const StepLimits& limits,
            const KvLayout& kv);

  MemoryLayout layout_;  // the parts below reserve from it in their constructors
  CpuExecutor executor_;
  CpuSampler sampler_;
  StepChecker checker_;
  HostMemory workspace_;
  HostMemory kv_pool_;
  std::int64_t weights_bytes_ = 0;
  std::vector<std::int32_t> tokens_;  // of the step, kFromSlot resolved
  std::optional<StepResult> result_;
};

}  // namespace nibble
