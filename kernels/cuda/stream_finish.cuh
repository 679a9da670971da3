// What a streamed product (stream_product.cuh) does with its sums: adds those of its warps and of
// the blocks that share its tiles, in fixed order, and writes results.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_params.cuh"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

// Warps of a block for 8 or 16 tokens: the accumulators of 16 take registers from a quarter of
// them.
constexpr int StreamWarps(int token_tiles) { return token_tiles == 1 ? 16 : 12; }
inline constexpr int kPartialStride =
    20;  // floats a token of a partial tile: 16 rows, and 4 against bank conflicts
inline constexpr int kMostParts = 4;

struct StreamParams : PackedParams, EpilogueParams {
  int parts_shift;        // log2 of the blocks that share tiles, each with columns of its own
  bool twins;             // neighbours with the same columns copy activations to each other
  int group_tiles;        // tiles of those blocks together
  int round_pairs;        // pairs of tiles between reductions
  std::uint32_t by_m;     // ceil(2^16 / m): q / m = q * by_m >> 16 for q < 4096
  const char* x;          // bytes
  std::int64_t x_stride;  // bytes
  bool bf16;              // x, out and normed; f16 otherwise
  int k;
  // Sums for the blocks that share tiles, f32[tiles][m][parts][16]; zero before and after.
  std::uint32_t* exchange;
  int x_row_bytes;  // shared memory of one token: units of a block * 256 + 16
  // In shared memory.
  int barrier_offset, fetched_offset, spans_offset, factors_offset, sums_offset, table_offset,
      x_offset, partial_offset;
};

// One block's place: its tiles, its share of the columns, and where sums lie in shared memory.
struct StreamPlace {
  int part, first_tile, tiles, unit0, units;
  const float* partials;  // f32[slots][2 tiles][m][kPartialStride]
  const int2* spans;      // first and last slot of each pair of tiles of the round
  const float* rstd;      // f32[m]
};

// Elements [at, at + count) of an output of 16 bits, count <= 4.
__device__ __forceinline__ void Store16(const StreamParams& p, void* out, std::int64_t at,
                                        const float (&v)[4], int count) {
  if (p.vector && count >= 4) {
    *reinterpret_cast<uint2*>(static_cast<half*>(out) + at) =
        p.bf16
            ? make_uint2(PackPair<__nv_bfloat16>(v[0], v[1]), PackPair<__nv_bfloat16>(v[2], v[3]))
            : make_uint2(PackPair<half>(v[0], v[1]), PackPair<half>(v[2], v[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= count) break;
    if (p.bf16) {
      static_cast<__nv_bfloat16*>(out)[at + i] = FromFloat<__nv_bfloat16>(v[i]);
    } else {
      static_cast<half*>(out)[at + i] = FromFloat<half>(v[i]);
    }
  }
}

// The same of f32.
__device__ __forceinline__ void Store32(const StreamParams& p, float* out, const float (&v)[4],
                                        int count) {
  if (p.vector && count >= 4) {
    *reinterpret_cast<float4*>(out) = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) out[i] = v[i];
  }
}
__device__ __forceinline__ void Load32(const StreamParams& p, const float* in, float (&v)[4],
                                       int count) {
  if (p.vector && count >= 4) {
    const float4 four = *reinterpret_cast<const float4*>(in);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = i < count ? in[i] : 0.0f;
}

// Items are (tile, token), or (pair of tiles, token) of gate and up; item q is finished by part
// q % parts, four rows a thread.

// What this thread finishes first adds to the residual: that and the next norm's weight travel to
// shared memory, f32[2][threads][4], during the products. Nobody writes weights; the residual
// is read after the wait for the previous kernel.
__device__ __forceinline__ void FetchFirst(const StreamParams& p, const StreamPlace& place,
                                           std::uint32_t shared, bool weight) {
  if (p.output != Output::kResidual || !p.vector || (weight && p.norm_out.normed == nullptr))
    return;
  const int q = place.part + (static_cast<int>(threadIdx.x) / 4 << p.parts_shift);
  const int tile = q * p.by_m >> 16;
  const int n = (place.first_tile + tile) * kTileRows + threadIdx.x % 4 * 4;
  if (tile >= min(2 * p.round_pairs, place.tiles) || n >= p.n) return;
  const std::int64_t row = static_cast<std::int64_t>(q - tile * p.m) * p.n;
  const float* from = weight ? p.norm_out.weight : p.residual + row;
  ptx::CopyAsync16(shared + ((weight ? blockDim.x : 0) + threadIdx.x) * 16, from + n, 16);
}

// Adds to this part's sums of four rows what the other parts have of them, in order of parts. A
// word that is not zero has arrived; it is left zero.
__device__ __forceinline__ void TakeParts(const StreamParams& p, int part, std::uint32_t* words,
                                          float (&sums)[4]) {
  const int parts = 1 << p.parts_shift;
  uint4 other[kMostParts];
  bool all;
  do {
    all = true;
#pragma unroll
    for (int i = 0; i < kMostParts; ++i) {
      if (i < parts && i != part) other[i] = ptx::LoadRelaxed128(words + i * kTileRows);
    }
#pragma unroll
    for (int i = 0; i < kMostParts; ++i) {
      if (i < parts && i != part)
        all &= other[i].x != 0 && other[i].y != 0 && other[i].z != 0 && other[i].w != 0;
    }
  } while (!all);
  float total[4] = {};
#pragma unroll
  for (int i = 0; i < kMostParts; ++i) {
    if (i >= parts) break;
    if (i == part) {
#pragma unroll
      for (int j = 0; j < 4; ++j) total[j] += sums[j];
    } else {
      total[0] += __uint_as_float(other[i].x), total[1] += __uint_as_float(other[i].y);
      total[2] += __uint_as_float(other[i].z), total[3] += __uint_as_float(other[i].w);
      *reinterpret_cast<uint4*>(words + i * kTileRows) = make_uint4(0, 0, 0, 0);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) sums[j] = total[j];
}

// Finishes a round's tiles [first, first + count) of the block, after a barrier. `fetched`: what
// FetchFirst brought, or null.
template <int kThreads>
__device__ __forceinline__ void FinishRound(const StreamParams& p, const StreamPlace& place,
                                            int first, int count, const float4* fetched) {
  const int row = threadIdx.x % 4 * 4, quad = threadIdx.x / 4;
  constexpr int kQuads = kThreads / 4;  // items finished at a time
  const int parts = 1 << p.parts_shift;
  const auto add_warps = [&](int tile, int token, float (&sums)[4]) {
    const int2 span = place.spans[tile / 2];
    const float* at =
        place.partials + ((2 * span.x + tile % 2) * p.m + token) * kPartialStride + row;
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = 0.0f;
#pragma unroll 4
    for (int slot = span.x; slot <= span.y; ++slot, at += 2 * p.m * kPartialStride) {
      const float4 four = *reinterpret_cast<const float4*>(at);
      sums[0] += four.x, sums[1] += four.y, sums[2] += four.z, sums[3] += four.w;
    }
  };
  const auto exchange = [&](int tile, int token) {
    const std::int64_t global = place.first_tile + first + tile;
    return p.exchange + ((global * p.m + token << p.parts_shift) * kTileRows + row);
  };
  const int item_tiles = p.output == Output::kGlu ? 2 : 1;
  const int items = count / item_tiles * p.m;
  if (parts > 1) {  // what other parts finish
    for (int q = quad; q < items; q += kQuads) {
      if ((q & (parts - 1)) == place.part) continue;
      const int item = q * p.by_m >> 16, token = q - item * p.m;
      for (int tile = item * item_tiles; tile < (item + 1) * item_tiles; ++tile) {
        float sums[4];
        add_warps(tile, token, sums);
        uint4 words;
        const auto word = [](float v) { return v == 0.0f ? 0x80000000u : __float_as_uint(v); };
        words.x = word(sums[0]), words.y = word(sums[1]);
        words.z = word(sums[2]), words.w = word(sums[3]);
        ptx::StoreRelaxed128(exchange(tile, token) + place.part * kTileRows, words);
      }
    }
  }
  const auto total = [&](int tile, int token, float (&v)[4]) {
    add_warps(tile, token, v);
    if (parts > 1) TakeParts(p, place.part, exchange(tile, token), v);
    const float by =
        p.norm_in.square_sums != nullptr ? p.multiplier * place.rstd[token] : p.multiplier;
    const int n = (place.first_tile + first + tile) * kTileRows + row;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[j] *= by;
      if (p.bias != nullptr && n + j < p.n) v[j] += p.bias[n + j];
    }
  };
  for (int q = place.part + quad * parts; q < items; q += parts * kQuads) {
    const int item = q * p.by_m >> 16, token = q - item * p.m;
    float v[4];
    total(item * item_tiles, token, v);
    if (p.output == Output::kGlu) {
      float up[4];
      total(2 * item + 1, token, up);
      const int column = ((place.first_tile + first) / 2 + item) * kTileRows + row;
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = GateOf(p.gate, v[j]) * up[j];
      Store16(p, p.out, token * p.ldo + column, v, p.n / 2 - column);
      continue;
    }
    const int tile = place.first_tile + first + item, n = tile * kTileRows + row;
    if (p.output == Output::kStore) {
      Store16(p, p.out, token * p.ldo + n, v, p.n - n);
    } else if (p.output == Output::kStoreF32) {
      Store32(p, static_cast<float*>(p.out) + token * p.ldo + n, v, p.n - n);
    } else {
      const std::int64_t at = static_cast<std::int64_t>(token) * p.n + n;
      float before[4], weight[4];
      if (fetched != nullptr && p.vector) {
        const float4 a = fetched[threadIdx.x], b = fetched[kThreads + threadIdx.x];
        before[0] = a.x, before[1] = a.y, before[2] = a.z, before[3] = a.w;
        weight[0] = b.x, weight[1] = b.y, weight[2] = b.z, weight[3] = b.w;
      } else {
        Load32(p, p.residual + at, before, p.n - n);
        if (p.norm_out.normed != nullptr) Load32(p, p.norm_out.weight + n, weight, p.n - n);
      }
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[j] = n + j < p.n ? v[j] + before[j] : 0.0f;
        squares = fmaf(v[j], v[j], squares);
      }
      Store32(p, p.residual + at, v, p.n - n);
      if (p.norm_out.normed != nullptr) {
#pragma unroll
        for (int j = 0; j < 4; ++j) weight[j] *= v[j];
        Store16(p, p.norm_out.normed, at, weight, p.n - n);
      }
      if (p.norm_out.square_sums != nullptr) {
        const unsigned mask = 0xfu << (threadIdx.x & 28);
        squares += __shfl_xor_sync(mask, squares, 1);
        squares += __shfl_xor_sync(mask, squares, 2);
        if (row == 0)
          p.norm_out.square_sums[static_cast<std::int64_t>(token) * p.tiles + tile] = squares;
      }
    }
    fetched = nullptr;
  }
}

}  // namespace nibble::cuda
