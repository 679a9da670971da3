// The decode product: out = epilogue(x * w^T) for few tokens, at the rate weights arrive from
// memory.
//
// One block of 12 or 16 warps an SM. A block has some tiles of 16 rows and all columns, or shares
// its tiles with other blocks, each with columns of its own: then it needs that much less of the
// activations, and the parts' sums meet in L2. Its work, pairs of tiles times units of 128 columns,
// is cut evenly over the warps in that order, so that a pair has few warps and there are few sums
// to add. A warp takes a unit of two tiles at a time: each operand it reads of the activations
// serves two products. Its lanes load exactly the words they will multiply, kDepth units ahead,
// straight into registers: no barrier and no shared memory lies between memory and tensor core.
// Activations wait in shared memory.
//
// Launched dependent, weights are on their way before the previous kernel has ended.
#pragma once

#include <algorithm>

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/stream_finish.cuh"

namespace nibble::cuda {

// Pairs of 16 x 128 blocks in flight a warp: 64 to 76 KB an SM reach the read ceiling (100 KB of 12
// warps' 8-bit codes).
constexpr int StreamDepth(int bits, int token_tiles) {
  return token_tiles == 1 ? (bits >= 5 ? 1 : 2) : (bits >= 5 ? 2 : 3);
}

// Whether blocks copy activations for each other: what only code for clusters can.
__device__ __forceinline__ bool HasTwins(const StreamParams& p) {
#if __CUDA_ARCH__ >= 900
  return p.twins;
#else
  return false;
#endif
}

// One block of the packed stream in a lane's registers.
template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets>
struct StreamBlock {
  // 8-bit codes do not fit bf16's mantissa with the shift: then f16 ones multiply activations
  // brought to f16's range by a power of two a unit, which loses nothing that f32 sums would keep.
  static constexpr bool kConverts = std::is_same_v<T, __nv_bfloat16> && kBits == 8;
  using Number = std::conditional_t<kConverts, half, T>;
  using Codes = CodesOf<Number, kKind, kBits>;
  static constexpr bool kHasOffsets = kOffsets;
  static constexpr int kGroups = kUnitColumns / kGroup;
  static constexpr int kGroupSteps = kGroup / 16;
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

// A zero point needs the sums of the activations. Of 8 tokens they are products with ones beside
// the others; of 16, where these would be a third of all, they are made once a block.
template <typename Block, int kTokenTiles>
inline constexpr bool kSumsInline = kTokenTiles == 1 && !Block::Codes::kTable;
template <typename Block, int kTokenTiles>
inline constexpr bool kSumsBefore = kTokenTiles > 1 && !Block::Codes::kTable;
// d += ones * b: every row the sum.
template <typename Number>
__device__ __forceinline__ void MultiplyOnes(float (&d)[4], std::uint32_t b0, std::uint32_t b1) {
  constexpr std::uint32_t kOne = std::is_same_v<Number, half> ? 0x3c003c00u : 0x3f803f80u;
  constexpr std::uint32_t kOnes[4] = {kOne, kOne, kOne, kOne};
  ptx::Mma<Number>(d, kOnes, b0, b1);
}

// acc += a unit of two tiles. `x`: addresses of ldmatrix rows; `sums`: of the unit's activations,
// of tokens 2t, 2t + 1; `factors`: likewise, what converted activations were divided by.
template <typename Block, int kTokenTiles>
__device__ __forceinline__ void MultiplyUnit(const StreamParams& p, const Block (&blocks)[2],
                                             const char* pair_table, int g,
                                             const std::uint32_t (&x)[kTokenTiles],
                                             std::uint32_t sums, std::uint32_t factors,
                                             float (&acc)[2][kTokenTiles][4]) {
  using Codes = typename Block::Codes;
  constexpr float kDownLow = 1.0f / (1 << Codes::kExponentLow),
                  kDownHigh = 1.0f / (1 << Codes::kExponentHigh);
  const auto load_pair = [](std::uint32_t at) {
    const uint2 bits = ptx::LoadShared64(at);
    return make_float2(__uint_as_float(bits.x), __uint_as_float(bits.y));
  };
  constexpr bool kInline = kSumsInline<Block, kTokenTiles>;
  float d[2][kTokenTiles][4], ones[4];  // of a group
  std::uint32_t b[kTokenTiles][4];
#pragma unroll
  for (int step = 0; step < kUnitColumns / 16; ++step) {
    const int group = step / Block::kGroupSteps, which = step % 2;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      if (which == 0) ptx::LoadMatrix4(b[i], x[i] + step * 32);
      if (step % Block::kGroupSteps != 0) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) d[0][i][j] = d[1][i][j] = ones[j] = 0.0f;
    }
    if constexpr (kInline) {
      MultiplyOnes<typename Block::Number>(ones, b[0][2 * which], b[0][2 * which + 1]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      std::uint32_t a[4];
      if constexpr (Codes::kTable) {
        blocks[r].codes[step / 4].Fragment(step % 4, pair_table, threadIdx.x % 32 * 4, a);
      } else {
        blocks[r].codes[step / 4].Fragment(step % 4, 0, a);
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i)
        ptx::Mma<typename Block::Number>(d[r][i], a, b[i][2 * which], b[i][2 * which + 1]);
    }
    if ((step + 1) % Block::kGroupSteps != 0) continue;
    // ---- The group's scales, zero points and biases ----
    if constexpr (Block::kConverts) {
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const float2 by = load_pair(factors + i * 32);
        ones[0] *= by.x, ones[1] *= by.y;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          d[r][i][0] *= by.x, d[r][i][1] *= by.y, d[r][i][2] *= by.x, d[r][i][3] *= by.y;
        }
      }
    }
    float2 sum[kTokenTiles];
    if constexpr (kInline) sum[0] = make_float2(ones[0], ones[1]);
    if constexpr (kSumsBefore<Block, kTokenTiles>) {
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i)
        sum[i] = load_pair(sums + (group * kTokenTiles + i) * 32);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 scale = Block::Pick(blocks[r].scales, group, g);
      float low = -(p.zero + Codes::kShift) * kDownLow,
            high = -(p.zero + Codes::kShift) * kDownHigh;
      float2 offset = make_float2(0.0f, 0.0f);
      if constexpr (Block::kHasOffsets) {
        offset = Block::Pick(blocks[r].offsets, group, g);
        if (p.offset == OffsetMode::kZeros) {
          low = -(offset.x + Codes::kShift) * kDownLow,
          high = -(offset.y + Codes::kShift) * kDownHigh;
        }
        offset.x *= kDownLow, offset.y *= kDownHigh;
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        float (&v)[4] = d[r][i];
        float (&out)[4] = acc[r][i];
        if constexpr (!Codes::kTable) {
          v[0] = fmaf(low, sum[i].x, v[0]), v[1] = fmaf(low, sum[i].y, v[1]);
          v[2] = fmaf(high, sum[i].x, v[2]), v[3] = fmaf(high, sum[i].y, v[3]);
        }
        out[0] = fmaf(scale.x, v[0], out[0]), out[1] = fmaf(scale.x, v[1], out[1]);
        out[2] = fmaf(scale.y, v[2], out[2]), out[3] = fmaf(scale.y, v[3], out[3]);
        if constexpr (Block::kHasOffsets) {
          if (p.offset == OffsetMode::kBias) {
            out[0] = fmaf(offset.x, sum[i].x, out[0]), out[1] = fmaf(offset.x, sum[i].y, out[1]);
            out[2] = fmaf(offset.y, sum[i].x, out[2]), out[3] = fmaf(offset.y, sum[i].y, out[3]);
          }
        }
      }
    }
  }
}

// The activations of the block's columns to shared memory, [m][x_row_bytes]. Every thread copies 8
// columns at a time.
template <int kThreads>
struct ActivationLoader {
  const StreamParams& p;
  int first_chunk, row_chunks, step_tokens, step_chunks;
  int token0, chunk0;  // this thread's first
  std::uint32_t to;    // shared memory

  __device__ __forceinline__ ActivationLoader(const StreamParams& p, const StreamPlace& place,
                                              std::uint32_t to)
      : p(p), first_chunk(place.unit0 * 16), row_chunks(place.units * 16), to(to) {
    step_tokens = kThreads / row_chunks;
    step_chunks = kThreads - step_tokens * row_chunks;
    token0 = threadIdx.x / row_chunks, chunk0 = threadIdx.x - token0 * row_chunks;
  }
  template <typename Body>
  __device__ __forceinline__ void EachChunk(const Body& body) const {
    int token = token0, chunk = chunk0;
    while (token < p.m) {
      body(token, chunk, to + token * p.x_row_bytes + chunk * 16);
      token += step_tokens, chunk += step_chunks;
      if (chunk >= row_chunks) chunk -= row_chunks, ++token;
    }
  }
  __device__ __forceinline__ void Copy() const {
    EachChunk([&](int token, int chunk, std::uint32_t at) {
      const int column = first_chunk + chunk;
      const bool inside = column * 8 < p.k;
      ptx::CopyAsync16(at, p.x + token * p.x_stride + (inside ? column * 16 : 0), inside ? 16 : 0);
    });
  }
  // The whole rows, half of them copied by each of two blocks, to both. `barrier` expects them, see
  // ExpectBoth.
  __device__ __forceinline__ void CopyToBoth(std::uint32_t barrier) const {
    const int rank = blockIdx.x % 2, units = row_chunks / 16;
    const int begin = rank == 0 ? 0 : units / 2 * 256,
              end = rank == 0 ? units / 2 * 256 : RowBytes();
    if (threadIdx.x % 32 != 0 || begin >= end) return;
    for (int token = threadIdx.x / 32; token < p.m; token += kThreads / 32) {
      ptx::BulkCopyToCluster(to + token * p.x_row_bytes + begin,
                             p.x + token * p.x_stride + first_chunk * 16 + begin, end - begin,
                             barrier, 3);
    }
  }
  __device__ __forceinline__ void ExpectBoth(std::uint32_t barrier) const {
    if (threadIdx.x == 0) {
      ptx::BarrierInit(barrier, 1);
      ptx::FenceBarrierInit();
      ptx::BarrierExpect(barrier, p.m * RowBytes());
    }
    // What the last unit has past k.
    const int past = row_chunks - RowBytes() / 16;
    for (int i = threadIdx.x; i < past * p.m; i += kThreads) {
      const int token = i / past, chunk = row_chunks - 1 - (i - token * past);
      ptx::StoreShared128(to + token * p.x_row_bytes + chunk * 16, make_uint4(0, 0, 0, 0));
    }
  }
  // Bytes of a row that there are.
  __device__ __forceinline__ int RowBytes() const {
    return min(row_chunks * 16, 2 * p.k - first_chunk * 16);
  }
  // From bf16 to f16, by each unit's factor, f32[units][factor_stride]; every thread what it copied
  // itself, after the wait.
  __device__ __forceinline__ void Convert(float* factors, int factor_stride) const {
    EachChunk([&](int token, int chunk, std::uint32_t at) {
      const uint4 four = ptx::LoadShared128(at);
      const std::uint32_t words[4] = {four.x, four.y, four.z, four.w};
      std::uint32_t largest = 0;  // magnitude bits of the unit's largest; NaN is the largest of all
#pragma unroll
      for (int i = 0; i < 4; ++i)
        largest = max(largest, max(words[i] & 0x7fff0000u, words[i] << 16 & 0x7fff0000u));
      const unsigned half_warp = 0xffffu << (threadIdx.x & 16);  // a unit's threads
#pragma unroll
      for (int delta = 8; delta > 0; delta /= 2)
        largest = max(largest, __shfl_xor_sync(half_warp, largest, delta));
      // The largest becomes 2^14 to 2^15; infinities and NaN stay what they are.
      const std::uint32_t exponent = min(268 - (largest >> 23), 253u);
      const float by = __uint_as_float(exponent << 23);
      std::uint32_t out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = PackPair<half>(__uint_as_float(words[i] << 16) * by,
                                __uint_as_float(words[i] & 0xffff0000u) * by);
      }
      ptx::StoreShared128(at, make_uint4(out[0], out[1], out[2], out[3]));
      if (chunk % 16 == 0)
        factors[chunk / 16 * factor_stride + token] = __uint_as_float((254 - exponent) << 23);
    });
  }
};

// Sums of the activations over each group, f32[units][groups][8 * kTokenTiles]: products with ones,
// whose accumulators hold tokens 2t, 2t + 1 in every row. Each warp sums its share of the units.
template <typename Block, int kTokenTiles>
__device__ __forceinline__ void SumActivations(int units,
                                               const std::uint32_t (&x_rows)[kTokenTiles],
                                               std::uint32_t factors, float* sums) {
  using Number = typename Block::Number;
  constexpr int kGroups = Block::kGroups;
  constexpr int kChains = kGroups > 4 ? kGroups : 4;  // of products that wait for each other
  const int lane = threadIdx.x % 32;
  for (int unit = threadIdx.x / 32; unit < units; unit += StreamWarps(kTokenTiles)) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      float d[kChains][4] = {};
#pragma unroll
      for (int step = 0; step < 8; step += 2) {
        std::uint32_t b[4];
        ptx::LoadMatrix4(b, x_rows[i] + unit * 256 + step * 32);
        MultiplyOnes<Number>(d[step * kChains / 8], b[0], b[1]);
        MultiplyOnes<Number>(d[(step + 1) * kChains / 8], b[2], b[3]);
      }
      float2 by = make_float2(1.0f, 1.0f);
      if constexpr (Block::kConverts) {
        const uint2 bits = ptx::LoadShared64(factors + (unit * kTokenTiles + i) * 32);
        by = make_float2(__uint_as_float(bits.x), __uint_as_float(bits.y));
      }
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int part = 0; part < kChains / kGroups; ++part) {
          sum.x += d[group * (kChains / kGroups) + part][0];
          sum.y += d[group * (kChains / kGroups) + part][1];
        }
        if (lane < 4) {
          *reinterpret_cast<float2*>(sums + ((unit * kGroups + group) * kTokenTiles + i) * 8 +
                                     2 * lane) = make_float2(sum.x * by.x, sum.y * by.y);
        }
      }
    }
  }
}

// A warp's place in its share of a round: units of pairs of tiles.
template <unsigned kWarps>
struct StreamShare {
  int pair, unit, left;

  __device__ __forceinline__ void Start(int first_pair, int pairs, int units) {
    const unsigned warp = threadIdx.x / 32, work = pairs * units;
    const int begin = work < kWarps ? min(warp, work) : warp * work / kWarps;
    const int end = work < kWarps ? min(warp + 1, work) : (warp + 1) * work / kWarps;
    pair = static_cast<int>(__fdividef(begin + 0.5f, units));  // exact: work is far below 2^20
    unit = begin - pair * units;
    pair += first_pair;
    left = end - begin;
  }
  // True: that was the last of a pair.
  __device__ __forceinline__ bool Next(int units) {
    --left;
    if (++unit < units) return false;
    unit = 0, ++pair;
    return true;
  }
};

template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets, int kTokenTiles>
__global__ void __launch_bounds__(32 * StreamWarps(kTokenTiles), 1)
    StreamKernel(const __grid_constant__ StreamParams p) {
  using Block = StreamBlock<T, kKind, kBits, kGroup, kOffsets>;
  using Codes = typename Block::Codes;
  constexpr int kDepth = StreamDepth(kBits, kTokenTiles);
  constexpr int kWarps = StreamWarps(kTokenTiles), kThreads = 32 * kWarps;

  extern __shared__ __align__(1024) char shared[];
  const std::uint32_t base = ptx::SharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  StreamPlace place;
  // Twins are neighbours: two groups of blocks lie alternating.
  const int twins = HasTwins(p) ? 1 : 0, index = blockIdx.x >> twins;
  place.part = index & ((1 << p.parts_shift) - 1);
  place.first_tile = ((index >> p.parts_shift << twins) + (blockIdx.x & twins)) * p.group_tiles;
  place.tiles = max(0, min(p.group_tiles, p.tiles - place.first_tile));
  place.unit0 = place.part * p.units >> p.parts_shift;
  place.units = ((place.part + 1) * p.units >> p.parts_shift) - place.unit0;
  place.partials = reinterpret_cast<const float*>(shared + p.partial_offset);
  place.spans = reinterpret_cast<const int2*>(shared + p.spans_offset);
  place.rstd = reinterpret_cast<const float*>(shared);
  int units = place.units;
  asm("" : "+r"(units));  // kept, not computed anew every time
  const int pairs = (place.tiles + 1) / 2;

  // ---- Start the stream ----
  ptx::LaunchDependents();
  const std::uint64_t policy = ptx::EvictFirstPolicy();
  const int entry = Block::Entry(lane);
  const int tile_bytes = p.units * p.block_bytes;
  const int single = place.tiles % 2 != 0 ? pairs - 1 : -1;  // a pair of one tile
  StreamShare<kWarps> at = {}, ahead = {};  // what is multiplied next, and what is loaded next
  const std::uint8_t* ahead_block = nullptr;
  Block ring[kDepth][2];
  const auto load = [&](Block(&slot)[2]) {
    if (ahead.left == 0) return;
    slot[0].Load(ahead_block, lane, entry, policy);
    if (ahead.pair != single) slot[1].Load(ahead_block + tile_bytes, lane, entry, policy);
    ahead_block += p.block_bytes;
    if (ahead.Next(units)) ahead_block += 2 * tile_bytes - units * p.block_bytes;
  };
  const auto start_round = [&](int round) {
    at.Start(round, min(p.round_pairs, pairs - round), units);
    ahead = at;
    ahead_block = p.blocks +
                  static_cast<std::int64_t>(place.first_tile + 2 * at.pair) * tile_bytes +
                  (place.unit0 + at.unit) * p.block_bytes;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) load(ring[i]);
  };
  start_round(0);
  const char* pair_table = shared + p.table_offset;
  if constexpr (Codes::kTable) {
    Codes::FillTable(reinterpret_cast<std::uint32_t*>(shared + p.table_offset), p.table);
  }
  FetchFirst(p, place, base + p.fetched_offset, /*weight=*/true);

  const ActivationLoader<kThreads> activations(p, place, base + p.x_offset);
  const std::uint32_t barrier = base + p.barrier_offset;
  if (HasTwins(p)) {
    activations.ExpectBoth(barrier);
    ptx::ClusterArrive();
  }

  ptx::WaitForPrerequisites();

  // ---- Activations, norms of the inputs, what results are added to ----
  if (HasTwins(p)) {
    ptx::ClusterWait();
    activations.CopyToBoth(barrier);
  } else {
    activations.Copy();
  }
  FetchFirst(p, place, base + p.fetched_offset, /*weight=*/false);
  ptx::CopyAsyncCommit();
  constexpr int kNorms = (8 * kTokenTiles + kWarps - 1) / kWarps;
  float squares[kNorms] = {};  // of tokens warp, warp + kWarps
  if (p.norm_in.square_sums != nullptr) {
#pragma unroll
    for (int i = 0; i < kNorms; ++i) {
      if (warp + i * kWarps >= p.m) break;
      const float* sums = p.norm_in.square_sums + (warp + i * kWarps) * p.norm_in.count;
#pragma unroll 8
      for (int j = lane; j < p.norm_in.count; j += 32) squares[i] += sums[j];
    }
  }
  ptx::CopyAsyncWait<0>();
  if (HasTwins(p)) ptx::BarrierWait(barrier, 0);
  if constexpr (Block::kConverts) {
    activations.Convert(reinterpret_cast<float*>(shared + p.factors_offset), 8 * kTokenTiles);
  }
  __syncthreads();
  if (p.norm_in.square_sums != nullptr) {
#pragma unroll
    for (int i = 0; i < kNorms; ++i) {
#pragma unroll
      for (int delta = 16; delta > 0; delta /= 2)
        squares[i] += __shfl_xor_sync(~0u, squares[i], delta);
      if (lane == 0 && warp + i * kWarps < p.m) {
        reinterpret_cast<float*>(shared)[warp + i * kWarps] =
            rsqrtf(squares[i] / p.norm_in.dim + p.norm_in.eps);
      }
    }
  }
  std::uint32_t
      x_rows[kTokenTiles];  // ldmatrix addresses: lane l gives row l % 8 of 8 x 8 matrix l / 8
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    x_rows[i] = base + p.x_offset + min(i * 8 + lane % 8, p.m - 1) * p.x_row_bytes + lane / 8 * 16;
  }
  const std::uint32_t lane_factors = base + p.factors_offset + t * 8;
  const std::uint32_t lane_sums = base + p.sums_offset + t * 8;
  if constexpr (kSumsBefore<Block, kTokenTiles>) {
    SumActivations<Block, kTokenTiles>(units, x_rows, lane_factors,
                                       reinterpret_cast<float*>(shared + p.sums_offset));
    __syncthreads();
  }

  // ---- Products ----
  for (int round = 0; round < pairs; round += p.round_pairs) {
    // Sums of (warp, pair) lie in slot warp + pair, which no other warp and pair have.
    int2* span = reinterpret_cast<int2*>(shared + p.spans_offset) + (at.pair - round);
    int sum_slot = warp + at.pair - round;
    if (lane == 0 && at.left > 0 && at.unit == 0) span->x = sum_slot;
    float acc[2][kTokenTiles][4] = {};
    while (at.left > 0) {
#pragma unroll
      for (int slot = 0; slot < kDepth; ++slot) {
        if (at.left == 0) break;
        std::uint32_t x[kTokenTiles];
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) x[i] = x_rows[i] + at.unit * 256;
        MultiplyUnit<Block, kTokenTiles>(p, ring[slot], pair_table, g, x,
                                         lane_sums + at.unit * (32 * kTokenTiles * Block::kGroups),
                                         lane_factors + at.unit * (32 * kTokenTiles), acc);
        load(ring[slot]);
        const bool ends = at.Next(units);
        if (!ends && at.left != 0) continue;

        // ---- The warp's sums of the pair, f32[2][m][kPartialStride] ----
        constexpr float kUpLow = 1 << Codes::kExponentLow, kUpHigh = 1 << Codes::kExponentHigh;
        float* to = reinterpret_cast<float*>(shared + p.partial_offset) +
                    sum_slot * 2 * p.m * kPartialStride + g;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
            float (&v)[4] = acc[r][i];
            const int token = i * 8 + 2 * t;
            if (token < p.m) {
              to[token * kPartialStride] = v[0] * kUpLow;
              to[token * kPartialStride + 8] = v[2] * kUpHigh;
            }
            if (token + 1 < p.m) {
              to[(token + 1) * kPartialStride] = v[1] * kUpLow;
              to[(token + 1) * kPartialStride + 8] = v[3] * kUpHigh;
            }
            v[0] = v[1] = v[2] = v[3] = 0.0f;
          }
          to += p.m * kPartialStride;
        }
        if (lane == 0 && ends) {
          span->y = sum_slot;
          if (at.left != 0) (span + 1)->x = sum_slot + 1;
        }
        ++span, ++sum_slot;
      }
    }
    const int next = round + p.round_pairs;
    if (next < pairs) start_round(next);
    __syncthreads();
    FinishRound<kThreads>(
        p, place, 2 * round, min(2 * p.round_pairs, place.tiles - 2 * round),
        round == 0 ? reinterpret_cast<const float4*>(shared + p.fetched_offset) : nullptr);
    if (next < pairs) __syncthreads();
  }
}

// ---- Launch ----

struct StreamGeometry {
  StreamParams params;
  int blocks, shared_bytes;
};

template <typename T, CodeKind kKind, int kBits, int kGroup, bool kOffsets, int kTokenTiles>
cudaError_t LaunchStream(const StreamGeometry& geometry, bool dependent, cudaStream_t stream) {
  const auto kernel = StreamKernel<T, kKind, kBits, kGroup, kOffsets, kTokenTiles>;
  if (!geometry.params.twins) {
    return Launch(kernel, geometry.blocks, 32 * StreamWarps(kTokenTiles), geometry.shared_bytes,
                  {stream, dependent}, geometry.params);
  }
  if (geometry.shared_bytes > 48 * 1024) {  // never lowered: Launch takes the first 48 KB as given
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, geometry.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = 2;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(geometry.blocks);
  config.blockDim = dim3(32 * StreamWarps(kTokenTiles));
  config.dynamicSmemBytes = geometry.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = dependent ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, geometry.params);
}

// One file an encoding family defines these; null when it has no such group. `offsets`: tables of
// zeros or biases.
using StreamLauncher = cudaError_t (*)(const StreamGeometry&, bool dependent, cudaStream_t);
StreamLauncher FindStreamInt4(DType dtype, int group, bool offsets, int token_tiles);
StreamLauncher FindStreamInt8(DType dtype, int group, bool offsets, int token_tiles);
StreamLauncher FindStreamPlanes(DType dtype, int bits, int group, bool offsets, int token_tiles);
StreamLauncher FindStreamCodebook(DType dtype, int group, int token_tiles);

template <CodeKind kKind, int kBits, int kGroup, bool kOffsets>
StreamLauncher StreamByType(DType dtype, int token_tiles) {
  using Bf16 = __nv_bfloat16;
  if (dtype == DType::kF16) {
    return token_tiles == 1 ? LaunchStream<half, kKind, kBits, kGroup, kOffsets, 1>
                            : LaunchStream<half, kKind, kBits, kGroup, kOffsets, 2>;
  }
  return token_tiles == 1 ? LaunchStream<Bf16, kKind, kBits, kGroup, kOffsets, 1>
                          : LaunchStream<Bf16, kKind, kBits, kGroup, kOffsets, 2>;
}

template <int kBits, int kGroup>
StreamLauncher StreamByOffsets(DType dtype, bool offsets, int token_tiles) {
  return offsets ? StreamByType<CodeKind::kInteger, kBits, kGroup, true>(dtype, token_tiles)
                 : StreamByType<CodeKind::kInteger, kBits, kGroup, false>(dtype, token_tiles);
}

}  // namespace nibble::cuda
