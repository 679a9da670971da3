// compressed-tensors (llm-compressor). A layer is one of
//
//   LAYER.weight_packed   i32[n, words]: pack-quantized, codes along k in each row, which is how
//                         our code rows have them
//   LAYER.weight          i8 or f8e4m3[n, k] beside LAYER.weight_scale: int-, float- or
//                         naive-quantized
//   LAYER.weight          16 or 32 bit: not quantized
//
// Codes are stored as value + 2^(bits-1). The scheme that targets a layer says the rest; the
// configuration's `ignore` list need not be read, because the tensors of a layer show whether it is
// quantized.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "runtime/base/ceil_div.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"
#include "runtime/weights/compressed_schemes.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/group_order.h"
#include "runtime/weights/tensor_reader.h"

namespace nibble {
namespace {

// One quantized layer before its codes are read.
struct Layer {
  const CompressedScheme* scheme = nullptr;
  const TensorInfo* weight = nullptr;  // weight_packed or weight
  const TensorInfo* scale = nullptr;
  const TensorInfo* zero = nullptr;
  bool packed = false;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t group = 0;  // k when a scale a row
  std::int64_t groups = 1;
  std::vector<std::int32_t> permutation;
  bool has_bias = false;

  // Row8 holds codes of one byte with a scale a row; everything else is Affine.
  bool IsRow8() const { return !packed && groups == 1; }
};

class CompressedTensorsFormat final : public WeightFormat {
 public:
  CompressedTensorsFormat(const Checkpoint& checkpoint, std::vector<CompressedScheme> schemes)
      : checkpoint_(checkpoint), schemes_(std::move(schemes)) {}

  std::string Name() const override {
    if (schemes_.empty()) return "compressed-tensors";
    const CompressedScheme& first = schemes_.front();
    return absl::StrCat("compressed-tensors w", first.bits,
                        first.activation == ActivationQuant::kNone ? "a16" : "a8",
                        first.group_size > 0 ? absl::StrCat(" g", first.group_size) : "");
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    if (!IsQuantized(layer)) return DescribeDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(const Layer found, Inspect(layer));
    LinearSpec spec;
    spec.n = found.n;
    spec.k = found.k;
    spec.has_bias = found.has_bias;
    if (found.IsRow8()) {
      spec.kind = EncodingKind::kRow8;
      spec.dtype = found.weight->dtype;
      spec.bits = 8;
      spec.scales = ScaleKind::kF32;
      spec.offset = found.zero == nullptr ? OffsetKind::kNone : OffsetKind::kZeroCodes;
      spec.activation = found.scheme->activation;
      return spec;
    }
    spec.kind = EncodingKind::kAffine;
    spec.bits = found.packed ? found.scheme->bits : 8;
    spec.group = found.group;
    spec.scales = found.scale->dtype == DType::kF16    ? ScaleKind::kF16
                  : found.scale->dtype == DType::kBF16 ? ScaleKind::kBF16
                                                       : ScaleKind::kF32;
    spec.offset = found.zero == nullptr ? OffsetKind::kConstant : OffsetKind::kZeroCodes;
    spec.permuted = !found.permutation.empty();
    return spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    if (!IsQuantized(layer)) return LoadDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(const Layer found, Inspect(layer));
    LinearWeight weight;
    weight.n = found.n;
    weight.k = found.k;
    if (found.IsRow8()) {
      ASSIGN_OR_RETURN(weight.encoding, LoadRow8(layer, found));
    } else {
      ASSIGN_OR_RETURN(weight.encoding, LoadAffine(found));
    }
    ASSIGN_OR_RETURN(weight.bias, ReadBias(checkpoint_, layer, found.n));
    return weight;
  }

  bool Has(absl::string_view layer) const override {
    return checkpoint_.Find(absl::StrCat(layer, ".weight_packed")) != nullptr ||
           checkpoint_.Find(absl::StrCat(layer, ".weight")) != nullptr;
  }

 private:
  const TensorInfo* Part(absl::string_view layer, absl::string_view part) const {
    return checkpoint_.Find(absl::StrCat(layer, ".", part));
  }

  bool IsQuantized(absl::string_view layer) const {
    return Part(layer, "weight_packed") != nullptr || Part(layer, "weight_scale") != nullptr;
  }

  absl::StatusOr<const CompressedScheme*> SchemeOf(absl::string_view layer) const {
    ASSIGN_OR_RETURN(const CompressedScheme* scheme, FindScheme(schemes_, layer));
    if (scheme != nullptr) return scheme;
    return absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(),
                                                   ": no config_groups entry targets layer \"",
                                                   layer, "\", which is quantized"));
  }

  absl::StatusOr<Layer> Inspect(absl::string_view name) const {
    Layer layer;
    ASSIGN_OR_RETURN(layer.scheme, SchemeOf(name));
    layer.weight = Part(name, "weight_packed");
    layer.packed = layer.weight != nullptr;
    if (!layer.packed) {
      ASSIGN_OR_RETURN(layer.weight, FindTensor(checkpoint_, absl::StrCat(name, ".weight")));
    }
    if (!layer.scheme->refusal.empty()) {
      return absl::UnimplementedError(
          absl::StrCat(Shown(*layer.weight), ": compressed-tensors with ", layer.scheme->refusal,
                       " is not supported: compress with a W4A16, W8A16, W8A8 "
                       "or FP8 scheme"));
    }
    RETURN_IF_ERROR(CheckMatrix(*layer.weight));
    RETURN_IF_ERROR(layer.packed ? InspectPacked(name, layer) : InspectBytes(layer));
    layer.group =
        layer.scheme->group_size > 0 ? std::min(layer.scheme->group_size, layer.k) : layer.k;
    layer.groups = CeilDiv(layer.k, layer.group);
    ASSIGN_OR_RETURN(layer.scale, FindTensor(checkpoint_, absl::StrCat(name, ".weight_scale")));
    RETURN_IF_ERROR(CheckType(*layer.scale, {DType::kF32, DType::kF16, DType::kBF16}));
    const bool flat = layer.groups == 1 && layer.scale->shape == std::vector<std::int64_t>{layer.n};
    if (!flat && !IsOneForAll(*layer.scale, layer)) {
      RETURN_IF_ERROR(CheckShape(*layer.scale, {layer.n, layer.groups}));
    }
    if (!layer.scheme->symmetric) {
      ASSIGN_OR_RETURN(layer.zero,
                       FindTensor(checkpoint_, absl::StrCat(name, ".weight_zero_point")));
      RETURN_IF_ERROR(CheckZero(layer));
    }
    ASSIGN_OR_RETURN(layer.permutation,
                     ReadGroupOrder(checkpoint_, Part(name, "weight_g_idx"), layer.k, layer.group));
    ASSIGN_OR_RETURN(layer.has_bias, HasBias(checkpoint_, name, layer.n));
    return layer;
  }

  absl::Status InspectPacked(absl::string_view name, Layer& layer) const {
    const int bits = layer.scheme->bits;
    RETURN_IF_ERROR(CheckType(*layer.weight, {DType::kI32}));
    ASSIGN_OR_RETURN(const TensorInfo* shape,
                     FindTensor(checkpoint_, absl::StrCat(name, ".weight_shape")));
    RETURN_IF_ERROR(CheckType(*shape, {DType::kI64, DType::kI32}));
    RETURN_IF_ERROR(CheckShape(*shape, {2}));
    ASSIGN_OR_RETURN(const HostBuffer data, ReadTensor(checkpoint_, *shape));
    layer.n = shape->dtype == DType::kI64 ? data.As<std::int64_t>()[0] : data.As<std::int32_t>()[0];
    layer.k = shape->dtype == DType::kI64 ? data.As<std::int64_t>()[1] : data.As<std::int32_t>()[1];
    const bool in_range = layer.k >= 1 && layer.k <= std::numeric_limits<std::int32_t>::max();
    const std::int64_t words = layer.weight->shape[1];
    if (!in_range || layer.n != layer.weight->shape[0] ||
        (words != DenseWords(layer.k, bits) && words != OldWords(layer.k, bits))) {
      return absl::InvalidArgumentError(absl::StrCat(Shown(*layer.weight), " does not hold ", bits,
                                                     "-bit codes of [", layer.n, ", ", layer.k,
                                                     "]"));
    }
    return absl::OkStatus();
  }

  absl::Status InspectBytes(Layer& layer) const {
    RETURN_IF_ERROR(CheckType(*layer.weight, {DType::kI8, DType::kF8E4M3}));
    layer.n = layer.weight->shape[0];
    layer.k = layer.weight->shape[1];
    const bool grouped = layer.scheme->group_size > 0 && layer.scheme->group_size < layer.k;
    if (grouped && layer.weight->dtype != DType::kI8) {
      return absl::UnimplementedError(absl::StrCat(
          Shown(*layer.weight),
          ": FP8 weights with a scale a group are not supported: use a scale a channel"));
    }
    if (grouped && layer.scheme->activation != ActivationQuant::kNone) {
      return absl::UnimplementedError(absl::StrCat(
          Shown(*layer.weight), ": quantized activations need a scale a channel, not a group"));
    }
    return absl::OkStatus();
  }

  // The current packing is one bit stream; older releases put floor(32 / bits) codes into a word.
  static std::int64_t DenseWords(std::int64_t k, int bits) { return CeilDiv(k * bits, 32); }
  static std::int64_t OldWords(std::int64_t k, int bits) { return CeilDiv(k, 32 / bits); }

  static bool IsOneForAll(const TensorInfo& tensor, const Layer& layer) {
    return layer.groups == 1 && layer.n != 1 &&
           (tensor.shape.empty() || tensor.shape == std::vector<std::int64_t>{1} ||
            tensor.shape == std::vector<std::int64_t>{1, 1});
  }

  absl::Status CheckZero(const Layer& layer) const {
    const TensorInfo& zero = *layer.zero;
    if (layer.packed && zero.dtype == DType::kI32) {
      return CheckShape(zero, {DenseWords(layer.n, layer.scheme->bits), layer.groups});
    }
    RETURN_IF_ERROR(CheckType(zero, {DType::kI8}));
    return IsOneForAll(zero, layer) ? absl::OkStatus() : CheckShape(zero, {layer.n, layer.groups});
  }

  absl::StatusOr<Affine> LoadAffine(const Layer& layer) const {
    Affine affine;
    affine.bits = layer.packed ? layer.scheme->bits : 8;
    affine.group = layer.group;
    ASSIGN_OR_RETURN(affine.codes, layer.packed ? ReadPackedCodes(layer) : ReadByteCodes(layer));
    affine.permutation = layer.permutation;
    if (!layer.permutation.empty())
      ReorderCodes(layer.permutation, layer.n, affine.bits, affine.codes);
    FlatScales scales{layer.scale->dtype, HostBuffer()};
    ASSIGN_OR_RETURN(scales.data, ReadTensor(checkpoint_, *layer.scale));
    RETURN_IF_ERROR(CheckFinite(*layer.scale, scales.data));
    if (IsOneForAll(*layer.scale, layer)) scales.data = Repeat(scales.data, layer.n);
    affine.scales = std::move(scales);
    const int middle = 1 << (affine.bits - 1);
    if (layer.zero == nullptr) {
      affine.offset = ConstantOffset{middle};
    } else {
      ASSIGN_OR_RETURN(HostBuffer zeros, ReadZeroCodes(layer, middle));
      affine.offset = ZeroCodes{std::move(zeros)};
    }
    return affine;
  }

  static HostBuffer Repeat(const HostBuffer& one, std::int64_t n) {
    HostBuffer out(one.size() * static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      std::memcpy(out.data() + i * one.size(), one.data(), one.size());
    }
    return out;
  }

  // Rows of words to code rows, which end at a byte.
  absl::StatusOr<HostBuffer> ReadPackedCodes(const Layer& layer) const {
    const int bits = layer.scheme->bits;
    ASSIGN_OR_RETURN(HostBuffer words, ReadTensor(checkpoint_, *layer.weight));
    const std::int64_t width = layer.weight->shape[1] * 4;
    const std::int64_t row_bytes = CodeRowBytes(layer.k, bits);
    const bool dense = layer.weight->shape[1] == DenseWords(layer.k, bits);
    if (dense && width == row_bytes) return words;
    HostBuffer codes(static_cast<std::size_t>(layer.n * row_bytes));
    if (dense) {
      for (std::int64_t row = 0; row < layer.n; ++row) {
        std::memcpy(codes.data() + row * row_bytes, words.data() + row * width,
                    static_cast<std::size_t>(row_bytes));
      }
      return codes;
    }
    const std::int64_t per_word = 32 / bits;
    std::vector<std::uint8_t> row_codes(static_cast<std::size_t>(layer.k));
    for (std::int64_t row = 0; row < layer.n; ++row) {
      const std::uint32_t* in = words.As<std::uint32_t>().data() + row * layer.weight->shape[1];
      for (std::int64_t j = 0; j < layer.k; ++j) {
        row_codes[static_cast<std::size_t>(j)] = static_cast<std::uint8_t>(
            in[j / per_word] >> (j % per_word * bits) & ((1u << bits) - 1));
      }
      PackCodes(row_codes.data(), bits, layer.k, codes.data() + row * row_bytes);
    }
    return codes;
  }

  // Signed bytes, moved up by 128.
  absl::StatusOr<HostBuffer> ReadByteCodes(const Layer& layer) const {
    ASSIGN_OR_RETURN(HostBuffer codes, ReadTensor(checkpoint_, *layer.weight));
    for (std::uint8_t& code : codes.As<std::uint8_t>()) code ^= 0x80;
    return codes;
  }

  // u8[n, groups]. Packed ones are i32 words along n, of bit streams down each column.
  absl::StatusOr<HostBuffer> ReadZeroCodes(const Layer& layer, int middle) const {
    ASSIGN_OR_RETURN(HostBuffer data, ReadTensor(checkpoint_, *layer.zero));
    if (layer.zero->dtype == DType::kI8) {
      for (std::uint8_t& zero : data.As<std::uint8_t>()) {
        const int code = static_cast<std::int8_t>(zero) + middle;
        if (code < 0 || code > 255) {
          return absl::InvalidArgumentError(
              absl::StrCat(Shown(*layer.zero), ": zero point ", code - middle, " is out of range"));
        }
        zero = static_cast<std::uint8_t>(code);
      }
      return IsOneForAll(*layer.zero, layer) ? Repeat(data, layer.n) : std::move(data);
    }
    const std::int64_t words = layer.zero->shape[0];
    std::vector<std::uint32_t> column(static_cast<std::size_t>(words));
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(layer.n));
    HostBuffer out(static_cast<std::size_t>(layer.n * layer.groups));
    for (std::int64_t g = 0; g < layer.groups; ++g) {
      for (std::int64_t w = 0; w < words; ++w) {
        column[static_cast<std::size_t>(w)] =
            data.As<std::uint32_t>()[static_cast<std::size_t>(w * layer.groups + g)];
      }
      UnpackCodes(reinterpret_cast<const std::byte*>(column.data()), layer.scheme->bits, layer.n,
                  codes.data());
      for (std::int64_t row = 0; row < layer.n; ++row) {
        out.As<std::uint8_t>()[static_cast<std::size_t>(row * layer.groups + g)] =
            codes[static_cast<std::size_t>(row)];
      }
    }
    return out;
  }

  absl::StatusOr<Row8> LoadRow8(absl::string_view name, const Layer& layer) const {
    Row8 row8;
    row8.dtype = layer.weight->dtype;
    ASSIGN_OR_RETURN(row8.codes, ReadTensor(checkpoint_, *layer.weight));
    ASSIGN_OR_RETURN(row8.scales, ReadVector(checkpoint_, layer.scale->name));
    if (!std::all_of(row8.scales.begin(), row8.scales.end(),
                     [](float s) { return std::isfinite(s); })) {
      return absl::InvalidArgumentError(
          absl::StrCat(Shown(*layer.scale), " holds an infinite scale or NaN"));
    }
    row8.scales.resize(static_cast<std::size_t>(layer.n), row8.scales[0]);
    if (layer.zero != nullptr) {
      ASSIGN_OR_RETURN(const HostBuffer zeros, ReadTensor(checkpoint_, *layer.zero));
      const auto bytes = zeros.As<std::int8_t>();
      row8.zeros.assign(bytes.begin(), bytes.end());
      row8.zeros.resize(static_cast<std::size_t>(layer.n), row8.zeros[0]);
    }
    row8.activation = layer.scheme->activation;
    if (row8.activation == ActivationQuant::kStatic) RETURN_IF_ERROR(ReadStaticInput(name, row8));
    return row8;
  }

  absl::Status ReadStaticInput(absl::string_view name, Row8& row8) const {
    ASSIGN_OR_RETURN(const std::vector<float> scale,
                     ReadVector(checkpoint_, absl::StrCat(name, ".input_scale")));
    if (scale.size() != 1 || !std::isfinite(scale[0]) || !(scale[0] > 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ".input_scale is not one positive number"));
    }
    row8.static_scale = scale[0];
    const TensorInfo* zero = Part(name, "input_zero_point");
    if (zero == nullptr) return absl::OkStatus();
    if (zero->dtype != DType::kI8 || zero->bytes != 1) {
      // FP8 schemes write zero points that are always 0.
      if (zero->dtype == DType::kF8E4M3) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat(Shown(*zero), " should be one I8"));
    }
    ASSIGN_OR_RETURN(const HostBuffer data, ReadTensor(checkpoint_, *zero));
    row8.static_zero = data.As<std::int8_t>()[0];
    return absl::OkStatus();
  }

  const Checkpoint& checkpoint_;
  const std::vector<CompressedScheme> schemes_;
};

}  // namespace

OpenedFormat OpenCompressedTensors(const Checkpoint& checkpoint, const QuantConfig& quant) {
  absl::StatusOr<std::vector<CompressedScheme>> schemes = ReadCompressedSchemes(quant.json);
  if (absl::IsUnimplemented(schemes.status())) {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.path(), ": ", schemes.status().message()));
  }
  RETURN_IF_ERROR(schemes.status());
  return std::make_unique<CompressedTensorsFormat>(checkpoint, *std::move(schemes));
}

}  // namespace nibble
