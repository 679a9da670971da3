// The inner step of attention shared by decode and prefill: one warp, 16 query rows, online
// softmax, over tiles of keys and values in shared memory.
//
// How a tile lies there and becomes operands is a class of its own: HalfTiles for caches of 16 bits
// (below), ByteTiles for 8 (attention_bytes.cuh). A class of tiles has
//
//   kDim, Compute                        entries of a head, padded; the type of the products
//   Queries                              operand A of q
//   kOutTiles                            kDim / 8, or one more that Finish adds to all the others
//   Element                              of the cache
//   TileBytes(keys)                      bytes of `keys` keys and their values in shared memory
//   Fetch(...)                           copies them there, asynchronously
//   At(...)                              where 16 bytes of a key or value lie there
//   LoadQueries, Scores, Values          s = q k^T; out += p v
//   Column(i, t)                         out[i][0] and [2] are of this entry of the head ...
//   kColumnStep                          ... and out[i][1] and [3] of this one further
//   Position(column)                     8 i + 2 t + c of the out[i][c] that are of this entry
#pragma once

#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {

inline constexpr int kPageTokens = 64;
inline constexpr float kLog2E = 1.4426950408889634f;

// Head dimensions are padded to one of these; entries past head_dim are zero.
constexpr int PaddedHeadDim(int head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

struct AttentionMask {
  int position0, position1;  // of rows g and g + 8
  int window;                // 0: none
  __device__ __forceinline__ bool Visible(int position, int key) const {
    return key <= position && (window == 0 || position - key < window);
  }
};

struct AttentionScale {
  float unit;  // log2 of a probability for each unit of score
  float cap;   // scale / softcap, or 0
};
__device__ __forceinline__ AttentionScale ScaleOf(const AttentionArgs& a) {
  if (a.softcap > 0.0f) return {a.softcap * kLog2E, a.scale / a.softcap};
  return {a.scale * kLog2E, 0.0f};
}

__device__ __forceinline__ float PowerOf2(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

// Where a kv head's keys and values lie in one page of a layer.
struct PageHead {
  const char* keys;
  const char* values;
  const float* key_scales;  // f32[page_tokens]; of caches of 8 bits
  const float* value_scales;
};
__device__ __forceinline__ PageHead FindPage(const AttentionArgs& a, int page, int kv_head,
                                             int element_bytes) {
  const char* at =
      static_cast<const char*>(a.layer_cache) + page * a.kv.PageStride() * element_bytes;
  const char* keys = at + kv_head * a.kv.HeadStride() * element_bytes;
  const auto* scales =
      reinterpret_cast<const float*>(at + a.kv.ScaleOffset()) + kv_head * kPageTokens;
  return {keys, keys + a.kv.ValueOffset() * element_bytes, scales,
          scales + a.kv_heads * kPageTokens};
}

template <typename Tiles>
struct AttentionState {
  static constexpr int kDim = Tiles::kDim, kOutTiles = Tiles::kOutTiles;
  float out[kOutTiles][4];  // rows g and g + 8 x two columns of the tiles' choice
  float max[2], sum[2];     // of raw scores until Finish, then in units of log2; sum of this lane's
                            // columns until then

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kOutTiles; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  // kKeys keys starting at position `key0`, at rows [row0, row0 + kKeys) of a tile of kTileKeys.
  // Probabilities are 2^(score * unit); with a softcap the score is first capped: tanh(score *
  // scale / softcap).
  template <int kKeys, int kTileKeys>
  __device__ __forceinline__ void Step(const typename Tiles::Queries& q, std::uint32_t tile,
                                       int row0, int key0, bool masked, const AttentionMask& mask,
                                       const AttentionScale& scale, int lane) {
    const int t = lane % 4;
    float s[kKeys / 8][4];
    Tiles::template Scores<kKeys, kTileKeys>(s, q, tile, row0, lane);
    // ---- cap, mask; new maxima ----
    if (scale.cap > 0.0f) {
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] = tanhf(s[i][j] * scale.cap);
      }
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int position = j < 2 ? mask.position0 : mask.position1;
          if (!mask.Visible(position, key0 + i * 8 + 2 * t + (j & 1))) s[i][j] = -INFINITY;
        }
      }
    }
    float high[2] = {max[0], max[1]}, shift[2], factor[2];
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
      high[0] = fmaxf(high[0], fmaxf(s[i][0], s[i][1]));
      high[1] = fmaxf(high[1], fmaxf(s[i][2], s[i][3]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2));
      factor[r] = high[r] == -INFINITY ? 1.0f : PowerOf2((max[r] - high[r]) * scale.unit);
      shift[r] = high[r] == -INFINITY ? 0.0f : -high[r] * scale.unit;
    }
    if (__any_sync(~0u, high[0] > max[0] || high[1] > max[1])) {  // rarer the more keys were seen
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        max[r] = high[r];
        sum[r] *= factor[r];
#pragma unroll
        for (int i = 0; i < kOutTiles; ++i)
          out[i][2 * r] *= factor[r], out[i][2 * r + 1] *= factor[r];
      }
    }
    // ---- p = 2^((s - max) * unit); out += p v ----
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] = PowerOf2(fmaf(s[i][j], scale.unit, shift[j / 2]));
      sum[0] += s[i][0] + s[i][1];
      sum[1] += s[i][2] + s[i][3];
    }
    Tiles::template Values<kKeys, kTileKeys>(out, s, tile, row0, lane);
  }

  // Sums over the four lanes of a row, maxima to units of log2.
  __device__ __forceinline__ void Finish(const AttentionScale& scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
      max[r] *= scale.unit;
    }
    if constexpr (kOutTiles > kDim / 8) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) out[i][j] += out[kOutTiles - 1][j];
      }
    }
  }
};

// Tiles of a 16-bit cache: T[key][kDim], keys and then values, rows of 2 * kDim bytes whose 16-byte
// chunks are stored at chunk ^ (key % 8), so that neither the copies in nor ldmatrix conflict.
template <typename T, int kDimension>
struct HalfTiles {
  static constexpr int kDim = kDimension;
  static constexpr int kElementBytes = 2;
  using Element = T;
  using Compute = T;
  static constexpr int TileBytes(int keys) { return 2 * keys * kDim * 2; }
  static constexpr int kColumnStep = 1;
  static constexpr int kOutTiles = kDim / 8;
  struct Queries {
    std::uint32_t a[kDim / 16][4];
  };
  static __device__ __forceinline__ int Column(int i, int t) { return 8 * i + 2 * t; }
  static __device__ __forceinline__ int Position(int column) { return column; }

  static __device__ __forceinline__ std::uint32_t Chunk(std::uint32_t tile, int key, int chunk) {
    return tile + key * (2 * kDim) + ((chunk ^ (key & 7)) << 4);
  }

  template <int kTileKeys>
  static __device__ __forceinline__ std::uint32_t At(std::uint32_t tile, bool value, int key,
                                                     int chunk) {
    return Chunk(tile + (value ? kTileKeys * kDim * 2 : 0), key, chunk);
  }

  // Keys [row0, row0 + kKeys) of a page by kThreads threads; those past `valid` are zeros.
  template <int kKeys, int kThreads>
  static __device__ __forceinline__ void Fetch(std::uint32_t tile, const PageHead& page, int row0,
                                               int valid, int head_dim, int thread) {
    constexpr int kChunks = kDim / 8;
    if (head_dim == kDim && valid >= kKeys) {  // nearly always
      const int at = row0 * (2 * kDim) + thread * 16;
#pragma unroll
      for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
        const std::uint32_t to = Chunk(tile, (i * kThreads + thread) / kChunks, thread % kChunks);
        ptx::CopyAsync16(to, page.keys + at + i * kThreads * 16);
        ptx::CopyAsync16(to + kKeys * kDim * 2, page.values + at + i * kThreads * 16);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
      const int key = (i * kThreads + thread) / kChunks, chunk = (i * kThreads + thread) % kChunks;
      const bool inside = chunk * 8 < head_dim && key < valid;
      const std::int64_t from = inside ? ((row0 + key) * head_dim + chunk * 8) * 2 : 0;
      ptx::CopyAsync16(Chunk(tile, key, chunk), page.keys + from, inside ? 16 : 0);
      ptx::CopyAsync16(Chunk(tile + kKeys * kDim * 2, key, chunk), page.values + from,
                       inside ? 16 : 0);
    }
  }

  // row(r) gives the global address of query row r, or null for a row of zeros.
  template <typename Row>
  static __device__ __forceinline__ void LoadQueries(Queries& q, int head_dim, int lane,
                                                     const Row& row) {
    const int g = lane / 4, t = lane % 4;
    const T* rows[2] = {row(g), row(g + 8)};
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = i * 16 + 2 * t + 8 * (j >> 1);
        const T* at = rows[j & 1];
        q.a[i][j] = at != nullptr && column < head_dim
                        ? *reinterpret_cast<const std::uint32_t*>(at + column)
                        : 0;
      }
    }
  }

  template <int kKeys, int kTileKeys>
  static __device__ __forceinline__ void Scores(float (&s)[kKeys / 8][4], const Queries& q,
                                                std::uint32_t tile, int row0, int lane) {
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        std::uint32_t b[4];
        ptx::LoadMatrix4(
            b, Chunk(tile, row0 + j * 16 + (lane >> 4) * 8 + lane % 8, 2 * i + (lane >> 3 & 1)));
        ptx::Mma<T>(s[2 * j], q.a[i], b[0], b[1]);
        ptx::Mma<T>(s[2 * j + 1], q.a[i], b[2], b[3]);
      }
    }
  }

  template <int kKeys, int kTileKeys>
  static __device__ __forceinline__ void Values(float (&out)[kDim / 8][4],
                                                const float (&s)[kKeys / 8][4], std::uint32_t tile,
                                                int row0, int lane) {
    const std::uint32_t values = tile + kTileKeys * kDim * 2;
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      const std::uint32_t p[4] = {PackPair<T>(s[2 * j][0], s[2 * j][1]),
                                  PackPair<T>(s[2 * j][2], s[2 * j][3]),
                                  PackPair<T>(s[2 * j + 1][0], s[2 * j + 1][1]),
                                  PackPair<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        std::uint32_t b[4];
        ptx::LoadMatrix4Transposed(
            b, Chunk(values, row0 + j * 16 + (lane >> 3 & 1) * 8 + lane % 8, 2 * i + (lane >> 4)));
        ptx::Mma<T>(out[2 * i], p, b[0], b[1]);
        ptx::Mma<T>(out[2 * i + 1], p, b[2], b[3]);
      }
    }
  }
};

}  // namespace nibble::cuda
