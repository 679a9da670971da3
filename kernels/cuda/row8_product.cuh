// Products of 8-bit weights and inputs: out = epilogue(x * w^T) by warpgroup products of bytes.
//
// A block owns 128 rows of w and kTokens tokens at a time: two consumer warpgroups of 64 rows. Two
// more warps copy: a stage holds 128 columns of both, swizzled. Weights are on their way before
// the previous kernel has ended, and for few tokens all there is to do is to keep up with them.
// Tiles that do not go round evenly are cut anew, wherever that falls: every SM gets as many
// columns, and the first of a tile's workers adds up what the others have. With outliers two more
// warps gather what their products need (row8_outliers.cuh).
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row8_finish.cuh"
#include "kernels/cuda/wgmma_bytes.cuh"

namespace nibble::cuda {

inline constexpr int kRow8Warps = 8;  // and two that copy, and two that gather outliers
inline constexpr int kRow8Threads = 32 * (kRow8Warps + 2);
inline constexpr int kRow8OutlierThreads = kRow8Threads + 32 * kOutlierWarps;
inline constexpr int kRow8GroupTokens = 8;  // tiles of tokens that share rows while those are in L2
inline constexpr int kRow8Chunk = 16;       // tokens staged at once
inline constexpr int kRow8StageStride = 68;  // f32 a token of a warpgroup's 64 staged rows
inline constexpr int kRow8StagedBytes = 2 * kRow8Chunk * kRow8StageStride * 4;

// A worker's way through its pieces: ranges of units (128 columns) of tiles of the output.
template <int kTokens>
struct Row8Cursor {
  int position, shared_end, item;
  int row, token, unit, unit_end;

  static __device__ __forceinline__ int SharedBegin(const Row8Params& p, int worker) {
    return worker * (p.shared_tiles * p.units) / static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ void Start(const Row8Params& p) {
    const int worker = blockIdx.x;
    position = SharedBegin(p, worker), shared_end = SharedBegin(p, worker + 1);
    item = p.shared_tiles + worker;
  }
  __device__ __forceinline__ bool Next(const Row8Params& p) {
    int tile;
    if (position < shared_end) {
      tile = position / p.units;
      unit = position - tile * p.units;
      unit_end = min(p.units, unit + shared_end - position);
      position += unit_end - unit;
    } else {
      if (item >= p.row_items * p.token_items) return false;
      tile = item;
      unit = 0, unit_end = p.units;
      item += gridDim.x;
    }
    const int in_group = p.row_items * kRow8GroupTokens, group = tile / in_group;
    tile -= group * in_group;
    const int width = min(kRow8GroupTokens, p.token_items - group * kRow8GroupTokens);
    row = tile / width * kRow8Rows;
    token = (group * kRow8GroupTokens + tile % width) * kTokens;
    return true;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Sums of int8 travel as integers, so that they stay exact.
template <typename Sum>
using FourOf = std::conditional_t<std::is_same_v<Sum, float>, float4, int4>;

// Consumers only, as all that follows. Sums of a lane are as wgmma.cuh has them.
__device__ __forceinline__ void Row8Barrier() { ptx::NamedBarrier(1, 32 * kRow8Warps); }

// Hands this worker's sums to the one that finishes the tile.
template <int kTokens, typename Sum>
__device__ __forceinline__ void GiveRow8Sums(const Row8Params& p, const Sum (&acc)[kTokens / 2]) {
  auto* to = static_cast<FourOf<Sum>*>(p.partials) +
             static_cast<std::int64_t>(blockIdx.x) * (kRow8Rows * kTokens / 4) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    __stcg(to + i * 32 * kRow8Warps,
           FourOf<Sum>{acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]});
  }
  Row8Barrier();  // what the block wrote before it is released with the flag
  if (threadIdx.x == 0) ptx::StoreRelease(p.flags + blockIdx.x, 1);
}

// Adds what the workers after this one have of the tile, whose first unit not summed here is
// `unit_end`. They came to it before anything else, so it is there or soon will be.
template <int kTokens, typename Sum>
__device__ __forceinline__ void TakeRow8Sums(const Row8Params& p, int unit_end,
                                             Sum (&acc)[kTokens / 2]) {
  using Cursor = Row8Cursor<kTokens>;
  const int tile_end = Cursor::SharedBegin(p, blockIdx.x + 1) + p.units - unit_end;
  const auto gives = [&](int worker) {
    return Cursor::SharedBegin(p, worker) < Cursor::SharedBegin(p, worker + 1);
  };
  int last = blockIdx.x + 1;
  while (Cursor::SharedBegin(p, last) < tile_end) ++last;
  // All of them are waited for at once, a thread each.
  const int mine = blockIdx.x + 1 + threadIdx.x;
  if (mine < last && gives(mine)) {
    while (ptx::LoadAcquire(p.flags + mine) == 0) {
    }
    p.flags[mine] = 0;
  }
  Row8Barrier();
#pragma unroll(kTokens <= 32 ? 4 : 1)
  for (int worker = blockIdx.x + 1; worker < last; ++worker) {
    if (!gives(worker)) continue;
    const auto* from = static_cast<const FourOf<Sum>*>(p.partials) +
                       static_cast<std::int64_t>(worker) * (kRow8Rows * kTokens / 4) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) {
      const FourOf<Sum> four = __ldcg(from + i * 32 * kRow8Warps);
      acc[4 * i] += four.x, acc[4 * i + 1] += four.y;
      acc[4 * i + 2] += four.z, acc[4 * i + 3] += four.w;
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Sum: std::int32_t of int8, float of e4m3.
template <typename T, typename Sum, int kTokens>
__global__ void __launch_bounds__(kRow8OutlierThreads, kTokens <= 32 ? 2 : 1)
    Row8Kernel(const __grid_constant__ Row8Params p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kInt8 = std::is_same_v<Sum, std::int32_t>;
  constexpr int kUnit = 128;  // columns, bytes
  constexpr int kXBytes = kTokens * kUnit, kStageBytes = kXBytes + kRow8Rows * kUnit;

  extern __shared__ __align__(1024) char shared[];
  const std::uint32_t base = ptx::SharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int staged_offset = p.stages * kStageBytes;
  const std::uint32_t full = base + staged_offset + kRow8StagedBytes, empty = full + p.stages * 8;
  const OutlierBuffers<kTokens> gathered(shared + (empty - base) + p.stages * 8);
  ptx::LaunchDependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      ptx::BarrierInit(full + i * 8, 2);
      ptx::BarrierInit(empty + i * 8, kRow8Warps);
    }
    if (p.outliers != nullptr) gathered.Init(kRow8Warps);
    ptx::FenceBarrierInit();
  }
  __syncthreads();

  Row8Cursor<kTokens> at;
  at.Start(p);
  if (warp >= kRow8Warps + 2) {
    // ---- The gathering warps ----
    if constexpr (kInt8) {
      ptx::WaitForPrerequisites();
      OutlierGatherer<T, kTokens> gatherer(p, gathered, warp - kRow8Warps - 2);
      while (at.Next(p)) {
        if (at.unit == 0) gatherer.Gather(at.row, p.n, at.token, min(kTokens, p.m - at.token));
      }
    }
    return;
  }
  if (warp >= kRow8Warps) {
    // ---- The copying warps: one for weights, which nobody writes, one for inputs ----
    if (lane != 0) return;
    const bool weights = warp == kRow8Warps;
    const std::uint64_t policy = ptx::EvictFirstPolicy();
    if (!weights) ptx::WaitForPrerequisites();
    int stage = 0, round = 0;
    while (at.Next(p)) {
      for (; at.unit < at.unit_end; ++at.unit) {
        if (round > 0) ptx::BarrierWait(empty + stage * 8, (round - 1) & 1);
        const std::uint32_t to = base + stage * kStageBytes, barrier = full + stage * 8;
        const int column = at.unit * (kUnit / 2);
        ptx::BarrierExpect(barrier, weights ? kRow8Rows * kUnit : kXBytes);
        if (!weights) {
          ptx::TensorCopy(to, &p.x, column, at.token, barrier);
        } else if (p.stream_once) {
          ptx::TensorCopy(to + kXBytes, &p.w, column, at.row, barrier, policy);
        } else {
          ptx::TensorCopy(to + kXBytes, &p.w, column, at.row, barrier);
        }
        if (++stage == p.stages) stage = 0, ++round;
      }
    }
    return;
  }

  // ---- Products ----
  ptx::WaitForPrerequisites();
  const int group = warp / 4, g = lane / 4, t = lane % 4;
  const auto release = [&](int stage) {
    if (lane == 0) ptx::BarrierArrive(empty + stage * 8);
  };
  int stage = 0, parity = 0, chunk_parity = 0;
  while (at.Next(p)) {
    const int first_unit = at.unit, token0 = at.token;
    const int row = at.row + warp * 16 + g;  // and row + 8
    Sum d[kTokens / 2] = {};
    float acc[kTokens / 2] = {};
    int previous = -1;
    for (; at.unit < at.unit_end; ++at.unit) {
      ptx::BarrierWait(full + stage * 8, parity);
      std::uint32_t x_at = (base + stage * kStageBytes) >> 4;
      x_at = __shfl_sync(~0u, x_at, 0);  // said to be uniform
      const std::uint64_t b = ptx::SwizzledOperand(0) | x_at;
      const std::uint64_t a = b + kXBytes / 16 + group * (64 * kUnit / 16);
      ptx::PinRegisters(d);
      ptx::WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        ptx::WgmmaBytes(d, a + 2 * step, b + 2 * step, kInt8 || step > 0);
      }
      ptx::WgmmaCommit();
      if constexpr (kInt8) {  // one unit behind: that unit's operands have been read
        ptx::WgmmaWait<1>();
        if (previous >= 0) release(previous);
        previous = stage;
      } else {  // short sums in the tensor cores, long ones in f32
        ptx::WgmmaWait<0>();
        ptx::PinRegisters(d);
        release(stage);
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) acc[i] += d[i];
      }
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
    if constexpr (kInt8) {
      ptx::WgmmaWait<0>();
      ptx::PinRegisters(d);
      release(previous);
    }

    // ---- Sums of a split tile ----
    const auto whole = [&](auto& sums) {  // whether this worker finishes it
      if (first_unit != 0) {
        GiveRow8Sums<kTokens>(p, sums);
        return false;
      }
      if (at.unit_end < p.units) TakeRow8Sums<kTokens>(p, at.unit_end, sums);
      return true;
    };
    if constexpr (kInt8) {
      if (!whole(d)) continue;
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) acc[i] = static_cast<float>(d[i]);
    } else {
      if (!whole(acc)) continue;
    }

    // ---- Scales of tokens, outliers, scales of rows ----
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = token0 + i / 4 * 8 + 2 * t + i % 2;
      acc[i] *= token < p.m ? p.x_scales[token] : 0.0f;
    }
    if constexpr (kInt8) {
      if (p.outliers != nullptr) AddOutliers<kTokens>(gathered, warp * 16, &chunk_parity, acc);
    }
    char* staged = shared + staged_offset;
    const float low = row < p.n ? p.scales[row] : 0.0f, high = row < p.n ? p.scales[row + 8] : 0.0f;

    // ---- Results, staged and written kRow8Chunk tokens at a time ----
    float* mine = reinterpret_cast<float*>(staged) + group * kRow8Chunk * kRow8StageStride;
    const int chunks = (min(kTokens, p.m - token0) + kRow8Chunk - 1) / kRow8Chunk;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      float* to = mine + 2 * t * kRow8StageStride + warp % 4 * 16 + g;
#pragma unroll
      for (int c = 0; c < kTokens / kRow8Chunk; ++c) {
        if (c != chunk) continue;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          to[(i / 4 * 8 + i % 2) * kRow8StageStride + i % 4 / 2 * 8] =
              acc[c * 8 + i] * (i % 4 < 2 ? low : high);
        }
      }
      ptx::NamedBarrier(2 + group, 128);
      const float* from = mine + threadIdx.x % 128 / 8 * kRow8StageStride;
      WriteRow8<T>(p, from, at.row + group * 64,
                   token0 + chunk * kRow8Chunk + threadIdx.x % 128 / 8);
      ptx::NamedBarrier(2 + group, 128);
    }
  }
#endif
}

// ---- Launch ----

struct Row8Launch {
  Row8Params params;
  int blocks, threads, shared_bytes;
  LaunchOptions options;
};
using Row8Launcher = cudaError_t (*)(const Row8Launch&);

// One file a type of code; null where there is no such tile.
Row8Launcher FindRow8Int8(DType dtype, int tokens);
Row8Launcher FindRow8E4m3(DType dtype, int tokens);

constexpr int Row8StageBytes(int tokens) { return (tokens + kRow8Rows) * 128; }

template <typename T, typename Sum, int kTokens>
cudaError_t LaunchRow8(const Row8Launch& launch) {
  return Launch(Row8Kernel<T, Sum, kTokens>, launch.blocks, launch.threads, launch.shared_bytes,
                launch.options, launch.params);
}

template <typename T, typename Sum>
Row8Launcher Row8OfTokens(int tokens) {
  switch (tokens) {
    case 16: return LaunchRow8<T, Sum, 16>;
    case 32: return LaunchRow8<T, Sum, 32>;
    case 64: return LaunchRow8<T, Sum, 64>;
    case 128: return LaunchRow8<T, Sum, 128>;
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
