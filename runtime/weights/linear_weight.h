// The four encodings every checkpoint format ends in. No kernel, program or scheduler hears of a
// file format.
//
// One linear layer computes y[n] = sum_k x[k] * w[n, k] + bias[n]; `w` is [n, k] as in Hugging
// Face. A stack of E matrices (mixture of experts) is a vector of LinearWeight, packed along
// Axis::kExperts.
//
// Codes lie in rows of CodeRowBytes(k, bits) bytes: code i of a row is bits [i*bits, (i+1)*bits) of
// the row's little-endian bit stream, so at 4 bits the low nibble comes first. Groups of `group`
// consecutive k share a scale and never cross a row; the last group of a row may be shorter. groups
// = ceil(k / group).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "runtime/weights/tensor.h"

namespace nibble {

constexpr std::int64_t CodeRowBytes(std::int64_t k, int bits) { return (k * bits + 7) / 8; }

// w = the element itself.
struct Dense {
  DType dtype = DType::kF32;  // kF32 | kF16 | kBF16
  HostBuffer data;            // [n, k]
};

// One scale a group, as a number.
struct FlatScales {
  DType dtype = DType::kF16;  // kF32 | kF16 | kBF16; kF8E8M0 (Codebook): 2^(byte - 127)
  HostBuffer data;            // [n, groups]
};

// scale[n, g] = super[n, g / groups_per_super] * code[n, g]: exact in f32. GGUF's K quants.
struct TwoLevelScales {
  HostBuffer super;  // f16[n, ceil(groups / groups_per_super)]
  HostBuffer codes;  // i8[n, groups]
  int groups_per_super = 8;
};

using Scales = std::variant<FlatScales, TwoLevelScales>;

// w = fma(scale, q, bias), bias in f32, one rounding; what `bias` is:
struct ConstantOffset {
  std::int32_t zero = 8;
};  // bias = -scale * zero
struct ZeroCodes {
  HostBuffer zeros;
};  // u8[n, groups]; bias = -scale * zero
struct BiasOffset {
  DType dtype = DType::kF16;
  HostBuffer data;
};  // kF16|kBF16|kF32 [n, groups], added as is
struct TwoLevelOffset {
  TwoLevelScales minimum;
};  // bias = -(super * code), codes >= 0

using Offset = std::variant<ConstantOffset, ZeroCodes, BiasOffset, TwoLevelOffset>;

// Integer codes 0 .. 2^bits - 1 on an affine grid: GPTQ, AWQ, compressed-tensors, most of GGUF.
struct Affine {
  int bits = 4;              // 2, 3, 4, 5, 6 or 8
  std::int64_t group = 128;  // k of one group; k itself when one group spans the row
  HostBuffer codes;          // [n, CodeRowBytes(k, bits)]
  Scales scales;
  Offset offset;
  // Act-order: stored column j multiplies input permutation[j]; empty: the identity. [k]
  std::vector<std::int32_t> permutation;
};

// w = fl32(table[q] * scale): NF4, FP4, IQ4_NL, IQ4_XS, MXFP4. Codes are 4 bits.
struct Codebook {
  std::array<float, 16> table{};
  std::int64_t group = 64;
  HostBuffer codes;  // [n, CodeRowBytes(k, 4)]
  Scales scales;
};

enum class ActivationQuant : std::uint8_t {
  kNone,          // weights only
  kDynamic,       // int8 / fp8 codes a token, scale from the token's absmax
  kStatic,        // one stored scale a tensor
  kOutlierSplit,  // LLM.int8(): inputs of magnitude >= outlier_threshold stay in 16 bit
};

// w[n, k] = scale[n] * (q - zero): LLM.int8(), W8A8, FP8.
struct Row8 {
  DType dtype = DType::kI8;         // kI8 | kF8E4M3
  HostBuffer codes;                 // [n, k]
  std::vector<float> scales;        // [n], or [1] for the whole tensor
  std::vector<std::int32_t> zeros;  // [n] or empty
  ActivationQuant activation = ActivationQuant::kNone;
  float static_scale = 0.0f;  // kStatic: activation = code * static_scale
  std::int32_t static_zero = 0;
  float outlier_threshold = 6.0f;
};

struct LinearWeight {
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::variant<Dense, Affine, Codebook, Row8> encoding;
  std::vector<float> bias;  // [n] or empty
};

enum class EncodingKind : std::uint8_t { kDense, kAffine, kCodebook, kRow8 };
enum class ScaleKind : std::uint8_t { kNone, kF32, kF16, kBF16, kE8M0, kTwoLevel };
enum class OffsetKind : std::uint8_t { kNone, kConstant, kZeroCodes, kBias, kTwoLevel };

// What a plan needs to know of a weight before its bytes are read: everything but the data.
struct LinearSpec {
  std::int64_t n = 0;
  std::int64_t k = 0;
  EncodingKind kind = EncodingKind::kDense;
  DType dtype = DType::kF32;  // Dense: the element; Row8: the code
  int bits = 16;
  std::int64_t group = 0;
  ScaleKind scales = ScaleKind::kNone;
  OffsetKind offset = OffsetKind::kNone;
  bool permuted = false;
  bool has_bias = false;
  ActivationQuant activation = ActivationQuant::kNone;
  int groups_per_super = 0;  // of two-level scales; 0 otherwise

  bool operator==(const LinearSpec&) const = default;
};

LinearSpec SpecOf(const LinearWeight& weight);

// Host bytes of the weight as described (codes, scales, offsets, permutation, bias). A BiasOffset
// has the dtype of the scales, a Row8 a scale a row.
std::int64_t HostBytes(const LinearSpec& spec);

// "affine int4 g128 act-order", "dense bf16", "codebook g64", "row8 i8 outlier-split".
std::string Describe(const LinearSpec& spec);

// Whether every buffer has the size that n, k, group and the encoding ask for, and the permutation
// is one. InvalidArgument names the part.
absl::Status CheckBuffers(const LinearWeight& weight);

// The reference decoder: f32[n, k] row-major, one rounding an element as documented above, columns
// in the order of the layer's *input* (the permutation is undone). Errors: buffers that disagree
// with n, k, group.
absl::StatusOr<std::vector<float>> Dequantize(const LinearWeight& weight);

// Rows [begin, end) of the outputs, or of the inputs: whole groups, of two-level scales whole
// super-groups, unless one group spans the row; not with a permutation. Of the slices of the inputs
// only the one that begins at 0 keeps the bias, so that the products of all slices add up to the
// product of the whole.
enum class Axis : std::uint8_t { kN, kK };
absl::StatusOr<LinearWeight> Slice(const LinearWeight& weight, Axis axis, std::int64_t begin,
                                   std::int64_t end);

// The same matrix with output row i taken from row `order[i]` (undoing GGUF's q/k interleave).
LinearWeight PermuteRows(LinearWeight weight, const std::vector<std::int32_t>& order);

}  // namespace nibble
