// Slice and PermuteRows: both gather rows or cut columns of every buffer of an encoding.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/ceil_div.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {
namespace {

// Which output rows the result has, in order.
using Rows = std::vector<std::int32_t>;

HostBuffer GatherRows(const HostBuffer& from, std::int64_t n, const Rows& rows) {
  const std::size_t row_bytes = from.size() / static_cast<std::size_t>(n);
  HostBuffer to(row_bytes * rows.size());
  if (row_bytes == 0) return to;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(to.data() + i * row_bytes,
                from.data() + static_cast<std::size_t>(rows[i]) * row_bytes, row_bytes);
  }
  return to;
}

template <typename T>
std::vector<T> GatherRows(const std::vector<T>& from, const Rows& rows) {
  if (from.size() <= 1) return from;  // one for the whole tensor, or none
  std::vector<T> to(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) to[i] = from[static_cast<std::size_t>(rows[i])];
  return to;
}

TwoLevelScales GatherRows(const TwoLevelScales& from, std::int64_t n, const Rows& rows) {
  return {GatherRows(from.super, n, rows), GatherRows(from.codes, n, rows), from.groups_per_super};
}

Scales GatherRows(const Scales& from, std::int64_t n, const Rows& rows) {
  if (const auto* levels = std::get_if<TwoLevelScales>(&from)) return GatherRows(*levels, n, rows);
  const FlatScales& flat = std::get<FlatScales>(from);
  return FlatScales{flat.dtype, GatherRows(flat.data, n, rows)};
}

Offset GatherRows(const Offset& from, std::int64_t n, const Rows& rows) {
  if (const auto* zeros = std::get_if<ZeroCodes>(&from)) {
    return ZeroCodes{GatherRows(zeros->zeros, n, rows)};
  }
  if (const auto* bias = std::get_if<BiasOffset>(&from)) {
    return BiasOffset{bias->dtype, GatherRows(bias->data, n, rows)};
  }
  if (const auto* levels = std::get_if<TwoLevelOffset>(&from)) {
    return TwoLevelOffset{GatherRows(levels->minimum, n, rows)};
  }
  return std::get<ConstantOffset>(from);
}

// REQUIRES: CheckBuffers(from) is ok and every row is in [0, n).
LinearWeight GatherRows(const LinearWeight& from, const Rows& rows) {
  const std::int64_t n = from.n;
  LinearWeight to;
  to.n = static_cast<std::int64_t>(rows.size());
  to.k = from.k;
  if (!from.bias.empty()) {
    to.bias.resize(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      to.bias[i] = from.bias[static_cast<std::size_t>(rows[i])];
    }
  }
  if (const auto* dense = std::get_if<Dense>(&from.encoding)) {
    to.encoding = Dense{dense->dtype, GatherRows(dense->data, n, rows)};
  } else if (const auto* affine = std::get_if<Affine>(&from.encoding)) {
    to.encoding = Affine{affine->bits,
                         affine->group,
                         GatherRows(affine->codes, n, rows),
                         GatherRows(affine->scales, n, rows),
                         GatherRows(affine->offset, n, rows),
                         affine->permutation};
  } else if (const auto* book = std::get_if<Codebook>(&from.encoding)) {
    to.encoding = Codebook{book->table, book->group, GatherRows(book->codes, n, rows),
                           GatherRows(book->scales, n, rows)};
  } else {
    const Row8& row8 = std::get<Row8>(from.encoding);
    Row8 out;
    out.dtype = row8.dtype;
    out.codes = GatherRows(row8.codes, n, rows);
    out.scales = GatherRows(row8.scales, rows);
    out.zeros = GatherRows(row8.zeros, rows);
    out.activation = row8.activation;
    out.static_scale = row8.static_scale;
    out.static_zero = row8.static_zero;
    out.outlier_threshold = row8.outlier_threshold;
    to.encoding = std::move(out);
  }
  return to;
}

// Columns [begin, end) of `columns`, each of `width` bytes.
HostBuffer CutColumns(const HostBuffer& from, std::int64_t n, std::int64_t width,
                      std::int64_t begin, std::int64_t end) {
  const std::size_t from_row = from.size() / static_cast<std::size_t>(n);
  const auto to_row = static_cast<std::size_t>((end - begin) * width);
  HostBuffer to(to_row * static_cast<std::size_t>(n));
  for (std::size_t row = 0; row < static_cast<std::size_t>(n); ++row) {
    std::memcpy(to.data() + row * to_row,
                from.data() + row * from_row + static_cast<std::size_t>(begin * width), to_row);
  }
  return to;
}

HostBuffer CutCodes(const HostBuffer& from, std::int64_t n, std::int64_t k, int bits,
                    std::int64_t begin, std::int64_t end) {
  if (begin * bits % 8 == 0 && (end - begin) * bits % 8 == 0) {
    return CutColumns(from, n, 1, begin * bits / 8, end * bits / 8);
  }
  const std::int64_t from_row = CodeRowBytes(k, bits);
  const std::int64_t to_row = CodeRowBytes(end - begin, bits);
  HostBuffer to(static_cast<std::size_t>(n * to_row));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(k));
  for (std::int64_t row = 0; row < n; ++row) {
    UnpackCodes(from.data() + row * from_row, bits, k, codes.data());
    PackCodes(codes.data() + begin, bits, end - begin, to.data() + row * to_row);
  }
  return to;
}

TwoLevelScales CutGroups(const TwoLevelScales& from, std::int64_t n, std::int64_t begin,
                         std::int64_t end) {
  const int per_super = from.groups_per_super;
  return {CutColumns(from.super, n, 2, begin / per_super, CeilDiv(end, per_super)),
          CutColumns(from.codes, n, 1, begin, end), per_super};
}

Scales CutGroups(const Scales& from, std::int64_t n, std::int64_t begin, std::int64_t end) {
  if (const auto* levels = std::get_if<TwoLevelScales>(&from)) {
    return CutGroups(*levels, n, begin, end);
  }
  const FlatScales& flat = std::get<FlatScales>(from);
  return FlatScales{flat.dtype, CutColumns(flat.data, n, BitsOf(flat.dtype) / 8, begin, end)};
}

Offset CutGroups(const Offset& from, std::int64_t n, std::int64_t begin, std::int64_t end) {
  if (const auto* zeros = std::get_if<ZeroCodes>(&from)) {
    return ZeroCodes{CutColumns(zeros->zeros, n, 1, begin, end)};
  }
  if (const auto* bias = std::get_if<BiasOffset>(&from)) {
    return BiasOffset{bias->dtype, CutColumns(bias->data, n, BitsOf(bias->dtype) / 8, begin, end)};
  }
  if (const auto* levels = std::get_if<TwoLevelOffset>(&from)) {
    return TwoLevelOffset{CutGroups(levels->minimum, n, begin, end)};
  }
  return std::get<ConstantOffset>(from);
}

// The input range [begin, end) as groups; the group size of the slice.
struct GroupRange {
  std::int64_t begin;
  std::int64_t end;
  std::int64_t group;
};

absl::StatusOr<GroupRange> WholeGroups(std::int64_t k, std::int64_t group, const Scales& scales,
                                       std::int64_t begin, std::int64_t end) {
  const auto* levels = std::get_if<TwoLevelScales>(&scales);
  if (group >= k && levels == nullptr) return GroupRange{0, 1, group == k ? end - begin : group};
  const std::int64_t unit = levels == nullptr ? group : group * levels->groups_per_super;
  if (begin % unit != 0 || (end % unit != 0 && end != k)) {
    return absl::InvalidArgumentError(
        absl::StrCat("inputs [", begin, ", ", end, ") of ", k, " are not whole groups of ", unit,
                     "; shard over a count of devices that divides ", CeilDiv(k, unit)));
  }
  return GroupRange{begin / group, CeilDiv(end, group), group};
}

absl::StatusOr<LinearWeight> CutInputs(const LinearWeight& from, std::int64_t begin,
                                       std::int64_t end) {
  const std::int64_t n = from.n;
  LinearWeight to;
  to.n = n;
  to.k = end - begin;
  if (begin == 0) to.bias = from.bias;
  if (const auto* dense = std::get_if<Dense>(&from.encoding)) {
    to.encoding =
        Dense{dense->dtype, CutColumns(dense->data, n, BitsOf(dense->dtype) / 8, begin, end)};
  } else if (const auto* affine = std::get_if<Affine>(&from.encoding)) {
    if (!affine->permutation.empty()) {
      return absl::InvalidArgumentError(
          "inputs in act-order cannot be sliced: slice before sorting");
    }
    ASSIGN_OR_RETURN(const GroupRange range,
                     WholeGroups(from.k, affine->group, affine->scales, begin, end));
    to.encoding = Affine{affine->bits,
                         range.group,
                         CutCodes(affine->codes, n, from.k, affine->bits, begin, end),
                         CutGroups(affine->scales, n, range.begin, range.end),
                         CutGroups(affine->offset, n, range.begin, range.end),
                         {}};
  } else if (const auto* book = std::get_if<Codebook>(&from.encoding)) {
    ASSIGN_OR_RETURN(const GroupRange range,
                     WholeGroups(from.k, book->group, book->scales, begin, end));
    to.encoding =
        Codebook{book->table, range.group, CutCodes(book->codes, n, from.k, 4, begin, end),
                 CutGroups(book->scales, n, range.begin, range.end)};
  } else {
    const Row8& row8 = std::get<Row8>(from.encoding);
    Row8 out;
    out.dtype = row8.dtype;
    out.codes = CutColumns(row8.codes, n, 1, begin, end);
    out.scales = row8.scales;
    out.zeros = row8.zeros;
    out.activation = row8.activation;
    out.static_scale = row8.static_scale;
    out.static_zero = row8.static_zero;
    out.outlier_threshold = row8.outlier_threshold;
    to.encoding = std::move(out);
  }
  return to;
}

}  // namespace

absl::StatusOr<LinearWeight> Slice(const LinearWeight& weight, Axis axis, std::int64_t begin,
                                   std::int64_t end) {
  RETURN_IF_ERROR(CheckBuffers(weight));
  const std::int64_t size = axis == Axis::kN ? weight.n : weight.k;
  if (begin < 0 || begin >= end || end > size) {
    return absl::InvalidArgumentError(absl::StrCat("slice [", begin, ", ", end, ") of ", size, " ",
                                                   axis == Axis::kN ? "outputs" : "inputs"));
  }
  if (axis == Axis::kK) return CutInputs(weight, begin, end);
  Rows rows(static_cast<std::size_t>(end - begin));
  std::iota(rows.begin(), rows.end(), static_cast<std::int32_t>(begin));
  return GatherRows(weight, rows);
}

LinearWeight PermuteRows(LinearWeight weight, const std::vector<std::int32_t>& order) {
  return GatherRows(weight, order);
}

}  // namespace nibble
