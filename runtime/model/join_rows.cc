#include "runtime/model/join_rows.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

HostBuffer Join(const HostBuffer& top, const HostBuffer& bottom) {
  HostBuffer out(top.size() + bottom.size());
  if (!top.empty()) std::memcpy(out.data(), top.data(), top.size());
  if (!bottom.empty()) std::memcpy(out.data() + top.size(), bottom.data(), bottom.size());
  return out;
}

template <typename T>
std::vector<T> Join(std::vector<T> top, const std::vector<T>& bottom) {
  top.insert(top.end(), bottom.begin(), bottom.end());
  return top;
}

TwoLevelScales Join(const TwoLevelScales& top, const TwoLevelScales& bottom) {
  return {Join(top.super, bottom.super), Join(top.codes, bottom.codes), top.groups_per_super};
}

// REQUIRES of every Join below: the same alternative on both sides, which equal specs give.
Scales Join(const Scales& top, const Scales& bottom) {
  if (const auto* levels = std::get_if<TwoLevelScales>(&top)) {
    return Join(*levels, std::get<TwoLevelScales>(bottom));
  }
  const FlatScales& flat = std::get<FlatScales>(top);
  return FlatScales{flat.dtype, Join(flat.data, std::get<FlatScales>(bottom).data)};
}

Offset Join(const Offset& top, const Offset& bottom) {
  if (const auto* zeros = std::get_if<ZeroCodes>(&top)) {
    return ZeroCodes{Join(zeros->zeros, std::get<ZeroCodes>(bottom).zeros)};
  }
  if (const auto* bias = std::get_if<BiasOffset>(&top)) {
    return BiasOffset{bias->dtype, Join(bias->data, std::get<BiasOffset>(bottom).data)};
  }
  if (const auto* levels = std::get_if<TwoLevelOffset>(&top)) {
    return TwoLevelOffset{Join(levels->minimum, std::get<TwoLevelOffset>(bottom).minimum)};
  }
  return std::get<ConstantOffset>(top);
}

// Offsets that no buffer holds must agree.
bool SameConstant(const Offset& top, const Offset& bottom) {
  const auto* a = std::get_if<ConstantOffset>(&top);
  const auto* b = std::get_if<ConstantOffset>(&bottom);
  return a == nullptr || b == nullptr || a->zero == b->zero;
}

absl::Status Differ(absl::string_view layer, absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat(layer, " differs in ", what,
                   " from the layer it is joined with: gate and up of an expert must "
                   "be quantized alike"));
}

std::vector<float> OneScaleARow(const Row8& weight, std::int64_t n) {
  if (weight.scales.size() == static_cast<std::size_t>(n)) return weight.scales;
  return std::vector<float>(n, weight.scales.empty() ? 1.0f : weight.scales.front());
}

struct EncodingJoiner {
  const LinearWeight& top;
  const LinearWeight& bottom;
  absl::string_view layer;

  using Result = absl::StatusOr<decltype(LinearWeight::encoding)>;

  Result operator()(const Dense& a) const {
    return Dense{a.dtype, Join(a.data, std::get<Dense>(bottom.encoding).data)};
  }

  Result operator()(const Affine& a) const {
    const Affine& b = std::get<Affine>(bottom.encoding);
    if (a.permutation != b.permutation) return Differ(layer, "the order of its inputs (act-order)");
    if (!SameConstant(a.offset, b.offset)) return Differ(layer, "its zero point");
    return Affine{a.bits,
                  a.group,
                  Join(a.codes, b.codes),
                  Join(a.scales, b.scales),
                  Join(a.offset, b.offset),
                  a.permutation};
  }

  Result operator()(const Codebook& a) const {
    const Codebook& b = std::get<Codebook>(bottom.encoding);
    if (a.table != b.table) return Differ(layer, "its code table");
    return Codebook{a.table, a.group, Join(a.codes, b.codes), Join(a.scales, b.scales)};
  }

  Result operator()(const Row8& a) const {
    const Row8& b = std::get<Row8>(bottom.encoding);
    if (a.zeros.empty() != b.zeros.empty() || a.static_scale != b.static_scale ||
        a.static_zero != b.static_zero || a.outlier_threshold != b.outlier_threshold) {
      return Differ(layer, "how its activations are quantized");
    }
    Row8 out = {a.dtype,
                Join(a.codes, b.codes),
                {},
                Join(a.zeros, b.zeros),
                a.activation,
                a.static_scale,
                a.static_zero,
                a.outlier_threshold};
    out.scales = Join(OneScaleARow(a, top.n), OneScaleARow(b, bottom.n));
    return out;
  }
};

}  // namespace

absl::StatusOr<LinearSpec> JoinedSpec(const LinearSpec& top, const LinearSpec& bottom,
                                      absl::string_view layer) {
  LinearSpec joined = top;
  joined.n = bottom.n;
  if (joined != bottom) {
    return Differ(layer,
                  absl::StrCat("its encoding (", Describe(bottom), ", not ", Describe(top), ")"));
  }
  joined.n = top.n + bottom.n;
  return joined;
}

absl::StatusOr<LinearWeight> JoinRows(const LinearWeight& top, const LinearWeight& bottom,
                                      absl::string_view layer) {
  ASSIGN_OR_RETURN(LinearSpec spec, JoinedSpec(SpecOf(top), SpecOf(bottom), layer));
  LinearWeight out;
  out.n = spec.n;
  out.k = spec.k;
  out.bias = Join(top.bias, bottom.bias);
  ASSIGN_OR_RETURN(out.encoding, std::visit(EncodingJoiner{top, bottom, layer}, top.encoding));
  return out;
}

}  // namespace nibble
