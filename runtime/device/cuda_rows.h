// A weight as the rows that packing for a GPU reads: codes, and scales and offsets as numbers.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/packed_layout.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

struct CudaSegment;

// How the device holds a weight; a function of its spec.
struct CudaForm {
  enum class Kind : std::uint8_t {
    kPacked,       // blocks of codes
    kRow8,         // rows of 8-bit codes, whose products round inputs to 8 bits too
    kDense,        // elements, converted to the activations' type
    kE4m3,         // scale * code, expanded to the activations' type
    kDequantized,  // what no packed form holds (groups that 16 does not divide, k no multiple of
                   // 8), likewise
  } kind = Kind::kPacked;
  PackedShape shape;
  std::int64_t file_group = 0;  // columns a scale of Scales()
  std::int64_t groups = 0;      // scales a row

  bool dense() const { return kind != Kind::kPacked && kind != Kind::kRow8; }
  std::int64_t bytes() const {
    if (kind == Kind::kRow8) return shape.n * (shape.k + 8);  // codes; f32 scales and offsets
    return dense() ? shape.n * shape.k * 2 : shape.Bytes();
  }
};

// InvalidArgument or Unimplemented name the weight.
absl::StatusOr<CudaForm> CudaFormOf(const LinearSpec& spec);

// Such that 2^-exponent times `largest` is a half well below infinity; 0 where largest is 0.
int HalfExponent(float largest);

// A view of a weight that must outlive it.
class CudaRows {
 public:
  // REQUIRES: CheckBuffers(weight).
  static absl::StatusOr<CudaRows> Of(const LinearWeight& weight, const CudaForm& form);

  const CudaForm& form() const { return form_; }
  std::int64_t n() const { return weight_->n; }
  const std::vector<float>& bias() const { return weight_->bias; }
  int zero() const { return zero_; }  // of OffsetMode::kConstant and kBias
  const std::array<float, 16>& table() const { return table_; }
  const std::vector<std::int32_t>& order() const;
  DType element() const { return element_; }  // of Elements()

  // Whether scales and biases are halves already.
  bool exact_in_half() const { return exact_in_half_; }
  // The largest magnitude of a scale or bias.
  float LargestNumber() const;

  // One row: f32[groups], f32[groups] (zero points or biases), CodeRowBytes(k, bits) bytes, and
  // element[k] (kE4m3, kRow8: its codes).
  void Scales(std::int64_t row, float* out) const;
  void Offsets(std::int64_t row, float* out) const;
  void Codes(std::int64_t row, std::uint8_t* out) const;
  void Elements(std::int64_t row, std::byte* out) const;
  // kRow8: what the zero point of the inputs adds to the row's results.
  float InputOffset(std::int64_t row) const;
  DType code() const;  // kRow8

  // Whether both treat their inputs alike.
  bool SameInputs(const CudaRows& other) const;
  void SetRounding(CudaSegment& segment) const;

 private:
  const LinearWeight* weight_ = nullptr;
  CudaForm form_;
  int zero_ = 0;
  std::array<float, 16> table_{};
  DType element_ = DType::kF32;
  bool exact_in_half_ = false;
  std::vector<float> dequantized_;  // kDequantized
};

}  // namespace nibble
