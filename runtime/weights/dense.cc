// Unquantized checkpoints: LAYER.weight [n, k] in f32, f16 or bf16.
#include <map>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/tensor_reader.h"

namespace nibble {
namespace {

absl::StatusOr<const TensorInfo*> FindWeight(const Checkpoint& checkpoint,
                                             absl::string_view layer) {
  ASSIGN_OR_RETURN(const TensorInfo* weight,
                   FindTensor(checkpoint, absl::StrCat(layer, ".weight")));
  RETURN_IF_ERROR(CheckMatrix(*weight));
  if (weight->dtype != DType::kF32 && weight->dtype != DType::kF16 &&
      weight->dtype != DType::kBF16) {
    return absl::UnimplementedError(
        absl::StrCat(Shown(*weight),
                     " cannot be served as an unquantized layer, only F32, F16 and BF16 can: "
                     "convert it, or add the quantization_config it was made with"));
  }
  return weight;
}

class DenseFormat final : public WeightFormat {
 public:
  explicit DenseFormat(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // The type that most bytes have.
  std::string Name() const override {
    std::map<DType, std::uint64_t> bytes;
    for (const TensorInfo& tensor : checkpoint_.tensors()) bytes[tensor.dtype] += tensor.bytes;
    DType most = DType::kF32;
    for (const auto& [dtype, count] : bytes) {
      if (count > bytes[most]) most = dtype;
    }
    switch (most) {
      case DType::kF16: return "f16";
      case DType::kBF16: return "bf16";
      default: return "f32";
    }
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    return DescribeDense(checkpoint_, layer);
  }
  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    return LoadDense(checkpoint_, layer);
  }
  bool Has(absl::string_view layer) const override {
    return checkpoint_.Find(absl::StrCat(layer, ".weight")) != nullptr;
  }

 private:
  const Checkpoint& checkpoint_;
};

}  // namespace

absl::StatusOr<LinearSpec> DescribeDense(const Checkpoint& checkpoint, absl::string_view layer) {
  ASSIGN_OR_RETURN(const TensorInfo* weight, FindWeight(checkpoint, layer));
  LinearSpec spec;
  spec.n = weight->shape[0];
  spec.k = weight->shape[1];
  spec.kind = EncodingKind::kDense;
  spec.dtype = weight->dtype;
  spec.bits = BitsOf(weight->dtype);
  ASSIGN_OR_RETURN(spec.has_bias, HasBias(checkpoint, layer, spec.n));
  return spec;
}

absl::StatusOr<LinearWeight> LoadDense(const Checkpoint& checkpoint, absl::string_view layer) {
  ASSIGN_OR_RETURN(const TensorInfo* weight, FindWeight(checkpoint, layer));
  LinearWeight out;
  out.n = weight->shape[0];
  out.k = weight->shape[1];
  Dense dense;
  dense.dtype = weight->dtype;
  ASSIGN_OR_RETURN(dense.data, ReadTensor(checkpoint, *weight));
  out.encoding = std::move(dense);
  ASSIGN_OR_RETURN(out.bias, ReadBias(checkpoint, layer, out.n));
  return out;
}

OpenedFormat OpenDense(const Checkpoint& checkpoint, const QuantConfig&) {
  return std::make_unique<DenseFormat>(checkpoint);
}

}  // namespace nibble
