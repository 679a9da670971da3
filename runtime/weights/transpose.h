// Checkpoints that lie inputs first, [k, n], become [n, k] here.
#pragma once

#include <algorithm>
#include <cstdint>

namespace nibble {

// out[column, row] = in[row, column], tile by tile so that both sides stay in the cache.
template <typename T>
void Transpose(const T* in, std::int64_t rows, std::int64_t columns, T* out) {
  constexpr std::int64_t kTile = 64 / sizeof(T) * 2;
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const std::int64_t r1 = std::min(rows, r0 + kTile);
    for (std::int64_t c0 = 0; c0 < columns; c0 += kTile) {
      const std::int64_t c1 = std::min(columns, c0 + kTile);
      for (std::int64_t c = c0; c < c1; ++c) {
        for (std::int64_t r = r0; r < r1; ++r) out[c * rows + r] = in[r * columns + c];
      }
    }
  }
}

}  // namespace nibble
