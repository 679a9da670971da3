// Matrices of ggml blocks as linear weights: the block types end here.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// What DecodeGgml gives for a matrix of this type. Unimplemented for a type that no encoding holds.
absl::StatusOr<LinearSpec> GgmlSpec(int ggml_type, std::int64_t n, std::int64_t k);

// `raw` is n rows of k / elements blocks, as in the file. Bit-exact: Dequantize gives ggml's own
// f32. InvalidArgument when the size of `raw` is another one.
absl::StatusOr<LinearWeight> DecodeGgml(int ggml_type, std::int64_t n, std::int64_t k,
                                        HostBuffer raw);

}  // namespace nibble
