// How a GPU holds a quantized matrix: one stream of blocks in the order its product kernels read
// it.
//
// w[n, k] is cut into *tiles* of 16 rows and *units* of 128 columns. The blocks of one tile are
// contiguous:
//
//   block[tile][unit] = codes   2 atoms of 16 x 64, each 128 * bits bytes
//                       scales  half2[128 / group][8]: (row g, row g + 8), g = 0..7
//                       offsets the same shape, when OffsetMode is a table
//
// An atom holds codes in the register order of operand A of mma.m16n8k16 (and, warp by warp, of
// wgmma with A from registers): in k-step j (16 columns) lane 4 * g + t holds the four register
// pairs
//
//   a0 = (row g,     k 2t, 2t + 1)    a2 = (row g,     k 2t + 8, 2t + 9)
//   a1 = (row g + 8, k 2t, 2t + 1)    a3 = (row g + 8, k 2t + 8, 2t + 9)
//
// At 4 bits, pair r of a step lies in nibbles r (first) and r + 4 (second) of one 32-bit word, a
// lane's four steps in one 128-bit word. Other widths are sums of *bit planes* laid one after the
// other inside the atom: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, low bits first. Narrower planes keep to
// the nibbles: two or four steps share each. Rows and columns past the matrix have code 0, scale 0,
// offset 0.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/dtype.h"

namespace nibble {

inline constexpr int kTileRows = 16;
inline constexpr int kAtomColumns = 64;
inline constexpr int kUnitColumns = 128;

// Byte operands (int8, e4m3) cut from the same words see the columns of an atom in this order:
// operand position i holds column kAtomK[i]. Activation quantizers for 8-bit products write it.
inline constexpr std::uint8_t kAtomK[kAtomColumns] = {
    0,  8,  1,  9,  2,  10, 3,  11, 4,  12, 5,  13, 6,  14, 7,  15, 16, 24, 17, 25, 18, 26,
    19, 27, 20, 28, 21, 29, 22, 30, 23, 31, 32, 40, 33, 41, 34, 42, 35, 43, 36, 44, 37, 45,
    38, 46, 39, 47, 48, 56, 49, 57, 50, 58, 51, 59, 52, 60, 53, 61, 54, 62, 55, 63};

enum class CodeKind : std::uint8_t {
  kInteger,   // w = scale * (q - zero) + bias
  kCodebook,  // w = scale * table[q]; 4 bits, pair r of a step lies in byte r: first low, second
              // high nibble
};

enum class OffsetMode : std::uint8_t {
  kConstant,  // one zero point for the matrix, no table
  kZeros,     // table of zero points: w = scale * (q - zero[row, group])
  kBias,      // table of biases: w = scale * (q - zero) + bias[row, group], one zero point for all
};

struct PackedShape {
  std::int64_t n = 0;
  std::int64_t k = 0;
  CodeKind kind = CodeKind::kInteger;
  int bits = 4;     // 2, 3, 4, 5, 6, 8
  int group = 128;  // 16, 32, 64 or 128 columns a scale
  OffsetMode offset = OffsetMode::kConstant;

  constexpr std::int64_t Tiles() const { return (n + kTileRows - 1) / kTileRows; }
  constexpr std::int64_t Units() const { return (k + kUnitColumns - 1) / kUnitColumns; }
  constexpr int AtomBytes() const { return 128 * bits; }
  constexpr int TableBytes() const {
    return 32 * (kUnitColumns / group);
  }  // scales, or offsets, of a block
  constexpr int BlockBytes() const {
    return 2 * AtomBytes() + TableBytes() * (offset == OffsetMode::kConstant ? 1 : 2);
  }
  constexpr std::int64_t Bytes() const { return Tiles() * Units() * BlockBytes(); }
  bool operator==(const PackedShape&) const = default;
};

// The packed group for a file's group: the largest of 16, 32, 64, 128 that divides it, so that a
// file's scale is repeated, never split; 0 when there is none (the matrix is then kept dense).
constexpr int PackedGroup(std::int64_t group) {
  for (int candidate = 128; candidate >= 16; candidate /= 2) {
    if (group % candidate == 0) return candidate;
  }
  return 0;
}

// Row and column, inside the atom, of element `half` of pair `pair` of lane `lane` in k-step
// `step`.
struct AtomCoordinate {
  int row;
  int column;
};
constexpr AtomCoordinate AtomCoordinateOf(int lane, int step, int pair, int half) {
  return {lane / 4 + 8 * (pair & 1), step * 16 + 2 * (lane % 4) + 8 * (pair >> 1) + half};
}

// Code i of a row's little-endian bit stream (see linear_weight.h).
constexpr int CodeAt(const std::uint8_t* row, std::int64_t i, int bits) {
  const std::int64_t bit = i * bits;
  const int shift = static_cast<int>(bit & 7);
  unsigned value = row[bit >> 3];
  if (shift + bits > 8) value |= static_cast<unsigned>(row[(bit >> 3) + 1]) << 8;
  return static_cast<int>((value >> shift) & ((1u << bits) - 1));
}

// A plane of 1, 2 or 4 bits is uint32[32 lanes][bits]; of 8 bits uint32[2][32 lanes][4], so that a
// lane always reads at most 16 bytes at once without bank conflicts.
constexpr int PlaneWordByte(int plane, int lane, int word) {
  return plane < 8 ? (lane * plane + word) * 4 : word / 4 * 512 + (lane * 4 + word % 4) * 4;
}

// Bit, in the word of a plane, of the first code of pair `pair` of k-step `step`; the second code's
// is 16 higher. Word: (4 * step + pair) * plane / 16.
constexpr int PlaneBit(int plane, int step, int pair) {
  return plane == 8 ? 8 * (pair % 2) : 4 * pair + plane * (step % (4 / plane));
}

// The 32-bit words of one lane in one atom. code(row, column) gives the code inside the atom;
// store(byte, value) stores a word at byte `byte` of the atom.
template <typename Code, typename Store>
constexpr void PackLane(int lane, int bits, CodeKind kind, const Code& code, const Store& store) {
  int plane_byte = 0;
  int low = 0;  // bits of the code already stored
  while (low < bits) {
    const int left = bits - low;
    const int plane = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    // A plane of b bits holds 32 / b codes a word, 4 / b k-steps a word (8 bits: half a step).
    for (int word = 0; word < plane; ++word) {
      std::uint32_t value = 0;
      for (int slot = 0; slot < 32 / plane; ++slot) {
        const int index = word * (32 / plane) + slot;  // over the 32 codes of the lane
        int step = index / 8, pair = 0, half = 0;
        const int in_step = index % 8;
        int shift = 0;
        if (kind == CodeKind::kCodebook) {  // byte r = pair r
          pair = in_step / 2;
          half = in_step % 2;
          shift = 4 * in_step;
        } else {  // first elements in the low 16 bits, second in the high 16
          const int pairs_a_word = 16 / plane;
          const int p = slot % pairs_a_word;
          half = slot / pairs_a_word;
          const int pair_index = word * pairs_a_word + p;  // over the 16 pairs of the lane
          step = pair_index / 4;
          pair = pair_index % 4;
          shift = 16 * half + PlaneBit(plane, step, pair);
        }
        const AtomCoordinate at = AtomCoordinateOf(lane, step, pair, half);
        const auto q = static_cast<std::uint32_t>(code(at.row, at.column));
        value |= ((q >> low) & ((1u << plane) - 1)) << shift;
      }
      store(plane_byte + PlaneWordByte(plane, lane, word), value);
    }
    plane_byte += 128 * plane;
    low += plane;
  }
}

// The unpacked rows a matrix is packed from. Scales and offsets are already numbers; a packed scale
// is fl16(scale * 2^-scale_exponent), the product kernels multiply by 2^scale_exponent.
struct RowSource {
  const std::uint8_t* codes = nullptr;  // [n][row_bytes], a little-endian bit stream a row
  std::int64_t row_bytes = 0;
  const float* scales = nullptr;  // [n][groups]
  const float* offsets =
      nullptr;  // [n][groups]: zero points or biases; null when OffsetMode::kConstant
  std::int64_t file_group = 128;  // columns a scale in `scales`
  std::int64_t groups = 0;        // ceil(k / file_group)
  int scale_exponent = 0;
  // gate_up: packed tile 2 * i is rows 16 * i.. of the first half of the matrix, 2 * i + 1 of the
  // second.
  bool alternate_halves = false;
};

// Row of the source behind packed row `packed`; n when it is padding.
constexpr std::int64_t SourceRow(std::int64_t packed, std::int64_t n, bool alternate_halves) {
  if (!alternate_halves) return packed < n ? packed : n;
  const std::int64_t tile = packed / kTileRows;
  const std::int64_t row = tile / 2 * kTileRows + packed % kTileRows;
  return row < n / 2 ? (tile % 2) * (n / 2) + row : n;
}

constexpr float PowerOfTwo(int exponent) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}

// Packs one lane's share of a block, for host loops and the device kernel alike: its words of both
// atoms and, for lanes 0..7, one (row g, row g + 8) entry of every scale and offset. `to_half` is
// F32ToF16 or the intrinsic. Little-endian hosts; `block` is 4-byte aligned.
template <typename ToHalf>
constexpr void PackBlockLane(const PackedShape& shape, const RowSource& source, std::int64_t tile,
                             std::int64_t unit, int lane, const ToHalf& to_half,
                             std::uint8_t* block) {
  const auto source_row = [&](int row) {
    return SourceRow(tile * kTileRows + row, shape.n, source.alternate_halves);
  };
  for (int atom = 0; atom < 2; ++atom) {
    const std::int64_t k0 = unit * kUnitColumns + atom * kAtomColumns;
    PackLane(
        lane, shape.bits, shape.kind,
        [&](int row, int column) {
          const std::int64_t n = source_row(row);
          if (n >= shape.n || k0 + column >= shape.k) return 0;
          return CodeAt(source.codes + n * source.row_bytes, k0 + column, shape.bits);
        },
        [&](int byte, std::uint32_t value) {
          *reinterpret_cast<std::uint32_t*>(block + atom * shape.AtomBytes() + byte) = value;
        });
  }
  if (lane >= 8) return;
  const float down = PowerOfTwo(-source.scale_exponent);
  const int tables = shape.offset == OffsetMode::kConstant ? 1 : 2;
  for (int table = 0; table < tables; ++table) {
    const float* values = table == 0 ? source.scales : source.offsets;
    const float factor = table == 0 || shape.offset == OffsetMode::kBias ? down : 1.0f;
    for (int group = 0; group < kUnitColumns / shape.group; ++group) {
      const std::int64_t k = unit * kUnitColumns + group * shape.group;
      for (int half = 0; half < 2; ++half) {
        const std::int64_t n = source_row(lane + 8 * half);
        float value = 0.0f;
        if (n < shape.n && k < shape.k)
          value = values[n * source.groups + k / source.file_group] * factor;
        // Stored whole: ptxas 13.0 turns "low byte of these half bits" into a conversion of the
        // half to u8.
        *reinterpret_cast<std::uint16_t*>(block + 2 * shape.AtomBytes() +
                                          table * shape.TableBytes() + group * 32 + lane * 4 +
                                          half * 2) = to_half(value);
      }
    }
  }
}

}  // namespace nibble
