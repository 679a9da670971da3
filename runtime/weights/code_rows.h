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

namespace code_rows_internal {

// Eight codes are `kBits` whole bytes.
template <int kBits>
void Unpack(const std::uint8_t* bytes, std::int64_t count, std::uint8_t* out) {
  constexpr std::uint64_t kMask = (std::uint64_t{1} << kBits) - 1;
  for (; count >= 8; count -= 8, bytes += kBits, out += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes, kBits);
    for (int i = 0; i < 8; ++i) out[i] = static_cast<std::uint8_t>((word >> (i * kBits)) & kMask);
  }
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, static_cast<std::size_t>((count * kBits + 7) / 8));
  for (int i = 0; i < count; ++i) out[i] = static_cast<std::uint8_t>((word >> (i * kBits)) & kMask);
}

template <int kBits>
void Pack(const std::uint8_t* codes, std::int64_t count, std::uint8_t* bytes) {
  for (; count >= 8; count -= 8, codes += 8, bytes += kBits) {
    std::uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word |= static_cast<std::uint64_t>(codes[i]) << (i * kBits);
    std::memcpy(bytes, &word, kBits);
  }
  std::uint64_t word = 0;
  for (int i = 0; i < count; ++i) word |= static_cast<std::uint64_t>(codes[i]) << (i * kBits);
  std::memcpy(bytes, &word, static_cast<std::size_t>((count * kBits + 7) / 8));
}

}  // namespace code_rows_internal

// out[0 .. count) from a row of CodeRowBytes(count, bits) bytes. REQUIRES: 1 <= bits <= 8.
inline void UnpackCodes(const std::byte* row, int bits, std::int64_t count, std::uint8_t* out) {
  using namespace code_rows_internal;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(row);
  switch (bits) {
    case 1: return Unpack<1>(bytes, count, out);
    case 2: return Unpack<2>(bytes, count, out);
    case 3: return Unpack<3>(bytes, count, out);
    case 4: return Unpack<4>(bytes, count, out);
    case 5: return Unpack<5>(bytes, count, out);
    case 6: return Unpack<6>(bytes, count, out);
    case 7: return Unpack<7>(bytes, count, out);
    default: std::memcpy(out, bytes, static_cast<std::size_t>(count));
  }
}

// The inverse; bits past the last code are zero. REQUIRES: codes < 2^bits.
inline void PackCodes(const std::uint8_t* codes, int bits, std::int64_t count, std::byte* row) {
  using namespace code_rows_internal;
  auto* bytes = reinterpret_cast<std::uint8_t*>(row);
  switch (bits) {
    case 1: return Pack<1>(codes, count, bytes);
    case 2: return Pack<2>(codes, count, bytes);
    case 3: return Pack<3>(codes, count, bytes);
    case 4: return Pack<4>(codes, count, bytes);
    case 5: return Pack<5>(codes, count, bytes);
    case 6: return Pack<6>(codes, count, bytes);
    case 7: return Pack<7>(codes, count, bytes);
    default: std::memcpy(bytes, codes, static_cast<std::size_t>(count));
  }
}

}  // namespace nibble
