#include "runtime/weights/linear_weight.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/ceil_div.h"
#include "runtime/base/overloaded.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"

namespace nibble {
namespace {

ScaleKind KindOf(const Scales& scales) {
  const auto* flat = std::get_if<FlatScales>(&scales);
  if (flat == nullptr) return ScaleKind::kTwoLevel;
  switch (flat->dtype) {
    case DType::kF32: return ScaleKind::kF32;
    case DType::kF16: return ScaleKind::kF16;
    case DType::kBF16: return ScaleKind::kBF16;
    case DType::kF8E8M0: return ScaleKind::kE8M0;
    default: return ScaleKind::kNone;
  }
}

OffsetKind KindOf(const Offset& offset) {
  return std::visit(Overloaded{[](const ConstantOffset&) { return OffsetKind::kConstant; },
                               [](const ZeroCodes&) { return OffsetKind::kZeroCodes; },
                               [](const BiasOffset&) { return OffsetKind::kBias; },
                               [](const TwoLevelOffset&) { return OffsetKind::kTwoLevel; }},
                    offset);
}

int GroupsPerSuper(const Scales& scales) {
  const auto* levels = std::get_if<TwoLevelScales>(&scales);
  return levels == nullptr ? 0 : levels->groups_per_super;
}

std::int64_t TwoLevelBytes(std::int64_t n, std::int64_t groups, int groups_per_super) {
  return n * groups + n * CeilDiv(groups, std::max(1, groups_per_super)) * 2;
}

std::int64_t ScaleBytes(const LinearSpec& spec, std::int64_t groups) {
  switch (spec.scales) {
    case ScaleKind::kNone: return 0;
    case ScaleKind::kF32: return spec.n * groups * 4;
    case ScaleKind::kF16:
    case ScaleKind::kBF16: return spec.n * groups * 2;
    case ScaleKind::kE8M0: return spec.n * groups;
    case ScaleKind::kTwoLevel: return TwoLevelBytes(spec.n, groups, spec.groups_per_super);
  }
  return 0;
}

std::int64_t OffsetBytes(const LinearSpec& spec, std::int64_t groups) {
  switch (spec.offset) {
    case OffsetKind::kNone:
    case OffsetKind::kConstant: return 0;
    case OffsetKind::kZeroCodes: return spec.n * groups;
    case OffsetKind::kBias: return ScaleBytes(spec, groups);
    case OffsetKind::kTwoLevel: return TwoLevelBytes(spec.n, groups, spec.groups_per_super);
  }
  return 0;
}

absl::Status CheckSize(const char* part, std::size_t have, std::int64_t want) {
  if (have == static_cast<std::size_t>(want)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(part, " has ", have, " bytes, not ", want));
}

absl::Status CheckTwoLevel(const char* part, const TwoLevelScales& scales, std::int64_t n,
                           std::int64_t groups) {
  if (scales.groups_per_super < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(part, " has ", scales.groups_per_super, " groups per super-group"));
  }
  RETURN_IF_ERROR(CheckSize(part, scales.codes.size(), n * groups));
  return CheckSize(part, scales.super.size(), n * CeilDiv(groups, scales.groups_per_super) * 2);
}

absl::Status CheckScales(const Scales& scales, std::int64_t n, std::int64_t groups, bool affine) {
  if (const auto* levels = std::get_if<TwoLevelScales>(&scales)) {
    return CheckTwoLevel("scales", *levels, n, groups);
  }
  const FlatScales& flat = std::get<FlatScales>(scales);
  const ScaleKind kind = KindOf(scales);
  if (kind == ScaleKind::kNone || (kind == ScaleKind::kE8M0 && affine)) {
    return absl::InvalidArgumentError(absl::StrCat("scales of type ", NameOf(flat.dtype)));
  }
  return CheckSize("scales", flat.data.size(), n * groups * BitsOf(flat.dtype) / 8);
}

absl::Status CheckOffset(const Offset& offset, std::int64_t n, std::int64_t groups) {
  return std::visit(Overloaded{[&](const ConstantOffset&) { return absl::OkStatus(); },
                               [&](const ZeroCodes& zeros) {
                                 return CheckSize("zeros", zeros.zeros.size(), n * groups);
                               },
                               [&](const BiasOffset& bias) {
                                 return CheckSize("offsets", bias.data.size(),
                                                  n * groups * BitsOf(bias.dtype) / 8);
                               },
                               [&](const TwoLevelOffset& levels) {
                                 return CheckTwoLevel("minima", levels.minimum, n, groups);
                               }},
                    offset);
}

absl::Status CheckPermutation(const std::vector<std::int32_t>& permutation, std::int64_t k) {
  if (permutation.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckSize("permutation", permutation.size() * 4, k * 4));
  std::vector<bool> seen(static_cast<std::size_t>(k));
  for (const std::int32_t input : permutation) {
    if (input < 0 || input >= k || seen[static_cast<std::size_t>(input)]) {
      return absl::InvalidArgumentError(
          absl::StrCat("permutation of ", k, " inputs names ", input, " twice or outside"));
    }
    seen[static_cast<std::size_t>(input)] = true;
  }
  return absl::OkStatus();
}

absl::Status CheckGroup(std::int64_t group) {
  if (group >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("group of ", group));
}

float FloatAt(DType dtype, const HostBuffer& data, std::int64_t i) {
  const auto at = static_cast<std::size_t>(i);
  switch (dtype) {
    case DType::kF16: return F16ToF32(data.As<std::uint16_t>()[at]);
    case DType::kBF16: return Bf16ToF32(data.As<std::uint16_t>()[at]);
    default: return data.As<float>()[at];
  }
}

// super * code is exact: 11 bits by 8.
float TwoLevelAt(const TwoLevelScales& scales, std::int64_t row, std::int64_t group,
                 std::int64_t groups) {
  const std::int64_t supers = CeilDiv(groups, scales.groups_per_super);
  const std::int64_t super = row * supers + group / scales.groups_per_super;
  const auto code = scales.codes.As<std::int8_t>()[static_cast<std::size_t>(row * groups + group)];
  return FloatAt(DType::kF16, scales.super, super) * static_cast<float>(code);
}

// In double, because 2^(255 - 127) of an E8M0 scale is one too large for f32 while its products may
// fit.
double ScaleAt(const Scales& scales, std::int64_t row, std::int64_t group, std::int64_t groups) {
  if (const auto* levels = std::get_if<TwoLevelScales>(&scales)) {
    return TwoLevelAt(*levels, row, group, groups);
  }
  const FlatScales& flat = std::get<FlatScales>(scales);
  const std::int64_t i = row * groups + group;
  if (flat.dtype == DType::kF8E8M0) {
    return std::ldexp(1.0, flat.data.As<std::uint8_t>()[static_cast<std::size_t>(i)] - 127);
  }
  return FloatAt(flat.dtype, flat.data, i);
}

// OCP 8-bit float, e4m3 without infinities.
float E4m3ToF32(std::uint8_t bits) {
  const float sign = bits & 0x80 ? -1.0f : 1.0f;
  const int exponent = (bits >> 3) & 15;
  const int fraction = bits & 7;
  if (exponent == 15 && fraction == 7) return std::nanf("");
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -9);
  return sign * std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
}

void DequantizeDense(const Dense& dense, std::vector<float>& out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = FloatAt(dense.dtype, dense.data, static_cast<std::int64_t>(i));
  }
}

// One group: w = scale * (q - zero), or fma(scale, q, bias) where there is a bias. Either way w is
// rounded once.
struct GroupTerms {
  float scale = 0;
  int zero = 0;
  std::optional<float> bias;
};

GroupTerms TermsOf(const Affine& affine, std::int64_t row, std::int64_t group,
                   std::int64_t groups) {
  GroupTerms terms;
  terms.scale = static_cast<float>(ScaleAt(affine.scales, row, group, groups));
  const std::int64_t at = row * groups + group;
  std::visit(
      Overloaded{[&](const ConstantOffset& constant) { terms.zero = constant.zero; },
                 [&](const ZeroCodes& zeros) {
                   terms.zero = zeros.zeros.As<std::uint8_t>()[static_cast<std::size_t>(at)];
                 },
                 [&](const BiasOffset& bias) { terms.bias = FloatAt(bias.dtype, bias.data, at); },
                 [&](const TwoLevelOffset& levels) {
                   terms.bias = -TwoLevelAt(levels.minimum, row, group, groups);
                 }},
      affine.offset);
  return terms;
}

void DequantizeAffine(const LinearWeight& weight, const Affine& affine, std::vector<float>& out) {
  const std::int64_t groups = CeilDiv(weight.k, affine.group);
  const std::int64_t row_bytes = CodeRowBytes(weight.k, affine.bits);
  const bool permuted = !affine.permutation.empty();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(weight.k));
  for (std::int64_t row = 0; row < weight.n; ++row) {
    UnpackCodes(affine.codes.data() + row * row_bytes, affine.bits, weight.k, codes.data());
    float* to = out.data() + row * weight.k;
    for (std::int64_t group = 0; group < groups; ++group) {
      const GroupTerms terms = TermsOf(affine, row, group, groups);
      const std::int64_t end = std::min(weight.k, (group + 1) * affine.group);
      for (std::int64_t j = group * affine.group; j < end; ++j) {
        const auto q = static_cast<float>(codes[static_cast<std::size_t>(j)] - terms.zero);
        const float w = terms.bias ? std::fma(terms.scale, q, *terms.bias) : terms.scale * q;
        to[permuted ? affine.permutation[static_cast<std::size_t>(j)] : j] = w;
      }
    }
  }
}

void DequantizeCodebook(const LinearWeight& weight, const Codebook& book, std::vector<float>& out) {
  const std::int64_t groups = CeilDiv(weight.k, book.group);
  const std::int64_t row_bytes = CodeRowBytes(weight.k, 4);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(weight.k));
  for (std::int64_t row = 0; row < weight.n; ++row) {
    UnpackCodes(book.codes.data() + row * row_bytes, 4, weight.k, codes.data());
    for (std::int64_t group = 0; group < groups; ++group) {
      const double scale = ScaleAt(book.scales, row, group, groups);
      const std::int64_t end = std::min(weight.k, (group + 1) * book.group);
      for (std::int64_t j = group * book.group; j < end; ++j) {
        const double entry = book.table[codes[static_cast<std::size_t>(j)]];
        out[static_cast<std::size_t>(row * weight.k + j)] = static_cast<float>(entry * scale);
      }
    }
  }
}

void DequantizeRow8(const LinearWeight& weight, const Row8& row8, std::vector<float>& out) {
  const auto codes = row8.codes.As<std::uint8_t>();
  for (std::int64_t row = 0; row < weight.n; ++row) {
    const float scale = row8.scales[row8.scales.size() == 1 ? 0 : static_cast<std::size_t>(row)];
    const int zero = row8.zeros.empty() ? 0 : row8.zeros[static_cast<std::size_t>(row)];
    for (std::int64_t j = 0; j < weight.k; ++j) {
      const auto at = static_cast<std::size_t>(row * weight.k + j);
      const float q = row8.dtype == DType::kI8
                          ? static_cast<float>(static_cast<std::int8_t>(codes[at]) - zero)
                          : E4m3ToF32(codes[at]);
      out[at] = scale * q;
    }
  }
}

}  // namespace

LinearSpec SpecOf(const LinearWeight& weight) {
  LinearSpec spec;
  spec.n = weight.n;
  spec.k = weight.k;
  spec.has_bias = !weight.bias.empty();
  std::visit(Overloaded{[&](const Dense& dense) {
                          spec.kind = EncodingKind::kDense;
                          spec.dtype = dense.dtype;
                          spec.bits = BitsOf(dense.dtype);
                        },
                        [&](const Affine& affine) {
                          spec.kind = EncodingKind::kAffine;
                          spec.bits = affine.bits;
                          spec.group = affine.group;
                          spec.scales = KindOf(affine.scales);
                          spec.groups_per_super = GroupsPerSuper(affine.scales);
                          spec.offset = KindOf(affine.offset);
                          spec.permuted = !affine.permutation.empty();
                        },
                        [&](const Codebook& book) {
                          spec.kind = EncodingKind::kCodebook;
                          spec.bits = 4;
                          spec.group = book.group;
                          spec.scales = KindOf(book.scales);
                          spec.groups_per_super = GroupsPerSuper(book.scales);
                        },
                        [&](const Row8& row8) {
                          spec.kind = EncodingKind::kRow8;
                          spec.dtype = row8.dtype;
                          spec.bits = 8;
                          spec.scales = ScaleKind::kF32;
                          spec.offset =
                              row8.zeros.empty() ? OffsetKind::kNone : OffsetKind::kZeroCodes;
                          spec.activation = row8.activation;
                        }},
             weight.encoding);
  return spec;
}

std::int64_t HostBytes(const LinearSpec& spec) {
  const std::int64_t bias = spec.has_bias ? spec.n * 4 : 0;
  const std::int64_t groups = spec.group > 0 ? CeilDiv(spec.k, spec.group) : 1;
  switch (spec.kind) {
    case EncodingKind::kDense: return spec.n * spec.k * BitsOf(spec.dtype) / 8 + bias;
    case EncodingKind::kAffine:
      return spec.n * CodeRowBytes(spec.k, spec.bits) + ScaleBytes(spec, groups) +
             OffsetBytes(spec, groups) + (spec.permuted ? spec.k * 4 : 0) + bias;
    case EncodingKind::kCodebook:
      return spec.n * CodeRowBytes(spec.k, 4) + ScaleBytes(spec, groups) + bias;
    case EncodingKind::kRow8:
      return spec.n * spec.k + spec.n * 4 +
             (spec.offset == OffsetKind::kZeroCodes ? spec.n * 4 : 0) + bias;
  }
  return 0;
}

std::string Describe(const LinearSpec& spec) {
  const auto lower = [](DType dtype) {
    switch (dtype) {
      case DType::kF32: return "f32";
      case DType::kF16: return "f16";
      case DType::kBF16: return "bf16";
      case DType::kI8: return "i8";
      case DType::kF8E4M3: return "fp8";
      default: return NameOf(dtype);
    }
  };
  switch (spec.kind) {
    case EncodingKind::kDense: return absl::StrCat("dense ", lower(spec.dtype));
    case EncodingKind::kAffine:
      return absl::StrCat("affine int", spec.bits, " g", spec.group,
                          spec.permuted ? " act-order" : "");
    case EncodingKind::kCodebook: return absl::StrCat("codebook g", spec.group);
    case EncodingKind::kRow8: {
      const char* activation = "";
      switch (spec.activation) {
        case ActivationQuant::kNone: break;
        case ActivationQuant::kDynamic: activation = " dynamic"; break;
        case ActivationQuant::kStatic: activation = " static"; break;
        case ActivationQuant::kOutlierSplit: activation = " outlier-split"; break;
      }
      return absl::StrCat("row8 ", lower(spec.dtype), activation);
    }
  }
  return "?";
}

absl::Status CheckBuffers(const LinearWeight& weight) {
  const std::int64_t n = weight.n;
  const std::int64_t k = weight.k;
  if (n < 1 || k < 1)
    return absl::InvalidArgumentError(absl::StrCat("matrix of [", n, ", ", k, "]"));
  if (!weight.bias.empty()) RETURN_IF_ERROR(CheckSize("bias", weight.bias.size() * 4, n * 4));
  return std::visit(
      Overloaded{[&](const Dense& dense) -> absl::Status {
                   return CheckSize("dense weight", dense.data.size(),
                                    n * k * BitsOf(dense.dtype) / 8);
                 },
                 [&](const Affine& affine) -> absl::Status {
                   RETURN_IF_ERROR(CheckGroup(affine.group));
                   const std::int64_t groups = CeilDiv(k, affine.group);
                   RETURN_IF_ERROR(
                       CheckSize("codes", affine.codes.size(), n * CodeRowBytes(k, affine.bits)));
                   RETURN_IF_ERROR(CheckScales(affine.scales, n, groups, /*affine=*/true));
                   RETURN_IF_ERROR(CheckOffset(affine.offset, n, groups));
                   return CheckPermutation(affine.permutation, k);
                 },
                 [&](const Codebook& book) -> absl::Status {
                   RETURN_IF_ERROR(CheckGroup(book.group));
                   RETURN_IF_ERROR(CheckSize("codes", book.codes.size(), n * CodeRowBytes(k, 4)));
                   return CheckScales(book.scales, n, CeilDiv(k, book.group), /*affine=*/false);
                 },
                 [&](const Row8& row8) -> absl::Status {
                   RETURN_IF_ERROR(CheckSize("codes", row8.codes.size(), n * k));
                   if (row8.scales.size() != 1) {
                     RETURN_IF_ERROR(CheckSize("scales", row8.scales.size() * 4, n * 4));
                   }
                   if (row8.zeros.empty()) return absl::OkStatus();
                   return CheckSize("zeros", row8.zeros.size() * 4, n * 4);
                 }},
      weight.encoding);
}

absl::StatusOr<std::vector<float>> Dequantize(const LinearWeight& weight) {
  RETURN_IF_ERROR(CheckBuffers(weight));
  std::vector<float> out(static_cast<std::size_t>(weight.n * weight.k));
  std::visit(Overloaded{[&](const Dense& dense) { DequantizeDense(dense, out); },
                        [&](const Affine& affine) { DequantizeAffine(weight, affine, out); },
                        [&](const Codebook& book) { DequantizeCodebook(weight, book, out); },
                        [&](const Row8& row8) { DequantizeRow8(weight, row8, out); }},
             weight.encoding);
  return out;
}

}  // namespace nibble
