// Weights packed for the CPU: owns the bytes that kernels/cpu/linear.h describes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/pointwise.h"
#include "runtime/device/backend.h"
#include "runtime/device/host_memory.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// One matrix of the stack: some rows of a layer, or one expert.
struct CpuSegment {
  cpu::Matrix matrix;
  std::int64_t row = 0;  // of its first output in the layer's (PackAxis::kN)
  // How the layer rounds its input first; kNone for weight-only formats.
  cpu::FakeQuant activation = cpu::FakeQuant::kNone;
  float activation_scale = 0.0f;
  float activation_zero = 0.0f;
  float outlier_threshold = 0.0f;
  bool integer = false;  // integer products may run it, where inputs may be rounded
};

// How 16-bit dense weights are kept: as they are, or rounded to cpu::kLargestDenseCode steps of
// the largest in each group of 64, for integer products.
enum class DenseForm : std::uint8_t { kExact, kRounded };

class CpuLinear final : public PackedLinear {
 public:
  // Thread-safe. Errors: what PackedBytes refuses, and weights that disagree with their own
  // description.
  static absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(std::span<const LinearWeight> weights,
                                                         PackAxis axis,
                                                         DenseForm form = DenseForm::kExact);

  // Exactly CpuLinear::bytes of what Pack makes of such weights.
  static absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs, PackAxis axis,
                                                  DenseForm form = DenseForm::kExact);

  const std::vector<CpuSegment>& segments() const { return segments_; }
  PackAxis axis() const { return axis_; }

 private:
  PackAxis axis_ = PackAxis::kN;
  HostMemory memory_;
  std::vector<CpuSegment> segments_;
};

}  // namespace nibble
