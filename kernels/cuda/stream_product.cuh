// The decode product: out = epilogue(x * w^T) for few tokens, at the rate weights arrive from
// memory.
//
// One block of 16 warps an SM; clusters of blocks may share tiles and cut the columns further. The
// columns are cut over the warps; a warp takes two tiles of 16 rows at a time, so that each operand
// it reads of the activations serves two products. Its lanes load exactly the words they will
// multiply, kDepth blocks ahead, straight into registers: no barrier and no shared memory lies
// between memory and tensor core. Activations wait in shared memory. Partial sums of `flush` tiles
// are added in fixed order.
//
// Launched dependent, weights are on their way before the previous kernel has ended.
#pragma once

#include <algorithm>

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

inline constexpr int kStreamWarps = 16;
inline constexpr int kStreamThreads = 32 * kStreamWarps;
inline constexpr int kPartialStride =
    20;  // floats a token of a partial tile: 16 rows, and 4 against bank conflicts

// Pairs of 16 x 128 blocks in flight a warp: 64 to 70 KB an SM reach the read ceiling.
constexpr int StreamDepth(int bits) { return bits >= 5 ? 1 : 2; }

struct StreamParams {
  const std::uint8_t* blocks;
  int block_bytes, units, tiles;
  int cluster_shift;             // log2 of the blocks of a cluster
  std::uint32_t by_m;            // ceil(2^16 / m): q / m = q * by_m >> 16 for q < 4096
  int tiles_per_cluster, flush;  // tiles of a cluster; tiles between reductions, even
  OffsetMode offset;
  float zero, multiplier;
  float table[16];
  const char* x;          // bytes
  std::int64_t x_stride;  // bytes
  int m, k, n;
  NormInput norm_in;
  const float* bias;
  Output output;
  Gate gate;
  void* out;
  std::int64_t ldo;
  float* residual;
  NormOutput norm_out;
  int x_row_bytes;  // shared memory of one token: units of a block * 256 + 16
  int sums_offset, table_offset, x_offset, partial_offset, exchange_offset;  // into shared memory
  int buffer_floats;  // one of the two buffers of partial sums
};

#if __CUDA_ARCH__ >= 900

// Adds partial sums of tiles [first, first + count) of this cluster and writes results.
// partial: f32[count][16 warps][m][kPartialStride]; items of 16 rows are dealt to blocks and
// half-warps.
template <typename T>
__device__ __forceinline__ void FlushTiles(const StreamParams& p, const float* partial,
                                           float* exchange, const float* rstd, int first, int count,
                                           std::uint32_t rank, std::uint32_t cluster,
                                           bool first_flush, float residual0, float weight0) {
  __syncthreads();
  const int row = threadIdx.x % 16;
  const auto block_sum = [&](int tile, int token) {
    const float* at = partial + (tile * kStreamWarps * p.m + token) * kPartialStride + row;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kStreamWarps; ++warp) sum += at[warp * p.m * kPartialStride];
    return sum;
  };
  if (cluster > 1) {
    for (int q = threadIdx.x / 16; q < count * p.m; q += kStreamThreads / 16) {
      const int tile = q * p.by_m >> 16;
      exchange[q * 16 + row] = block_sum(tile, q - tile * p.m);
    }
    ptx::ClusterSync();
  }
  const std::uint32_t exchange_at = ptx::SharedAddress(exchange);
  const auto total = [&](int tile, int token) {
    float sum = 0.0f;
    if (cluster == 1) {
      sum = block_sum(tile, token);
    } else {
      for (std::uint32_t r = 0; r < cluster; ++r) {
        sum += ptx::LoadCluster(exchange_at + ((tile * p.m + token) * 16 + row) * 4, r);
      }
    }
    sum *= p.multiplier;
    if (p.norm_in.square_sums != nullptr) sum *= rstd[token];
    const int n = (first + tile) * kTileRows + row;
    if (p.bias != nullptr && n < p.n) sum += p.bias[n];
    return sum;
  };
  const int tiles_an_item = p.output == Output::kGlu ? 2 : 1;
  const int items = p.output == Output::kGlu ? (count >> 1) * p.m : count * p.m;
  bool first_item = first_flush;  // whose residual was prefetched
  for (int q = rank + cluster * (threadIdx.x / 16); q < items;
       q += cluster * (kStreamThreads / 16)) {
    const int item_tile = q * p.by_m >> 16, token = q - item_tile * p.m;
    const int tile = item_tile * tiles_an_item;
    const float v = total(tile, token);
    if (p.output == Output::kGlu) {
      const float up = total(tile + 1, token);
      const int column = (first + tile) / 2 * kTileRows + row;
      if (column < p.n / 2)
        static_cast<T*>(p.out)[token * p.ldo + column] = FromFloat<T>(GateOf(p.gate, v) * up);
      continue;
    }
    const int n = (first + tile) * kTileRows + row;
    if (p.output == Output::kStore) {
      if (n < p.n) static_cast<T*>(p.out)[token * p.ldo + n] = FromFloat<T>(v);
    } else if (p.output == Output::kStoreF32) {
      if (n < p.n) static_cast<float*>(p.out)[token * p.ldo + n] = v;
    } else {
      float sum = 0.0f;
      const std::int64_t at = static_cast<std::int64_t>(token) * p.n + n;
      if (n < p.n) {
        sum = v + (first_item ? residual0 : p.residual[at]);
        p.residual[at] = sum;
        if (p.norm_out.normed != nullptr) {
          const float weight = first_item ? weight0 : p.norm_out.weight[n];
          static_cast<T*>(p.norm_out.normed)[at] = FromFloat<T>(sum * weight);
        }
      }
      if (p.norm_out.square_sums != nullptr) {
        float squares = sum * sum;
        const unsigned mask = 0xffffu << (threadIdx.x & 16);
#pragma unroll
        for (int delta = 8; delta > 0; delta /= 2) squares += __shfl_xor_sync(mask, squares, delta);
        if (row == 0)
          p.norm_out.square_sums[static_cast<std::int64_t>(token) * p.tiles + first + tile] =
              squares;
      }
    }
    first_item = false;
  }
}

#endif  // __CUDA_ARCH__ >= 900

// One block of the packed stream in a lane's registers.
template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets>
struct StreamBlock {
  using Codes = CodesOf<T, kKind, kBits>;
  static constexpr int kGroups = kUnitColumns / kGroup;
  // Entry (group, g) of a table lies in lane group * 8 + g; with one group every lane holds its own
  // row's.
  static constexpr int kTableWords = kGroups == 8 ? 2 : 1;

  Codes codes[2];
  std::uint32_t scales[kTableWords], offsets[kTableWords];

  __device__ __forceinline__ void Load(const std::uint8_t* block, int lane, int entry,
                                       std::uint64_t policy) {
    codes[0].Load(block, lane, policy);
    codes[1].Load(block + Codes::kAtomBytes, lane, policy);
    const std::uint8_t* table = block + 2 * Codes::kAtomBytes + entry * 4;
#pragma unroll
    for (int i = 0; i < kTableWords; ++i) {
      scales[i] = ptx::StreamLoad32(table + i * 128, policy);
      if constexpr (kOffsets)
        offsets[i] = ptx::StreamLoad32(table + kGroups * 32 + i * 128, policy);
    }
  }
  static __device__ __forceinline__ int Entry(int lane) {
    return kGroups == 1 ? lane / 4 : kGroups == 2 ? lane % 16 : lane;
  }
  // (row g, row g + 8) of a table for `group`.
  static __device__ __forceinline__ float2 Pick(const std::uint32_t (&table)[kTableWords],
                                                int group, int g) {
    if constexpr (kGroups == 1) return UnpackPair<half>(table[0]);
    return UnpackPair<half>(__shfl_sync(~0u, table[group / 4], group % 4 * 8 + g));
  }
};

template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets, int kTokenTiles>
__global__ void __launch_bounds__(kStreamThreads, 1)
    StreamKernel(const __grid_constant__ StreamParams p) {
#if __CUDA_ARCH__ >= 900
  using Codes = CodesOf<T, kKind, kBits>;
  using Block = StreamBlock<T, kKind, kBits, kGroup, kOffsets>;
  constexpr int kDepth = StreamDepth(kBits);
  constexpr int kGroups = Block::kGroups;
  constexpr int kGroupSteps = kGroup / 16;
  constexpr bool kSums = !Codes::kTable;  // a zero point or a shift needs the activations' sums
  constexpr float kDownLow = 1.0f / (1 << Codes::kExponentLow),
                  kDownHigh = 1.0f / (1 << Codes::kExponentHigh);

  extern __shared__ __align__(1024) char shared[];
  const std::uint32_t base = ptx::SharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  const std::uint32_t cluster = 1u << p.cluster_shift, rank = blockIdx.x & (cluster - 1);
  const int first_tile = (blockIdx.x >> p.cluster_shift) * p.tiles_per_cluster;
  const int tiles = min(p.tiles_per_cluster, p.tiles - first_tile);

  // ---- This warp's share: columns [unit0, unit0 + units) of every tile ----
  const int workers_shift = 4 + p.cluster_shift, worker = rank * kStreamWarps + warp;
  const int unit0 = worker * p.units >> workers_shift;
  const int units = ((worker + 1) * p.units >> workers_shift) - unit0;

  // ---- Start the stream ----
  ptx::LaunchDependents();
  const std::uint64_t policy = ptx::EvictFirstPolicy();
  const int entry = Block::Entry(lane);
  const std::int64_t tile_step = static_cast<std::int64_t>(p.units) * p.block_bytes;
  const std::uint8_t* pair_blocks =
      p.blocks + (static_cast<std::int64_t>(first_tile) * p.units + unit0) * p.block_bytes;
  Block ring[kDepth][2];
  const auto load = [&](int slot, const std::uint8_t* at, bool both) {
    ring[slot][0].Load(at, lane, entry, policy);
    if (both) ring[slot][1].Load(at + tile_step, lane, entry, policy);
  };
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    if (i < units) load(i, pair_blocks + i * p.block_bytes, tiles > 1);
  }
  std::uint32_t lane_table = 0;
  if constexpr (Codes::kTable) {
    Codes::FillTable(reinterpret_cast<std::uint32_t*>(shared + p.table_offset), p.table);
    lane_table = base + p.table_offset + lane * 4;
  }

  // The residual this thread adds to first, and its weight of the next norm, which nobody writes.
  bool has_residual0 = false;
  const float* residual_at = nullptr;
  float weight0 = 0.0f;
  if (p.output == Output::kResidual) {
    const int q = rank + cluster * (threadIdx.x / 16);
    const int tile = q * p.by_m >> 16, n = (first_tile + tile) * kTileRows + threadIdx.x % 16;
    has_residual0 = q < min(p.flush, tiles) * p.m && n < p.n;
    residual_at = p.residual + static_cast<std::int64_t>(q - tile * p.m) * p.n + n;
    if (has_residual0 && p.norm_out.normed != nullptr) weight0 = p.norm_out.weight[n];
  }

  ptx::WaitForPrerequisites();

  // ---- Activations of the block's columns to shared memory, T[m] rows of x_row_bytes; 8 columns a
  // load ----
  const int block_unit0 = rank * p.units >> p.cluster_shift;
  const int block_units = ((rank + 1) * p.units >> p.cluster_shift) - block_unit0;
  // Four loads in flight a thread: of neighbouring tokens, or, with few of them, along the row.
  const int row_chunks = block_units * 16;
  const bool wide = p.m < 4;
  const int step_token = wide ? 0 : 1, step_column = wide ? kStreamThreads : 0;
  const int next_token = wide ? 1 : 4, next_column = wide ? 4 * kStreamThreads : kStreamThreads;
  uint4 chunk[4];
  const auto load_chunks = [&](int token, int column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = token + i * step_token, c = column + i * step_column;
      chunk[i] = make_uint4(0, 0, 0, 0);
      if (row < p.m && c < row_chunks && (block_unit0 * 16 + c) * 8 < p.k) {
        chunk[i] =
            *reinterpret_cast<const uint4*>(p.x + row * p.x_stride + (block_unit0 * 16 + c) * 16);
      }
    }
  };
  load_chunks(0, threadIdx.x);
  float* block_sums = reinterpret_cast<float*>(shared + p.sums_offset);
  // While they travel: norms of the inputs, and the residual this thread will add to first.
  float* rstd = reinterpret_cast<float*>(shared);
  float residual0 = 0.0f;
  if (has_residual0) residual0 = *residual_at;
  if (p.norm_in.square_sums != nullptr && warp < p.m) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = lane; i < p.norm_in.count; i += 32)
      sum += p.norm_in.square_sums[warp * p.norm_in.count + i];
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
    if (lane == 0) rstd[warp] = rsqrtf(sum / p.norm_in.dim + p.norm_in.eps);
  }
  for (int column = threadIdx.x; column - lane < row_chunks; column += next_column) {
    for (int token = 0; token < p.m; token += next_token) {
      if (token > 0 || column != threadIdx.x) load_chunks(token, column);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = token + i * step_token, c = column + i * step_column;
        if (row >= p.m || c - lane >= row_chunks) break;  // the same for the whole warp
        if (c < row_chunks)
          *reinterpret_cast<uint4*>(shared + p.x_offset + row * p.x_row_bytes + c * 16) = chunk[i];
        if constexpr (kSums) {
          if (!wide) continue;
          const float2 v0 = UnpackPair<T>(chunk[i].x), v1 = UnpackPair<T>(chunk[i].y);
          const float2 v2 = UnpackPair<T>(chunk[i].z), v3 = UnpackPair<T>(chunk[i].w);
          float sum = ((v0.x + v0.y) + (v1.x + v1.y)) + ((v2.x + v2.y) + (v3.x + v3.y));
#pragma unroll
          for (int delta = 1; delta < kGroup / 8; delta *= 2)
            sum += __shfl_xor_sync(~0u, sum, delta);
          if (c < row_chunks && c % (kGroup / 8) == 0)
            block_sums[c / (kGroup / 8) * (8 * kTokenTiles) + row] = sum;
        }
      }
    }
  }
  __syncthreads();
  std::uint32_t
      x_rows[kTokenTiles];  // ldmatrix addresses: lane l gives row l % 8 of 8 x 8 matrix l / 8
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    x_rows[i] = base + p.x_offset + min(i * 8 + lane % 8, p.m - 1) * p.x_row_bytes +
                (unit0 - block_unit0) * 256 + lane / 8 * 16;
  }

  // ---- Their sums over each group, f32[unit][group][8 * kTokenTiles]. Of few tokens the loads
  // above have added them up. Of more, products with ones do: the sums of tokens 2t, 2t + 1 land
  // where the accumulators are. Short chains of products, which wait for each other. ----
  const float* group_sums = block_sums + (unit0 - block_unit0) * kGroups * kTokenTiles * 8;
  if constexpr (kSums) {
    if (!wide) {
      float* to_sums = block_sums + (unit0 - block_unit0) * kGroups * kTokenTiles * 8;
      const std::uint32_t one = std::is_same_v<T, half> ? 0x3c003c00u : 0x3f803f80u;
      const std::uint32_t ones[4] = {one, one, one, one};
      constexpr int kParts = kGroups > 4 ? kGroups : 4;
#pragma unroll 2
      for (int unit = 0; unit < units; ++unit) {
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
          float d[kParts][4] = {};
#pragma unroll
          for (int step = 0; step < 8; step += 2) {
            std::uint32_t b[4];
            ptx::LoadMatrix4(b, x_rows[i] + unit * 256 + step * 32);
            ptx::Mma<T>(d[step * kParts / 8], ones, b[0], b[1]);
            ptx::Mma<T>(d[(step + 1) * kParts / 8], ones, b[2], b[3]);
          }
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
            for (int part = 0; part < kParts / kGroups; ++part) {
              sum.x += d[group * (kParts / kGroups) + part][0],
                  sum.y += d[group * (kParts / kGroups) + part][1];
            }
            if (g == 0) {
              *reinterpret_cast<float2*>(
                  to_sums + ((unit * kGroups + group) * kTokenTiles + i) * 8 + 2 * t) = sum;
            }
          }
        }
      }
      __syncwarp();
    }
  }

  // ---- Pairs of tiles ----
  float* partials = reinterpret_cast<float*>(shared + p.partial_offset);
  float* exchange = reinterpret_cast<float*>(shared + p.exchange_offset);
  const float zero_low = -(p.zero + Codes::kShift) * kDownLow,
              zero_high = -(p.zero + Codes::kShift) * kDownHigh;
  int flushed = 0, buffer = 0;
  for (int tile = 0; tile < tiles; tile += 2) {
    const bool both = tile + 1 < tiles;
    float acc[2][kTokenTiles][4] = {};
    for (int unit_base = 0; unit_base < units; unit_base += kDepth) {
#pragma unroll
      for (int slot = 0; slot < kDepth; ++slot) {
        const int unit = unit_base + slot;
        if (unit >= units) break;
        Block(&blocks)[2] = ring[slot];
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          float2 sum[kTokenTiles];
          float d[2][kTokenTiles][4] = {}, bias[2][2];
          if constexpr (kSums) {
#pragma unroll
            for (int i = 0; i < kTokenTiles; ++i) {
              sum[i] = *reinterpret_cast<const float2*>(
                  group_sums + ((unit * kGroups + group) * kTokenTiles + i) * 8 + 2 * t);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float low = zero_low, high = zero_high;
              if constexpr (kOffsets) {
                const float2 offset = Block::Pick(blocks[r].offsets, group, g);
                if (p.offset == OffsetMode::kZeros) {
                  low = -(offset.x + Codes::kShift) * kDownLow,
                  high = -(offset.y + Codes::kShift) * kDownHigh;
                } else {
                  bias[r][0] = offset.x * kDownLow, bias[r][1] = offset.y * kDownHigh;
                }
              }
#pragma unroll
              for (int i = 0; i < kTokenTiles; ++i) {
                d[r][i][0] = low * sum[i].x, d[r][i][1] = low * sum[i].y;
                d[r][i][2] = high * sum[i].x, d[r][i][3] = high * sum[i].y;
              }
            }
          }
#pragma unroll
          for (int i = 0; i < kGroupSteps;
               i += 2) {  // 32 columns an operand load; half of it for groups of 16
            const int step = group * kGroupSteps + i;
            std::uint32_t b[kTokenTiles][4];
#pragma unroll
            for (int j = 0; j < kTokenTiles; ++j) {
              ptx::LoadMatrix4(b[j], x_rows[j] + unit * 256 + step / 2 * 64);
            }
#pragma unroll
            for (int half_step = 0; half_step < (kGroupSteps > 1 ? 2 : 1); ++half_step) {
              const int at = step + half_step, which = at % 2;
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                std::uint32_t a[4];
                blocks[r].codes[at / 4].Fragment(at % 4, lane_table, a);
#pragma unroll
                for (int j = 0; j < kTokenTiles; ++j)
                  ptx::Mma<T>(d[r][j], a, b[j][2 * which], b[j][2 * which + 1]);
              }
            }
          }
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const float2 scale = Block::Pick(blocks[r].scales, group, g);
#pragma unroll
            for (int i = 0; i < kTokenTiles; ++i) {
              acc[r][i][0] = fmaf(scale.x, d[r][i][0], acc[r][i][0]);
              acc[r][i][1] = fmaf(scale.x, d[r][i][1], acc[r][i][1]);
              acc[r][i][2] = fmaf(scale.y, d[r][i][2], acc[r][i][2]);
              acc[r][i][3] = fmaf(scale.y, d[r][i][3], acc[r][i][3]);
              if constexpr (kOffsets) {
                if (p.offset == OffsetMode::kBias) {
                  acc[r][i][0] = fmaf(bias[r][0], sum[i].x, acc[r][i][0]);
                  acc[r][i][1] = fmaf(bias[r][0], sum[i].y, acc[r][i][1]);
                  acc[r][i][2] = fmaf(bias[r][1], sum[i].x, acc[r][i][2]);
                  acc[r][i][3] = fmaf(bias[r][1], sum[i].y, acc[r][i][3]);
                }
              }
            }
          }
        }
        // What comes after these blocks in the slot: of this pair of tiles, or of the next.
        if (unit + kDepth < units) {
          load(slot, pair_blocks + (unit + kDepth) * p.block_bytes, both);
        } else if (tile + 2 < tiles) {
          load(slot, pair_blocks + 2 * tile_step + slot * p.block_bytes, tile + 3 < tiles);
        }
      }
    }
    pair_blocks += 2 * tile_step;

    // ---- Partial sums of the pair: [tile][warp][token][row] ----
    float* partial = partials + buffer * p.buffer_floats +
                     ((tile - flushed) * kStreamWarps + warp) * p.m * kPartialStride + g;
    constexpr float kUpLow = 1 << Codes::kExponentLow, kUpHigh = 1 << Codes::kExponentHigh;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (r == 1 && !both) break;
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const int token = i * 8 + 2 * t;
        if (token < p.m) {
          partial[token * kPartialStride] = acc[r][i][0] * kUpLow;
          partial[token * kPartialStride + 8] = acc[r][i][2] * kUpHigh;
        }
        if (token + 1 < p.m) {
          partial[(token + 1) * kPartialStride] = acc[r][i][1] * kUpLow;
          partial[(token + 1) * kPartialStride + 8] = acc[r][i][3] * kUpHigh;
        }
      }
      partial += kStreamWarps * p.m * kPartialStride;
    }
    const int done = min(tile + 2, tiles);
    if (done - flushed == p.flush || done == tiles) {
      FlushTiles<T>(p, partials + buffer * p.buffer_floats, exchange + buffer * p.flush * p.m * 16,
                    rstd, first_tile + flushed, done - flushed, rank, cluster, flushed == 0,
                    residual0, weight0);
      flushed = done;
      buffer ^= 1;
    }
  }
  if (cluster > 1) ptx::ClusterSync();  // others may still read this block's sums
#endif
}

// ---- Launch ----

struct StreamGeometry {
  StreamParams params;
  int blocks, cluster, shared_bytes;
};

template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets, int kTokenTiles>
cudaError_t LaunchStream(const StreamGeometry& geometry, bool dependent, cudaStream_t stream) {
  const auto kernel = StreamKernel<T, kKind, kBits, kGroup, kOffsets, kTokenTiles>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           geometry.shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  int count = 0;
  if (dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (geometry.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = geometry.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(geometry.blocks);
  config.blockDim = dim3(kStreamThreads);
  config.dynamicSmemBytes = geometry.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, geometry.params);
}

// One file an encoding family defines these; null when it has no such group. `offsets`: tables of
// zeros or biases.
using StreamLauncher = cudaError_t (*)(const StreamGeometry&, bool dependent, cudaStream_t);
StreamLauncher FindStreamInt4(DType dtype, int group, bool offsets, int token_tiles);
StreamLauncher FindStreamInt8(DType dtype, int group, bool offsets, int token_tiles);
StreamLauncher FindStreamPlanes(DType dtype, int bits, int group, bool offsets, int token_tiles);
StreamLauncher FindStreamCodebook(DType dtype, int group, int token_tiles);

template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets>
StreamLauncher StreamByTokens(int token_tiles) {
  if (token_tiles == 1) return LaunchStream<T, kKind, kBits, kGroup, kOffsets, 1>;
  return LaunchStream<T, kKind, kBits, kGroup, kOffsets, 2>;
}

template <typename T, int kBits, int kGroup>
StreamLauncher StreamByOffsets(bool offsets, int token_tiles) {
  if (offsets) return StreamByTokens<T, CodeKind::kInteger, kBits, kGroup, true>(token_tiles);
  return StreamByTokens<T, CodeKind::kInteger, kBits, kGroup, false>(token_tiles);
}

}  // namespace nibble::cuda
