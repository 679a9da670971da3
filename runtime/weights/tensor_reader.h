// Tensors of a checkpoint that must be there, with the type and shape that a format asks for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

// "model.safetensors: tensor "a.weight" [2, 3] F16": how errors name a tensor.
std::string Shown(const TensorInfo& tensor);

// NotFound names the tensor and the checkpoint.
absl::StatusOr<const TensorInfo*> FindTensor(const Checkpoint& checkpoint, absl::string_view name);

// InvalidArgument names the tensor, its shape or type and the one that is wanted.
absl::Status CheckShape(const TensorInfo& tensor, const std::vector<std::int64_t>& shape);
absl::Status CheckType(const TensorInfo& tensor, std::initializer_list<DType> types);

// Rank 2, both dimensions in [1, 2^31).
absl::Status CheckMatrix(const TensorInfo& tensor);

absl::StatusOr<HostBuffer> ReadTensor(const Checkpoint& checkpoint, const TensorInfo& tensor);

// InvalidArgument names the tensor and the first infinity or NaN of its f32, f16 or bf16 numbers:
// such a scale would turn every output that it touches into NaN.
absl::Status CheckFinite(const TensorInfo& tensor, const HostBuffer& data);

// Scales [groups, n] in f32, f16 or bf16 as FlatScales [n, groups].
absl::StatusOr<FlatScales> ReadScalesTransposed(const Checkpoint& checkpoint,
                                                const TensorInfo& tensor);

// Whether LAYER.bias exists; an error when it is not f32, f16 or bf16 [n].
absl::StatusOr<bool> HasBias(const Checkpoint& checkpoint, absl::string_view layer, std::int64_t n);
// LAYER.bias widened; empty when there is none.
absl::StatusOr<std::vector<float>> ReadBias(const Checkpoint& checkpoint, absl::string_view layer,
                                            std::int64_t n);

}  // namespace nibble
