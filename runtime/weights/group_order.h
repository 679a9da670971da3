// Act-order: which group each input belongs to, and the order that makes groups contiguous.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

// Reads the group index i32[k] of a layer and gives the stable order of the inputs by group:
// `permutation` of Affine. Empty when the groups already lie in order: the index is k / group, all
// equal, or absent (null). Errors: values outside [0, groups), groups that are not full.
absl::StatusOr<std::vector<std::int32_t>> ReadGroupOrder(const Checkpoint& checkpoint,
                                                         const TensorInfo* g_idx, std::int64_t k,
                                                         std::int64_t group);

// The codes of every row, [n, k] of `bits`, put into that order.
void ReorderCodes(const std::vector<std::int32_t>& permutation, std::int64_t n, int bits,
                  HostBuffer& codes);

}  // namespace nibble
