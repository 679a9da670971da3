// Packing of small codes into rows: code i is bits [i*bits, (i+1)*bits) of the row's little-endian
// bit stream.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "runtime/weights/linear_weight.h"

namespace nibble {

static_assert(std::endian::native == std::endian::little, "checkpoints are read in place");

// out[0 .. count) from a row of CodeRowBytes(count, bits) bytes. REQUIRES: 1 <= bits <= 8.
inline void UnpackCodes(const std::byte* row, int bits, std::int64_t count, std::uint8_t* out) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(row);
  if (bits == 8) {
    std::memcpy(out, bytes, static_cast<std::size_t>(count));
    return;
  }
  if (bits == 4) {
    for (std::int64_t i = 0; i < count / 2; ++i) {
      out[2 * i] = bytes[i] & 15;
      out[2 * i + 1] = bytes[i] >> 4;
    }
    if (count % 2 != 0) out[count - 1] = bytes[count / 2] & 15;
    return;
  }
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  for (std::int64_t first = 0; first < count; first += 8) {  // eight codes are `bits` whole bytes
    const std::int64_t codes = count - first < 8 ? count - first : 8;
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + first / 8 * bits, static_cast<std::size_t>((codes * bits + 7) / 8));
    for (std::int64_t i = 0; i < codes; ++i) {
      out[first + i] = static_cast<std::uint8_t>((word >> (i * bits)) & mask);
    }
  }
}

// The inverse; bits past the last code are zero. REQUIRES: codes < 2^bits.
inline void PackCodes(const std::uint8_t* codes, int bits, std::int64_t count, std::byte* row) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(row);
  if (bits == 8) {
    std::memcpy(bytes, codes, static_cast<std::size_t>(count));
    return;
  }
  if (bits == 4) {
    for (std::int64_t i = 0; i < count / 2; ++i) {
      bytes[i] = static_cast<std::uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    }
    if (count % 2 != 0) bytes[count / 2] = codes[count - 1];
    return;
  }
  for (std::int64_t first = 0; first < count; first += 8) {
    const std::int64_t some = count - first < 8 ? count - first : 8;
    std::uint64_t word = 0;
    for (std::int64_t i = 0; i < some; ++i) {
      word |= static_cast<std::uint64_t>(codes[first + i]) << (i * bits);
    }
    std::memcpy(bytes + first / 8 * bits, &word, static_cast<std::size_t>((some * bits + 7) / 8));
  }
}

}  // namespace nibble
