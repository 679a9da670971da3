// GGUF: LAYER.weight [n, k] in any block type; mixtures of experts stack theirs as [experts, n, k].
#include <limits>
#include <map>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/gguf_blocks.h"
#include "runtime/weights/tensor_reader.h"

namespace nibble {
namespace {

// "blk.3.ffn_gate_exps#5" is matrix 5 of the stack "blk.3.ffn_gate_exps".
struct LayerName {
  absl::string_view tensor;
  std::optional<std::int64_t> expert;
};

absl::StatusOr<LayerName> ParseLayer(absl::string_view layer) {
  const std::size_t hash = layer.rfind('#');
  if (hash == absl::string_view::npos) return LayerName{layer, std::nullopt};
  std::int64_t expert = 0;
  if (!absl::SimpleAtoi(layer.substr(hash + 1), &expert) || expert < 0) {
    return absl::InvalidArgumentError(absl::StrCat("\"", layer, "\" names no expert after the #"));
  }
  return LayerName{layer.substr(0, hash), expert};
}

// One matrix: the tensor itself, or the part of a stack that belongs to one expert.
absl::StatusOr<TensorInfo> MatrixOf(const TensorInfo& tensor, const LayerName& layer,
                                    std::size_t matrix_rank) {
  TensorInfo matrix = tensor;
  if (!layer.expert) return matrix;
  if (tensor.shape.size() != matrix_rank + 1 || *layer.expert >= tensor.shape[0]) {
    return absl::NotFoundError(absl::StrCat(Shown(tensor), " has no expert ", *layer.expert));
  }
  matrix.shape.erase(matrix.shape.begin());
  matrix.bytes = tensor.bytes / static_cast<std::uint64_t>(tensor.shape[0]);
  matrix.offset += matrix.bytes * static_cast<std::uint64_t>(*layer.expert);
  return matrix;
}

class GgufFormat final : public WeightFormat {
 public:
  explicit GgufFormat(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // The type that most bytes of matrices have: Q4_K_M files mix Q4_K with a little Q6_K.
  std::string Name() const override {
    std::map<int, std::uint64_t> bytes;
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (tensor.shape.size() >= 2) bytes[tensor.ggml_type] += tensor.bytes;
    }
    int most = 0;
    for (const auto& [type, count] : bytes) {
      if (count > bytes[most]) most = type;
    }
    return absl::StrCat("gguf ", FindGgmlType(most)->name);
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    ASSIGN_OR_RETURN(const LayerName name, ParseLayer(layer));
    ASSIGN_OR_RETURN(const TensorInfo matrix, FindMatrix(name));
    absl::StatusOr<LinearSpec> spec = GgmlSpec(matrix.ggml_type, matrix.shape[0], matrix.shape[1]);
    if (!spec.ok()) {
      return absl::Status(spec.status().code(),
                          absl::StrCat(Shown(matrix), ": ", spec.status().message()));
    }
    ASSIGN_OR_RETURN(const std::optional<TensorInfo> bias, FindBias(name, spec->n));
    spec->has_bias = bias.has_value();
    return spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    ASSIGN_OR_RETURN(const LinearSpec spec, Describe(layer));
    ASSIGN_OR_RETURN(const LayerName name, ParseLayer(layer));
    ASSIGN_OR_RETURN(const TensorInfo matrix, FindMatrix(name));
    ASSIGN_OR_RETURN(HostBuffer raw, ReadTensor(checkpoint_, matrix));
    absl::StatusOr<LinearWeight> decoded =
        DecodeGgml(matrix.ggml_type, spec.n, spec.k, std::move(raw));
    if (!decoded.ok()) {
      return absl::Status(decoded.status().code(),
                          absl::StrCat(Shown(matrix), ": ", decoded.status().message()));
    }
    LinearWeight weight = *std::move(decoded);
    ASSIGN_OR_RETURN(const std::optional<TensorInfo> bias, FindBias(name, spec.n));
    if (bias) {
      weight.bias.resize(static_cast<std::size_t>(spec.n));
      RETURN_IF_ERROR(checkpoint_.Read(*bias, std::as_writable_bytes(std::span(weight.bias))));
    }
    return weight;
  }

  bool Has(absl::string_view layer) const override {
    const absl::StatusOr<LayerName> name = ParseLayer(layer);
    return name.ok() && FindMatrix(*name).ok();
  }

 private:
  absl::StatusOr<TensorInfo> FindMatrix(const LayerName& layer) const {
    ASSIGN_OR_RETURN(const TensorInfo* tensor,
                     FindTensor(checkpoint_, absl::StrCat(layer.tensor, ".weight")));
    ASSIGN_OR_RETURN(TensorInfo matrix, MatrixOf(*tensor, layer, 2));
    RETURN_IF_ERROR(CheckMatrix(matrix));
    return matrix;
  }

  absl::StatusOr<std::optional<TensorInfo>> FindBias(const LayerName& layer, std::int64_t n) const {
    const TensorInfo* tensor = checkpoint_.Find(absl::StrCat(layer.tensor, ".bias"));
    if (tensor == nullptr) return std::optional<TensorInfo>();
    ASSIGN_OR_RETURN(TensorInfo bias, MatrixOf(*tensor, layer, 1));
    RETURN_IF_ERROR(CheckType(bias, {DType::kF32}));
    RETURN_IF_ERROR(CheckShape(bias, {n}));
    return std::optional<TensorInfo>(std::move(bias));
  }

  const Checkpoint& checkpoint_;
};

}  // namespace

OpenedFormat OpenGgufFormat(const Checkpoint& checkpoint, const QuantConfig&) {
  return std::make_unique<GgufFormat>(checkpoint);
}

}  // namespace nibble
