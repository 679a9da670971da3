// What runs a row at a time: norms, rotary embedding, activations, activation quantization,
// reductions over logits. Every function reads and writes one row (or one flat range), so no row
// depends on another.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace nibble::cpu {

// (max, any NaN) of a row.
struct MaxResult {
  float max;
  bool has_nan;
};

// Rotates the first 2 * half entries of a head in half-split pairs: (x[j], x[j + half]).
struct RopeArgs {
  float* x;
  const float* cos;  // [half]
  const float* sin;
  std::int64_t half;
};

// How one token's input of a Row8 layer is rounded; the result stays f32.
enum class FakeQuant : std::uint8_t {
  kNone,
  kInt8Dynamic,
  kInt8Static,
  kE4M3Dynamic,
  kE4M3Static,
  kOutlierSplit
};
struct FakeQuantArgs {
  float* x;  // [n], in place
  std::int64_t n;
  FakeQuant mode;
  float scale;              // static modes
  float zero;               // kInt8Static: x = (code - zero) * scale
  float outlier_threshold;  // kOutlierSplit; 0: no outliers
};

}  // namespace nibble::cpu
