// Weights packed for the CPU, and the products over them. Plain structs and pointers: who owns the
// bytes is the caller's affair.
//
// Sixteen rows of W lie side by side, one a vector lane: a *tile*. N is padded to whole tiles (zero
// scales), K to whole blocks of 32, or pairs of them (zero codes). Inside a tile codes lie by
// blocks of 32 k; inside a block by *quads* of 4 k: 64 bytes [row][k % 4], what an 8-bit dot
// product instruction takes. Codes of fewer bits share those bytes (block of 32 k x 16 rows = 64 *
// bits bytes):
//
//   4 bits   4 x 64 bytes, quad q in bits 4 * (q % 2) of vector q / 2
//   2 bits   2 x 64 bytes, quad q in bits 2 * (q % 4) of vector q / 4
//   1 bit        64 bytes, quad q in bit q
//   3 = 2 low bits, then 1 high;  5 = 4 low, 1 high;  6 = 4 low, 2 high;  8 = 8 x 64 bytes
//   12 = 4 x 192 bytes: the 8 high bits (signed) of two quads, then their 4 low bits
//
// Dense elements lie [tile][k][16], or as codes of 12 bits. Scales, zeros and biases lie
// [tile][group][16].
#pragma once

#include <cstdint>

namespace nibble::cpu {

inline constexpr int kTileRows = 16;
inline constexpr int kBlockK = 32;
// K is summed in chunks: four interleaved chains inside a chunk, then chunk after chunk. The order
// depends on K alone, so a row's result is the same bits alone and in any batch.
inline constexpr int kChunkK = 256;

constexpr std::int64_t DivideUp(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t RoundUp(std::int64_t a, std::int64_t b) { return DivideUp(a, b) * b; }

enum class CodeKind : std::uint8_t {
  kF32,
  kF16,
  kBF16,      // dense elements
  kAffine,    // w = fma(scale, q, bias)
  kCodebook,  // w = table[q] * scale
  kI8,        // w = scale * (q - zero), stored as q + 128
  kE4M3,      // w = scale * (e4m3(q) - zero)
  kI12,       // w = scale * q, |q| <= kLargestDenseCode, groups of 64: dense weights, rounded
};

// Of a table's codes, and of the inputs that meet them: 32 products fit 32 bits.
inline constexpr std::int32_t kLargestCode = 8191;
inline constexpr std::int32_t kLargestDenseCode = 2047;

enum class NumberKind : std::uint8_t { kNone, kF32, kF16, kBF16, kE8M0, kTwoLevel };

// One number a row and group.
struct GroupNumbers {
  NumberKind kind = NumberKind::kNone;
  const void* data = nullptr;          // [tile][group][16]; kTwoLevel: f16[tile][super][16]
  const std::int8_t* codes = nullptr;  // kTwoLevel: [tile][group][16]
  std::int64_t groups_per_super = 1;
  std::int64_t supers = 0;
};

enum class OffsetForm : std::uint8_t { kNone, kConstant, kZeroCodes, kBias, kMinimum };

struct Matrix {
  std::int64_t n = 0;
  std::int64_t k = 0;
  CodeKind kind = CodeKind::kF32;
  int bits = 32;
  std::int64_t group = 0;  // kAffine, kCodebook; kI8, kE4M3: k
  std::int64_t groups = 1;
  const std::uint8_t* codes = nullptr;
  GroupNumbers scale;
  OffsetForm offset = OffsetForm::kNone;
  float zero = 0.0f;                    // kConstant: bias = -scale * zero
  const std::uint8_t* zeros = nullptr;  // kZeroCodes: [tile][group][16]
  GroupNumbers addend;                  // kBias: + number; kMinimum: - number
  const float* row_zeros = nullptr;     // kI8, kE4M3: [tile][16] or null
  float table[16] = {};
  std::int16_t table_codes[16] = {};  // table[i] is about table_codes[i] * table_unit
  float table_unit = 0.0f;
  const std::int32_t* permutation = nullptr;  // [k]: stored column j takes input permutation[j]
  const float* bias = nullptr;                // [tiles * 16] or null

  // Filled by SetShape below; plain fields, because the vector kernels call no inline function of a
  // header.
  std::int64_t tiles = 0;       // ceil(n / 16)
  std::int64_t blocks = 0;      // ceil(k / 32), to whole spans (InputSpan)
  std::int64_t tile_bytes = 0;  // of codes
};

// y[r, n] = sum over k of x[r, k] * w[n, k] + bias[n] for the rows n of tiles [tile_begin,
// tile_end).
struct LinearArgs {
  const Matrix* w = nullptr;
  std::int64_t tile_begin = 0;
  std::int64_t tile_end = 0;
  const float* x =
      nullptr;  // [rows, x_stride], already permuted and fake-quantized where w asks for it
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;
  float* y = nullptr;  // [rows, y_stride]; column 0 is row 0 of w
  std::int64_t y_stride = 0;
  float* scratch = nullptr;  // [kPanelFloats], of this thread
};
// w[row, :] * scale in the order of the layer's input; out[k].
struct EmbedArgs {
  const Matrix* w = nullptr;
  std::int64_t row = 0;
  float scale = 1.0f;
  float* out = nullptr;
  float* scratch = nullptr;  // [kPanelFloats]
};
inline constexpr std::int64_t kPanelFloats = std::int64_t{kChunkK} * kTileRows;

// Inputs as integers: x[k] is about code[k] * scale of its block of 32. Rows are padded to kPaddedK
// with codes of zero.
inline constexpr std::int64_t kPaddedK = 64;
struct QuantizedBlock {
  float scale;
  float sum;  // scale * code_sum
  float half_sum[2];
  std::int32_t code_sum;          // of its span, in the span's first block
  std::int32_t half_code_sum[2];  // of 16 k each, where a span is one block
  std::int32_t unused;
};
struct QuantizedRows {
  const void* codes = nullptr;  // [rows, stride] int8; wide: int16, every quad as k 0, 2, 1, 3
  const QuantizedBlock* blocks = nullptr;  // [rows, stride / 32]
  std::int64_t stride = 0;                 // k rounded up to kPaddedK
  std::int64_t span = 1;  // blocks of one scale, whose products are summed as integers
  bool wide = false;
};

// One scale a span of blocks, or one a row (formats whose activations are int8 a token).
enum class QuantizeScope : std::uint8_t { kSpan, kRow };
struct QuantizeArgs {
  const float* x = nullptr;  // [k]
  std::int64_t k = 0;
  QuantizeScope scope = QuantizeScope::kSpan;
  std::int64_t span = 1;     // blocks
  std::int32_t limit = 127;  // of |code|; kRow: 127
  bool wide = false;
  void* codes = nullptr;
  QuantizedBlock* blocks = nullptr;
};

// y as in LinearArgs, from quantized inputs. REQUIRES: SupportsIntegers(*w); TakesInt8(*w) or wide
// inputs of codes up to InputLimit(*w); a span of 1 or of InputSpan(*w).
struct IntegerArgs {
  const Matrix* w = nullptr;
  std::int64_t tile_begin = 0;
  std::int64_t tile_end = 0;
  QuantizedRows x;
  std::int64_t rows = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;
  std::uint8_t* panels = nullptr;  // [IntegerPanelBytes(k)], of this thread
  float* numbers = nullptr;        // [IntegerNumberFloats(k)], of this thread
  // Where set, y = silu(x * W^T) * (x * up^T). REQUIRES: MatchesForGlu(*w, *up) and
  // at least kFewestGluRows rows.
  const Matrix* up = nullptr;
};
inline constexpr std::int64_t kPanelTiles = 4;  // multiplied at once, at most
constexpr std::int64_t IntegerPanelBytes(std::int64_t k) {
  return kPanelTiles * RoundUp(k, kPaddedK) / kBlockK * 1024;
}
constexpr std::int64_t IntegerNumberFloats(std::int64_t k) {
  return kPanelTiles * 2 * DivideUp(k, 16) * kTileRows;
}

// Whether integer products know the encoding: codes on an integer grid (or near one, see
// kLargestCode), groups of whole blocks or of 16.
bool SupportsIntegers(const Matrix& w);
// Whether its inputs may be 8 bits: codes of at most 8 bits themselves.
bool TakesInt8(const Matrix& w);
// The largest 16-bit code of its inputs, and how many blocks of these may share a scale: 64
// products fit 32 bits where it is two.
std::int32_t InputLimit(const Matrix& w);
std::int64_t InputSpan(const Matrix& w);

// Whether integer products of two matrices and SiLU can be one, from so many rows on.
bool MatchesForGlu(const Matrix& gate, const Matrix& up);
inline constexpr std::int64_t kFewestGluRows = 33;

// Dense weights to a tile of 12-bit codes and its bfloat16 scales [group][16]. A group with a NaN
// or an infinity has such a scale.
struct PackDenseArgs {
  const std::uint16_t* elements = nullptr;  // [n, k]
  bool bf16 = false;                        // else f16
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t tile = 0;
  std::uint8_t* codes = nullptr;
  std::uint16_t* scales = nullptr;
};
inline constexpr std::int64_t kDenseGroup = 64;

// Sets tiles, blocks and tile_bytes from n, k, kind, bits and groups.
void SetShape(Matrix& w);

}  // namespace nibble::cpu
