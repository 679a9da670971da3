#include "runtime/weights/blockwise.h"

#include <numeric>
#include <vector>

#include "runtime/weights/code_rows.h"

namespace nibble {
namespace {

// Low nibble first.
void SwapNibbles(HostBuffer& packed) {
  for (std::uint8_t& byte : packed.As<std::uint8_t>()) {
    byte = static_cast<std::uint8_t>(byte >> 4 | byte << 4);
  }
}

// Rows of an odd number of codes begin in the middle of a byte.
HostBuffer RepackOddRows(const HostBuffer& packed, std::int64_t n, std::int64_t k) {
  const auto in = packed.As<std::uint8_t>();
  HostBuffer out(static_cast<std::size_t>(n * CodeRowBytes(k, 4)));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(k));
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t e = row * k + j;
      const int byte = in[static_cast<std::size_t>(e / 2)];
      codes[static_cast<std::size_t>(j)] =
          static_cast<std::uint8_t>(e % 2 == 0 ? byte >> 4 : byte & 15);
    }
    PackCodes(codes.data(), 4, k, out.data() + row * CodeRowBytes(k, 4));
  }
  return out;
}

}  // namespace

std::int64_t GroupOfBlocks(std::int64_t k, std::int64_t block) { return std::gcd(k, block); }

Codebook FromBlocks(const std::array<float, 16>& table, std::int64_t n, std::int64_t k,
                    std::int64_t block, HostBuffer packed, std::span<const float> absmax) {
  Codebook book;
  book.table = table;
  book.group = GroupOfBlocks(k, block);
  if (k % 2 == 0) {
    SwapNibbles(packed);
    book.codes = std::move(packed);
  } else {
    book.codes = RepackOddRows(packed, n, k);
  }
  const std::int64_t groups = n * (k / book.group);
  FlatScales scales{DType::kF32, HostBuffer(static_cast<std::size_t>(groups * 4))};
  auto out = scales.data.As<float>();
  for (std::int64_t i = 0; i < groups; ++i) {
    out[static_cast<std::size_t>(i)] = absmax[static_cast<std::size_t>(i * book.group / block)];
  }
  book.scales = std::move(scales);
  return book;
}

}  // namespace nibble
