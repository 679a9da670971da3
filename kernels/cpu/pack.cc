#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble::cpu {
namespace {

// Four codes from bit `at` of `stream`, a byte each.
template <int kBits>
std::uint32_t QuadAt(std::uint64_t stream, int at) {
  stream >>= at;
  if constexpr (kBits == 8) return static_cast<std::uint32_t>(stream);
  std::uint32_t quad = 0;
  for (int i = 0; i < 4; ++i) {
    const auto code = static_cast<std::uint32_t>(stream >> (kBits * i)) & ((1u << kBits) - 1);
    quad |= code << (8 * i);
  }
  return quad;
}

// Adds a quad of `width`-bit codes to a plane of these.
void PutInPlane(std::uint8_t* plane, int width, int quad, std::uint32_t codes) {
  const int quads_per_vector = 8 / width;
  std::uint8_t* at = plane + quad / quads_per_vector * 64;
  std::uint32_t have;
  std::memcpy(&have, at, 4);
  have |= codes << (width * (quad % quads_per_vector));
  std::memcpy(at, &have, 4);
}

// The 32 codes of one row and block, `4 * kBits` bytes of its stream, into zeroed bytes at `out`.
template <int kBits>
void PackBlock(const std::uint8_t* stream, std::uint8_t* out) {
  constexpr int kLow = kBits >= 4 ? (kBits == 8 ? 8 : 4) : 2;  // of the first plane
  constexpr std::uint32_t kLowMask = 0x01010101u * ((1u << kLow) - 1);
  for (int pair = 0; pair < 4; ++pair) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, stream + pair * kBits, kBits);
    for (int half = 0; half < 2; ++half) {
      const int quad = 2 * pair + half;
      const std::uint32_t codes = QuadAt<kBits>(eight, half * 4 * kBits);
      PutInPlane(out, kLow, quad, codes & kLowMask);
      if constexpr (kBits > kLow)
        PutInPlane(out + 64 * kLow, kBits - kLow, quad, (codes & ~kLowMask) >> kLow);
    }
  }
}

template <int kBits>
void PackRow(const std::uint8_t* row, std::uint8_t flip, std::int64_t k, std::uint8_t* out) {
  constexpr int kBytes = 4 * kBits;
  for (std::int64_t b = 0; b * kBlockK < k; ++b, row += kBytes, out += 64 * kBits) {
    const std::int64_t codes = std::min<std::int64_t>(kBlockK, k - b * kBlockK);
    if (codes == kBlockK && flip == 0) {
      PackBlock<kBits>(row, out);
      continue;
    }
    std::uint8_t block[kBytes] = {};
    const std::int64_t bits = codes * kBits;
    std::memcpy(block, row, static_cast<std::size_t>(DivideUp(bits, 8)));
    if (bits % 8 != 0) block[bits / 8] &= static_cast<std::uint8_t>((1 << bits % 8) - 1);
    for (std::int64_t i = 0; flip != 0 && i < codes; ++i) block[i] ^= flip;
    PackBlock<kBits>(block, out);
  }
}

// Either side may lie anywhere: rows are often a file's.
template <int kBytes>
void PackTile(const std::uint8_t* rows, std::int64_t count, std::int64_t columns,
              std::uint8_t* out) {
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t c = 0; c < columns; ++c)
      std::memcpy(out + (c * kTileRows + row) * kBytes, rows + (row * columns + c) * kBytes,
                  kBytes);
  }
}

// 64 products of a 16-bit input and a code less such a zero fit 32 bits.
constexpr float kLargestZero = 700.0f;

}  // namespace

void SetShape(Matrix& w) {
  w.tiles = DivideUp(w.n, kTileRows);
  w.blocks = RoundUp(DivideUp(w.k, kBlockK), InputSpan(w));
  switch (w.kind) {
    case CodeKind::kF32: w.tile_bytes = w.k * kTileRows * 4; break;
    case CodeKind::kF16:
    case CodeKind::kBF16: w.tile_bytes = w.k * kTileRows * 2; break;
    case CodeKind::kAffine:
    case CodeKind::kCodebook:
    case CodeKind::kI8:
    case CodeKind::kE4M3:
    case CodeKind::kI12: w.tile_bytes = w.blocks * 64 * w.bits; break;
  }
}

bool SupportsIntegers(const Matrix& w) {
  const bool whole_blocks = w.group % kBlockK == 0 || w.groups == 1;
  switch (w.kind) {
    case CodeKind::kI12: return true;
    case CodeKind::kCodebook: return whole_blocks && w.table_unit > 0.0f;
    case CodeKind::kI8:
      for (std::int64_t row = 0; w.row_zeros != nullptr && row < w.n; ++row) {
        if (!(std::abs(w.row_zeros[row]) <= kLargestZero)) return false;
      }
      return true;
    case CodeKind::kAffine:
      if (w.offset == OffsetForm::kConstant && !(std::abs(w.zero) <= kLargestZero)) return false;
      return whole_blocks || w.group == 16;
    default: return false;
  }
}

bool TakesInt8(const Matrix& w) { return w.kind == CodeKind::kAffine || w.kind == CodeKind::kI8; }

bool MatchesForGlu(const Matrix& gate, const Matrix& up) {
  return gate.n == up.n && gate.k == up.k && gate.kind == up.kind && gate.bits == up.bits &&
         gate.group == up.group && gate.offset == up.offset;
}

std::int32_t InputLimit(const Matrix& w) {
  return TakesInt8(w) ? 32767 : w.kind == CodeKind::kI12 ? 16383 : kLargestCode;
}

std::int64_t InputSpan(const Matrix& w) {
  const bool whole = w.groups == 1 || w.group % (2 * kBlockK) == 0;
  return whole && w.kind != CodeKind::kCodebook ? 2 : 1;
}

void SetTable(Matrix& w) {
  float largest = 0.0f;
  for (const float value : w.table) largest = std::max(largest, std::abs(value));
  w.table_unit = std::isfinite(largest) ? largest / static_cast<float>(kLargestCode) : 0.0f;
  for (int i = 0; i < 16 && w.table_unit > 0.0f; ++i)
    w.table_codes[i] = static_cast<std::int16_t>(std::nearbyint(w.table[i] / w.table_unit));
}

void PackCodes(const std::uint8_t* rows, std::int64_t row_bytes, int bits, std::uint8_t flip,
               std::int64_t n, std::int64_t k, std::int64_t tile, std::uint8_t* out) {
  std::memset(out, 0, static_cast<std::size_t>(DivideUp(k, kBlockK) * 64 * bits));
  const std::int64_t row_end = std::min<std::int64_t>(n, (tile + 1) * kTileRows);
  for (std::int64_t row = tile * kTileRows; row < row_end; ++row) {
    const std::uint8_t* codes = rows + row * row_bytes;
    std::uint8_t* lane = out + row % kTileRows * 4;
    switch (bits) {
      case 2: PackRow<2>(codes, flip, k, lane); break;
      case 3: PackRow<3>(codes, flip, k, lane); break;
      case 4: PackRow<4>(codes, flip, k, lane); break;
      case 5: PackRow<5>(codes, flip, k, lane); break;
      case 6: PackRow<6>(codes, flip, k, lane); break;
      default: PackRow<8>(codes, flip, k, lane); break;
    }
  }
}

void PackElements(const void* rows, int element_bytes, std::int64_t n, std::int64_t columns,
                  std::int64_t tile, void* out) {
  const std::int64_t first = tile * kTileRows, count = std::min<std::int64_t>(n - first, kTileRows);
  std::memset(out, 0, static_cast<std::size_t>(columns * kTileRows * element_bytes));
  const auto* from = static_cast<const std::uint8_t*>(rows) + first * columns * element_bytes;
  auto* to = static_cast<std::uint8_t*>(out);
  switch (element_bytes) {
    case 1: return PackTile<1>(from, count, columns, to);
    case 2: return PackTile<2>(from, count, columns, to);
    default: return PackTile<4>(from, count, columns, to);
  }
}

}  // namespace nibble::cpu
