// Drills: a device that is lost at a chosen step, so that what follows can be watched on any
// machine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/device/backend.h"

namespace nibble {

// Another backend whose runners fail, and go on failing, from the step of this id on: its results
// are never collected, as after a sticky error of a GPU.
class FaultBackend final : public Backend {
 public:
  FaultBackend(std::unique_ptr<Backend> backend, std::uint64_t step)
      : backend_(std::move(backend)), step_(step) {}

  const DeviceInfo& info() const override { return backend_->info(); }
  DType DefaultKvDType(Compute compute) const override { return backend_->DefaultKvDType(compute); }
  absl::Status CheckKv(const KvLayout& kv) const override { return backend_->CheckKv(kv); }
  std::string ComputeName() const override { return backend_->ComputeName(); }
  absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs,
                                           PackAxis axis) const override {
    return backend_->PackedBytes(specs, axis);
  }
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(std::span<const LinearWeight> weights,
                                                     PackAxis axis) override {
    return backend_->Pack(weights, axis);
  }
  absl::StatusOr<std::int64_t> ExpandedBytes(std::span<const LinearSpec> specs) const override {
    return backend_->ExpandedBytes(specs);
  }
  std::int64_t WorkspaceBytes(const Program& program, const StepLimits& limits) const override {
    return backend_->WorkspaceBytes(program, limits);
  }
  std::int64_t GraphsBytes(const Program& program, const StepLimits& limits) const override {
    return backend_->GraphsBytes(program, limits);
  }
  absl::StatusOr<std::unique_ptr<Runner>> Compile(const Program& program, ModelWeights weights,
                                                  const KvLayout& kv, const StepLimits& limits,
                                                  const CompileOptions& options) override;

 private:
  const std::unique_ptr<Backend> backend_;
  const std::uint64_t step_;
};

// The backend itself, or with the environment variable NIBBLE_FAULT_AT_STEP one that fails at that
// step. InvalidArgument where it is no number.
absl::StatusOr<std::unique_ptr<Backend>> WithFaultFromEnvironment(std::unique_ptr<Backend> backend);

}  // namespace nibble
