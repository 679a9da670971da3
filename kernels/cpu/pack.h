// Writing the packed layout of linear.h, a tile at a time; load time only.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear.h"

namespace nibble::cpu {

// Codes of rows [16 * tile, ...) from rows of `row_bytes` bytes that hold a little-endian stream of
// `bits`-bit codes (8: bytes), each xored with `flip`, to one tile's bytes at `out`. Padding is
// zero codes.
void PackCodes(const std::uint8_t* rows, std::int64_t row_bytes, int bits, std::uint8_t flip,
               std::int64_t n, std::int64_t k, std::int64_t tile, std::uint8_t* out);

// Elements of `element_bytes` (1, 2 or 4) from [n, columns] row-major to one tile's [columns][16];
// padding zero.
void PackElements(const void* rows, int element_bytes, std::int64_t n, std::int64_t columns,
                  std::int64_t tile, void* out);

// Sets table_codes and table_unit from the table.
void SetTable(Matrix& w);

}  // namespace nibble::cpu
