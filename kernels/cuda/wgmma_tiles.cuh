// The work of tile products (wgmma_product.cuh) around the products: who computes what, norms, and
// sums that several blocks share.
#pragma once

#include "kernels/cuda/dequantize.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_params.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/packed_layout.h"

namespace nibble::cuda {

inline constexpr int kTileWarps =
    16;  // and four that copy and read norms: they give registers away
inline constexpr int kTileThreads = 32 * (kTileWarps + 4);
inline constexpr int kTileRowsOfBlock = kTileWarps * kTileRows;
inline constexpr int kTileGroupTokens = 8;  // tiles of tokens that share rows while those are in L2
inline constexpr int kStagedTokens = 16;    // finished at once
// Hardware barriers beside those of the warpgroups, 1 to 4: of all consumers; with the norms.
inline constexpr int kConsumersBarrier = 5, kNormsBarrier = 6;

// `multiplier` is of the accumulators: the rule's `by` undone.
struct TileParams : PackedParams, EpilogueParams {
  CUtensorMap x;               // [m, k]: boxes of kTokens x 64
  CUtensorMap codes;           // [tiles, units * block bytes]: boxes of 16 x the codes of a block
  CUtensorMap tables;          // the same: boxes of 16 x the tables of a block
  int table_bytes;             // of a block, offsets included
  int row_items, token_items;  // tiles of the output
  int shared_tiles, splits;    // see TileCursor
  int stages, stage_bytes;
  int group_begins;  // bit i: a group begins with k-step i of a unit
  OffsetRule rule;
  bool stream_once;  // nobody reads these weights again
  // splits > 1: f32[splits, m, n]. Shared tiles: a worker's part of a tile that another finishes,
  // 256 x kTokens f32 each, and a flag each that it is there (0 before and after the kernel).
  float* partials;
  std::uint32_t* flags;
  // Experts: tiles each; rows of x from group_offsets[expert] on.
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

// Whether a worker that begins with `unit` of a tile also ends it: shared tiles are ended by whom
// their first units fall to, split ones by all together.
__device__ __forceinline__ bool Finishes(const TileParams& p, int unit) {
  return p.splits == 1 ? unit == 0 : p.flags != nullptr;
}

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

// 1 / rms of those tokens of a tile that this worker finishes, by the three warps beside the
// copying one; they have few registers to wait for memory with.
template <int kTokens>
__device__ __forceinline__ void TileNorms(const TileParams& p, float* rstd, int token0, int split) {
  constexpr int kWarps = kTileThreads / 32 - kTileWarps - 1, kAtOnce = 4;
  const int warp = threadIdx.x / 32 - kTileWarps - 1, lane = threadIdx.x % 32;
  for (int index = warp;; index += kWarps) {
    const int i =
        (split + index / kStagedTokens * p.splits) * kStagedTokens + index % kStagedTokens;
    if (i >= kTokens) break;
    float sum = 0.0f;
    if (token0 + i < p.m) {
      const float* sums =
          p.norm_in.square_sums + static_cast<std::int64_t>(token0 + i) * p.norm_in.count;
#pragma unroll 1
      for (int j = lane; j < p.norm_in.count; j += 32 * kAtOnce) {
        float each[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k)
          each[k] = j + 32 * k < p.norm_in.count ? sums[j + 32 * k] : 0.0f;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) sum += each[k];
      }
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
    if (lane == 0) rstd[i] = rsqrtf(sum / p.norm_in.dim + p.norm_in.eps);
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
  ptx::NamedBarrier(kConsumersBarrier, 32 * kTileWarps);
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
    ptx::NamedBarrier(kConsumersBarrier, 32 * kTileWarps);
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
  for (int chunk = 0, mine = split; chunk < kTokens / kStagedTokens; ++chunk) {
    if (chunk == mine) {
      mine += p.splits;
    } else if (chunk < chunks) {
#pragma unroll
      for (int i = 2 * chunk; i < 2 * chunk + 2; ++i) {
        __stcg(sums + static_cast<std::int64_t>(blockIdx.x) * kSlot + i * kStep,
               make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
      }
    }
  }
  __threadfence();
  ptx::NamedBarrier(kConsumersBarrier, 32 * kTileWarps);
  if (threadIdx.x == 0) {  // counts to `splits` as they arrive and on as they leave
    std::uint32_t* count = p.flags + first;
    atomicAdd(count, 1);
    while (ptx::LoadAcquire(count) < static_cast<std::uint32_t>(p.splits)) {
    }
    if (atomicAdd(count, 1) == static_cast<std::uint32_t>(2 * p.splits - 1)) *count = 0;
  }
  ptx::NamedBarrier(kConsumersBarrier, 32 * kTileWarps);
#pragma unroll
  for (int chunk = 0, mine = split; chunk < kTokens / kStagedTokens; ++chunk) {
    if (chunk >= chunks || chunk != mine) continue;
    mine += p.splits;
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
