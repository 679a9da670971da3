#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble::cpu {
namespace {

// Code `i` of a row's bit stream; never reads past the row's last byte.
std::uint8_t CodeAt(const std::uint8_t* row, std::int64_t row_bytes, int bits, std::int64_t i) {
  const std::int64_t bit = i * bits, byte = bit / 8;
  std::uint32_t window = row[byte];
  if (byte + 1 < row_bytes) window |= std::uint32_t{row[byte + 1]} << 8;
  return static_cast<std::uint8_t>((window >> (bit % 8)) & ((1u << bits) - 1));
}

// Adds `value` (of `width` bits) of quad `quad`, byte `byte` to a plane of `width`-bit codes.
void PutInPlane(std::uint8_t* plane, int width, int quad, int byte, std::uint32_t value) {
  const int quads_per_vector = 8 / width;
  plane[(quad / quads_per_vector) * 64 + byte] |=
      static_cast<std::uint8_t>(value << (width * (quad % quads_per_vector)));
}

// 32 products of a 16-bit input and a code less such a zero fit 32 bits.
constexpr float kLargestZero = 1000.0f;

// The smallest bfloat16 not below `x` >= 0; NaN stays NaN.
std::uint16_t ToBf16Above(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return 0x7fc0;
  return static_cast<std::uint16_t>((bits + 0xffff) >> 16);
}

float FromBf16(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

void SetShape(Matrix& w) {
  w.tiles = DivideUp(w.n, kTileRows);
  w.blocks = DivideUp(w.k, kBlockK);
  switch (w.kind) {
    case CodeKind::kF32: w.tile_bytes = w.k * kTileRows * 4; break;
    case CodeKind::kF16:
    case CodeKind::kBF16: w.tile_bytes = w.k * kTileRows * 2; break;
    case CodeKind::kAffine:
    case CodeKind::kCodebook:
    case CodeKind::kI8:
    case CodeKind::kE4M3:
    case CodeKind::kI16: w.tile_bytes = w.blocks * 64 * w.bits; break;
  }
}

bool SupportsIntegers(const Matrix& w) {
  const bool whole_blocks = w.group % kBlockK == 0 || w.groups == 1;
  switch (w.kind) {
    case CodeKind::kI16: return true;
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

std::int32_t InputLimit(const Matrix& w) { return TakesInt8(w) ? 32767 : kLargestCode; }

void SetTable(Matrix& w) {
  float largest = 0.0f;
  for (const float value : w.table) largest = std::max(largest, std::abs(value));
  w.table_unit = std::isfinite(largest) ? largest / static_cast<float>(kLargestCode) : 0.0f;
  for (int i = 0; i < 16 && w.table_unit > 0.0f; ++i)
    w.table_codes[i] = static_cast<std::int16_t>(std::nearbyint(w.table[i] / w.table_unit));
}

void PackCodes(const std::uint8_t* rows, std::int64_t row_bytes, int bits, std::uint8_t flip,
               std::int64_t n, std::int64_t k, std::int64_t tile, std::uint8_t* out) {
  const int low_bits = bits >= 4 ? (bits == 8 ? 8 : 4) : 2;  // of the first plane
  const int high_bits = bits - low_bits;
  const std::int64_t blocks = DivideUp(k, kBlockK);
  std::memset(out, 0, static_cast<std::size_t>(blocks * 64 * bits));
  const std::int64_t row_end = std::min<std::int64_t>(n, (tile + 1) * kTileRows);
  for (std::int64_t row = tile * kTileRows; row < row_end; ++row) {
    const std::uint8_t* codes = rows + row * row_bytes;
    const int lane = static_cast<int>(row % kTileRows);
    for (std::int64_t i = 0; i < k; ++i) {
      const std::uint32_t code = CodeAt(codes, row_bytes, bits, i) ^ flip;
      std::uint8_t* block = out + (i / kBlockK) * 64 * bits;
      const int quad = static_cast<int>(i % kBlockK / 4), byte = lane * 4 + static_cast<int>(i % 4);
      PutInPlane(block, low_bits, quad, byte, code & ((1u << low_bits) - 1));
      if (high_bits > 0) PutInPlane(block + 64 * low_bits, high_bits, quad, byte, code >> low_bits);
    }
  }
}

void PackElements(const void* rows, int element_bytes, std::int64_t n, std::int64_t columns,
                  std::int64_t tile, void* out) {
  const auto* from = static_cast<const std::uint8_t*>(rows);
  auto* to = static_cast<std::uint8_t*>(out);
  const std::size_t size = static_cast<std::size_t>(element_bytes);
  std::memset(to, 0, static_cast<std::size_t>(columns) * kTileRows * size);
  const std::int64_t row_begin = tile * kTileRows,
                     row_end = std::min<std::int64_t>(n, row_begin + kTileRows);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t c = 0; c < columns; ++c) {
      std::memcpy(to + (c * kTileRows + row - row_begin) * element_bytes,
                  from + (row * columns + c) * element_bytes, size);
    }
  }
}

void PackRounded(const float* rows, std::int64_t n, std::int64_t k, std::int64_t tile,
                 std::int16_t* codes, std::uint16_t* scales) {
  const std::int64_t blocks = DivideUp(k, kBlockK);
  std::memset(codes, 0, static_cast<std::size_t>(blocks) * 1024);
  std::memset(scales, 0, static_cast<std::size_t>(blocks) * kTileRows * 2);
  for (std::int64_t lane = 0; lane < kTileRows && tile * kTileRows + lane < n; ++lane) {
    const float* row = rows + lane * k;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t count = std::min<std::int64_t>(kBlockK, k - b * kBlockK);
      const float* x = row + b * kBlockK;
      float largest = 0.0f;
      for (std::int64_t i = 0; i < count; ++i) {
        largest = std::abs(x[i]) <= largest ? largest : std::abs(x[i]);  // NaN wins, and stays
        if (std::isnan(x[i])) break;
      }
      const std::uint16_t scale = ToBf16Above(largest / static_cast<float>(kLargestCode));
      scales[b * kTileRows + lane] = scale;
      const float unit = FromBf16(scale);
      if (!(unit > 0.0f) || !std::isfinite(unit)) continue;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t quad = i / 4, place = i % 4;  // k 0, 2, then 1, 3
        codes[b * 512 + (2 * quad + place % 2) * 32 + lane * 2 + place / 2] =
            static_cast<std::int16_t>(std::nearbyint(x[i] / unit));
      }
    }
  }
}

}  // namespace nibble::cpu
