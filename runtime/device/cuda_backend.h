// The backend of one NVIDIA GPU.
#pragma once

#include <memory>
#include <string>

#include "runtime/device/backend.h"
#include "runtime/device/cuda_linear.h"

namespace nibble {

// Must outlive its runners. Pack is thread-safe.
class CudaBackend final : public Backend {
 public:
  // `dtype`: of activations, kF16 or kBF16.
  CudaBackend(DeviceInfo info, int device, DType dtype);

  const DeviceInfo& info() const override { return info_; }
  DType DefaultKvDType(Compute) const override { return context_->dtype; }
  absl::Status CheckKv(const KvLayout& kv) const override;
  std::string ComputeName() const override;
  absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs,
                                           PackAxis axis) const override;
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(std::span<const LinearWeight> weights,
                                                     PackAxis axis) override;
  absl::StatusOr<std::int64_t> ExpandedBytes(std::span<const LinearSpec> specs) const override;
  std::int64_t WorkspaceBytes(const Program& program, const StepLimits& limits) const override;
  std::int64_t GraphsBytes(const Program& program, const StepLimits& limits) const override;
  absl::StatusOr<std::unique_ptr<Runner>> Compile(const Program& program, ModelWeights weights,
                                                  const KvLayout& kv, const StepLimits& limits,
                                                  const CompileOptions& options) override;

 private:
  const DeviceInfo info_;
  const std::shared_ptr<CudaContext> context_;
};

// NotFound: no such device; FailedPrecondition: no driver, or a device without kernels here;
// Unimplemented: a --compute that has none.
absl::StatusOr<std::unique_ptr<Backend>> OpenCudaBackend(int device, const BackendOptions& options);

}  // namespace nibble
