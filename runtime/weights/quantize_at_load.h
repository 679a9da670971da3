// --quantize: 16- and 32-bit layers become 4- or 8-bit ones while they are loaded.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/weights/format.h"

namespace nibble {

// What QuantizeDense makes of a layer of this spec. REQUIRES: spec.kind == kDense, mode is not
// kNone.
LinearSpec QuantizedSpec(const LinearSpec& spec, LoadQuantization mode);

// Rounds the weight to the nearest codes:
//   kNf4, kFp4  blocks of 64 over the flattened matrix, from the stored type, as bitsandbytes' CUDA
//   kernels do kInt8       rows of LLM.int8(), after rounding to f16, outliers split at 6 kInt4
//   affine with zero points, groups of 128 where they fit, else of 64 or 32
// InvalidArgument when a weight is infinite or NaN.
absl::StatusOr<LinearWeight> QuantizeDense(const LinearWeight& weight, LoadQuantization mode);

// A format whose dense layers are quantized as they are loaded, but for embeddings, the output head
// and routers, which lose the most and weigh little.
std::unique_ptr<WeightFormat> QuantizeAtLoad(std::unique_ptr<WeightFormat> inner,
                                             LoadQuantization mode);

}  // namespace nibble
