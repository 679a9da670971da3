// Products with experts for few tokens, at the rate weights arrive from memory: each SM streams its
// share of the chosen experts' blocks straight into registers, as stream_product.cuh does, while
// the rows of up to 8 tokens wait in shared memory as operand B.
#pragma once

#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_params.cuh"

namespace nibble::cuda {

inline constexpr int kFewRows = 8;                          // tokens of an expert at a time
inline constexpr int kSliceStride = kUnitColumns * 2 + 16;  // bytes a row of a unit of x
inline constexpr int kSliceBytes = kFewRows * kSliceStride;
inline constexpr int kGluWarps = 8, kSumWarps = 16;
inline constexpr int kFewPartialStride = 20;  // f32 a token: 16 rows, and 4 against bank conflicts

struct FewParams : PackedParams {
  const char* x;          // bytes
  std::int64_t x_stride;  // bytes
  int k;
  void* out;
  std::int64_t ldo;
  ExpertRoutes routes;
  int tokens, experts, top_k;
  Gate gate;
};

// One block of the packed stream in a lane's registers.
template <typename T, CodeKind kKind, int kBits>
struct FewBlock {
  using Codes = CodesOf<T, kKind, kBits>;

  Codes codes[2];
  std::uint32_t scales, offsets;  // entry (group, row g) lies in lane group * 8 + g

  __device__ __forceinline__ void Load(const FewParams& p, const std::uint8_t* block, int lane,
                                       std::uint64_t policy) {
    codes[0].Load(block, lane, policy);
    codes[1].Load(block + Codes::kAtomBytes, lane, policy);
    const std::uint8_t* table = block + 2 * Codes::kAtomBytes + (lane * 4 & (p.scale_bytes - 1));
    scales = ptx::StreamLoad32(table, policy);
    if (p.HasOffsets()) offsets = ptx::StreamLoad32(table + p.scale_bytes, policy);
  }
};

// acc[tile] += x * blocks[tile]^T over a unit; x staged at shared address `slice`. The sums are of
// codes as Codes leaves them: FewFactor undoes the exponents.
template <typename T, CodeKind kKind, int kBits, int kTiles>
__device__ __forceinline__ void MultiplyUnit(const FewParams& p,
                                             const FewBlock<T, kKind, kBits> (&blocks)[kTiles],
                                             std::uint32_t slice, std::uint32_t lane_table,
                                             float (&acc)[kTiles][4]) {
  using Codes = CodesOf<T, kKind, kBits>;
  constexpr float kDown[2] = {1.0f / (1 << Codes::kExponentLow),
                              1.0f / (1 << Codes::kExponentHigh)};
  constexpr bool kSums = !Codes::kTable;  // a zero point or a shift needs the activations' sums
  constexpr std::uint32_t kOne = std::is_same_v<T, half> ? 0x3c003c00u : 0x3f803f80u;
  const int lane = threadIdx.x % 32, group_shift = __ffs(p.group_steps) - 1;
  const std::uint32_t from = slice + lane % 8 * kSliceStride + lane / 8 * 16;
  const std::uint32_t ones[4] = {kOne, kOne, kOne, kOne};
  float d[kTiles][4] = {}, sums[4] = {};
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {  // of k-steps
    std::uint32_t b[4];
    ptx::LoadMatrix4(b, from + pair * 64);
#pragma unroll
    for (int half_pair = 0; half_pair < 2; ++half_pair) {
      const int step = 2 * pair + half_pair;
      if constexpr (kSums) ptx::Mma<T>(sums, ones, b[2 * half_pair], b[2 * half_pair + 1]);
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        std::uint32_t a[4];
        blocks[r].codes[step / 4].Fragment(step % 4, lane_table, a);
        ptx::Mma<T>(d[r], a, b[2 * half_pair], b[2 * half_pair + 1]);
      }
    }
    if (2 * pair + 2 < 8 && (2 * pair + 2 & p.group_steps - 1) != 0) continue;
    // ---- A group ends: its scale and offset ----
    const int entry = (2 * pair >> group_shift) * 8 + lane / 4;
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
      const float2 two = UnpackPair<half>(__shfl_sync(~0u, blocks[r].scales, entry));
      const float scale[2] = {two.x, two.y};
      float offset[2] = {p.zero, p.zero};
      if (p.HasOffsets()) {
        const float2 o = UnpackPair<half>(__shfl_sync(~0u, blocks[r].offsets, entry));
        offset[0] = o.x, offset[1] = o.y;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // row g + 8 * (i / 2), token 2 t + i % 2
        const int high = i / 2;
        float v = d[r][i];
        if constexpr (kSums) {
          const float sum = sums[i % 2] * kDown[high];
          if (p.offset == OffsetMode::kBias) {
            v = fmaf(-(p.zero + Codes::kShift), sum, v);
            acc[r][i] = fmaf(offset[high], sum, acc[r][i]);
          } else {
            v = fmaf(-(offset[high] + Codes::kShift), sum, v);
          }
        }
        acc[r][i] = fmaf(scale[high], v, acc[r][i]);
        d[r][i] = 0.0f;
      }
    }
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
  }
}

// What sum i of MultiplyUnit is to be multiplied by.
template <typename T, CodeKind kKind, int kBits>
__device__ __forceinline__ float FewFactor(const FewParams& p, int i) {
  using Codes = CodesOf<T, kKind, kBits>;
  return p.multiplier * (i < 2 ? 1 << Codes::kExponentLow : 1 << Codes::kExponentHigh);
}

// A unit of up to kFewRows rows of x on its way to shared memory, by one warp. row_at(r): the row's
// first byte, or null.
struct FewSlice {
  uint4 chunks[4];

  template <typename RowAt>
  __device__ __forceinline__ void Load(const FewParams& p, int unit, const RowAt& row_at) {
    const int lane = threadIdx.x % 32, column = unit * kUnitColumns + lane % 16 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const char* row = row_at(lane / 16 + 2 * i);
      chunks[i] = make_uint4(0, 0, 0, 0);
      if (row != nullptr && column < p.k)
        chunks[i] = *reinterpret_cast<const uint4*>(row + column * 2);
    }
  }
  __device__ __forceinline__ void Store(char* slice) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<uint4*>(slice + (lane / 16 + 2 * i) * kSliceStride + lane % 16 * 16) =
          chunks[i];
    }
  }
};

// Most chunks: of 1024 rows, with up to 7 missing in the last of each of 512 experts.
inline constexpr int kMostChunks = (kFewTokens * kFewRanks + 7 * kMostExperts) / kFewRows;

// The experts' rows, in order, in chunks of at most kFewRows.
struct FewChunks {
  std::int16_t experts[kMostChunks], starts[kMostChunks], ends[kMostChunks];
  int total;

  // By the whole block.
  __device__ __forceinline__ void List(const FewParams& p) {
    for (int i = threadIdx.x; i <= p.experts; i += blockDim.x)
      offsets[i] = static_cast<std::int16_t>(p.routes.offsets[i]);
    __syncthreads();
    if (threadIdx.x < 32) {
      int count = 0;
      for (int base = 0; base < p.experts; base += 32) {
        const int expert = base + threadIdx.x;
        const int begin = offsets[min(expert, p.experts)],
                  end = offsets[min(expert + 1, p.experts)];
        const int own = (end - begin + kFewRows - 1) / kFewRows;
        int sum = own;
#pragma unroll
        for (int delta = 1; delta < 32; delta *= 2) {
          const int lower = __shfl_up_sync(~0u, sum, delta);
          if (threadIdx.x >= delta) sum += lower;
        }
        for (int i = 0; i < own; ++i) {
          const int at = count + sum - own + i, start = begin + i * kFewRows;
          experts[at] = static_cast<std::int16_t>(expert);
          starts[at] = static_cast<std::int16_t>(start);
          ends[at] = static_cast<std::int16_t>(min(end, start + kFewRows));
        }
        count += __shfl_sync(~0u, sum, 31);
      }
      if (threadIdx.x == 0) total = count;
    }
    __syncthreads();
  }

 private:
  std::int16_t offsets[kMostExperts + 1];
};

// Units in flight a warp, of two tiles or of one.
constexpr int FewDepth(int bits, int tiles) { return bits == 8 ? 2 / tiles : 4 - tiles; }

// Chunks times pairs of tiles, gate and up, are cut evenly over the blocks, whatever the tokens
// have chosen; the columns over a block's warps.
template <typename T, CodeKind kKind, int kBits>
__global__ void __launch_bounds__(32 * kGluWarps, 2)
    FewGluKernel(const __grid_constant__ FewParams p) {
  using Block = FewBlock<T, kKind, kBits>;
  using Codes = typename Block::Codes;
  constexpr int kDepth = FewDepth(kBits, 2);
  constexpr int kPartial = kGluWarps * 2 * kFewRows * kFewPartialStride;  // f32, of a pair
  extern __shared__ __align__(128) char shared[];
  __shared__ FewChunks chunks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int most_units = (p.units + kGluWarps - 1) / kGluWarps;
  char* slices = shared + (Codes::kTable ? kPairTableBytes : 0) + warp * most_units * kSliceBytes;
  float* partials = reinterpret_cast<float*>(shared + (Codes::kTable ? kPairTableBytes : 0) +
                                             kGluWarps * most_units * kSliceBytes);
  ptx::LaunchDependents();
  if constexpr (Codes::kTable) Codes::FillTable(reinterpret_cast<std::uint32_t*>(shared), p.table);
  const std::uint32_t lane_table = ptx::SharedAddress(shared) + lane * 4;
  const std::uint64_t policy = ptx::EvictFirstPolicy();
  ptx::WaitForPrerequisites();
  chunks.List(p);

  const int pairs = p.tiles / 2, blocks = static_cast<int>(gridDim.x), block = blockIdx.x;
  const int last = (block + 1) * (chunks.total * pairs) / blocks;
  const int unit0 = warp * p.units / kGluWarps, units = (warp + 1) * p.units / kGluWarps - unit0;
  int buffer = 0;
  for (int at = block * (chunks.total * pairs) / blocks; at < last;) {
    const int chunk = at / pairs, first = at - chunk * pairs, end = min(pairs, first + last - at);
    at += end - first;
    const std::uint8_t* mine = p.blocks + chunks.experts[chunk] * p.expert_bytes +
                               static_cast<std::int64_t>(unit0) * p.block_bytes;
    const int row0 = chunks.starts[chunk], row_end = chunks.ends[chunk];
    Block ring[kDepth][2];
    const auto load = [&](int slot, int pair, int unit) {
#pragma unroll
      for (int half_rows = 0; half_rows < 2; ++half_rows) {
        const int block = (pair + half_rows * pairs) * p.units + unit;
        ring[slot][half_rows].Load(p, mine + std::int64_t{block} * p.block_bytes, lane, policy);
      }
    };
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (i < units) load(i, first, i);
    }
    __syncwarp();  // the rows before have been read
    for (int unit = 0; unit < units; ++unit) {
      FewSlice slice;
      slice.Load(p, unit0 + unit, [&](int r) {
        return row0 + r < row_end ? p.x + p.routes.tokens[row0 + r] * p.x_stride : nullptr;
      });
      slice.Store(slices + unit * kSliceBytes);
    }
    __syncwarp();
    for (int pair = first; pair < end; ++pair) {
      float acc[2][4] = {};
      for (int base = 0; base < units; base += kDepth) {
#pragma unroll
        for (int slot = 0; slot < kDepth; ++slot) {
          const int unit = base + slot;
          if (unit >= units) break;
          MultiplyUnit<T, kKind, kBits, 2>(
              p, ring[slot], ptx::SharedAddress(slices) + unit * kSliceBytes, lane_table, acc);
          if (unit + kDepth < units) {
            load(slot, pair, unit + kDepth);
          } else if (pair + 1 < end) {
            load(slot, pair + 1, slot);
          }
        }
      }
      // ---- Sums of the warps, f32[warp][tile][token][row] ----
      float* to = partials + buffer * kPartial + warp * 2 * kFewRows * kFewPartialStride;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          to[(r * kFewRows + 2 * t + i % 2) * kFewPartialStride + g + i / 2 * 8] =
              acc[r][i] * FewFactor<T, kKind, kBits>(p, i);
        }
      }
      __syncthreads();
      const int row = threadIdx.x % 16, token = threadIdx.x / 16;
      if (token < kFewRows && row0 + token < row_end) {
        const float* from = partials + buffer * kPartial + token * kFewPartialStride + row;
        float gate = 0.0f, up = 0.0f;
#pragma unroll
        for (int w = 0; w < kGluWarps; ++w) {
          gate += from[2 * w * kFewRows * kFewPartialStride];
          up += from[(2 * w + 1) * kFewRows * kFewPartialStride];
        }
        static_cast<T*>(p.out)[(row0 + token) * p.ldo + pair * kTileRows + row] =
            FromFloat<T>(GateOf(p.gate, gate) * up);
      }
      buffer ^= 1;
    }
  }
}

// A block a tile of the output; the chunks are dealt to the warps, whose sums are added in order.
// A warp's blocks and units of x are one stream, whichever expert they are of.
template <typename T, CodeKind kKind, int kBits>
__global__ void __launch_bounds__(32 * kSumWarps, 1)
    FewSumKernel(const __grid_constant__ FewParams p) {
  using Block = FewBlock<T, kKind, kBits>;
  using Codes = typename Block::Codes;
  constexpr int kDepth = FewDepth(kBits, 1);
  extern __shared__ __align__(128) char shared[];
  __shared__ FewChunks chunks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  char* slices = shared + (Codes::kTable ? kPairTableBytes : 0);
  const std::uint32_t my_slices = ptx::SharedAddress(slices) + warp * kDepth * kSliceBytes;
  float* sums = reinterpret_cast<float*>(slices + kSumWarps * kDepth * kSliceBytes);
  float* my_sums = sums + warp * p.tokens * kTileRows;  // f32[warp][token][row]
  const int pairs = p.tokens * p.top_k;
  float* row_weights = sums + kSumWarps * p.tokens * kTileRows;
  auto* row_tokens = reinterpret_cast<std::int32_t*>(row_weights + pairs);
  ptx::LaunchDependents();
  if constexpr (Codes::kTable) Codes::FillTable(reinterpret_cast<std::uint32_t*>(shared), p.table);
  for (int i = lane; i < p.tokens * kTileRows; i += 32) my_sums[i] = 0.0f;
  const std::uint32_t lane_table = ptx::SharedAddress(shared) + lane * 4;
  const std::uint64_t policy = ptx::EvictFirstPolicy();
  ptx::WaitForPrerequisites();
  for (int i = threadIdx.x; i < pairs; i += 32 * kSumWarps) {
    const int row = p.routes.rows[i];
    row_weights[row] = p.routes.weights[i], row_tokens[row] = i / p.top_k;
  }
  chunks.List(p);

  struct Position {
    int chunk, unit;
  };
  const auto advance = [&](Position& at) {
    if (++at.unit == p.units) at.unit = 0, at.chunk += kSumWarps;
  };
  Block ring[kDepth][1];
  // Of the chunk that is loaded: its first block, and this lane's columns of rows, or null.
  const std::uint8_t* blocks = nullptr;
  const char* rows[4] = {};
  const auto enter = [&](int chunk) {
    const int row0 = chunks.starts[chunk], row_end = chunks.ends[chunk];
    blocks = p.blocks + chunks.experts[chunk] * p.expert_bytes +
             std::int64_t{blockIdx.x * p.units} * p.block_bytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + lane / 16 + 2 * i;
      rows[i] = row < row_end ? p.x + row * p.x_stride + lane % 16 * 16 : nullptr;
    }
  };
  const auto load = [&](int slot, const Position& at) {
    if (at.chunk < chunks.total) {
      if (at.unit == 0) enter(at.chunk);
      const bool inside = at.unit * kUnitColumns + lane % 16 * 8 < p.k;
      const std::uint32_t to = my_slices + slot * kSliceBytes + lane % 16 * 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool exists = inside && rows[i] != nullptr;
        ptx::CopyAsync16(to + (lane / 16 + 2 * i) * kSliceStride,
                         exists ? rows[i] + at.unit * (kUnitColumns * 2) : p.x, exists ? 16 : 0);
      }
      ring[slot][0].Load(p, blocks + std::int64_t{at.unit} * p.block_bytes, lane, policy);
    }
    ptx::CopyAsyncCommit();
  };
  Position at{warp, 0}, next = at;
#pragma unroll
  for (int slot = 0; slot < kDepth; ++slot) {
    load(slot, next);
    advance(next);
  }
  float acc[1][4] = {};
  while (at.chunk < chunks.total) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) {
      if (at.chunk >= chunks.total) break;
      ptx::CopyAsyncWait<kDepth - 1>();
      __syncwarp();
      MultiplyUnit<T, kKind, kBits, 1>(p, ring[slot], my_slices + slot * kSliceBytes, lane_table,
                                       acc);
      __syncwarp();
      load(slot, next);
      advance(next);
      if (at.unit == p.units - 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = chunks.starts[at.chunk] + 2 * t + i % 2;
          if (row < chunks.ends[at.chunk]) {
            my_sums[row_tokens[row] * kTileRows + g + i / 2 * 8] +=
                row_weights[row] * FewFactor<T, kKind, kBits>(p, i) * acc[0][i];
          }
          acc[0][i] = 0.0f;
        }
        __syncwarp();
      }
      advance(at);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.tokens * kTileRows; i += 32 * kSumWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kSumWarps; ++w) sum += sums[w * p.tokens * kTileRows + i];
    static_cast<T*>(p.out)[i / kTileRows * p.ldo + blockIdx.x * kTileRows + i % kTileRows] =
        FromFloat<T>(sum);
  }
}

// ---- Launch ----

struct FewLaunch {
  FewParams params;
  bool glu;
  LaunchOptions options;
};
using FewLauncher = cudaError_t (*)(const FewLaunch&);

// One file an encoding family.
FewLauncher FindFewInt4(DType dtype);
FewLauncher FindFewInt8(DType dtype);
FewLauncher FindFewCodebook(DType dtype);

// Shared memory.
constexpr int FewTableBytes(CodeKind kind) {
  return kind == CodeKind::kCodebook ? kPairTableBytes : 0;
}
constexpr int FewGluBytes(CodeKind kind, int units) {
  return FewTableBytes(kind) + (units + kGluWarps - 1) / kGluWarps * kGluWarps * kSliceBytes +
         2 * kGluWarps * 2 * kFewRows * kFewPartialStride * 4;
}
constexpr int FewSumBytes(CodeKind kind, int bits, int tokens, int top_k) {
  return FewTableBytes(kind) + kSumWarps * FewDepth(bits, 1) * kSliceBytes +
         tokens * (kSumWarps * kTileRows + 2 * top_k) * 4;
}

template <typename T, CodeKind kKind, int kBits>
cudaError_t LaunchFew(const FewLaunch& launch) {
  FewParams p = launch.params;
  if (!launch.glu) {
    const int bytes = FewSumBytes(kKind, kBits, p.tokens, p.top_k);
    return Launch(FewSumKernel<T, kKind, kBits>, p.tiles, 32 * kSumWarps, bytes, launch.options, p);
  }
  const int bytes = FewGluBytes(kKind, p.units);
  const auto kernel = FewGluKernel<T, kKind, kBits>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  DeviceTraits device;
  int resident = 0;
  if (error == cudaSuccess) error = CurrentDevice(&device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * kGluWarps, bytes);
  }
  if (error != cudaSuccess) return error;
  const int chunks = std::min(kMostChunks, p.tokens * p.top_k);
  const int blocks = std::min(device.sms * std::max(resident, 1), chunks * p.tiles / 2);
  return Launch(kernel, blocks, 32 * kGluWarps, bytes, launch.options, p);
}

template <CodeKind kKind, int kBits>
FewLauncher FewByType(DType dtype) {
  return dtype == DType::kF16 ? LaunchFew<half, kKind, kBits>
                              : LaunchFew<__nv_bfloat16, kKind, kBits>;
}

}  // namespace nibble::cuda
