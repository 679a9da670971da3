// Checkpoints that lie inputs first, [k, n], become [n, k] here.
#pragma once

#include <algorithm>
#include <cstdint>

namespace nibble {

// out[column, row] = in[row, column]. Tile by tile through a small copy: rows of a power of two
// bytes would all fall into the same cache set.
template <typename T>
void Transpose(const T* in, std::int64_t rows, std::int64_t columns, T* out) {
  constexpr std::int64_t kTile = 32;
  T tile[kTile][kTile];
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const std::int64_t height = std::min(kTile, rows - r0);
    for (std::int64_t c0 = 0; c0 < columns; c0 += kTile) {
      const std::int64_t width = std::min(kTile, columns - c0);
      for (std::int64_t r = 0; r < height; ++r) {
        std::copy_n(in + (r0 + r) * columns + c0, width, tile[r]);
      }
      for (std::int64_t c = 0; c < width; ++c) {
        T* to = out + (c0 + c) * rows + r0;
        for (std::int64_t r = 0; r < height; ++r) to[r] = tile[r][c];
      }
    }
  }
}

}  // namespace nibble
