// The product of many tokens on devices without warpgroup products: out = x * w^T by products of
// 16 x 8 x 16 (mma.sync, sm_80).
//
// A block owns 64 rows of w and 64 tokens; each of its four warps makes the operand of one packed
// tile. A warp's words of the weights go straight into registers, a unit ahead; the activations of
// a unit come through shared memory, the next on their way while one is multiplied. Norm, bias and
// residual are left to FinishProduct.
#pragma once

#include "kernels/cuda/dequantize.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_params.cuh"
#include "kernels/packed_layout.h"

namespace nibble::cuda {

inline constexpr int kPortableWarps = 4;
inline constexpr int kPortableThreads = 32 * kPortableWarps;
inline constexpr int kPortableRows = kPortableWarps * kTileRows;
inline constexpr int kPortableTokens = 64;
inline constexpr int kPortableXStride = kUnitColumns * 2 + 16;  // bytes a token of a unit
inline constexpr int kPortableXBytes = kPortableTokens * kPortableXStride;
inline constexpr int kPortableStageStride = kPortableRows + 4;  // floats a token of the results
static_assert(kPortableTokens * kPortableStageStride * 4 <= 2 * kPortableXBytes);

// `multiplier` is of the accumulators, the rule's `by` undone; `output` kStore, kStoreF32 or kGlu.
struct PortableParams : PackedParams, EpilogueParams {
  OffsetRule rule;
  const char* x;          // bytes
  std::int64_t x_stride;  // bytes
  int k;
  int splits;  // > 1: of the columns, each with its part of out, f32[splits, m, n]
  // Experts: rows of x from group_offsets[expert] on. Null: one matrix.
  int experts;
  const std::int32_t* group_offsets;
};

// Which tokens a block has, of which expert.
struct PortableTokens {
  int expert, begin, end;
};

// The index-th tile of tokens, counted over experts; begin == end: there are fewer. By each warp.
__device__ __forceinline__ PortableTokens FindTokens(const PortableParams& p, int index) {
  if (p.group_offsets == nullptr) {
    const int begin = index * kPortableTokens;
    return {0, begin, min(p.m, begin + kPortableTokens)};
  }
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < p.experts; base += 32) {
    const int expert = base + lane;
    const int first = p.group_offsets[min(expert, p.experts)],
              last = p.group_offsets[min(expert + 1, p.experts)];
    const int own = (last - first + kPortableTokens - 1) / kPortableTokens;
    int sum = own;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int lower = __shfl_up_sync(~0u, sum, delta);
      if (lane >= delta) sum += lower;
    }
    const unsigned more = __ballot_sync(~0u, sum > index);
    if (more == 0) {
      index -= __shfl_sync(~0u, sum, 31);
      continue;
    }
    const int found = __ffs(static_cast<int>(more)) - 1;
    const int begin = __shfl_sync(~0u, first + (index - (sum - own)) * kPortableTokens, found);
    return {base + found, begin, min(__shfl_sync(~0u, last, found), begin + kPortableTokens)};
  }
  return {0, 0, 0};
}

// Writes the staged results of a block, f32[tokens][kPortableStageStride]: 8 columns a thread.
template <typename T>
__device__ __forceinline__ void WritePortable(const PortableParams& p, const float* staged,
                                              int row0, const PortableTokens& tokens) {
  const bool glu = p.output == Output::kGlu;
  const int runs = glu ? kPortableRows / 16 : kPortableRows / 8, rows = glu ? p.n / 2 : p.n;
  void* out = p.out;
  if (p.splits > 1)
    out = static_cast<float*>(out) + static_cast<std::int64_t>(blockIdx.z) * p.m * p.n;
  for (int i = threadIdx.x; i < runs * (tokens.end - tokens.begin); i += kPortableThreads) {
    const int token = i / runs, run = i % runs;
    const int row = (glu ? row0 / 2 : row0) + run * 8;
    // Packed order of kGlu: 16 gates, 16 ups.
    const float* from =
        staged + token * kPortableStageStride + (glu ? run / 2 * 32 + run % 2 * 8 : run * 8);
    const std::int64_t at = (tokens.begin + token) * p.ldo + row;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (row + j >= rows) break;
      float v = from[j] * p.multiplier;
      if (glu) v = GateOf(p.gate, v) * (from[16 + j] * p.multiplier);
      if (p.output == Output::kStoreF32) {
        static_cast<float*>(out)[at + j] = v;
      } else {
        static_cast<T*>(out)[at + j] = FromFloat<T>(v);
      }
    }
  }
}

// One block of the packed stream in a lane's registers.
template <typename Codes>
struct PortableBlock {
  Codes codes[2];
  std::uint32_t scales[2], offsets[2];  // entry (group, row g) lies in lane group % 4 * 8 + g

  __device__ __forceinline__ void Load(const PortableParams& p, const std::uint8_t* block, int lane,
                                       std::uint64_t policy) {
    codes[0].Load(block, lane, policy);
    codes[1].Load(block + Codes::kAtomBytes, lane, policy);
    const std::uint8_t* table = block + 2 * Codes::kAtomBytes + (lane * 4 & (p.scale_bytes - 1));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i * 128 >= p.scale_bytes) break;
      scales[i] = ptx::StreamLoad32(table + i * 128, policy);
      if (p.HasOffsets()) offsets[i] = ptx::StreamLoad32(table + p.scale_bytes + i * 128, policy);
    }
  }
  static __device__ __forceinline__ std::uint32_t Pick(const std::uint32_t (&table)[2], int group,
                                                       int lane) {
    return __shfl_sync(~0u, group < 4 ? table[0] : table[1], group % 4 * 8 + lane / 4);
  }
};

// grid (rows, tiles of tokens, splits).
template <typename T, CodeKind kKind, int kBits>
__global__ void __launch_bounds__(kPortableThreads)
    PortableTileKernel(const __grid_constant__ PortableParams p) {
#ifndef __CUDA_ARCH_FEAT_SM90_ALL
  using Codes = CodesOf<T, kKind, kBits>;
  constexpr int kTokenTiles = kPortableTokens / 8;
  extern __shared__ __align__(128) char shared[];  // activations, two units; the pair table
  const std::uint32_t base = ptx::SharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const PortableTokens tokens = FindTokens(p, blockIdx.y);
  const int count = tokens.end - tokens.begin;
  if (count <= 0) return;
  std::uint32_t lane_table = 0;
  if constexpr (Codes::kTable) {
    Codes::FillTable(reinterpret_cast<std::uint32_t*>(shared + 2 * kPortableXBytes), p.table);
    lane_table = base + 2 * kPortableXBytes + lane * 4;
  }

  const int splits = static_cast<int>(gridDim.z), split = blockIdx.z;
  const int first_unit = split * p.units / splits, end_unit = (split + 1) * p.units / splits;
  const int row0 = blockIdx.x * kPortableRows;
  // Past the last tile: any, nothing of it is written.
  const int tile = min(blockIdx.x * kPortableWarps + warp, p.tiles - 1);
  const std::uint8_t* blocks = p.blocks + tokens.expert * p.expert_bytes +
                               static_cast<std::int64_t>(tile) * p.units * p.block_bytes;

  const auto fetch_x = [&](int unit) {
    constexpr int kChunks = kUnitColumns / 8;
    if (unit < end_unit) {
      const std::uint32_t to = base + (unit & 1) * kPortableXBytes;
      for (int i = threadIdx.x; i < kPortableTokens * kChunks; i += kPortableThreads) {
        const int token = i / kChunks, column = unit * kUnitColumns + i % kChunks * 8;
        const bool inside = token < count && column < p.k;
        ptx::CopyAsync16(
            to + token * kPortableXStride + i % kChunks * 16,
            p.x + (inside ? (tokens.begin + token) * p.x_stride + column * 2 : std::int64_t{0}),
            inside ? 16 : 0);
      }
    }
    ptx::CopyAsyncCommit();
  };
  const std::uint64_t policy = ptx::EvictFirstPolicy();
  PortableBlock<Codes> next;
  const auto fetch_block = [&](int unit) {
    if (unit < end_unit)
      next.Load(p, blocks + static_cast<std::int64_t>(unit) * p.block_bytes, lane, policy);
  };

  float acc[kTokenTiles][4] = {};
  fetch_x(first_unit);
  fetch_block(first_unit);
  for (int unit = first_unit; unit < end_unit; ++unit) {
    fetch_x(unit + 1);
    const PortableBlock<Codes> block = next;
    fetch_block(unit + 1);
    Dequantizer<T, Codes> numbers;
    ptx::CopyAsyncWait<1>();
    __syncthreads();
    const std::uint32_t x =
        base + (unit & 1) * kPortableXBytes + lane % 8 * kPortableXStride + lane / 8 * 16;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {  // of k-steps
      std::uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int step = 2 * pair + i;
        if (step % p.group_steps == 0) {
          const int group = step / p.group_steps;
          const std::uint32_t scales = block.Pick(block.scales, group, lane);
          std::uint32_t offsets = 0;
          if (p.HasOffsets()) offsets = block.Pick(block.offsets, group, lane);
          numbers.Set(scales, offsets, p.rule);
        }
        numbers.Fragment(block.codes[step / 4], step % 4, lane_table, a[i]);
      }
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        if (j * 8 >= count) break;
        std::uint32_t b[4];
        ptx::LoadMatrix4(b, x + j * 8 * kPortableXStride + pair * 64);
        ptx::Mma<T>(acc[j], a[0], b[0], b[1]);
        ptx::Mma<T>(acc[j], a[1], b[2], b[3]);
      }
    }
    __syncthreads();
  }

  float* staged = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      staged[(j * 8 + 2 * t + i % 2) * kPortableStageStride + warp * kTileRows + g + i / 2 * 8] =
          acc[j][i];
    }
  }
  __syncthreads();
  WritePortable<T>(p, staged, row0, tokens);
#endif
}

// ---- Launch ----

struct PortableLaunch {
  PortableParams params;  // but for the rule
  float by;               // RuleOf's
  dim3 grid;
  LaunchOptions options;
};
using PortableLauncher = cudaError_t (*)(const PortableLaunch&);

// Null: no such instance.
PortableLauncher FindPortableTiles(const PackedShape& shape, DType dtype);
PortableLauncher FindPortablePlanes(int bits, DType dtype);

template <typename T, CodeKind kKind, int kBits>
cudaError_t LaunchPortable(const PortableLaunch& launch) {
  const int bytes = 2 * kPortableXBytes + (kKind == CodeKind::kCodebook ? kPairTableBytes : 0);
  PortableParams params = launch.params;
  params.rule = RuleOf<T>(params.offset, params.zero, launch.by);
  return Launch(PortableTileKernel<T, kKind, kBits>, launch.grid, kPortableThreads, bytes,
                launch.options, params);
}

template <CodeKind kKind, int kBits>
PortableLauncher PortableByType(DType dtype) {
  return dtype == DType::kF16 ? LaunchPortable<half, kKind, kBits>
                              : LaunchPortable<__nv_bfloat16, kKind, kBits>;
}

}  // namespace nibble::cuda
