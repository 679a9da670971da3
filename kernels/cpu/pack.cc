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
    case CodeKind::kE4M3: w.tile_bytes = w.blocks * 64 * w.bits; break;
  }
}

bool SupportsInt8(const Matrix& w) {
  if (w.kind == CodeKind::kI8) return w.row_zeros == nullptr;
  if (w.kind != CodeKind::kAffine) return false;
  if (w.offset == OffsetForm::kConstant && !(std::abs(w.zero) <= 4096.0f))
    return false;  // 32-bit sums
  return w.group == 16 || w.group % kBlockK == 0 || w.groups == 1;
}

std::int32_t Int8Zero(const Matrix& w) {
  if (w.kind == CodeKind::kI8) return 128;
  return w.offset == OffsetForm::kConstant ? static_cast<std::int32_t>(w.zero) : 0;
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

}  // namespace nibble::cpu
