#include "runtime/weights/tensor_reader.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/weights/transpose.h"

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

absl::Status CheckFinite(const TensorInfo& tensor, const HostBuffer& data) {
  const auto check = [&](auto values, auto exponent) -> absl::Status {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if ((values[i] & exponent) == exponent) {
        return absl::InvalidArgumentError(
            absl::StrCat(Shown(tensor), ": element ", i, " is infinite or not a number"));
      }
    }
    return absl::OkStatus();
  };
  switch (tensor.dtype) {
    case DType::kF16: return check(data.As<std::uint16_t>(), std::uint16_t{0x7c00});
    case DType::kBF16: return check(data.As<std::uint16_t>(), std::uint16_t{0x7f80});
    default: return check(data.As<std::uint32_t>(), std::uint32_t{0x7f800000});
  }
}

absl::StatusOr<FlatScales> ReadScalesTransposed(const Checkpoint& checkpoint,
                                                const TensorInfo& tensor) {
  ASSIGN_OR_RETURN(const HostBuffer data, ReadTensor(checkpoint, tensor));
  RETURN_IF_ERROR(CheckFinite(tensor, data));
  FlatScales out{tensor.dtype, HostBuffer(data.size())};
  const std::int64_t rows = tensor.shape[0];
  const std::int64_t columns = tensor.shape[1];
  if (tensor.dtype == DType::kF32) {
    Transpose(data.As<float>().data(), rows, columns, out.data.As<float>().data());
  } else {
    Transpose(data.As<std::uint16_t>().data(), rows, columns, out.data.As<std::uint16_t>().data());
  }
  return out;
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
