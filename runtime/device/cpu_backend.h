// The backend that runs everywhere.
#pragma once

#include <memory>
#include <mutex>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/thread_pool.h"
#include "runtime/device/backend.h"
#include "runtime/device/cpu_products.h"

namespace nibble {

// Owns the threads that all its models share; must outlive their runners. Pack is thread-safe.
class CpuBackend final : public Backend {
 public:
  // `threads` 0: what the cgroup allows. `isa`: normally cpu::BestIsa(). InvalidArgument names a
  // bad count.
  static absl::StatusOr<std::unique_ptr<CpuBackend>> Create(int threads, Compute compute,
                                                            cpu::Isa isa = cpu::BestIsa());

  // The first call measures the memory's read rate, for some milliseconds.
  const DeviceInfo& info() const override;
  DType DefaultKvDType(Compute compute) const override;
  absl::Status CheckKv(const KvLayout& kv) const override;
  std::string ComputeName() const override;
  absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs,
                                           PackAxis axis) const override;
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(std::span<const LinearWeight> weights,
                                                     PackAxis axis) override;
  std::int64_t WorkspaceBytes(const Program& program, const StepLimits& limits) const override;
  absl::StatusOr<std::unique_ptr<Runner>> Compile(const Program& program, ModelWeights weights,
                                                  const KvLayout& kv, const StepLimits& limits,
                                                  const CompileOptions& options) override;

 private:
  CpuBackend(int threads, Compute compute, cpu::Isa isa);

  // Regions may start from const members (measuring): the pool is this object's hands, not its
  // state.
  mutable cpu::ThreadPool pool_;
  CpuContext context_;
  mutable std::once_flag measured_;
  mutable DeviceInfo info_;
};

}  // namespace nibble
