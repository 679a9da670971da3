// The epilogue of tile products: from a warpgroup's sums of 64 rows to the output, a chunk of 16
// tokens at a time, through shared memory: there a thread finds neighbouring rows of one token.
#pragma once

#include "kernels/cuda/wgmma_tiles.cuh"

namespace nibble::cuda {

inline constexpr int kStageStride = 68;  // floats a token of the staged rows
inline constexpr int kStagedBytes = kTileWarps / 4 * kStagedTokens * kStageStride * 4;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The part of a tile that a warpgroup finishes: every splits-th chunk from `chunk` on.
struct TilePart {
  int row0;  // of its 64
  int token0, token_end, chunk, chunks;
  std::uint32_t staged;  // f32[kStagedTokens][kStageStride]
  const float* rstd;     // of the tile's tokens
};

__device__ __forceinline__ void LoadFour(const float* from, float (&v)[8], int at) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  v[at] = four.x, v[at + 1] = four.y, v[at + 2] = four.z, v[at + 3] = four.w;
}
// Eight floats from `row` on, zeros from p.n on.
__device__ __forceinline__ void LoadRow(const TileParams& p, const float* from, int row, bool whole,
                                        float (&v)[8]) {
  if (whole) {
    LoadFour(from + row, v, 0);
    LoadFour(from + row + 4, v, 4);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = row + i < p.n ? from[row + i] : 0.0f;
}
template <typename T>
__device__ __forceinline__ void StoreRow(const TileParams& p, T* to, int row, bool whole,
                                         const float (&v)[8]) {
  if (!whole) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (row + i < p.n) to[i] = FromFloat<T>(v[i]);
    }
  } else if constexpr (std::is_same_v<T, float>) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(PackPair<T>(v[0], v[1]), PackPair<T>(v[2], v[3]),
                                               PackPair<T>(v[4], v[5]), PackPair<T>(v[6], v[7]));
  }
}

// v f32[8]: gates of four rows, then their ups.
template <typename T>
__device__ __forceinline__ void StoreGated(const TileParams& p, T* to, const float (&v)[8]) {
  float gated[4];
  if (p.gate == Gate::kSilu) {  // one branch for all
#pragma unroll
    for (int i = 0; i < 4; ++i) gated[i] = GateOf(Gate::kSilu, v[i]) * v[4 + i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) gated[i] = GateOf(p.gate, v[i]) * v[4 + i];
  }
  if (p.vector) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(PackPair<T>(gated[0], gated[1]), PackPair<T>(gated[2], gated[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = FromFloat<T>(gated[i]);
}

// The residual stream, what the next norm wants of it, and sums of squares of 16 rows by two
// threads each.
template <typename T>
__device__ __forceinline__ void AddToStream(const TileParams& p, int token, int row, bool valid,
                                            bool whole, float (&v)[8]) {
  const std::int64_t at = static_cast<std::int64_t>(token) * p.n;
  float squares = 0.0f;
  if (valid) {
    float old[8];
    LoadRow(p, p.residual + at, row, whole, old);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = whole || row + i < p.n ? v[i] + old[i] : 0.0f;
      squares = fmaf(v[i], v[i], squares);
    }
    StoreRow(p, p.residual + at + row, row, whole, v);
    if (p.norm_out.normed != nullptr) {
      LoadRow(p, p.norm_out.weight, row, whole, old);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= old[i];
      StoreRow(p, static_cast<T*>(p.norm_out.normed) + at + row, row, whole, v);
    }
  }
  if (p.norm_out.square_sums == nullptr) return;
  squares += __shfl_xor_sync(~0u, squares, 1);
  const int tile = row / kTileRows;
  if (valid && row % kTileRows == 0 && tile < p.tiles)
    p.norm_out.square_sums[static_cast<std::int64_t>(token) * p.tiles + tile] = squares;
}

// Instances by output, so that the loop holds only what that output takes.
template <typename T, Output kOutput, int kTokens>
__device__ __forceinline__ void FinishPart(const TileParams& p, const TilePart& part,
                                           const float (&acc)[kTokens / 2]) {
  const int lane = threadIdx.x % 32, thread = threadIdx.x % 128;
  // Sums go to [token][row] of their chunk; eight threads then share a token. With gates and ups in
  // tiles of 16 rows by turns a thread takes four of each, otherwise eight rows.
  const std::uint32_t to =
      part.staged + 4 * (lane % 4 * 2 * kStageStride + thread / 32 * kTileRows + lane / 4);
  constexpr bool kGlu = kOutput == Output::kGlu;
  const int piece = thread % 8, row_in = kGlu ? piece / 4 * 32 + piece % 4 * 4 : piece * 8;
  constexpr int kSecondHalf = kGlu ? 16 : 4;  // rows further
  const int row = part.row0 + row_in;
  const bool whole = p.vector && (kGlu || row + 8 <= p.n);
  const std::uint32_t from = part.staged + 4 * (thread / 8 * kStageStride + row_in);
  float bias[8] = {};
  if (p.bias != nullptr) {
    if (kGlu && row < p.n) {
#pragma unroll
      for (int i = 0; i < 8; ++i) bias[i] = p.bias[row + i / 4 * 16 + i % 4];
    }
    if (!kGlu) LoadRow(p, p.bias, row, whole, bias);
  }
  const std::int64_t column = kGlu ? part.row0 / 2 + piece / 4 * 16 + piece % 4 * 4 : row;
  const std::int64_t at = (part.token0 + thread / 8) * p.ldo + column;
  const int tokens = part.token_end - part.token0 - thread / 8;  // left from this thread's on
  const bool normed = p.norm_in.square_sums != nullptr;
#pragma unroll
  for (int chunk = 0, mine = part.chunk; chunk < kTokens / kStagedTokens; ++chunk) {
    if (chunk != mine || chunk >= part.chunks) continue;
    mine += p.splits;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      ptx::StoreShared(to + 4 * ((i / 4 * 8 + i % 2) * kStageStride + i % 4 / 2 * 8),
                       acc[chunk * 8 + i]);
    }
    ptx::NamedBarrier(1 + threadIdx.x / 128, 128);
    const int token_in = chunk * kStagedTokens;
    const bool valid = token_in < tokens && (!kGlu || row < p.n);
    const float factor = normed ? p.multiplier * part.rstd[token_in + thread / 8] : p.multiplier;
    const uint4 first = ptx::LoadShared128(from),
                second = ptx::LoadShared128(from + 4 * kSecondHalf);
    float v[8] = {__uint_as_float(first.x),  __uint_as_float(first.y),  __uint_as_float(first.z),
                  __uint_as_float(first.w),  __uint_as_float(second.x), __uint_as_float(second.y),
                  __uint_as_float(second.z), __uint_as_float(second.w)};
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = fmaf(v[i], factor, bias[i]);
    const std::int64_t to_out = at + token_in * p.ldo;
    if constexpr (kGlu) {
      if (valid) StoreGated(p, static_cast<T*>(p.out) + to_out, v);
    } else if constexpr (kOutput == Output::kStore) {
      if (valid) StoreRow(p, static_cast<T*>(p.out) + to_out, row, whole, v);
    } else if constexpr (kOutput == Output::kStoreF32) {
      if (valid) StoreRow(p, static_cast<float*>(p.out) + to_out, row, whole, v);
    } else {
      AddToStream<T>(p, part.token0 + token_in + thread / 8, row, valid, whole, v);
    }
    ptx::NamedBarrier(1 + threadIdx.x / 128, 128);
  }
}

template <typename T, int kTokens>
__device__ __forceinline__ void FinishPart(const TileParams& p, const TilePart& part,
                                           const float (&acc)[kTokens / 2]) {
  switch (p.output) {
    case Output::kStore: return FinishPart<T, Output::kStore, kTokens>(p, part, acc);
    case Output::kStoreF32: return FinishPart<T, Output::kStoreF32, kTokens>(p, part, acc);
    case Output::kGlu: return FinishPart<T, Output::kGlu, kTokens>(p, part, acc);
    case Output::kResidual: return FinishPart<T, Output::kResidual, kTokens>(p, part, acc);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace nibble::cuda
