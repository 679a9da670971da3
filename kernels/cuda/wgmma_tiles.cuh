// The work of tile products (wgmma_product.cuh) around the products: who computes what, sums that
// several blocks share, and the epilogue.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/packed_layout.h"

namespace nibble::cuda {

inline constexpr int kTileWarps = 16;  // and four, of which one copies: they give registers away
inline constexpr int kTileThreads = 32 * (kTileWarps + 4);
inline constexpr int kTileRowsOfBlock = kTileWarps * kTileRows;
inline constexpr int kTileGroupTokens = 8;  // tiles of tokens that share rows while those are in L2
inline constexpr int kStageStride = 68;     // floats a token of a warpgroup's 64 staged rows
inline constexpr int kStagedTokens = 16;
inline constexpr int kStagedBytes = kTileWarps / 4 * kStagedTokens * kStageStride * 4;

struct TileParams {
  CUtensorMap x;       // [m, k]: boxes of kTokens x 64
  CUtensorMap codes;   // [tiles, units * block bytes]: boxes of 16 x the codes of a block
  CUtensorMap tables;  // the same: boxes of 16 x the tables of a block
  int block_bytes, table_bytes, scale_bytes;  // of a block; table_bytes with offsets
  int units, tiles;
  int row_items, token_items;  // tiles of the output
  int shared_tiles, splits;    // see TileCursor
  int stages, stage_bytes;
  int group_steps;  // k-steps a group
  OffsetMode offset;
  float zero, down, multiplier;  // multiplier: of the accumulators, down undone
  float table[16];
  int m, n;
  bool stream_once;  // nobody reads these weights again
  bool vector;       // rows of the output allow 16-byte accesses
  NormInput norm_in;
  const float* bias;
  Output output;
  Gate gate;
  void* out;
  std::int64_t ldo;
  float* residual;
  NormOutput norm_out;
  // splits > 1: f32[splits, m, n]. Shared tiles: a worker's part of a tile that another finishes,
  // 256 x kTokens f32 each, and a flag each that it is there (0 before and after the kernel).
  float* partials;
  std::uint32_t* flags;
  // Experts: packed one after the other, tiles each; rows of x from group_offsets[expert] on.
  int experts;
  const std::int32_t* group_offsets;
};

// A worker's way through its pieces of work: a range of units of one tile of the output. The first
// shared_tiles tiles are cut evenly among all workers, wherever that falls; of the others, each
// whole, or each of `splits` parts, goes to one worker.
template <int kTokens, bool kGrouped>
struct TileCursor {
  int position, shared_end, item;  // next in the shared tiles, in units; next of the others
  int row, tile, token0, token_end, split, unit, unit_end;

  __device__ __forceinline__ void Start(const TileParams& p) {
    const int worker = blockIdx.x;
    position = SharedBegin(p, worker), shared_end = SharedBegin(p, worker + 1);
    item = worker;
  }
  static __device__ __forceinline__ int SharedBegin(const TileParams& p, int worker) {
    return worker * (p.shared_tiles * p.units) / static_cast<int>(gridDim.x);
  }

  // `group_tiles` (experts): tiles of tokens before each expert's.
  __device__ __forceinline__ bool Next(const TileParams& p, const std::int32_t* group_tiles) {
    int index;  // of the tile
    if (position < shared_end) {
      index = position / p.units;
      unit = position - index * p.units;
      unit_end = min(p.units, unit + shared_end - position);
      position += unit_end - unit;
      split = 0;
    } else {
      const int token_items = kGrouped ? group_tiles[p.experts] : p.token_items;
      if (item >= (p.row_items * token_items - p.shared_tiles) * p.splits) return false;
      index = item / p.splits;
      split = item - index * p.splits;
      index += p.shared_tiles;
      unit = split * p.units / p.splits;
      unit_end = (split + 1) * p.units / p.splits;
      item += gridDim.x;
    }
    if constexpr (kGrouped) {
      const int token_tile = index / p.row_items;
      int expert = 0, end = p.experts;  // the last whose tiles begin at or before this one
      while (end - expert > 1) {
        const int middle = (expert + end) / 2;
        (group_tiles[middle] <= token_tile ? expert : end) = middle;
      }
      row = (index - token_tile * p.row_items) * kTileRowsOfBlock;
      tile = expert * p.tiles + row / kTileRows;
      token0 = p.group_offsets[expert] + (token_tile - group_tiles[expert]) * kTokens;
      token_end = p.group_offsets[expert + 1];
    } else {
      const int in_group = p.row_items * kTileGroupTokens, group = index / in_group;
      index -= group * in_group;
      const int width = min(kTileGroupTokens, p.token_items - group * kTileGroupTokens);
      tile = index / width * 16;
      row = tile * kTileRows;
      token0 = (group * kTileGroupTokens + index % width) * kTokens;
      token_end = p.m;
    }
    return true;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Tiles of tokens before each expert's, i32[experts + 1], by the first warp.
template <int kTokens>
__device__ __forceinline__ void CountGroupTiles(const TileParams& p, std::int32_t* tiles) {
  if (threadIdx.x >= 32) return;
  int before = 0;
  for (int base = 0; base < p.experts; base += 32) {
    const int expert = base + threadIdx.x;
    int sum = expert < p.experts
                  ? (p.group_offsets[expert + 1] - p.group_offsets[expert] + kTokens - 1) / kTokens
                  : 0;
    const int own = sum;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int lower = __shfl_up_sync(~0u, sum, delta);
      if (threadIdx.x >= delta) sum += lower;
    }
    if (expert < p.experts) tiles[expert] = before + sum - own;
    before += __shfl_sync(~0u, sum, 31);
  }
  if (threadIdx.x == 0) tiles[p.experts] = before;
}

// 1 / rms of the tokens of a tile, by all consumer warps.
template <int kTokens>
__device__ __forceinline__ void TileNorms(const TileParams& p, float* rstd, int token0) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  ptx::NamedBarrier(5, 32 * kTileWarps);
  for (int i = warp; i < kTokens; i += kTileWarps) {
    float sum = 0.0f;
    if (token0 + i < p.m) {
      const float* sums =
          p.norm_in.square_sums + static_cast<std::int64_t>(token0 + i) * p.norm_in.count;
#pragma unroll 8
      for (int j = lane; j < p.norm_in.count; j += 32) sum += sums[j];
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
    if (lane == 0) rstd[i] = rsqrtf(sum / p.norm_in.dim + p.norm_in.eps);
  }
  ptx::NamedBarrier(5, 32 * kTileWarps);
}

// Writes 16 tokens of a warpgroup's 64 rows, staged f32[16][kStageStride]: 8 threads a token.
template <typename T>
__device__ __forceinline__ void WriteStaged(const TileParams& p, const float* staged,
                                            const float* rstd, int row0, int token0,
                                            int token_end) {
  const int thread = threadIdx.x % 128, part = thread % 8, token = token0 + thread / 8;
  const float* from = staged + thread / 8 * kStageStride;
  const bool valid = token < token_end;
  const float factor =
      p.norm_in.square_sums == nullptr ? p.multiplier : p.multiplier * rstd[thread / 8];
  if (p.output == Output::kGlu) {  // tiles: gate, up, gate, up
    const int at = part / 4 * 32 + part % 4 * 4, row = row0 + at;
    if (!valid || row >= p.n) return;
    const float4 gate = *reinterpret_cast<const float4*>(from + at);
    const float4 up = *reinterpret_cast<const float4*>(from + at + 16);
    const float g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float a = g[i] * factor, b = u[i] * factor;
      if (p.bias != nullptr) a += p.bias[row + i], b += p.bias[row + 16 + i];
      v[i] = GateOf(p.gate, a) * b;
    }
    T* out = static_cast<T*>(p.out) + token * p.ldo + row0 / 2 + part / 4 * 16 + part % 4 * 4;
    if (p.vector) {
      *reinterpret_cast<uint2*>(out) = make_uint2(PackPair<T>(v[0], v[1]), PackPair<T>(v[2], v[3]));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = FromFloat<T>(v[i]);
    }
    return;
  }
  const int row = row0 + part * 8;
  const bool whole = p.vector && row + 8 <= p.n;
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + part * 8 + i);
    v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    v[i] *= factor;
    if (p.bias != nullptr && row + i < p.n) v[i] += p.bias[row + i];
  }
  if (p.output == Output::kResidual) {
    const std::int64_t at = static_cast<std::int64_t>(token) * p.n + row;
    float squares = 0.0f;
    float normed[8];
    if (valid && whole) {
      float4* residual = reinterpret_cast<float4*>(p.residual + at);
      const float4 a = residual[0], b = residual[1];
      v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
      v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
      residual[0] = make_float4(v[0], v[1], v[2], v[3]);
      residual[1] = make_float4(v[4], v[5], v[6], v[7]);
      if (p.norm_out.normed != nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) normed[i] = v[i] * p.norm_out.weight[row + i];
        *reinterpret_cast<uint4*>(static_cast<T*>(p.norm_out.normed) + at) =
            make_uint4(PackPair<T>(normed[0], normed[1]), PackPair<T>(normed[2], normed[3]),
                       PackPair<T>(normed[4], normed[5]), PackPair<T>(normed[6], normed[7]));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool inside = valid && row + i < p.n;
        v[i] = inside ? v[i] + p.residual[at + i] : 0.0f;
        if (!inside) continue;
        p.residual[at + i] = v[i];
        if (p.norm_out.normed != nullptr) {
          static_cast<T*>(p.norm_out.normed)[at + i] =
              FromFloat<T>(v[i] * p.norm_out.weight[row + i]);
        }
      }
    }
    if (p.norm_out.square_sums == nullptr) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
    squares += __shfl_xor_sync(~0u, squares, 1);
    const int tile = row / kTileRows;
    if (valid && part % 2 == 0 && tile < p.tiles)
      p.norm_out.square_sums[static_cast<std::int64_t>(token) * p.tiles + tile] = squares;
    return;
  }
  if (!valid) return;
  if (p.output == Output::kStoreF32) {
    float* out = static_cast<float*>(p.out) + token * p.ldo + row;
    if (whole) {
      reinterpret_cast<float4*>(out)[0] = make_float4(v[0], v[1], v[2], v[3]);
      reinterpret_cast<float4*>(out)[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (row + i < p.n) out[i] = v[i];
      }
    }
  } else {
    T* out = static_cast<T*>(p.out) + token * p.ldo + row;
    if (whole) {
      *reinterpret_cast<uint4*>(out) = make_uint4(PackPair<T>(v[0], v[1]), PackPair<T>(v[2], v[3]),
                                                  PackPair<T>(v[4], v[5]), PackPair<T>(v[6], v[7]));
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (row + i < p.n) out[i] = FromFloat<T>(v[i]);
      }
    }
  }
}

// Hands this worker's sums to the worker that finishes the tile.
template <int kTokens>
__device__ __forceinline__ void GiveSums(const TileParams& p, const float (&acc)[kTokens / 2]) {
  float4* to = reinterpret_cast<float4*>(p.partials) +
               static_cast<std::int64_t>(blockIdx.x) * (kTileRowsOfBlock * kTokens / 4) +
               threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    __stcg(to + i * 32 * kTileWarps,
           make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
  }
  __threadfence();
  ptx::NamedBarrier(5, 32 * kTileWarps);
  if (threadIdx.x == 0) ptx::StoreRelease(p.flags + blockIdx.x, 1);
}

// Adds what the workers after this one have of the tile, of which `unit_end` is the first unit not
// summed here. They came to it first, so it is there or soon will be.
template <int kTokens>
__device__ __forceinline__ void TakeSums(const TileParams& p, int unit_end,
                                         float (&acc)[kTokens / 2]) {
  const auto begin = [&](int worker) {
    return worker * (p.shared_tiles * p.units) / static_cast<int>(gridDim.x);
  };
  const int tile_end = begin(blockIdx.x + 1) + p.units - unit_end;
  for (int worker = blockIdx.x + 1; begin(worker) < tile_end; ++worker) {
    if (begin(worker) == begin(worker + 1)) continue;
    if (threadIdx.x == 0) {
      while (ptx::LoadAcquire(p.flags + worker) == 0) {
      }
      p.flags[worker] = 0;
    }
    ptx::NamedBarrier(5, 32 * kTileWarps);
    const float4* from = reinterpret_cast<const float4*>(p.partials) +
                         static_cast<std::int64_t>(worker) * (kTileRowsOfBlock * kTokens / 4) +
                         threadIdx.x;
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      const float4 four = __ldcg(from + i * 32 * kTileWarps);
      acc[4 * i] += four.x, acc[4 * i + 1] += four.y;
      acc[4 * i + 2] += four.z, acc[4 * i + 3] += four.w;
    }
  }
}

// The workers that split a tile swap sums, all there at once: each ends up with every splits-th
// chunk of kStagedTokens tokens.
template <int kTokens>
__device__ __forceinline__ void SwapSums(const TileParams& p, int split, int chunks,
                                         float (&acc)[kTokens / 2]) {
  constexpr int kStep = 32 * kTileWarps, kSlot = kTileRowsOfBlock * kTokens / 4;
  const int first = blockIdx.x - split;
  float4* sums = reinterpret_cast<float4*>(p.partials) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    if (i / 2 >= chunks || i / 2 % p.splits == split) continue;
    __stcg(sums + static_cast<std::int64_t>(blockIdx.x) * kSlot + i * kStep,
           make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
  }
  __threadfence();
  ptx::NamedBarrier(5, 32 * kTileWarps);
  if (threadIdx.x == 0) {  // counts to `splits` as they arrive and on as they leave
    std::uint32_t* count = p.flags + first;
    atomicAdd(count, 1);
    while (ptx::LoadAcquire(count) < static_cast<std::uint32_t>(p.splits)) {
    }
    if (atomicAdd(count, 1) == static_cast<std::uint32_t>(2 * p.splits - 1)) *count = 0;
  }
  ptx::NamedBarrier(5, 32 * kTileWarps);
#pragma unroll
  for (int chunk = 0; chunk < kTokens / kStagedTokens; ++chunk) {
    if (chunk >= chunks || chunk % p.splits != split) continue;
#pragma unroll 2
    for (int i = 1; i < p.splits; ++i) {
      const int other = split + i < p.splits ? split + i : split + i - p.splits;
      const float4* from =
          sums + static_cast<std::int64_t>(first + other) * kSlot + 2 * chunk * kStep;
      const float4 a = __ldcg(from), b = __ldcg(from + kStep);
      acc[8 * chunk] += a.x, acc[8 * chunk + 1] += a.y;
      acc[8 * chunk + 2] += a.z, acc[8 * chunk + 3] += a.w;
      acc[8 * chunk + 4] += b.x, acc[8 * chunk + 5] += b.y;
      acc[8 * chunk + 6] += b.z, acc[8 * chunk + 7] += b.w;
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace nibble::cuda
