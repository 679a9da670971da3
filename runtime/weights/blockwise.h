// 4-bit blocks that run over the flattened matrix, bitsandbytes' way, as rows of groups.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "runtime/weights/linear_weight.h"

namespace nibble {

// The group size that keeps every group inside one row and one block: `block` where the rows are
// whole blocks, otherwise the largest size that divides both.
std::int64_t GroupOfBlocks(std::int64_t k, std::int64_t block);

// `packed` holds two codes a byte, the first in the HIGH nibble, row after row without padding;
// `absmax` one scale a block of `block` codes. REQUIRES: packed.size() == ceil(n * k / 2),
// absmax.size() == ceil(n * k / block).
Codebook FromBlocks(const std::array<float, 16>& table, std::int64_t n, std::int64_t k,
                    std::int64_t block, HostBuffer packed, std::span<const float> absmax);

}  // namespace nibble
