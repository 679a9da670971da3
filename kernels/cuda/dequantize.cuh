// From packed codes to operand A holding weights: scale * (q - zero) + bias, or scale * table[q],
// rounded to T.
//
// Rows g and g + 8 of a fragment have numbers of their own. In f16 a code is or-ed into the
// mantissa of 1024, so that q - zero leaves with one exact multiply-add and the weight with
// another. bf16 has too few bits for scales: its weights are made in f32.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/cuda/fragments.cuh"

namespace nibble {

// What one group of 16 rows needs. `down`, a power of two, keeps f16 weights in range: weights come
// out times it.
template <typename T, typename Codes>
struct Dequantizer {
  static constexpr bool kHalf = std::is_same_v<T, half>;
  using Number = std::conditional_t<kHalf, half2, float>;

  Number scale[2], shift[2], bias[2];
  std::uint32_t magic = Opaque(kHalf ? 0x64006400u : Codes::kWidth == 8 ? 0u : 0x43004300u);

  // scales: (row g, row g + 8) as packed; offsets likewise, unless kConstant, where `zero` counts.
  __host__ __device__ __forceinline__ void Set(std::uint32_t scales, std::uint32_t offsets,
                                               OffsetMode mode, float zero, float down) {
    if constexpr (kHalf) {
      const half2 by = __float2half2_rn(down), s = __hmul2(Half2(scales), by);
      scale[0] = __low2half2(s), scale[1] = __high2half2(s);
      if constexpr (!Codes::kTable) {
        half2 whole = __float2half2_rn(zero), b = __float2half2_rn(0.0f);
        if (mode == OffsetMode::kZeros) {
          const half2 magic = __float2half2_rn(1024.0f), z = Half2(offsets);
          whole = __hsub2(__hadd2(z, magic), magic);
          b = __hmul2(__hsub2(whole, z), s);  // fractions of zero points
        } else if (mode == OffsetMode::kBias) {
          whole = b, b = __hmul2(Half2(offsets), by);
        }
        const half2 base = __floats2half2_rn(-1024.0f, -1024.0f / (1 << Codes::kBitHigh));
        const half2 c = __hsub2(base, whole);
        shift[0] = __low2half2(c), shift[1] = __high2half2(c);
        bias[0] = __low2half2(b), bias[1] = __high2half2(b);
      }
    } else {
      const float2 s = ToFloats(scales), o = ToFloats(offsets);
      scale[0] = s.x * down, scale[1] = s.y * down;
      if constexpr (!Codes::kTable) {
        constexpr float kLift = Codes::kWidth == 8 ? 0.0f : 128.0f;
        const bool zeros = mode == OffsetMode::kZeros;
        const float z0 = (zeros ? o.x : zero) + kLift, z1 = (zeros ? o.y : zero) + kLift;
        bias[0] = -scale[0] * z0, bias[1] = -scale[1] * z1;
        if (mode == OffsetMode::kBias) {
          bias[0] = o.x * down - scale[0] * kLift, bias[1] = o.y * down - scale[1] * kLift;
        }
      }
    }
  }

  // Register `pair` of k-step `step`. `codebook`: the pair's entries, from the pair table.
  __host__ __device__ __forceinline__ std::uint32_t Weights(const Codes& codes, int step, int pair,
                                                            std::uint32_t codebook) const {
    const int r = pair & 1;
    if constexpr (Codes::kTable) {
      if constexpr (kHalf) {
        return Bits(__hmul2(Half2(codebook), scale[r]));
      } else {
        const float2 v = Bf16Floats(codebook);
        return Bf16Pair(v.x * scale[r], v.y * scale[r]);
      }
    } else {
      const std::uint32_t q = codes.RawPair(step, pair, magic);
      if constexpr (kHalf) {
        const half2 v = Half2(q);  // 1024 + q, or 1024 + q * 2^kBitHigh
        const half2 whole =
            r == 0 || Codes::kBitHigh == 0
                ? __hadd2(v, shift[r])
                : Fma2(v, __float2half2_rn(1.0f / (1 << Codes::kBitHigh)), shift[r]);
        return Bits(Fma2(whole, scale[r], bias[r]));
      } else {
        float2 v;
        if constexpr (Codes::kWidth == 8) {
          v.x = Float(0x4B000000u | (q & 0xffffu)) - 8388608.0f;
          v.y = Float(0x4B000000u | (q >> 16)) - 8388608.0f;
        } else {
          v = Bf16Floats(q);  // 128 + q
        }
        return Bf16Pair(fmaf(v.x, scale[r], bias[r]), fmaf(v.y, scale[r], bias[r]));
      }
    }
  }

  __device__ __forceinline__ void Fragment(const Codes& codes, int step, std::uint32_t lane_table,
                                           std::uint32_t (&a)[4]) const {
    std::uint32_t entries[4] = {};
    if constexpr (Codes::kTable) codes.Fragment(step, lane_table, entries);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) a[pair] = Weights(codes, step, pair, entries[pair]);
  }

  // A constant that the compiler must keep in a register.
  static __host__ __device__ __forceinline__ std::uint32_t Opaque(std::uint32_t v) {
#ifdef __CUDA_ARCH__
    asm("" : "+r"(v));
#endif
    return v;
  }
  static __host__ __device__ __forceinline__ half2 Fma2(half2 a, half2 b, half2 c) {
#ifdef __CUDA_ARCH__
    return __hfma2(a, b, c);
#else
    const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
    return __floats2half2_rn(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
#endif
  }
  static __host__ __device__ __forceinline__ half2 Half2(std::uint32_t v) {
    half2 h;
    memcpy(&h, &v, 4);
    return h;
  }
  static __host__ __device__ __forceinline__ std::uint32_t Bits(half2 h) {
    std::uint32_t v;
    memcpy(&v, &h, 4);
    return v;
  }
  static __host__ __device__ __forceinline__ float Float(std::uint32_t v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
  }
  static __host__ __device__ __forceinline__ float2 ToFloats(std::uint32_t v) {
    return __half22float2(Half2(v));
  }
  static __host__ __device__ __forceinline__ float2 Bf16Floats(std::uint32_t v) {
    return make_float2(Float(v << 16), Float(v & 0xffff0000u));
  }
  static __host__ __device__ __forceinline__ std::uint32_t Bf16Pair(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    std::uint32_t v;
    memcpy(&v, &pair, 4);
    return v;
  }
};

}  // namespace nibble
