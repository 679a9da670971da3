// Products of 8-bit weights that have one scale a row, with inputs rounded to 8 bits a token:
// LLM.int8(), W8A8, FP8. The arithmetic is the format's: integers add up exactly, e4m3 in f32.
// The rules of ops.h hold.
#pragma once

#include <cstdint>

#include "kernels/cuda/model_ops.h"
#include "kernels/cuda/ops.h"

namespace nibble::cuda {

// w[n, k] = scales[n] * codes[n, k], in device memory; codes of kI8 or kF8E4M3, 16-byte aligned.
struct Row8Matrix {
  DType code = DType::kI8;
  const std::uint8_t* codes = nullptr;
  const float* scales = nullptr;   // f32[n]
  const float* offsets = nullptr;  // f32[n] added to every token's result, or null
};

// x[m, k] = scales[m] * codes[m, k]. With outliers, codes are 0 where an input of magnitude >=
// threshold stayed in 16 bits; `outliers` lists the columns of each token's.
struct Row8Inputs {
  std::uint8_t* codes = nullptr;      // 16-byte aligned
  float* scales = nullptr;            // f32[m]; NaN where an input is
  std::uint16_t* outliers = nullptr;  // u16[m][kOutlierList], 16-byte aligned; or null
};

// A token's outliers: how many, then their columns in any order. More than fit are counted, not
// listed.
inline constexpr int kOutlierList = 64;

inline constexpr std::int64_t kMostRow8Columns = 32768;

// Whether Row8Product takes a matrix of n by k, on this device.
bool SupportsRow8(std::int64_t n, std::int64_t k);

// Rounds x T[tokens, k], rows ldx apart, by a rounding other than kNone; `out` gets the codes. With
// norm_in (not for kOutlierSplit) x is yet to be divided by its norm, and only scales need be.
struct QuantizeArgs {
  DType dtype = DType::kF16;
  const void* x = nullptr;
  std::int64_t ldx = 0;  // a multiple of 8, as k
  int tokens = 0, k = 0;
  NormInput norm_in;
  InputRounding rounding = InputRounding::kInt8Dynamic;
  float scale = 1.0f, zero = 0.0f;  // static; `zero` moves the codes alone: Row8Matrix::offsets
  float threshold = 0.0f;           // kOutlierSplit; 0: no outliers
  Row8Inputs out;
};
cudaError_t QuantizeRows(const QuantizeArgs& args, LaunchOptions options);

// How a product is cut; zero fields are chosen. For benches and tests.
struct Row8Plan {
  int tokens = 0;  // of a tile: 16, 32, 64 or 128
  int stages = 0;  // of 128 columns in flight
  int share = 0;   // 1: SMs share tiles, -1: they do not
};

// out = epilogue(x * w^T), any number of tokens. args.w gives n and k alone; args.x, ldx and
// `threshold` count with outliers only. No norm_in. scratch.weights, of scratch_bytes, and
// scratch.flags let SMs share tiles; null: they do not. sm_90.
struct Row8ProductArgs {
  ProductArgs product;
  Row8Matrix w;
  Row8Inputs x;
  float threshold = 0.0f;
  std::int64_t scratch_bytes = 0;
};
cudaError_t Row8Product(const Row8ProductArgs& args, const ProductScratch& scratch,
                        cudaStream_t stream, Row8Plan plan = {});

}  // namespace nibble::cuda
