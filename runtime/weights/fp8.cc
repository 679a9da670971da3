// FP8 checkpoints outside compressed-tensors: LAYER.weight f8e4m3 [n, k] with LAYER.weight_scale
// for the whole tensor ("fp8", by AutoFP8) or a row ("fbgemm_fp8"). Inputs are quantized too: a
// token at a time, or with the stored LAYER.input_scale where activation_scheme is "static".
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/tensor_reader.h"

namespace nibble {
namespace {

class Fp8Format final : public WeightFormat {
 public:
  Fp8Format(const Checkpoint& checkpoint, ActivationQuant activation)
      : checkpoint_(checkpoint), activation_(activation) {}

  std::string Name() const override {
    return activation_ == ActivationQuant::kStatic ? "fp8 static" : "fp8 dynamic";
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    if (!IsQuantized(layer)) return DescribeDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(const TensorInfo* weight, Inspect(layer));
    LinearSpec spec;
    spec.n = weight->shape[0];
    spec.k = weight->shape[1];
    spec.kind = EncodingKind::kRow8;
    spec.dtype = DType::kF8E4M3;
    spec.bits = 8;
    spec.scales = ScaleKind::kF32;
    spec.activation = activation_;
    ASSIGN_OR_RETURN(spec.has_bias, HasBias(checkpoint_, layer, spec.n));
    return spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    if (!IsQuantized(layer)) return LoadDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(const TensorInfo* weight, Inspect(layer));
    Row8 row8;
    row8.dtype = DType::kF8E4M3;
    row8.activation = activation_;
    ASSIGN_OR_RETURN(row8.codes, ReadTensor(checkpoint_, *weight));
    ASSIGN_OR_RETURN(row8.scales, ReadScales(absl::StrCat(layer, ".weight_scale")));
    row8.scales.resize(static_cast<std::size_t>(weight->shape[0]), row8.scales[0]);
    if (activation_ == ActivationQuant::kStatic) {
      ASSIGN_OR_RETURN(const std::vector<float> input,
                       ReadScales(absl::StrCat(layer, ".input_scale")));
      row8.static_scale = input[0];
    }
    LinearWeight out;
    out.n = weight->shape[0];
    out.k = weight->shape[1];
    out.encoding = std::move(row8);
    ASSIGN_OR_RETURN(out.bias, ReadBias(checkpoint_, layer, out.n));
    return out;
  }

  bool Has(absl::string_view layer) const override {
    return checkpoint_.Find(absl::StrCat(layer, ".weight")) != nullptr;
  }

 private:
  bool IsQuantized(absl::string_view layer) const {
    const TensorInfo* weight = checkpoint_.Find(absl::StrCat(layer, ".weight"));
    return weight != nullptr && weight->dtype == DType::kF8E4M3;
  }

  absl::StatusOr<const TensorInfo*> Inspect(absl::string_view layer) const {
    ASSIGN_OR_RETURN(const TensorInfo* weight,
                     FindTensor(checkpoint_, absl::StrCat(layer, ".weight")));
    RETURN_IF_ERROR(CheckMatrix(*weight));
    ASSIGN_OR_RETURN(const TensorInfo* scale,
                     FindTensor(checkpoint_, absl::StrCat(layer, ".weight_scale")));
    const std::int64_t n = weight->shape[0];
    if (!IsOne(*scale) && scale->shape != std::vector<std::int64_t>{n}) {
      RETURN_IF_ERROR(CheckShape(*scale, {n, 1}));
    }
    if (activation_ == ActivationQuant::kStatic) {
      ASSIGN_OR_RETURN(const TensorInfo* input,
                       FindTensor(checkpoint_, absl::StrCat(layer, ".input_scale")));
      if (!IsOne(*input)) RETURN_IF_ERROR(CheckShape(*input, {1}));
    }
    return weight;
  }

  static bool IsOne(const TensorInfo& tensor) {
    return std::all_of(tensor.shape.begin(), tensor.shape.end(), [](auto dim) { return dim == 1; });
  }

  absl::StatusOr<std::vector<float>> ReadScales(const std::string& name) const {
    ASSIGN_OR_RETURN(std::vector<float> scales, ReadVector(checkpoint_, name));
    if (!std::all_of(scales.begin(), scales.end(),
                     [](float s) { return std::isfinite(s) && s > 0; })) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", name, "\" holds a scale that is not positive"));
    }
    return scales;
  }

  const Checkpoint& checkpoint_;
  const ActivationQuant activation_;
};

}  // namespace

OpenedFormat OpenFp8(const Checkpoint& checkpoint, const QuantConfig& quant) {
  if (FirstOf(quant.json, {"weight_block_size"}) != nullptr) {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.path(),
                     ": FP8 weights with a scale a block (weight_block_size) are not "
                     "supported: use weights with a scale a tensor or channel"));
  }
  ASSIGN_OR_RETURN(const std::string scheme, NameOr(quant.json, {"activation_scheme"}, "dynamic"));
  if (scheme == "dynamic")
    return std::make_unique<Fp8Format>(checkpoint, ActivationQuant::kDynamic);
  if (scheme == "static") return std::make_unique<Fp8Format>(checkpoint, ActivationQuant::kStatic);
  return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": FP8 activation_scheme \"",
                                               scheme.substr(0, 64),
                                               "\" is neither dynamic nor static"));
}

}  // namespace nibble
