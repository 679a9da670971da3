#include "runtime/weights/tensor_reader.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace nibble {

std::string Shown(const TensorInfo& tensor) {
  return absl::StrCat("tensor \"", tensor.name, "\" [", absl::StrJoin(tensor.shape, ", "), "] ",
                      TypeName(tensor));
}

absl::StatusOr<const TensorInfo*> FindTensor(const Checkpoint& checkpoint, absl::string_view name) {
  const TensorInfo* tensor = checkpoint.Find(name);
  if (tensor != nullptr) return tensor;
  return absl::NotFoundError(absl::StrCat(checkpoint.path(), " has no tensor \"", name, "\""));
}

absl::Status CheckShape(const TensorInfo& tensor, const std::vector<std::int64_t>& shape) {
  if (tensor.shape == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(Shown(tensor), " should have shape [", absl::StrJoin(shape, ", "), "]"));
}

absl::Status CheckType(const TensorInfo& tensor, std::initializer_list<DType> types) {
  if (std::find(types.begin(), types.end(), tensor.dtype) != types.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      Shown(tensor), " should have type ",
      absl::StrJoin(types, " or ", [](std::string* out, DType t) { *out += NameOf(t); })));
}

absl::Status CheckMatrix(const TensorInfo& tensor) {
  const auto fits = [](std::int64_t dim) {
    return dim >= 1 && dim <= std::numeric_limits<std::int32_t>::max();
  };
  if (tensor.shape.size() == 2 && fits(tensor.shape[0]) && fits(tensor.shape[1])) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(Shown(tensor), " is not a matrix"));
}

absl::StatusOr<HostBuffer> ReadTensor(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  HostBuffer data(tensor.bytes);
  RETURN_IF_ERROR(checkpoint.Read(tensor, data.bytes()));
  return data;
}

absl::StatusOr<bool> HasBias(const Checkpoint& checkpoint, absl::string_view layer,
                             std::int64_t n) {
  const TensorInfo* bias = checkpoint.Find(absl::StrCat(layer, ".bias"));
  if (bias == nullptr) return false;
  RETURN_IF_ERROR(CheckType(*bias, {DType::kF32, DType::kF16, DType::kBF16}));
  RETURN_IF_ERROR(CheckShape(*bias, {n}));
  return true;
}

absl::StatusOr<std::vector<float>> ReadBias(const Checkpoint& checkpoint, absl::string_view layer,
                                            std::int64_t n) {
  ASSIGN_OR_RETURN(const bool has_bias, HasBias(checkpoint, layer, n));
  if (!has_bias) return std::vector<float>();
  return ReadVector(checkpoint, absl::StrCat(layer, ".bias"));
}

}  // namespace nibble
