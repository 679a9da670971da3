// Prefill attention by warpgroup products: what its warpgroups share, and the consumers
// (attention_wgmma.cu says who does what).
#pragma once

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma_attention.cuh"

namespace nibble::cuda::prefill {

inline constexpr int kConsumers = 2;
inline constexpr int kThreads = 128 * (kConsumers + 1);
inline constexpr int kRows = 64 * kConsumers;
inline constexpr int kStages = 2;
// Hardware barriers: whose turn it is (+ index of the consumer), of both consumers, of one (+
// index).
inline constexpr int kTurnBarrier = 1, kConsumersBarrier = 3, kGroupBarrier = 4;

// Keys of a tile: two pages, but one where a head of 256 fills the registers and shared memory.
template <int kDim>
constexpr int TileKeys() {
  return kDim <= 128 ? 2 * kPageTokens : kPageTokens;
}
template <int kDim>
constexpr int Halves() {
  return (kDim + 63) / 64;
}
template <int kDim>
constexpr int QueryBytes() {
  return Halves<kDim>() * kRows * 128;
}
template <int kDim>
constexpr int TileBytes() {  // keys, or values
  return Halves<kDim>() * TileKeys<kDim>() * 128;
}

// A tile of rows and a part of its keys, as the producers found it.
struct Tile {
  int sequence;  // -1: no more
  int head, kv_head, row_begin, rows, first_row, context;
  int position;            // of the first row
  int first, last;         // stages of keys
  int index, part, parts;  // which tile; which part of its keys, of how many
};

// The part of shared memory after queries, keys and values. Barriers of keys, then of values.
struct Control {
  std::uint64_t full[2 * kStages], empty[2 * kStages];
  std::uint64_t queries_full, queries_empty;
  std::uint64_t tile_full[2], tile_empty[2];
  Tile tiles[2];
  bool last_part[kConsumers];
};

template <int kDim>
constexpr int SharedBytes() {
  return QueryBytes<kDim>() + 2 * kStages * TileBytes<kDim>() + static_cast<int>(sizeof(Control)) +
         1024;  // to align it
}

struct Params {
  AttentionArgs args;
  CUtensorMap cache;  // the layer as a matrix [pages * 2 * kv_heads * 64, head_dim]
  int pack;           // heads of a tile
  int tile_queries;   // kRows / pack
  int row_tiles;      // of the longest sequence
  int splits;         // parts of a tile's keys, at most
  int items;          // row_tiles * sequences * heads / pack * splits
};

// What a consumer leaves of a part: float4[PartFours][128 threads], outputs, maxima and sums.
template <int kDim>
constexpr int PartFours() {
  return kDim / 8 + 1;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Every warp that reads tiles: the next one; the slot is free again.
__device__ __forceinline__ Tile TakeTile(Control* control, int turn) {
  ptx::BarrierWait(ptx::SharedAddress(&control->tile_full[turn % 2]), turn / 2 & 1);
  const Tile tile = control->tiles[turn % 2];
  __syncwarp();
  if (threadIdx.x % 32 == 0) ptx::BarrierArrive(ptx::SharedAddress(&control->tile_empty[turn % 2]));
  return tile;
}

// Keys that a row sees of the tile at hand, counted from the lane's own first key: [low, high].
struct Visible {
  int low, high;
};

// Online softmax of rows g and g + 8 of a warp: s[4 j + 2 r + c] is row r, key 8 j + 2 t + c.
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};  // of raw scores
  float sum[2] = {0.0f, 0.0f};            // of this lane's keys

  // Scores to probabilities; out so far is to be multiplied by factor.
  template <int kSize>
  __device__ __forceinline__ void Step(float (&s)[kSize], float (&factor)[2],
                                       const AttentionScale& scale, bool masked,
                                       const Visible (&visible)[2]) {
    if (scale.cap > 0.0f) {  // tanh(x) = 1 - 2 / (e^2x + 1)
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        s[i] = 1.0f - __fdividef(2.0f, PowerOf2(s[i] * (scale.cap * 2.0f * kLog2E)) + 1.0f);
      }
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const int key = i / 4 * 8 + i % 2, r = i % 4 / 2;
        if (key > visible[r].high || key < visible[r].low) s[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float high[2] = {max[r], -INFINITY};
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        high[0] = fmaxf(high[0], s[i + 2 * r]);
        high[1] = fmaxf(high[1], s[i + 2 * r + 1]);
      }
      float top = fmaxf(high[0], high[1]);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float shift = top == -INFINITY ? 0.0f : top * scale.unit;  // nothing seen yet
      factor[r] = PowerOf2(max[r] * scale.unit - shift);
      max[r] = top;
      float sums[2] = {sum[r] * factor[r], 0.0f};
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& v = s[i + 2 * r + c];
          v = PowerOf2(fmaf(v, scale.unit, -shift));
          sums[c] += v;
        }
      }
      sum[r] = sums[0] + sums[1];
    }
  }
};

template <typename T, int kKeys>
__device__ __forceinline__ void PackProbabilities(const float (&s)[kKeys / 2],
                                                  std::uint32_t (&p)[kKeys / 16][4]) {
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) p[i][j] = PackPair<T>(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
  }
}

// A consumer warpgroup's output: f32[64, kDim] in parts of at most 128 columns.
template <int kDim>
struct Accumulators {
  static constexpr int kParts = (kDim + 127) / 128, kSize = kDim / kParts / 2;
  float part[kParts][kSize];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kParts * kSize; ++i) part[i / kSize][i % kSize] = 0.0f;
  }
  __device__ __forceinline__ void Scale(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < kParts * kSize; ++i) part[i / kSize][i % kSize] *= factor[i % 4 / 2];
  }
  __device__ __forceinline__ void Pin() {
#pragma unroll
    for (int i = 0; i < kParts; ++i) ptx::PinRegisters(part[i]);
  }
};

// s = q k^T of one tile; enqueued, not waited for.
template <typename T, int kDim>
__device__ __forceinline__ void EnqueueScores(float (&s)[TileKeys<kDim>() / 2], std::uint64_t q,
                                              std::uint32_t keys) {
  const std::uint64_t k = ptx::SwizzledOperand(keys);
  ptx::WgmmaShared<T, 0>(s, q, k);
#pragma unroll
  for (int i = 1; i < kDim / 16; ++i) {
    ptx::WgmmaShared<T, 1>(s, q + i / 4 * (kRows * 8) + i % 4 * 2,
                           k + i / 4 * (TileKeys<kDim>() * 8) + i % 4 * 2);
  }
  ptx::WgmmaCommit();
}

// out += p v of one tile; enqueued.
template <typename T, int kDim>
__device__ __forceinline__ void EnqueueValues(Accumulators<kDim>& out,
                                              const std::uint32_t (&p)[TileKeys<kDim>() / 16][4],
                                              std::uint32_t values) {
  constexpr int kHalfBytes = TileKeys<kDim>() * 128;
  const std::uint64_t v = ptx::TransposedOperand(values, kHalfBytes);
#pragma unroll
  for (int i = 0; i < TileKeys<kDim>() / 16; ++i) {
#pragma unroll
    for (int part = 0; part < Accumulators<kDim>::kParts; ++part)
      ptx::WgmmaTransposed<T>(out.part[part], p[i], v + i * 128 + part * 2 * (kHalfBytes / 16));
  }
  ptx::WgmmaCommit();
}

// Values past the context are whatever the page held, perhaps NaN: zeros instead. Both consumers.
template <int kDim>
__device__ __forceinline__ void ClearValues(std::uint32_t values, int first) {
  constexpr int kKeys = TileKeys<kDim>();
  const int rows = kKeys - first, chunks = rows * 8;
  for (int i = threadIdx.x; i < Halves<kDim>() * chunks; i += 128 * kConsumers) {
    const std::uint32_t at = values + (i / chunks * kKeys + first) * 128 + i % chunks * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  ptx::FenceShared();
  ptx::NamedBarrier(kConsumersBarrier, 128 * kConsumers);
}

// Four words of each of four lanes, transposed: lane t gets word t of the four.
__device__ __forceinline__ void TransposeQuad(std::uint32_t (&w)[4], int t) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    const std::uint32_t other = __shfl_xor_sync(~0u, t & 1 ? w[k] : w[k + 1], 1);
    if (t & 1) {
      w[k] = other;
    } else {
      w[k + 1] = other;
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::uint32_t other = __shfl_xor_sync(~0u, t & 2 ? w[k] : w[k + 2], 2);
    if (t & 2) {
      w[k] = other;
    } else {
      w[k + 2] = other;
    }
  }
}

// out / sum to global memory, 16 bytes a lane.
template <typename T, int kDim>
__device__ __forceinline__ void WriteTile(const Params& p, const Tile& tile,
                                          const Accumulators<kDim>& out, const Softmax& softmax,
                                          const AttentionScale& scale, int warp_row) {
  const AttentionArgs& a = p.args;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  constexpr int kSize = Accumulators<kDim>::kSize;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + g + 8 * r, query = tile.first_row + row / p.pack,
              head = tile.head + row % p.pack;
    float sum = softmax.sum[r], factor = 1.0f;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (a.sinks != nullptr) {
      const float max = softmax.max[r] * scale.unit, sink = a.sinks[head] * kLog2E;
      const float top = fmaxf(max, sink);
      factor = PowerOf2(max - top);
      sum = sum * factor + PowerOf2(sink - top);
    }
    const float inverse = sum > 0.0f ? factor / sum : 0.0f;
    const bool inside = query < tile.rows && row < p.pack * p.tile_queries;
    T* to = static_cast<T*>(a.out) +
            (static_cast<std::int64_t>(tile.row_begin + query) * a.heads + head) * a.head_dim;
#pragma unroll
    for (int i = 0; i < kDim / 8; i += 4) {
      std::uint32_t w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float* v = &out.part[(i + k) * 4 / kSize][(i + k) * 4 % kSize + 2 * r];
        w[k] = PackPair<T>(v[0] * inverse, v[1] * inverse);
      }
      TransposeQuad(w, t);
      if (inside && (i + t) * 8 < a.head_dim)
        *reinterpret_cast<uint4*>(to + (i + t) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

// Leaves a part's result in the workspace; the last of a tile's parts writes the sum of all, in
// order.
template <typename T, int kDim>
__device__ __forceinline__ void MergeParts(const Params& p, const Tile& tile,
                                           const Accumulators<kDim>& out, const Softmax& softmax,
                                           const AttentionScale& scale, int warp_row,
                                           Control* control) {
  constexpr int kFours = kDim / 8, kSize = Accumulators<kDim>::kSize;
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
  float4* parts =
      static_cast<float4*>(p.args.workspace) +
      std::int64_t{tile.index * kConsumers + group} * p.splits * PartFours<kDim>() * 128 + thread;
  const auto at = [&](int part, int i) { return parts + (part * PartFours<kDim>() + i) * 128; };
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const float* v = &out.part[i * 4 / kSize][i * 4 % kSize];
    __stcg(at(tile.part, i), make_float4(v[0], v[1], v[2], v[3]));
  }
  __stcg(at(tile.part, kFours),
         make_float4(softmax.max[0], softmax.max[1], softmax.sum[0], softmax.sum[1]));
  __threadfence();
  ptx::NamedBarrier(kGroupBarrier + group, 128);
  if (thread == 0) {
    std::uint32_t* count = p.args.flags + tile.index * kConsumers + group;
    const bool last = atomicAdd(count, 1) + 1 == static_cast<std::uint32_t>(tile.parts);
    if (last) *count = 0;
    control->last_part[group] = last;
    __threadfence();
  }
  ptx::NamedBarrier(kGroupBarrier + group, 128);
  if (!__any_sync(~0u, control->last_part[group])) return;

  Softmax all;
  for (int part = 0; part < p.splits; ++part) {
    const float4 v = __ldcg(at(min(part, tile.parts - 1), kFours));
    all.max[0] = fmaxf(all.max[0], v.x), all.max[1] = fmaxf(all.max[1], v.y);
  }
  Accumulators<kDim> sum;
  sum.Clear();
  for (int part = 0; part < p.splits; ++part) {
    const float4 own = __ldcg(at(min(part, tile.parts - 1), kFours));
    const auto factor_of = [&](float max, float all_max) {
      return part >= tile.parts || max == -INFINITY ? 0.0f : PowerOf2((max - all_max) * scale.unit);
    };
    const float factor[2] = {factor_of(own.x, all.max[0]), factor_of(own.y, all.max[1])};
    all.sum[0] += own.z * factor[0], all.sum[1] += own.w * factor[1];
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const float4 v = __ldcg(at(min(part, tile.parts - 1), i));
      float* to = &sum.part[i * 4 / kSize][i * 4 % kSize];
      to[0] += v.x * factor[0], to[1] += v.y * factor[0];
      to[2] += v.z * factor[1], to[3] += v.w * factor[1];
    }
  }
  WriteTile<T, kDim>(p, tile, sum, all, scale, warp_row);
}

// A consumer warpgroup: tile after tile.
template <typename T, int kDim>
__device__ __forceinline__ void Consume(const Params& p, std::uint32_t queries_at,
                                        std::uint32_t keys_at, Control* control) {
  constexpr int kKeys = TileKeys<kDim>();
  const AttentionArgs& a = p.args;
  const std::uint32_t values_at = keys_at + kStages * TileBytes<kDim>();
  const int group = threadIdx.x / 128, warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const std::uint64_t q = ptx::SwizzledOperand(queries_at + group * 64 * 128);
  const AttentionScale scale = ScaleOf(a);
  const auto wait_keys = [&](int at) {
    ptx::BarrierWait(ptx::SharedAddress(&control->full[at % kStages]), at / kStages & 1);
  };
  const auto wait_values = [&](int at) {
    ptx::BarrierWait(ptx::SharedAddress(&control->full[kStages + at % kStages]), at / kStages & 1);
  };
  const auto arrive = [&](std::uint64_t* barrier) {
    if (lane == 0) ptx::BarrierArrive(ptx::SharedAddress(barrier));
  };
  if (group == 1) ptx::NamedBarrierArrive(kTurnBarrier, 128 * kConsumers);  // group 0 begins

  int at = 0;  // stages used so far
  for (int turn = 0;; ++turn) {
    const Tile tile = TakeTile(control, turn);
    if (tile.sequence < 0) break;
    int position[2];  // less this lane's first key
#pragma unroll
    for (int r = 0; r < 2; ++r)
      position[r] = tile.position + (warp_row + lane / 4 + 8 * r) / p.pack - lane % 4 * 2;
    const int least = tile.position + group * 64 / p.pack,  // positions of the warpgroup's rows
        most = tile.position + (group * 64 + 63) / p.pack;
    Softmax softmax;
    Accumulators<kDim> out;
    float s[kKeys / 2], factor[2];
    std::uint32_t probabilities[kKeys / 16][4];
    const auto step = [&](int n) {
      const int key0 = n * kKeys;
      const bool masked = key0 + kKeys - 1 > least || (a.window > 0 && most - key0 >= a.window);
      const Visible visible[2] = {
          {a.window > 0 ? position[0] - a.window + 1 - key0 : -kKeys, position[0] - key0},
          {a.window > 0 ? position[1] - a.window + 1 - key0 : -kKeys, position[1] - key0}};
      softmax.Step(s, factor, scale, masked, visible);
    };
    out.Clear();

    // ---- The last stage's scores ----
    ptx::BarrierWait(ptx::SharedAddress(&control->queries_full), turn & 1);
    wait_keys(at);
    ptx::PinRegisters(s);
    ptx::WgmmaFence();
    EnqueueScores<T, kDim>(s, q, keys_at + at % kStages * TileBytes<kDim>());
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(s);
    arrive(&control->empty[at % kStages]);
    if ((tile.last + 1) * kKeys > tile.context) {
      wait_values(at);
      ClearValues<kDim>(values_at + at % kStages * TileBytes<kDim>(),
                        tile.context - tile.last * kKeys);
    }
    step(tile.last);
    PackProbabilities<T, kKeys>(s, probabilities);

    // ---- Scores of a stage, and the values of the stage before ----
    for (int n = tile.last - 1; n >= tile.first; --n) {
      const int next = at + 1;
      wait_keys(next);
      ptx::NamedBarrier(kTurnBarrier + group, 128 * kConsumers);
      ptx::PinRegisters(s);
      out.Pin();
      ptx::WgmmaFence();
      EnqueueScores<T, kDim>(s, q, keys_at + next % kStages * TileBytes<kDim>());
      wait_values(at);
      EnqueueValues<T, kDim>(out, probabilities, values_at + at % kStages * TileBytes<kDim>());
      ptx::NamedBarrierArrive(kTurnBarrier + (group ^ 1), 128 * kConsumers);
      ptx::WgmmaWait<1>();
      ptx::PinRegisters(s);
      arrive(&control->empty[next % kStages]);
      step(n);
      ptx::WgmmaWait<0>();
      out.Pin();
      arrive(&control->empty[kStages + at % kStages]);
      out.Scale(factor);
      PackProbabilities<T, kKeys>(s, probabilities);
      at = next;
    }
    arrive(&control->queries_empty);

    // ---- The first stage's values ----
    wait_values(at);
    out.Pin();
    ptx::WgmmaFence();
    EnqueueValues<T, kDim>(out, probabilities, values_at + at % kStages * TileBytes<kDim>());
    ptx::WgmmaWait<0>();
    out.Pin();
    arrive(&control->empty[kStages + at % kStages]);
    ++at;
    if (__any_sync(~0u, tile.parts == 1)) {
      WriteTile<T, kDim>(p, tile, out, softmax, scale, warp_row);
    } else {
      MergeParts<T, kDim>(p, tile, out, softmax, scale, warp_row, control);
    }
  }
  if (group == 0) ptx::NamedBarrier(kTurnBarrier, 128 * kConsumers);  // the turn given last
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace nibble::cuda::prefill
