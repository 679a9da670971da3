// AWQ: 4-bit codes with zero points, in three layouts of LAYER.qweight:
//   gemm       i32[k, n/8]; word c holds columns 8c + {0,2,4,6,1,3,5,7}, lowest nibble first
//   gemv       i32[n, k/8]; natural order, already our code rows
//   gemv_fast  i16[n/4, k]; four rows interleaved in a kernel's order, zeros as -(scale * zero)
#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/tensor_reader.h"
#include "runtime/weights/transpose.h"

namespace nibble {
namespace {

enum class Layout { kGemm, kGemv, kGemvFast };

// The column within its word that nibble i holds.
constexpr int kColumnOfNibble[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// words[k] nibble i <-> words[i] nibble k: an 8 by 8 transpose by swapping ever smaller blocks.
void TransposeNibbles(std::uint32_t words[8]) {
  const auto swap = [&](int distance, int shift, std::uint32_t mask) {
    for (int i = 0; i < 8; ++i) {
      if ((i & distance) != 0) continue;
      const std::uint32_t t = ((words[i] >> shift) ^ words[i + distance]) & mask;
      words[i + distance] ^= t;
      words[i] ^= t << shift;
    }
  };
  swap(4, 16, 0x0000ffff);
  swap(2, 8, 0x00ff00ff);
  swap(1, 4, 0x0f0f0f0f);
}

// i32[k, n/8] to code rows [n, k/2]. REQUIRES: k and n are multiples of 8.
HostBuffer GemmCodes(const HostBuffer& packed, std::int64_t k, std::int64_t n) {
  constexpr std::int64_t kTile = 16;  // words on both sides: a cache line
  const std::uint32_t* in = packed.As<std::uint32_t>().data();
  HostBuffer codes(packed.size());
  std::uint32_t* out = codes.As<std::uint32_t>().data();
  const std::int64_t columns = n / 8;
  const std::int64_t row_words = k / 8;
  for (std::int64_t k0 = 0; k0 < row_words; k0 += kTile) {
    for (std::int64_t c0 = 0; c0 < columns; c0 += kTile) {
      for (std::int64_t kb = k0; kb < std::min(row_words, k0 + kTile); ++kb) {
        for (std::int64_t c = c0; c < std::min(columns, c0 + kTile); ++c) {
          std::uint32_t words[8];
          for (int i = 0; i < 8; ++i) words[i] = in[(8 * kb + i) * columns + c];
          TransposeNibbles(words);
          for (int i = 0; i < 8; ++i) out[(8 * c + kColumnOfNibble[i]) * row_words + kb] = words[i];
        }
      }
    }
  }
  return codes;
}

// i32[groups, n/8] in the same order to u8[n, groups].
HostBuffer GemmZeros(const HostBuffer& packed, std::int64_t groups, std::int64_t n) {
  const auto words = packed.As<std::uint32_t>();
  HostBuffer zeros(static_cast<std::size_t>(groups * n));
  auto out = zeros.As<std::uint8_t>();
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < n / 8; ++c) {
      const std::uint32_t word = words[static_cast<std::size_t>(g * (n / 8) + c)];
      for (int i = 0; i < 8; ++i) {
        const std::int64_t row = 8 * c + kColumnOfNibble[i];
        out[static_cast<std::size_t>(row * groups + g)] = (word >> (4 * i)) & 15;
      }
    }
  }
  return zeros;
}

// i16[n/4, k]: code (4R + i, 64B + 32h + 8a + 2b + c) is nibble a of word [R, 64B + 16i + 8h + 2b +
// c].
HostBuffer GemvFastCodes(const HostBuffer& packed, std::int64_t n, std::int64_t k) {
  const auto words = packed.As<std::uint16_t>();
  HostBuffer codes(packed.size());
  auto out = codes.As<std::uint8_t>();
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t word_row = row / 4 * k + 16 * (row % 4);
    for (std::int64_t pair = 0; pair < k / 2; ++pair) {
      const std::int64_t at = 2 * pair;
      const std::int64_t word = word_row + at / 64 * 64 + at % 64 / 32 * 8 + at % 8;
      const int shift = static_cast<int>(at % 32 / 8) * 4;
      const int low = words[static_cast<std::size_t>(word)] >> shift & 15;
      const int high = words[static_cast<std::size_t>(word + 1)] >> shift & 15;
      out[static_cast<std::size_t>(row * (k / 2) + pair)] =
          static_cast<std::uint8_t>(low | high << 4);
    }
  }
  return codes;
}

// Words of zero points in a row, and rows of scales, that the gemv layouts pad to.
std::int64_t PaddedZeroWords(std::int64_t groups, std::int64_t group) {
  const std::int64_t multiple = group >= 128 ? 1 : group == 64 ? 2 : 4;
  const std::int64_t words = (groups + 7) / 8;
  return (words + multiple - 1) / multiple * multiple;
}

struct Layer {
  const TensorInfo* qweight = nullptr;
  const TensorInfo* qzeros = nullptr;
  const TensorInfo* scales = nullptr;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t group = 0;
  std::int64_t groups = 0;
  bool has_bias = false;
};

class AwqFormat final : public WeightFormat {
 public:
  AwqFormat(const Checkpoint& checkpoint, Layout layout, std::int64_t group_size)
      : checkpoint_(checkpoint), layout_(layout), group_size_(group_size) {}

  std::string Name() const override {
    return absl::StrCat("awq int4", group_size_ < 0 ? "" : absl::StrCat(" g", group_size_));
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    if (!IsPacked(layer)) return DescribeDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(const Layer found, Inspect(layer));
    LinearSpec spec;
    spec.n = found.n;
    spec.k = found.k;
    spec.kind = EncodingKind::kAffine;
    spec.bits = 4;
    spec.group = found.group;
    spec.scales = found.scales->dtype == DType::kF16 ? ScaleKind::kF16 : ScaleKind::kBF16;
    spec.offset = layout_ == Layout::kGemvFast ? OffsetKind::kBias : OffsetKind::kZeroCodes;
    spec.has_bias = found.has_bias;
    return spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    if (!IsPacked(layer)) return LoadDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(const Layer found, Inspect(layer));
    ASSIGN_OR_RETURN(Affine affine, LoadAffine(found));
    affine.bits = 4;
    affine.group = found.group;
    LinearWeight weight;
    weight.n = found.n;
    weight.k = found.k;
    weight.encoding = std::move(affine);
    ASSIGN_OR_RETURN(weight.bias, ReadBias(checkpoint_, layer, found.n));
    return weight;
  }

  bool Has(absl::string_view layer) const override {
    return IsPacked(layer) || checkpoint_.Find(absl::StrCat(layer, ".weight")) != nullptr;
  }

 private:
  bool IsPacked(absl::string_view layer) const {
    return checkpoint_.Find(absl::StrCat(layer, ".qweight")) != nullptr;
  }

  absl::StatusOr<Layer> Inspect(absl::string_view name) const {
    Layer layer;
    ASSIGN_OR_RETURN(layer.qweight, FindTensor(checkpoint_, absl::StrCat(name, ".qweight")));
    ASSIGN_OR_RETURN(layer.scales, FindTensor(checkpoint_, absl::StrCat(name, ".scales")));
    layer.qzeros = checkpoint_.Find(absl::StrCat(name, ".qzeros"));
    if (layer.qzeros == nullptr) {
      layer.qzeros = checkpoint_.Find(absl::StrCat(name, ".scaled_zeros"));  // llm-awq
    }
    if (layer.qzeros == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat(Shown(*layer.qweight),
                       " has no qzeros beside it: AWQ without zero points has no "
                       "defined layout; quantize with zero_point=true"));
    }
    RETURN_IF_ERROR(CheckMatrix(*layer.qweight));
    RETURN_IF_ERROR(
        CheckType(*layer.qweight, {layout_ == Layout::kGemvFast ? DType::kI16 : DType::kI32}));
    RETURN_IF_ERROR(CheckType(*layer.scales, {DType::kF16, DType::kBF16}));
    const std::int64_t rows = layer.qweight->shape[0];
    const std::int64_t columns = layer.qweight->shape[1];
    switch (layout_) {
      case Layout::kGemm:
        layer.k = rows;
        layer.n = columns * 8;
        break;
      case Layout::kGemv:
        layer.n = rows;
        layer.k = columns * 8;
        break;
      case Layout::kGemvFast:
        layer.n = rows * 4;
        layer.k = columns;
        break;
    }
    layer.group = group_size_ == -1 ? layer.k : group_size_;
    if (layer.k % layer.group != 0 || layer.k % (layout_ == Layout::kGemvFast ? 64 : 8) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          Shown(*layer.qweight), " of ", layer.k, " inputs is not whole groups of ", layer.group));
    }
    layer.groups = layer.k / layer.group;
    RETURN_IF_ERROR(CheckSides(layer));
    ASSIGN_OR_RETURN(layer.has_bias, HasBias(checkpoint_, name, layer.n));
    return layer;
  }

  absl::Status CheckSides(const Layer& layer) const {
    const std::int64_t padded = PaddedZeroWords(layer.groups, layer.group);
    switch (layout_) {
      case Layout::kGemm:
        RETURN_IF_ERROR(CheckType(*layer.qzeros, {DType::kI32}));
        RETURN_IF_ERROR(CheckShape(*layer.qzeros, {layer.groups, layer.n / 8}));
        return CheckShape(*layer.scales, {layer.groups, layer.n});
      case Layout::kGemv:
        RETURN_IF_ERROR(CheckType(*layer.qzeros, {DType::kI32}));
        RETURN_IF_ERROR(CheckShape(*layer.qzeros, {layer.n, padded}));
        return CheckShape(*layer.scales, {layer.n, 8 * padded});
      case Layout::kGemvFast:
        RETURN_IF_ERROR(CheckType(*layer.qzeros, {layer.scales->dtype}));
        RETURN_IF_ERROR(CheckShape(*layer.qzeros, {8 * padded, layer.n}));
        return CheckShape(*layer.scales, {8 * padded, layer.n});
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Affine> LoadAffine(const Layer& layer) const {
    ASSIGN_OR_RETURN(HostBuffer packed, ReadTensor(checkpoint_, *layer.qweight));
    Affine affine;
    switch (layout_) {
      case Layout::kGemm: {
        affine.codes = GemmCodes(packed, layer.k, layer.n);
        ASSIGN_OR_RETURN(affine.scales, ReadScalesTransposed(checkpoint_, *layer.scales));
        ASSIGN_OR_RETURN(const HostBuffer zeros, ReadTensor(checkpoint_, *layer.qzeros));
        affine.offset = ZeroCodes{GemmZeros(zeros, layer.groups, layer.n)};
        break;
      }
      case Layout::kGemv: {
        affine.codes = std::move(packed);
        ASSIGN_OR_RETURN(affine.scales, ReadGemvScales(layer));
        ASSIGN_OR_RETURN(HostBuffer zeros, ReadGemvZeros(layer));
        affine.offset = ZeroCodes{std::move(zeros)};
        break;
      }
      case Layout::kGemvFast: {
        affine.codes = GemvFastCodes(packed, layer.n, layer.k);
        ASSIGN_OR_RETURN(affine.scales, ReadTopRows(layer, *layer.scales));
        ASSIGN_OR_RETURN(FlatScales offsets, ReadTopRows(layer, *layer.qzeros));
        affine.offset = BiasOffset{offsets.dtype, std::move(offsets.data)};
        break;
      }
    }
    return affine;
  }

  // [n, 8 * padded] of which the first `groups` columns count.
  absl::StatusOr<FlatScales> ReadGemvScales(const Layer& layer) const {
    ASSIGN_OR_RETURN(const HostBuffer padded, ReadTensor(checkpoint_, *layer.scales));
    FlatScales out{layer.scales->dtype,
                   HostBuffer(static_cast<std::size_t>(layer.n * layer.groups * 2))};
    const std::int64_t width = layer.scales->shape[1] * 2;
    for (std::int64_t row = 0; row < layer.n; ++row) {
      std::memcpy(out.data.data() + row * layer.groups * 2, padded.data() + row * width,
                  static_cast<std::size_t>(layer.groups * 2));
    }
    RETURN_IF_ERROR(CheckFinite(*layer.scales, out.data));
    return out;
  }

  // u8[n, groups] from nibbles in natural order.
  absl::StatusOr<HostBuffer> ReadGemvZeros(const Layer& layer) const {
    ASSIGN_OR_RETURN(const HostBuffer packed, ReadTensor(checkpoint_, *layer.qzeros));
    const auto nibbles = packed.As<std::uint8_t>();
    const std::int64_t width = layer.qzeros->shape[1] * 4;
    HostBuffer zeros(static_cast<std::size_t>(layer.n * layer.groups));
    auto out = zeros.As<std::uint8_t>();
    for (std::int64_t row = 0; row < layer.n; ++row) {
      for (std::int64_t g = 0; g < layer.groups; ++g) {
        const int byte = nibbles[static_cast<std::size_t>(row * width + g / 2)];
        out[static_cast<std::size_t>(row * layer.groups + g)] =
            static_cast<std::uint8_t>(byte >> (g % 2 * 4) & 15);
      }
    }
    return zeros;
  }

  // [8 * padded, n] of which the first `groups` rows count, as [n, groups].
  absl::StatusOr<FlatScales> ReadTopRows(const Layer& layer, const TensorInfo& tensor) const {
    TensorInfo top = tensor;
    top.shape[0] = layer.groups;
    top.bytes = static_cast<std::uint64_t>(layer.groups * layer.n * 2);
    return ReadScalesTransposed(checkpoint_, top);
  }

  const Checkpoint& checkpoint_;
  const Layout layout_;
  const std::int64_t group_size_;
};

}  // namespace

OpenedFormat OpenAwq(const Checkpoint& checkpoint, const QuantConfig& quant) {
  ASSIGN_OR_RETURN(const std::int64_t bits, IntegerOr(quant.json, {"bits", "w_bit", "wbits"}, 4));
  ASSIGN_OR_RETURN(const std::int64_t group_size,
                   IntegerOr(quant.json, {"group_size", "q_group_size"}, 128));
  ASSIGN_OR_RETURN(const std::string backend, NameOr(quant.json, {"backend"}, "autoawq"));
  ASSIGN_OR_RETURN(std::string version,
                   NameOr(quant.json, {"version", "checkpoint_format", "format"}, "gemm"));
  if (bits != 4) {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.path(), ": AWQ with ", bits, " bits is not supported, only 4"));
  }
  if (group_size != -1 && (group_size < 8 || group_size % 8 != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": AWQ group_size is ",
                                                   group_size, ", not -1 or a multiple of 8"));
  }
  // auto-round names its packing elsewhere; exllama and ipex name kernels over the gemm layout.
  if (absl::StartsWith(version, "auto_round") || version == "exllama" || version == "ipex")
    version = "gemm";
  if (backend == "llm-awq" || version == "gemv_fast") {
    return std::make_unique<AwqFormat>(checkpoint, Layout::kGemvFast, group_size);
  }
  if (version == "gemm") return std::make_unique<AwqFormat>(checkpoint, Layout::kGemm, group_size);
  if (version == "gemv") return std::make_unique<AwqFormat>(checkpoint, Layout::kGemv, group_size);
  return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": AWQ version \"",
                                               version.substr(0, 64),
                                               "\" is not supported: quantize with version gemm"));
}

}  // namespace nibble
