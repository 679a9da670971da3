// Tiles of an 8-bit cache for the inner step of attention (attention.cuh).
//
// Elements become f16 in registers, exactly; products are f16 whatever T is. Bytes of kI8 stay 1152
// too large: the scores begin at -1152 * sum(q), and one more column of the output gathers -1152 *
// sum(p). Key scales multiply the scores, value scales the probabilities. Neither the entries of a
// head nor the columns of the output need the order that ldmatrix gives: every lane reads 16 bytes
// in a row and takes them as they come, q and out being permuted alike (LoadQueries, Column).
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/attention.cuh"

namespace nibble::cuda {

// The four bytes of a word as two f16x2: kF8E4M3 exactly; kI8 as kByteBias more than they are.
inline constexpr float kByteBias = 1152.0f;

template <bool kFloat>
__device__ __forceinline__ void WidenBytes(std::uint32_t word, std::uint32_t (&out)[2]) {
  if constexpr (!kFloat) {  // 1024 + (byte + 128)
    word ^= 0x80808080u;
    out[0] = __byte_perm(word, 0x64646464u, 0x4140);
    out[1] = __byte_perm(word, 0x64646464u, 0x4342);
  } else {
#if __CUDA_ARCH__ >= 890
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\n"
        "cvt.rn.f16x2.e4m3x2 %1, high;\n}"
        : "=r"(out[0]), "=r"(out[1])
        : "r"(word));
#else
    // Sign, and exponent and fraction one bit lower: the number * 2^-8.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t wide = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);
      const std::uint32_t bits = (wide & 0x80008000u) | (wide >> 1 & 0x3f803f80u);
      const half2 number =
          __hmul2(*reinterpret_cast<const half2*>(&bits), __float2half2_rn(256.0f));
      out[i] = *reinterpret_cast<const std::uint32_t*>(&number);
    }
#endif
  }
}

// byte[key][kDim] keys, the same of values, then f32[keys] scales of keys and of values. Lines of
// 128 bytes; 16-byte chunks move within a line so that the reads below do not conflict.
template <typename T, int kDimension, bool kFloat>
struct ByteTiles {
  static constexpr int kDim = kDimension;
  static constexpr int kElementBytes = 1;
  using Element = std::conditional_t<kFloat, __nv_fp8_storage_t, std::int8_t>;
  using Compute = half;
  static constexpr int TileBytes(int keys) { return 2 * keys * (kDim + 4); }
  static constexpr int kColumnStep = kDim / 8;
  static constexpr int kOutTiles = kDim / 8 + (kFloat ? 0 : 1);  // the last gathers the bias
  struct Queries {
    std::uint32_t a[kDim / 16][4];
    float start[2];  // what the scores of rows g and g + 8 begin at
  };
  static __device__ __forceinline__ int Column(int i, int t) { return 2 * t * (kDim / 8) + i; }
  static __device__ __forceinline__ int Position(int column) {
    return column % (kDim / 8) * 8 + column / (kDim / 8);
  }

  static __device__ __forceinline__ std::uint32_t KeyChunk(std::uint32_t tile, int key, int chunk) {
    return tile + key * kDim + ((kDim == 64 ? chunk : chunk ^ (key & 1) << 2) << 4);
  }
  static __device__ __forceinline__ std::uint32_t ValueChunk(std::uint32_t tile, int key,
                                                             int chunk) {
    if constexpr (kDim == 64) {  // two keys a line
      return tile + (key >> 1) * 128 + ((((key & 1) << 2 | chunk) ^ (key & 6)) << 4);
    }
    const int move = kDim == 256 ? (key >> 1 & 1) | (key & 4) : key & 6;
    return tile + key * kDim + ((chunk ^ move) << 4);
  }

  template <int kTileKeys>
  static __device__ __forceinline__ std::uint32_t At(std::uint32_t tile, bool value, int key,
                                                     int chunk) {
    return value ? ValueChunk(tile + kTileKeys * kDim, key, chunk) : KeyChunk(tile, key, chunk);
  }
  template <int kTileKeys>
  static __device__ __forceinline__ std::uint32_t ScaleAt(std::uint32_t tile, bool value, int key) {
    return tile + 2 * kTileKeys * kDim + ((value ? kTileKeys : 0) + key) * 4;
  }

  template <int kKeys, int kThreads>
  static __device__ __forceinline__ void Fetch(std::uint32_t tile, const PageHead& page, int row0,
                                               int valid, int head_dim, int thread) {
    constexpr int kChunks = kDim / 16;
    if constexpr (kKeys * kChunks % kThreads == 0) {
      if (head_dim == kDim && valid >= kKeys) {  // nearly always
        const int at = row0 * kDim + thread * 16;
#pragma unroll
        for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
          const int key = (i * kThreads + thread) / kChunks, chunk = thread % kChunks;
          ptx::CopyAsync16(KeyChunk(tile, key, chunk), page.keys + at + i * kThreads * 16);
          ptx::CopyAsync16(ValueChunk(tile + kKeys * kDim, key, chunk),
                           page.values + at + i * kThreads * 16);
        }
        if (thread < kKeys / 2) {
          const float* from = thread < kKeys / 4 ? page.key_scales : page.value_scales;
          ptx::CopyAsync16(tile + 2 * kKeys * kDim + thread * 16,
                           from + row0 + thread % (kKeys / 4) * 4);
        }
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < (kKeys * kChunks + kThreads - 1) / kThreads; ++i) {
      const int index = i * kThreads + thread, key = index / kChunks, chunk = index % kChunks;
      if (kKeys * kChunks % kThreads != 0 && key >= kKeys) break;
      const bool inside = chunk * 16 < head_dim && key < valid;
      const std::int64_t from = inside ? (row0 + key) * head_dim + chunk * 16 : 0;
      ptx::CopyAsync16(KeyChunk(tile, key, chunk), page.keys + from, inside ? 16 : 0);
      ptx::CopyAsync16(ValueChunk(tile + kKeys * kDim, key, chunk), page.values + from,
                       inside ? 16 : 0);
    }
    if (thread < kKeys / 2) {  // scales, four keys a thread; past `valid` they are not used
      const int key = thread % (kKeys / 4) * 4;
      const float* from = (thread < kKeys / 4 ? page.key_scales : page.value_scales) + row0 + key;
      ptx::CopyAsync16(tile + 2 * kKeys * kDim + thread * 16, from,
                       min(max(valid - key, 0), 4) * 4);
    }
  }

  // Step 4 i + j takes entries 64 i + 16 t + 4 j + {0, 1, 2, 3} of the head.
  template <typename Row>
  static __device__ __forceinline__ void LoadQueries(Queries& q, int head_dim, int lane,
                                                     const Row& row) {
    const int g = lane / 4, t = lane % 4;
    const T* rows[2] = {row(g), row(g + 8)};
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = i / 4 * 64 + 16 * t + i % 4 * 4 + 2 * (j >> 1);
        const T* at = rows[j & 1];
        q.a[i][j] = 0;
        if (at == nullptr || column >= head_dim) continue;
        const std::uint32_t pair = *reinterpret_cast<const std::uint32_t*>(at + column);
        const float2 v = UnpackPair<T>(pair);
        q.a[i][j] = std::is_same_v<T, half> ? pair : PackPair<half>(v.x, v.y);
      }
    }
    q.start[0] = q.start[1] = 0.0f;
    if constexpr (!kFloat) {
      float sum[4] = {};
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) ptx::Mma<half>(sum, q.a[i], kMinusBias, kMinusBias);
      q.start[0] = sum[0], q.start[1] = sum[2];
    }
  }

  template <int kKeys, int kTileKeys>
  static __device__ __forceinline__ void Scores(float (&s)[kKeys / 8][4], const Queries& q,
                                                std::uint32_t tile, int row0, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
      float odd[4] = {};  // two chains of products
      s[j][0] = s[j][1] = q.start[0], s[j][2] = s[j][3] = q.start[1];
#pragma unroll
      for (int i = 0; i < kDim / 64; ++i) {
        const uint4 v = ptx::LoadShared128(KeyChunk(tile, row0 + j * 8 + g, 4 * i + t));
        const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          std::uint32_t b[2];
          WidenBytes<kFloat>(words[step], b);
          ptx::Mma<half>(step % 2 == 0 ? s[j] : odd, q.a[4 * i + step], b[0], b[1]);
        }
      }
      const float2 scale = LoadScales(tile + 2 * kTileKeys * kDim, row0 + j * 8 + 2 * t);
      s[j][0] = (s[j][0] + odd[0]) * scale.x, s[j][1] = (s[j][1] + odd[1]) * scale.y;
      s[j][2] = (s[j][2] + odd[2]) * scale.x, s[j][3] = (s[j][3] + odd[3]) * scale.y;
    }
  }

  template <int kKeys, int kTileKeys>
  static __device__ __forceinline__ void Values(float (&out)[kOutTiles][4],
                                                const float (&s)[kKeys / 8][4], std::uint32_t tile,
                                                int row0, int lane) {
    const int g = lane / 4, t = lane % 4;
    const std::uint32_t values = tile + kTileKeys * kDim,
                        scales = tile + kTileKeys * (2 * kDim + 4);
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      std::uint32_t p[4];
#pragma unroll
      for (int half_tile = 0; half_tile < 2; ++half_tile) {
        const float (&from)[4] = s[2 * j + half_tile];
        const float2 scale = LoadScales(scales, row0 + j * 16 + half_tile * 8 + 2 * t);
        p[2 * half_tile] = PackPair<half>(from[0] * scale.x, from[1] * scale.y);
        p[2 * half_tile + 1] = PackPair<half>(from[2] * scale.x, from[3] * scale.y);
      }
      if constexpr (!kFloat) ptx::Mma<half>(out[kDim / 8], p, kMinusBias, kMinusBias);
      // Keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9; kDim / 8 entries from g * kDim / 8 on.
      constexpr int kPart = kDim == 64 ? 8 : 16;
#pragma unroll
      for (int part = 0; part < kDim / 8 / kPart; ++part) {
        std::uint32_t words[4][kPart / 4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int key = row0 + j * 16 + 2 * t + (k & 1) + (k >> 1) * 8;
          if constexpr (kDim == 64) {
            const uint2 v = ptx::LoadShared64(ValueChunk(values, key, g / 2) + g % 2 * 8);
            words[k][0] = v.x, words[k][1] = v.y;
          } else {
            const uint4 v = ptx::LoadShared128(ValueChunk(values, key, g * (kDim / 128) + part));
            words[k][0] = v.x, words[k][1] = v.y, words[k][2] = v.z, words[k][3] = v.w;
          }
        }
#pragma unroll
        for (int i = 0; i < kPart; i += 2) {  // bytes i and i + 1 of two keys, twice
          const int select = i % 4 == 0 ? 0x5140 : 0x7362;
          std::uint32_t low[2], high[2];
          WidenBytes<kFloat>(__byte_perm(words[0][i / 4], words[1][i / 4], select), low);
          WidenBytes<kFloat>(__byte_perm(words[2][i / 4], words[3][i / 4], select), high);
          ptx::Mma<half>(out[part * kPart + i], p, low[0], high[0]);
          ptx::Mma<half>(out[part * kPart + i + 1], p, low[1], high[1]);
        }
      }
    }
  }

 private:
  static constexpr std::uint32_t kMinusBias = 0xe480e480u;  // -kByteBias as f16, twice
  static __device__ __forceinline__ float2 LoadScales(std::uint32_t scales, int key) {
    const uint2 v = ptx::LoadShared64(scales + key * 4);
    return {__uint_as_float(v.x), __uint_as_float(v.y)};
  }
};

// What both launchers ask of their arguments. Rows of the cache are copied 16 bytes at a time.
inline bool ValidAttention(const AttentionArgs& args) {
  return args.kv.page_tokens == kPageTokens && args.head_dim > 0 && args.head_dim <= 256 &&
         args.head_dim % (args.kv.Scaled() ? 16 : 8) == 0 && args.kv_heads > 0 &&
         args.heads % args.kv_heads == 0 && args.ld_q % 8 == 0 &&
         args.kv.num_kv_heads == args.kv_heads && args.kv.head_dim == args.head_dim;
}

// Calls body<Tiles>() with the tiles of a cache of `kv_dtype`; other types are an invalid argument.
template <typename T, typename Body>
cudaError_t ByTiles(DType dtype, DType kv_dtype, int head_dim, const Body& body) {
  const int dim = PaddedHeadDim(head_dim);
  if (kv_dtype == dtype) {
    if (dim == 64) return body.template operator()<HalfTiles<T, 64>>();
    if (dim == 128) return body.template operator()<HalfTiles<T, 128>>();
    return body.template operator()<HalfTiles<T, 256>>();
  }
  if (kv_dtype == DType::kF8E4M3) {
    if (dim == 64) return body.template operator()<ByteTiles<T, 64, true>>();
    if (dim == 128) return body.template operator()<ByteTiles<T, 128, true>>();
    return body.template operator()<ByteTiles<T, 256, true>>();
  }
  if (kv_dtype == DType::kI8) {
    if (dim == 64) return body.template operator()<ByteTiles<T, 64, false>>();
    if (dim == 128) return body.template operator()<ByteTiles<T, 128, false>>();
    return body.template operator()<ByteTiles<T, 256, false>>();
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibble::cuda
