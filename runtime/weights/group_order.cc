#include "runtime/weights/group_order.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"
#include "runtime/weights/tensor_reader.h"

namespace nibble {

absl::StatusOr<std::vector<std::int32_t>> ReadGroupOrder(const Checkpoint& checkpoint,
                                                         const TensorInfo* g_idx, std::int64_t k,
                                                         std::int64_t group) {
  if (g_idx == nullptr) return std::vector<std::int32_t>();
  RETURN_IF_ERROR(CheckType(*g_idx, {DType::kI32}));
  RETURN_IF_ERROR(CheckShape(*g_idx, {k}));
  ASSIGN_OR_RETURN(const HostBuffer data, ReadTensor(checkpoint, *g_idx));
  const auto index = data.As<std::int32_t>();
  // All zero in old GPTQ files, all -1 in compressed-tensors files: never filled in.
  const bool unset = (index[0] == 0 || index[0] == -1) &&
                     std::all_of(index.begin(), index.end(), [&](auto g) { return g == index[0]; });
  if (unset) return std::vector<std::int32_t>();
  const std::int64_t groups = (k + group - 1) / group;
  bool sequential = true;
  for (std::int64_t i = 0; i < k; ++i) {
    const std::int32_t g = index[static_cast<std::size_t>(i)];
    if (g < 0 || g >= groups) {
      return absl::InvalidArgumentError(
          absl::StrCat(Shown(*g_idx), ": input ", i, " is in group ", g, " of ", groups));
    }
    sequential = sequential && g == i / group;
  }
  if (sequential) return std::vector<std::int32_t>();
  std::vector<std::int32_t> order(static_cast<std::size_t>(k));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return index[static_cast<std::size_t>(a)] < index[static_cast<std::size_t>(b)];
  });
  for (std::int64_t i = 0; i < k; ++i) {
    const std::int32_t g = index[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])];
    if (g != i / group) {
      return absl::UnimplementedError(absl::StrCat(Shown(*g_idx), ": group ", i / group,
                                                   " has not ", group,
                                                   " inputs; quantize with groups of equal size"));
    }
  }
  return order;
}

void ReorderCodes(const std::vector<std::int32_t>& permutation, std::int64_t n, int bits,
                  HostBuffer& codes) {
  const auto k = static_cast<std::int64_t>(permutation.size());
  const std::int64_t row_bytes = CodeRowBytes(k, bits);
  std::vector<std::uint8_t> from(permutation.size());
  std::vector<std::uint8_t> to(permutation.size());
  for (std::int64_t row = 0; row < n; ++row) {
    std::byte* packed = codes.data() + row * row_bytes;
    UnpackCodes(packed, bits, k, from.data());
    for (std::size_t j = 0; j < permutation.size(); ++j) {
      to[j] = from[static_cast<std::size_t>(permutation[j])];
    }
    PackCodes(to.data(), bits, k, packed);
  }
}

}  // namespace nibble
