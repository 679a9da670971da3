// The product of many tokens: out = epilogue(x * w^T) by warpgroup products whose operand A, the
// weights, is dequantized into registers.
//
// A block owns 256 rows of w (16 packed tiles) and kTokens tokens at a time; each of its 16
// consumer warps makes the operand of one packed tile, 4 warps a warpgroup. One more warp copies:
// a stage holds one unit (128 columns) of the activations, swizzled, and of the blocks as they are
// packed. The other three of its warpgroup read norms. What a block works on, wgmma_tiles.cuh says.
//
// Launched dependent, weights are on their way before the previous kernel has ended.
#pragma once

#include "kernels/cuda/wgmma_epilogue.cuh"

namespace nibble::cuda {

template <typename T, CodeKind kKind, int kBits, bool kFine, int kTokens, bool kGrouped>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileKernel(const __grid_constant__ TileParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Codes = CodesOf<T, kKind, kBits>;
  constexpr int kXBytes = kTokens * kUnitColumns * 2, kHalfBytes = kXBytes / 2;
  constexpr int kCodeBytes = 16 * 2 * Codes::kAtomBytes;

  extern __shared__ __align__(1024) char shared[];
  const std::uint32_t base = ptx::SharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // ---- Shared memory: stages, pair table, staged output, norms, barriers ----
  const int table_offset = p.stages * p.stage_bytes;
  const int staged_offset = table_offset + (Codes::kTable ? kPairTableBytes : 0);
  float* rstd = reinterpret_cast<float*>(shared + staged_offset + kStagedBytes);  // of two tiles
  const std::uint32_t full = base + staged_offset + kStagedBytes + 2 * kTokens * 4;
  const std::uint32_t empty = full + p.stages * 8;
  const std::int32_t* group_tiles = nullptr;
  if constexpr (kGrouped) {  // who has how many tokens, the kernel before decides
    ptx::WaitForPrerequisites();
    std::int32_t* tiles = reinterpret_cast<std::int32_t*>(shared + (empty - base) + p.stages * 8);
    CountGroupTiles<kTokens>(p, tiles);
    group_tiles = tiles;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      ptx::BarrierInit(full + i * 8, 1);
      ptx::BarrierInit(empty + i * 8, kTileWarps);
    }
    ptx::FenceBarrierInit();
  }
  if constexpr (Codes::kTable) {
    Codes::FillTable(reinterpret_cast<std::uint32_t*>(shared + table_offset), p.table);
  }
  __syncthreads();
  ptx::LaunchDependents();

  using Cursor = TileCursor<kTokens, kGrouped>;
  Cursor at;
  at.Start(p);
  if (warp >= kTileWarps) {
    // ---- The copying warp ----
    ptx::FewerRegisters<32>();
    if (warp == kTileWarps && lane == 0) {
      const std::uint64_t policy = ptx::EvictFirstPolicy();
      const auto copy_weights = [&](const Cursor& c, int stage) {
        const std::uint32_t barrier = full + stage * 8, to = base + stage * p.stage_bytes + kXBytes;
        const int column = c.unit * (p.block_bytes / 8);
        ptx::BarrierExpect(barrier, kXBytes + kCodeBytes + 16 * p.table_bytes);
        if (p.stream_once) {
          ptx::TensorCopy(to, &p.codes, column, c.tile, barrier, policy);
        } else {
          ptx::TensorCopy(to, &p.codes, column, c.tile, barrier);
        }
        ptx::TensorCopy(to + kCodeBytes, &p.tables, column + Codes::kAtomBytes / 4, c.tile,
                        barrier);
      };
      const auto copy_x = [&](const Cursor& c, int stage) {
        const std::uint32_t barrier = full + stage * 8, to = base + stage * p.stage_bytes;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = c.unit * kUnitColumns + half * 64;
          ptx::TensorCopy(to + half * kHalfBytes, &p.x, column, c.token0, barrier);
        }
      };
      const auto advance = [&](Cursor& c) {
        return ++c.unit < c.unit_end || c.Next(p, group_tiles);
      };
      // The first stages: weights, which nobody writes, then the activations.
      Cursor x_at = at;
      bool more = at.Next(p, group_tiles), x_more = x_at.Next(p, group_tiles);
      for (int i = 0; i < p.stages && more; ++i) {
        copy_weights(at, i);
        more = advance(at);
      }
      ptx::WaitForPrerequisites();
      for (int i = 0; i < p.stages && x_more; ++i) {
        copy_x(x_at, i);
        x_more = advance(x_at);
      }
      int stage = 0, parity = 0;
      while (more) {
        ptx::BarrierWait(empty + stage * 8, parity);
        copy_weights(at, stage);
        copy_x(at, stage);
        more = advance(at);
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }
    }
    __syncwarp();
    // ---- The warps of the norms: a tile's are there before its sums are ----
    if (!kGrouped && warp > kTileWarps && p.norm_in.square_sums != nullptr) {
      ptx::WaitForPrerequisites();
      for (int parity = 0; at.Next(p, group_tiles);) {
        if (!Finishes(p, at.unit)) continue;
        TileNorms<kTokens>(p, rstd + parity * kTokens, at.token0, at.split);
        ptx::NamedBarrier(kNormsBarrier, kTileThreads - 32);
        parity ^= 1;
      }
    }
  } else {
    // ---- Products ----
    ptx::MoreRegisters<112>();
    ptx::WaitForPrerequisites();
    const int group = warp / 4, g = lane / 4, t = lane % 4;
    const std::uint32_t staged = base + staged_offset + group * kStagedTokens * kStageStride * 4;
    const std::uint32_t lane_table = base + table_offset + lane * 4;
    // In the first stage. What is not opaque, the compiler may make anew for every unit: at 128
    // tokens sums leave no registers for it.
    const auto keep = [](std::uint32_t v) { return kTokens < 128 ? Opaque(v) : v; };
    const std::uint32_t my_codes = Opaque(base + kXBytes + warp * 2 * Codes::kAtomBytes);
    const std::uint32_t my_tables =
        Opaque(base + kXBytes + kCodeBytes + warp * p.table_bytes + g * 4);
    const std::uint32_t my_lane = keep(lane), full_at = keep(full);
    const auto operand0 = keep(static_cast<std::uint32_t>(ptx::SwizzledOperand(base)));
    const OffsetRule rule{keep(p.rule.by), keep(p.rule.zeros), keep(p.rule.biases),
                          keep(p.rule.zero)};
    constexpr std::uint64_t kOperandHigh = ptx::SwizzledOperand(0) >> 32 << 32;
    const auto release = [&](int stage) {
      if (lane == 0) ptx::BarrierArrive(empty + stage * 8);
    };
    Dequantizer<T, Codes> numbers;
    int stage = 0, parity = 0, norms = 0;
    std::uint32_t offset = 0;  // of the stage
    while (at.Next(p, group_tiles)) {
      const int token0 = at.token0, first_unit = at.unit;
      float acc[kTokens / 2];
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.0f;
      int previous = -1;
      for (; at.unit < at.unit_end; ++at.unit) {
        ptx::BarrierWait(full_at + stage * 8, parity);
        Codes codes[2];
        std::uint32_t table = my_tables + offset;
        const auto set_group = [&] {
          const std::uint32_t scales = ptx::LoadShared32(table);
          std::uint32_t offsets = 0;
          if (p.HasOffsets()) offsets = ptx::LoadShared32(table + p.scale_bytes);
          numbers.Set(scales, offsets, rule);
          table += 32;
        };
        if constexpr (!kFine) set_group();
        codes[0].LoadShared(my_codes + offset, my_lane);
        codes[1].LoadShared(my_codes + offset + Codes::kAtomBytes, my_lane);
        // Said to be uniform, sums of it cost nothing.
        const std::uint32_t operand = __shfl_sync(~0u, operand0 + offset / 16, 0);
        std::uint32_t a[2][4];
#pragma unroll
        for (int step = 0; step < 8; ++step) {
          if constexpr (kFine) {
            if (step == 0 || (p.group_begins >> step & 1) != 0) set_group();
          }
          std::uint32_t (&mine)[4] = a[step % 2];
          numbers.Fragment(codes[step / 4], step % 4, lane_table, mine);
          ptx::PinRegisters(acc);
          ptx::WgmmaFence();
          ptx::Wgmma<T>(acc, mine,
                        kOperandHigh | (operand + step / 4 * (kHalfBytes / 16) + step % 4 * 2));
          ptx::WgmmaCommit();
          ptx::WgmmaWait<1>();  // the step before has read its operand
          if (step == 0 && previous >= 0) release(previous);
        }
        previous = stage;
        offset += p.stage_bytes;
        if (++stage == p.stages) stage = 0, offset = 0, parity ^= 1;
      }
      ptx::WgmmaWait<0>();
      ptx::PinRegisters(acc);
      if (previous >= 0) release(previous);

      // ---- Results: partial sums, or staged and finished 16 tokens at a time ----
      const int row0 = at.row + group * 4 * kTileRows;
      if (p.splits > 1 && p.flags == nullptr) {
        const int row = row0 + warp % 4 * kTileRows + g;
        float* to = p.partials + (static_cast<std::int64_t>(at.split) * p.m + token0) * p.n + row;
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          const int token = i / 4 * 8 + 2 * t + i % 2, r = i % 4 / 2 * 8;
          if (token0 + token < p.m && row + r < p.n)
            to[static_cast<std::int64_t>(token) * p.n + r] = acc[i] * p.multiplier;
        }
        continue;
      }
      if (!Finishes(p, first_unit)) {
        GiveSums<kTokens>(p, acc);
        continue;
      }
      const int chunks = (min(kTokens, at.token_end - token0) + kStagedTokens - 1) / kStagedTokens;
      if (p.splits > 1) {
        SwapSums<kTokens>(p, at.split, chunks, acc);
      } else if (at.unit_end < p.units) {
        TakeSums<kTokens>(p, at.unit_end, acc);
      }
      const float* tile_rstd = rstd + norms * kTokens;
      if (p.norm_in.square_sums != nullptr) {
        ptx::NamedBarrier(kNormsBarrier, kTileThreads - 32);
        norms ^= 1;
      }
      FinishPart<T, kTokens>(p, {row0, token0, at.token_end, at.split, chunks, staged, tile_rstd},
                             acc);
    }
  }
#endif
}

// ---- Launch ----

struct TileLaunch {
  TileParams params;
  int blocks, shared_bytes;
  bool dependent;
  cudaStream_t stream;
};

template <typename T, CodeKind kKind, int kBits, bool kFine, int kTokens, bool kGrouped>
cudaError_t LaunchTiles(const TileLaunch& launch) {
  const auto kernel = TileKernel<T, kKind, kBits, kFine, kTokens, kGrouped>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = {};
  if (launch.dependent) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 1;
  }
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3(kTileThreads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  config.attrs = &attribute;
  return cudaLaunchKernelEx(&config, kernel, launch.params);
}

// How the instances are found: one file an encoding family, null where there is none.
struct TileInstance {
  DType dtype = DType::kF16;
  int tokens = 128;  // 16, 32, 64 or 128; of experts 16, 64 or 128
  bool grouped = false;
};
using TileLauncher = cudaError_t (*)(const TileLaunch&);
TileLauncher FindTilesInt4(const TileInstance& instance, bool fine);
TileLauncher FindTilesInt8(const TileInstance& instance, bool fine);
TileLauncher FindTilesPlanes(const TileInstance& instance, int bits);
TileLauncher FindTilesCodebook(const TileInstance& instance);

template <typename T, CodeKind kKind, int kBits, bool kFine>
TileLauncher TilesOfType(const TileInstance& instance) {
  if (instance.grouped) {
    switch (instance.tokens) {
      case 16: return LaunchTiles<T, kKind, kBits, kFine, 16, true>;
      case 64: return LaunchTiles<T, kKind, kBits, kFine, 64, true>;
      case 128: return LaunchTiles<T, kKind, kBits, kFine, 128, true>;
      default: return nullptr;
    }
  }
  switch (instance.tokens) {
    case 16: return LaunchTiles<T, kKind, kBits, kFine, 16, false>;
    case 32: return LaunchTiles<T, kKind, kBits, kFine, 32, false>;
    case 64: return LaunchTiles<T, kKind, kBits, kFine, 64, false>;
    case 128: return LaunchTiles<T, kKind, kBits, kFine, 128, false>;
    default: return nullptr;
  }
}

template <CodeKind kKind, int kBits, bool kFine>
TileLauncher TilesByType(const TileInstance& instance) {
  return instance.dtype == DType::kF16 ? TilesOfType<half, kKind, kBits, kFine>(instance)
                                       : TilesOfType<__nv_bfloat16, kKind, kBits, kFine>(instance);
}

}  // namespace nibble::cuda
