#include "runtime/weights/quantize_at_load.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/bitsandbytes_tables.h"
#include "runtime/weights/blockwise.h"
#include "runtime/weights/code_rows.h"

namespace nibble {
namespace {

constexpr std::int64_t kBlock = 64;
constexpr float kOutlierThreshold = 6.0f;

// The midpoints of neighbours in kNf4Table; code = how many of them a value exceeds.
constexpr std::array<float, 15> kNf4Midpoints = {
    -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
    -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
    0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
    0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f};

// The thresholds as the library has them (0.583333 is shorter than the others), and the code of a
// magnitude that exceeds that many of them.
constexpr std::array<float, 7> kFp4Thresholds = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                                 0.4166667f,  0.583333f,  0.8333333f};
constexpr std::array<std::uint8_t, 8> kFp4Codes = {0, 1, 6, 7, 4, 5, 2, 3};

using BlockOfFloats = std::array<float, kBlock>;
using BlockOfCodes = std::array<std::int32_t, kBlock>;

// How many thresholds each value exceeds; none for NaN.
template <std::size_t kCount>
void CountBelow(const std::array<float, kCount>& thresholds, const BlockOfFloats& y,
                BlockOfCodes& codes) {
  codes.fill(0);
  for (const float threshold : thresholds) {
    for (std::size_t i = 0; i < y.size(); ++i) codes[i] += y[i] > threshold ? 1 : 0;
  }
}

void Nf4Codes(const BlockOfFloats& y, BlockOfCodes& codes) { CountBelow(kNf4Midpoints, y, codes); }

void Fp4Codes(const BlockOfFloats& y, BlockOfCodes& codes) {
  BlockOfFloats magnitude;
  for (std::size_t i = 0; i < y.size(); ++i) magnitude[i] = std::abs(y[i]);
  CountBelow(kFp4Thresholds, magnitude, codes);
  for (std::size_t i = 0; i < y.size(); ++i) {
    codes[i] = kFp4Codes[static_cast<std::size_t>(codes[i])] | (y[i] < 0 ? 8 : 0);
  }
}

// Nearest integer, ties to even, of |x| < 2^22: the adder rounds. A call of rint would cost more
// than the rest.
inline float RoundToInteger(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

// Row `row` of a dense weight in f32.
void ReadRow(const Dense& dense, std::int64_t k, std::int64_t row, float* out) {
  const auto first = static_cast<std::size_t>(row * k);
  const auto count = static_cast<std::size_t>(k);
  switch (dense.dtype) {
    case DType::kF16: {
      const auto in = dense.data.As<std::uint16_t>().subspan(first, count);
      std::transform(in.begin(), in.end(), out, F16ToF32);
      break;
    }
    case DType::kBF16: {
      const auto in = dense.data.As<std::uint16_t>().subspan(first, count);
      std::transform(in.begin(), in.end(), out, Bf16ToF32);
      break;
    }
    default: std::copy_n(dense.data.As<float>().begin() + row * k, k, out);
  }
}

// A maximum alone would pass over NaN.
absl::Status CheckRow(const std::vector<float>& row, std::int64_t index) {
  float sum = 0;
  for (const float value : row) sum += value * 0.0f;
  if (sum == 0.0f) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("row ", index, " has a weight that is infinite or not a number"));
}

// Blocks cross rows, so rows are fed one after another into the current block.
class BlockQuantizer {
 public:
  BlockQuantizer(std::int64_t count, bool nf4)
      : nf4_(nf4),
        packed_(static_cast<std::size_t>((count + 1) / 2)),
        absmax_(static_cast<std::size_t>((count + kBlock - 1) / kBlock)) {}

  void Add(const std::vector<float>& values) {
    for (std::size_t i = 0; i < values.size();) {
      const std::size_t some =
          std::min(values.size() - i, static_cast<std::size_t>(kBlock - filled_));
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(i), some, block_.begin() + filled_);
      filled_ += static_cast<std::int64_t>(some);
      i += some;
      if (filled_ == kBlock) Flush();
    }
  }

  Codebook Finish(std::int64_t n, std::int64_t k) {
    if (filled_ > 0) Flush();
    return FromBlocks(nf4_ ? kNf4Table : kFp4Table, n, k, kBlock, std::move(packed_), absmax_);
  }

 private:
  // The first code of a pair goes into the high nibble. In a block of zeros every comparison with 0
  // * inf is false, which gives code 0; a missing last code counts as a zero.
  void Flush() {
    float absmax = 0;
    for (std::int64_t i = 0; i < filled_; ++i) {
      absmax = std::max(absmax, std::abs(block_[static_cast<std::size_t>(i)]));
    }
    const float inverse = 1.0f / absmax;
    std::fill(block_.begin() + filled_, block_.end(), 0.0f);
    BlockOfFloats y;
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = block_[i] * inverse;
    BlockOfCodes codes;
    nf4_ ? Nf4Codes(y, codes) : Fp4Codes(y, codes);
    auto* out = packed_.As<std::uint8_t>().data() + next_block_ * kBlock / 2;
    for (std::int64_t i = 0; i < (filled_ + 1) / 2; ++i) {
      out[i] = static_cast<std::uint8_t>(codes[static_cast<std::size_t>(2 * i)] << 4 |
                                         codes[static_cast<std::size_t>(2 * i + 1)]);
    }
    absmax_[static_cast<std::size_t>(next_block_++)] = absmax;
    filled_ = 0;
  }

  const bool nf4_;
  HostBuffer packed_;
  std::vector<float> absmax_;
  BlockOfFloats block_{};
  std::int64_t filled_ = 0;
  std::int64_t next_block_ = 0;
};

absl::StatusOr<Codebook> QuantizeBlocks(const LinearWeight& weight, const Dense& dense, bool nf4) {
  BlockQuantizer quantizer(weight.n * weight.k, nf4);
  std::vector<float> row(static_cast<std::size_t>(weight.k));
  for (std::int64_t n = 0; n < weight.n; ++n) {
    ReadRow(dense, weight.k, n, row.data());
    RETURN_IF_ERROR(CheckRow(row, n));
    quantizer.Add(row);
  }
  return quantizer.Finish(weight.n, weight.k);
}

// LLM.int8(): rounded to f16 first, then each row to its own absolute maximum.
absl::StatusOr<Row8> QuantizeRows(const LinearWeight& weight, const Dense& dense) {
  Row8 out;
  out.codes = HostBuffer(static_cast<std::size_t>(weight.n * weight.k));
  out.scales.resize(static_cast<std::size_t>(weight.n));
  out.activation = ActivationQuant::kOutlierSplit;
  out.outlier_threshold = kOutlierThreshold;
  std::vector<float> row(static_cast<std::size_t>(weight.k));
  for (std::int64_t n = 0; n < weight.n; ++n) {
    ReadRow(dense, weight.k, n, row.data());
    float absmax = 0;
    for (float& value : row) {
      value = F16ToF32(F32ToF16(value));
      absmax = std::max(absmax, std::abs(value));
    }
    RETURN_IF_ERROR(CheckRow(row, n));
    // By the reciprocal, as both back ends of the library divide: exact ties round accordingly.
    const float inverse = absmax == 0 ? 0.0f : (1.0f / absmax) * 127.0f;
    std::int8_t* codes = out.codes.As<std::int8_t>().data() + n * weight.k;
    for (std::int64_t j = 0; j < weight.k; ++j) {
      codes[j] =
          static_cast<std::int8_t>(RoundToInteger(row[static_cast<std::size_t>(j)] * inverse));
    }
    out.scales[static_cast<std::size_t>(n)] = absmax * kInt8Step;
  }
  return out;
}

std::int64_t Int4Group(std::int64_t k) {
  for (const std::int64_t group : {128, 64}) {
    if (k % group == 0) return group;
  }
  return std::min<std::int64_t>(k, 32);
}

// One group to 0..15: the range always holds 0, so that 0 keeps its exact code.
struct GroupGrid {
  std::uint16_t scale;  // f16
  std::uint8_t zero;
};

GroupGrid QuantizeGroup(std::span<const float> values, std::uint8_t* codes) {
  float low = 0;
  float high = 0;
  for (const float value : values) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  GroupGrid grid{F32ToF16((high - low) / 15.0f), 0};
  const float scale = F16ToF32(grid.scale);
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  const float zero = std::clamp(RoundToInteger(-low * inverse), 0.0f, 15.0f);
  grid.zero = static_cast<std::uint8_t>(zero);
  for (std::size_t i = 0; i < values.size(); ++i) {
    codes[i] = static_cast<std::uint8_t>(
        std::clamp(RoundToInteger(values[i] * inverse) + zero, 0.0f, 15.0f));
  }
  return grid;
}

absl::StatusOr<Affine> QuantizeInt4(const LinearWeight& weight, const Dense& dense) {
  const std::int64_t group = Int4Group(weight.k);
  const std::int64_t groups = (weight.k + group - 1) / group;
  const std::int64_t row_bytes = CodeRowBytes(weight.k, 4);
  Affine out;
  out.bits = 4;
  out.group = group;
  out.codes = HostBuffer(static_cast<std::size_t>(weight.n * row_bytes));
  FlatScales scales{DType::kF16, HostBuffer(static_cast<std::size_t>(weight.n * groups * 2))};
  ZeroCodes zeros{HostBuffer(static_cast<std::size_t>(weight.n * groups))};
  std::vector<float> row(static_cast<std::size_t>(weight.k));
  std::vector<std::uint8_t> codes(row.size());
  for (std::int64_t n = 0; n < weight.n; ++n) {
    ReadRow(dense, weight.k, n, row.data());
    RETURN_IF_ERROR(CheckRow(row, n));
    for (std::int64_t g = 0; g < groups; ++g) {
      const auto begin = static_cast<std::size_t>(g * group);
      const std::size_t size = std::min(row.size() - begin, static_cast<std::size_t>(group));
      const GroupGrid grid =
          QuantizeGroup(std::span(row).subspan(begin, size), codes.data() + begin);
      if ((grid.scale & 0x7c00) == 0x7c00) {
        return absl::InvalidArgumentError(
            absl::StrCat("row ", n, " has weights too large for f16 scales"));
      }
      scales.data.As<std::uint16_t>()[static_cast<std::size_t>(n * groups + g)] = grid.scale;
      zeros.zeros.As<std::uint8_t>()[static_cast<std::size_t>(n * groups + g)] = grid.zero;
    }
    PackCodes(codes.data(), 4, weight.k, out.codes.data() + n * row_bytes);
  }
  out.scales = std::move(scales);
  out.offset = std::move(zeros);
  return out;
}

const char* NameOf(LoadQuantization mode) {
  switch (mode) {
    case LoadQuantization::kNone: return "none";
    case LoadQuantization::kNf4: return "nf4";
    case LoadQuantization::kFp4: return "fp4";
    case LoadQuantization::kInt8: return "int8";
    case LoadQuantization::kInt4: return "int4";
  }
  return "?";
}

// Embeddings, the output head and expert routers, in either naming.
bool StaysDense(absl::string_view layer) {
  const std::size_t dot = layer.rfind('.');
  const absl::string_view leaf = dot == absl::string_view::npos ? layer : layer.substr(dot + 1);
  for (const absl::string_view name :
       {"embed_tokens", "lm_head", "token_embd", "output", "gate", "router", "ffn_gate_inp"}) {
    if (leaf == name) return true;
  }
  return false;
}

class QuantizingFormat final : public WeightFormat {
 public:
  QuantizingFormat(std::unique_ptr<WeightFormat> inner, LoadQuantization mode)
      : inner_(std::move(inner)), mode_(mode) {}

  std::string Name() const override {
    return absl::StrCat(NameOf(mode_), " at load from ", inner_->Name());
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    ASSIGN_OR_RETURN(const LinearSpec spec, inner_->Describe(layer));
    if (spec.kind != EncodingKind::kDense || StaysDense(layer)) return spec;
    return QuantizedSpec(spec, mode_);
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    ASSIGN_OR_RETURN(LinearWeight weight, inner_->Load(layer));
    if (!std::holds_alternative<Dense>(weight.encoding) || StaysDense(layer)) return weight;
    absl::StatusOr<LinearWeight> quantized = QuantizeDense(weight, mode_);
    if (quantized.ok()) return quantized;
    return absl::Status(quantized.status().code(),
                        absl::StrCat("layer \"", layer, "\": ", quantized.status().message()));
  }

  bool Has(absl::string_view layer) const override { return inner_->Has(layer); }

 private:
  const std::unique_ptr<WeightFormat> inner_;
  const LoadQuantization mode_;
};

}  // namespace

LinearSpec QuantizedSpec(const LinearSpec& spec, LoadQuantization mode) {
  LinearSpec out;
  out.n = spec.n;
  out.k = spec.k;
  out.has_bias = spec.has_bias;
  switch (mode) {
    case LoadQuantization::kNone: return spec;
    case LoadQuantization::kNf4:
    case LoadQuantization::kFp4:
      out.kind = EncodingKind::kCodebook;
      out.bits = 4;
      out.group = GroupOfBlocks(spec.k, kBlock);
      out.scales = ScaleKind::kF32;
      break;
    case LoadQuantization::kInt8:
      out.kind = EncodingKind::kRow8;
      out.dtype = DType::kI8;
      out.bits = 8;
      out.scales = ScaleKind::kF32;
      out.activation = ActivationQuant::kOutlierSplit;
      break;
    case LoadQuantization::kInt4:
      out.kind = EncodingKind::kAffine;
      out.bits = 4;
      out.group = Int4Group(spec.k);
      out.scales = ScaleKind::kF16;
      out.offset = OffsetKind::kZeroCodes;
      break;
  }
  return out;
}

absl::StatusOr<LinearWeight> QuantizeDense(const LinearWeight& weight, LoadQuantization mode) {
  const Dense& dense = std::get<Dense>(weight.encoding);
  LinearWeight out;
  out.n = weight.n;
  out.k = weight.k;
  out.bias = weight.bias;
  switch (mode) {
    case LoadQuantization::kNone: return absl::InvalidArgumentError("no quantization asked for");
    case LoadQuantization::kNf4:
    case LoadQuantization::kFp4: {
      ASSIGN_OR_RETURN(out.encoding, QuantizeBlocks(weight, dense, mode == LoadQuantization::kNf4));
      break;
    }
    case LoadQuantization::kInt8: {
      ASSIGN_OR_RETURN(out.encoding, QuantizeRows(weight, dense));
      break;
    }
    case LoadQuantization::kInt4: {
      ASSIGN_OR_RETURN(out.encoding, QuantizeInt4(weight, dense));
      break;
    }
  }
  return out;
}

std::unique_ptr<WeightFormat> QuantizeAtLoad(std::unique_ptr<WeightFormat> inner,
                                             LoadQuantization mode) {
  return std::make_unique<QuantizingFormat>(std::move(inner), mode);
}

}  // namespace nibble
