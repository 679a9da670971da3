#include "runtime/device/cuda_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/row8.h"
#include "runtime/base/ceil_div.h"
#include "runtime/base/overloaded.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_linear.h"

namespace nibble {
namespace {

float NumberAt(const HostBuffer& data, DType dtype, std::size_t i) {
  switch (dtype) {
    case DType::kF16: return F16ToF32(data.As<std::uint16_t>()[i]);
    case DType::kBF16: return Bf16ToF32(data.As<std::uint16_t>()[i]);
    case DType::kF8E8M0: return std::ldexp(1.0f, data.As<std::uint8_t>()[i] - 127);
    default: return data.As<float>()[i];
  }
}

void NumberRow(const HostBuffer& data, DType dtype, std::int64_t row, std::int64_t groups,
               float* out) {
  const auto first = static_cast<std::size_t>(row * groups);
  for (std::int64_t g = 0; g < groups; ++g)
    out[g] = NumberAt(data, dtype, first + static_cast<std::size_t>(g));
}

void TwoLevelRow(const TwoLevelScales& levels, std::int64_t row, std::int64_t groups, float sign,
                 float* out) {
  const std::int64_t supers = CeilDiv(groups, levels.groups_per_super);
  const auto super = levels.super.As<std::uint16_t>();
  const auto codes = levels.codes.As<std::int8_t>();
  for (std::int64_t g = 0; g < groups; ++g) {
    const float of_super =
        F16ToF32(super[static_cast<std::size_t>(row * supers + g / levels.groups_per_super)]);
    out[g] = sign * of_super * codes[static_cast<std::size_t>(row * groups + g)];
  }
}

void ScaleRow(const Scales& scales, std::int64_t row, std::int64_t groups, float* out) {
  std::visit(
      Overloaded{
          [&](const FlatScales& flat) { NumberRow(flat.data, flat.dtype, row, groups, out); },
          [&](const TwoLevelScales& levels) { TwoLevelRow(levels, row, groups, 1.0f, out); }},
      scales);
}

bool IsHalf(const Scales& scales) {
  const auto* flat = std::get_if<FlatScales>(&scales);
  return flat != nullptr && flat->dtype == DType::kF16;
}

// The widest group of scales that divides the file's and that the streaming kernels know; else the
// widest.
int GroupOf(PackedShape shape, std::int64_t file_group) {
  const int widest = PackedGroup(file_group);
  for (int group = widest; group >= 16; group /= 2) {
    shape.group = group;
    if (cuda::SupportsStream(shape)) return group;
  }
  return widest;
}

OffsetMode ModeOf(OffsetKind kind) {
  switch (kind) {
    case OffsetKind::kNone:
    case OffsetKind::kConstant: return OffsetMode::kConstant;
    case OffsetKind::kZeroCodes: return OffsetMode::kZeros;
    case OffsetKind::kBias:
    case OffsetKind::kTwoLevel: return OffsetMode::kBias;
  }
  return OffsetMode::kConstant;
}

absl::Status Unsupported(const LinearSpec& spec, absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("the cuda backend cannot run ", Describe(spec), " (", what, ")"));
}

absl::Status CheckSpec(const LinearSpec& spec) {
  if (spec.n < 1 || spec.k < 1)
    return absl::InvalidArgumentError(absl::StrCat("a weight of ", spec.n, " by ", spec.k));
  if (spec.kind != EncodingKind::kDense && spec.group < 1 && spec.kind != EncodingKind::kRow8)
    return absl::InvalidArgumentError(absl::StrCat(Describe(spec), ": group of ", spec.group));
  if (spec.kind != EncodingKind::kDense && spec.scales == ScaleKind::kNone)
    return Unsupported(spec, "no scales");
  if (spec.scales == ScaleKind::kE8M0 && spec.kind != EncodingKind::kCodebook)
    return Unsupported(spec, "E8M0 scales");
  switch (spec.kind) {
    case EncodingKind::kDense:
      if (spec.dtype != DType::kF32 && spec.dtype != DType::kF16 && spec.dtype != DType::kBF16)
        return Unsupported(spec, absl::StrCat("elements of type ", NameOf(spec.dtype)));
      break;
    case EncodingKind::kAffine:
      if (spec.bits < 2 || spec.bits > 8 || spec.bits == 7)
        return Unsupported(spec, absl::StrCat(spec.bits, " bits"));
      break;
    case EncodingKind::kCodebook: break;
    case EncodingKind::kRow8:
      if (spec.dtype != DType::kI8 && spec.dtype != DType::kF8E4M3)
        return Unsupported(spec, absl::StrCat("codes of type ", NameOf(spec.dtype)));
      if (spec.activation == ActivationQuant::kOutlierSplit && spec.dtype != DType::kI8)
        return Unsupported(spec, "outliers split from fp8");
      break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CudaForm> CudaFormOf(const LinearSpec& spec) {
  RETURN_IF_ERROR(CheckSpec(spec));
  CudaForm form;
  form.shape.n = spec.n;
  form.shape.k = spec.k;
  if (spec.kind == EncodingKind::kDense) {
    form.kind = CudaForm::Kind::kDense;
    return form;
  }
  const bool row8 = spec.kind == EncodingKind::kRow8;
  const bool whole = row8 || spec.group >= spec.k;  // one scale a row
  form.file_group = whole ? CeilDiv(spec.k, kUnitColumns) * kUnitColumns : spec.group;
  form.groups = CeilDiv(spec.k, form.file_group);
  if (row8 && spec.activation != ActivationQuant::kNone && spec.offset == OffsetKind::kNone &&
      cuda::SupportsRow8(spec.n, spec.k)) {
    form.kind = CudaForm::Kind::kRow8;
    return form;
  }
  if (row8 && spec.dtype == DType::kF8E4M3) {
    form.kind = CudaForm::Kind::kE4m3;
    return form;
  }
  form.shape.kind = spec.kind == EncodingKind::kCodebook ? CodeKind::kCodebook : CodeKind::kInteger;
  form.shape.bits = row8 ? 8 : spec.kind == EncodingKind::kCodebook ? 4 : spec.bits;
  form.shape.offset =
      spec.kind == EncodingKind::kCodebook ? OffsetMode::kConstant : ModeOf(spec.offset);
  form.shape.group = GroupOf(form.shape, form.file_group);
  if (form.shape.group == 0 || spec.k % 8 != 0) form.kind = CudaForm::Kind::kDequantized;
  return form;
}

int HalfExponent(float largest) {
  if (!(largest > 0.0f) || std::isinf(largest)) return 0;
  return std::clamp(std::ilogb(largest) - 14, -100, 100);  // at most 2^15, rounded up
}

absl::StatusOr<CudaRows> CudaRows::Of(const LinearWeight& weight, const CudaForm& form) {
  CudaRows rows;
  rows.weight_ = &weight;
  rows.form_ = form;
  if (form.kind == CudaForm::Kind::kDequantized) {
    ASSIGN_OR_RETURN(rows.dequantized_, Dequantize(weight));
    return rows;
  }
  std::visit(Overloaded{[&](const Dense& dense) { rows.element_ = dense.dtype; },
                        [&](const Affine& affine) {
                          rows.exact_in_half_ = IsHalf(affine.scales);
                          if (const auto* constant = std::get_if<ConstantOffset>(&affine.offset))
                            rows.zero_ = constant->zero;
                          if (const auto* bias = std::get_if<BiasOffset>(&affine.offset))
                            rows.exact_in_half_ = rows.exact_in_half_ && bias->dtype == DType::kF16;
                          if (std::holds_alternative<TwoLevelOffset>(affine.offset))
                            rows.exact_in_half_ = false;
                        },
                        [&](const Codebook& book) {
                          rows.exact_in_half_ = IsHalf(book.scales);
                          rows.table_ = book.table;
                        },
                        [&](const Row8&) { rows.zero_ = 128; }},
             weight.encoding);
  // What a half rounds away of a scale counts times the code: codes are taken from their middle,
  // where that leaves small biases too.
  if (form.shape.offset == OffsetMode::kBias && !rows.exact_in_half_)
    rows.zero_ = 1 << (form.shape.bits - 1);
  return rows;
}

const std::vector<std::int32_t>& CudaRows::order() const {
  static const std::vector<std::int32_t> kNone;
  const auto* affine = std::get_if<Affine>(&weight_->encoding);
  return affine == nullptr || form_.kind == CudaForm::Kind::kDequantized ? kNone
                                                                         : affine->permutation;
}

float CudaRows::LargestNumber() const {
  float largest = 0.0f;
  std::vector<float> row(static_cast<std::size_t>(form_.groups));
  for (std::int64_t n = 0; n < weight_->n; ++n) {
    Scales(n, row.data());
    for (const float v : row) largest = std::max(largest, std::abs(v));
    if (form_.shape.offset != OffsetMode::kBias) continue;
    Offsets(n, row.data());
    for (const float v : row) largest = std::max(largest, std::abs(v));
  }
  return largest;
}

void CudaRows::Scales(std::int64_t row, float* out) const {
  std::visit(
      Overloaded{[&](const Dense&) {},
                 [&](const Affine& affine) { ScaleRow(affine.scales, row, form_.groups, out); },
                 [&](const Codebook& book) { ScaleRow(book.scales, row, form_.groups, out); },
                 [&](const Row8& row8) {
                   out[0] =
                       row8.scales[row8.scales.size() == 1 ? 0 : static_cast<std::size_t>(row)];
                 }},
      weight_->encoding);
}

void CudaRows::Offsets(std::int64_t row, float* out) const {
  const std::int64_t groups = form_.groups;
  if (const auto* row8 = std::get_if<Row8>(&weight_->encoding)) {
    out[0] = 128.0f + static_cast<float>(row8->zeros[static_cast<std::size_t>(row)]);
    return;
  }
  const auto* affine = std::get_if<Affine>(&weight_->encoding);
  if (affine == nullptr) return;
  std::visit(Overloaded{[&](const ConstantOffset&) {},
                        [&](const ZeroCodes& codes) {
                          const auto zeros = codes.zeros.As<std::uint8_t>();
                          for (std::int64_t g = 0; g < groups; ++g)
                            out[g] = zeros[static_cast<std::size_t>(row * groups + g)];
                        },
                        [&](const BiasOffset& bias) {
                          NumberRow(bias.data, bias.dtype, row, groups, out);
                        },
                        [&](const TwoLevelOffset& offset) {
                          TwoLevelRow(offset.minimum, row, groups, -1.0f, out);
                        }},
             affine->offset);
  if (form_.shape.offset != OffsetMode::kBias || zero_ == 0) return;
  std::vector<float> scales(static_cast<std::size_t>(groups));
  Scales(row, scales.data());
  for (const float scale : scales) *out++ += scale * static_cast<float>(zero_);
}

void CudaRows::Codes(std::int64_t row, std::uint8_t* out) const {
  const auto bytes = static_cast<std::size_t>(CodeRowBytes(form_.shape.k, form_.shape.bits));
  const auto copy = [&](const HostBuffer& codes) {
    std::memcpy(out, codes.data() + static_cast<std::size_t>(row) * bytes, bytes);
  };
  std::visit(Overloaded{[&](const Dense&) {}, [&](const Affine& affine) { copy(affine.codes); },
                        [&](const Codebook& book) { copy(book.codes); },
                        [&](const Row8& row8) {
                          copy(row8.codes);
                          for (std::size_t i = 0; i < bytes; ++i) out[i] ^= 0x80;
                        }},
             weight_->encoding);
}

void CudaRows::Elements(std::int64_t row, std::byte* out) const {
  const std::int64_t k = form_.shape.k;
  if (form_.kind == CudaForm::Kind::kDequantized) {
    std::memcpy(out, dequantized_.data() + row * k, static_cast<std::size_t>(k) * 4);
    return;
  }
  if (const auto* dense = std::get_if<Dense>(&weight_->encoding)) {
    const std::int64_t bytes = k * BitsOf(dense->dtype) / 8;
    std::memcpy(out, dense->data.data() + row * bytes, static_cast<std::size_t>(bytes));
  } else if (const auto* row8 = std::get_if<Row8>(&weight_->encoding)) {
    std::memcpy(out, row8->codes.data() + row * k, static_cast<std::size_t>(k));
  }
}

float CudaRows::InputOffset(std::int64_t row) const {
  const auto& row8 = std::get<Row8>(weight_->encoding);
  if (row8.activation != ActivationQuant::kStatic || row8.static_zero == 0) return 0.0f;
  const auto k = static_cast<std::size_t>(form_.shape.k);
  const auto codes = row8.codes.As<std::int8_t>().subspan(static_cast<std::size_t>(row) * k, k);
  const std::int64_t sum = std::accumulate(codes.begin(), codes.end(), std::int64_t{0});
  float scale;
  Scales(row, &scale);
  return -static_cast<float>(sum * row8.static_zero) * row8.static_scale * scale;
}

DType CudaRows::code() const { return std::get<Row8>(weight_->encoding).dtype; }

bool CudaRows::SameInputs(const CudaRows& other) const {
  if (order() != other.order() || element() != other.element()) return false;
  const auto* a = std::get_if<Row8>(&weight_->encoding);
  const auto* b = std::get_if<Row8>(&other.weight_->encoding);
  if (a == nullptr || b == nullptr) return a == b;
  return a->activation == b->activation && a->static_scale == b->static_scale &&
         a->static_zero == b->static_zero && a->outlier_threshold == b->outlier_threshold;
}

void CudaRows::SetRounding(CudaSegment& segment) const {
  using cuda::InputRounding;
  const auto* row8 = std::get_if<Row8>(&weight_->encoding);
  if (row8 == nullptr) return;
  const bool integer = row8->dtype == DType::kI8;
  switch (row8->activation) {
    case ActivationQuant::kNone: break;
    case ActivationQuant::kDynamic:
      segment.rounding = integer ? InputRounding::kInt8Dynamic : InputRounding::kE4m3Dynamic;
      break;
    case ActivationQuant::kStatic:
      segment.rounding = integer ? InputRounding::kInt8Static : InputRounding::kE4m3Static;
      segment.scale = row8->static_scale;
      segment.zero = static_cast<float>(row8->static_zero);
      break;
    case ActivationQuant::kOutlierSplit:
      segment.rounding = InputRounding::kOutlierSplit;
      segment.threshold = row8->outlier_threshold;
      break;
  }
}

}  // namespace nibble
