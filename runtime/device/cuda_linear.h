// Weights packed for a GPU: owns the device bytes that its products read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/model_ops.h"
#include "kernels/cuda/row8.h"
#include "runtime/device/backend.h"
#include "runtime/device/cuda_upload.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// What all weights of a backend share.
struct CudaContext {
  int device = 0;
  DType dtype = DType::kF16;  // of activations, and of weights that no packed form holds
  CudaArena arena;
  CudaLanes lanes;
};

// One matrix of the layer: rows that one product computes, or experts one below the other.
struct CudaSegment {
  bool dense = false;
  cuda::PackedMatrix matrix;            // of a dense one the shape's n and k
  const void* weights = nullptr;        // T[n, k]; of a packed one its expanded copy, or null
  cuda::Row8Matrix row8;                // rows of 8-bit codes, or none; of the shape's n and k
  int parts = 1;                        // weights that it joins
  std::int64_t row = 0;                 // of its first output in the layer's (not of experts)
  const float* bias = nullptr;          // f32[n] in packed order
  const std::int32_t* order = nullptr;  // which input each stored column multiplies, or null
  cuda::InputRounding rounding = cuda::InputRounding::kNone;
  float scale = 1.0f, zero = 0.0f, threshold = 0.0f;  // of the rounding

  bool packed() const { return matrix.blocks != nullptr; }
  bool is_row8() const { return row8.codes != nullptr; }
  std::int64_t bytes() const {
    if (is_row8()) return matrix.shape.n * (matrix.shape.k + 4);
    return dense ? 2 * matrix.shape.n * matrix.shape.k : matrix.shape.Bytes();
  }
  // Whether the input must be reordered or rounded before the product.
  bool prepares_input() const { return order != nullptr || rounding != cuda::InputRounding::kNone; }
};

class CudaLinear final : public PackedLinear {
 public:
  // Thread-safe. Errors: what PackedBytes refuses, weights that disagree with their own
  // description, and no memory.
  static absl::StatusOr<std::unique_ptr<CudaLinear>> Pack(CudaContext& context,
                                                          std::span<const LinearWeight> weights,
                                                          PackAxis axis);
  // Exactly CudaLinear::bytes of what Pack makes of such weights.
  static absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs, PackAxis axis);

  // Of its packed rows in 16 bits.
  static absl::StatusOr<std::int64_t> ExpandedBytes(std::span<const LinearSpec> specs);
  // Writes those to device memory, and notes them in the segments.
  absl::Status Expand(DType dtype, std::byte* to, cudaStream_t stream);
  std::int64_t expanded_bytes() const;

  const std::vector<CudaSegment>& segments() const { return segments_; }
  // One expert of a stack.
  CudaSegment Expert(int expert) const;
  // Rows alternate, 16 of the first half and 16 of the second: what a gated product wants.
  bool alternates() const { return alternates_; }

 private:
  CudaArena::Piece memory_;
  std::vector<CudaSegment> segments_;
  bool alternates_ = false;
};

}  // namespace nibble
