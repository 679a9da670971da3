// From packed codes to operand A holding weights: scale * (q - zero) + bias, or scale * table[q],
// rounded to T.
//
// Rows g and g + 8 of a fragment have numbers of their own. In f16 a code is or-ed into the
// mantissa of 1024, so that q - zero leaves with one exact multiply-add and the weight with
// another. bf16 has too few bits for scales: they are the sum of two, and a weight is rounded once,
// in the last of its multiply-adds. Codes of 8 bits, whose differences bf16 does not hold, and of
// 6, whose groups of 16 would spend more on their numbers than they save, are made in f32.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/cuda/fragments.cuh"

namespace nibble {

// The bits of one as another of the same size.
template <typename To, typename From>
__host__ __device__ __forceinline__ To BitsAs(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// How offsets count, the same for a whole matrix: half2 as bits, or f32 where T is bfloat16. With
// it every mode takes the same instructions: they run once a group, as often as every k-step.
struct OffsetRule {
  std::uint32_t by;      // of scales: a power of two that keeps f16 weights in range
  std::uint32_t zeros;   // 1 or 0: offsets are zero points
  std::uint32_t biases;  // `by` or 0: offsets are biases
  std::uint32_t zero;    // the zero point where offsets are none
};
template <typename T>
__host__ __device__ inline OffsetRule RuleOf(OffsetMode mode, float zero, float by) {
  const auto bits = [](float v) {
    if constexpr (std::is_same_v<T, half>) {
      return BitsAs<std::uint32_t>(__float2half2_rn(v));
    } else {
      return BitsAs<std::uint32_t>(v);
    }
  };
  const bool biases = mode == OffsetMode::kBias;
  const bool zeros = mode == OffsetMode::kZeros;
  return {bits(by), bits(zeros ? 1.0f : 0.0f), bits(biases ? by : 0.0f), bits(zeros ? 0.0f : zero)};
}

// What one group of 16 rows needs. Weights come out times the rule's `by`.
template <typename T, typename Codes>
struct Dequantizer {
  static constexpr bool kHalf = std::is_same_v<T, half>;
  static constexpr bool kTwoScales = !kHalf && (Codes::kTable || Codes::kWidth < 6);
  using Number =
      std::conditional_t<kHalf, half2, std::conditional_t<kTwoScales, __nv_bfloat162, float>>;

  Number scale[2], shift[2], bias[2];
  Number scale_rest[2];  // kTwoScales
  std::uint32_t magic = Opaque(kHalf ? 0x64006400u : Codes::kWidth == 8 ? 0u : 0x43004300u);

  // scales: (row g, row g + 8) as packed; offsets likewise, 0 for OffsetMode::kConstant.
  __host__ __device__ __forceinline__ void Set(std::uint32_t scales, std::uint32_t offsets,
                                               const OffsetRule& rule) {
    if constexpr (kHalf) {
      const half2 s = __hmul2(BitsAs<half2>(scales), BitsAs<half2>(rule.by));
      scale[0] = __low2half2(s), scale[1] = __high2half2(s);
      if constexpr (!Codes::kTable) {
        const half2 o = BitsAs<half2>(offsets), lift = __float2half2_rn(1024.0f),
                    z = Fma2(o, BitsAs<half2>(rule.zeros), BitsAs<half2>(rule.zero));
        const half2 whole = __hsub2(__hadd2(z, lift), lift);
        // Fractions of zero points, or biases.
        const half2 b = Fma2(__hsub2(whole, z), s, __hmul2(o, BitsAs<half2>(rule.biases)));
        const half2 base = __floats2half2_rn(-1024.0f, -1024.0f / (1 << Codes::kBitHigh));
        const half2 c = __hsub2(base, whole);
        shift[0] = __low2half2(c), shift[1] = __high2half2(c);
        bias[0] = __low2half2(b), bias[1] = __high2half2(b);
      }
    } else {
      float2 s = ToFloats(scales), b = {};
      s.x *= BitsAs<float>(rule.by), s.y *= BitsAs<float>(rule.by);
      if constexpr (!Codes::kTable) {  // weights are s * q + b
        const float2 o = ToFloats(offsets);
        b.x = fmaf(-s.x, fmaf(o.x, BitsAs<float>(rule.zeros), BitsAs<float>(rule.zero)),
                   o.x * BitsAs<float>(rule.biases));
        b.y = fmaf(-s.y, fmaf(o.y, BitsAs<float>(rule.zeros), BitsAs<float>(rule.zero)),
                   o.y * BitsAs<float>(rule.biases));
      }
      if constexpr (kTwoScales) {
        SetTwoScales(s, b);
      } else {
        constexpr float kLift = Codes::kWidth == 8 ? 0.0f : 128.0f;
        scale[0] = s.x, scale[1] = s.y;
        bias[0] = fmaf(-s.x, kLift, b.x), bias[1] = fmaf(-s.y, kLift, b.y);
      }
    }
  }

  // s * q + b = s * (q - whole) + rest: the difference is exact, and the rest as small as s.
  __host__ __device__ __forceinline__ void SetTwoScales(float2 s, float2 b) {
    const float2 high = Duplicate(s, scale);
    Duplicate({s.x - high.x, s.y - high.y}, scale_rest);
    if constexpr (!Codes::kTable) {
      const auto lifted = [](float scale, float bias) {  // where both are 0, any will do
        return fminf(fmaxf(128.0f - Divide(bias, scale), -127.0f), 255.0f);
      };
      const float2 minus =
          Duplicate({-lifted(s.x, b.x), -lifted(s.y, b.y)}, shift);  // -(128 + whole)
      Duplicate({fmaf(-128.0f - minus.x, s.x, b.x), fmaf(-128.0f - minus.y, s.y, b.y)}, bias);
    }
  }

  // Register `pair` of k-step `step`. `codebook`: the pair's entries, from the pair table.
  __host__ __device__ __forceinline__ std::uint32_t Weights(const Codes& codes, int step, int pair,
                                                            std::uint32_t codebook) const {
    const int r = pair & 1;
    if constexpr (Codes::kTable) {
      if constexpr (kHalf) {
        return BitsAs<std::uint32_t>(__hmul2(BitsAs<half2>(codebook), scale[r]));
      } else {
        const __nv_bfloat162 v = BitsAs<__nv_bfloat162>(codebook);
        return BitsAs<std::uint32_t>(Fma2(v, scale[r], __hmul2(v, scale_rest[r])));
      }
    } else {
      const std::uint32_t q = codes.RawPair(step, pair, magic);
      if constexpr (kHalf) {
        const half2 v = BitsAs<half2>(q);  // 1024 + q, or 1024 + q * 2^kBitHigh
        const half2 whole =
            r == 0 || Codes::kBitHigh == 0
                ? __hadd2(v, shift[r])
                : Fma2(v, __float2half2_rn(1.0f / (1 << Codes::kBitHigh)), shift[r]);
        return BitsAs<std::uint32_t>(Fma2(whole, scale[r], bias[r]));
      } else if constexpr (kTwoScales) {
        const __nv_bfloat162 whole = __hadd2(BitsAs<__nv_bfloat162>(q), shift[r]);  // of 128 + q
        return BitsAs<std::uint32_t>(Fma2(whole, scale[r], Fma2(whole, scale_rest[r], bias[r])));
      } else {
        float2 v;
        if constexpr (Codes::kWidth == 8) {
          v.x = BitsAs<float>(0x4B000000u | (q & 0xffffu)) - 8388608.0f;
          v.y = BitsAs<float>(0x4B000000u | (q >> 16)) - 8388608.0f;
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

  static __host__ __device__ __forceinline__ half2 Fma2(half2 a, half2 b, half2 c) {
#ifdef __CUDA_ARCH__
    return __hfma2(a, b, c);
#else
    const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
    return __floats2half2_rn(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
#endif
  }
  static __host__ __device__ __forceinline__ __nv_bfloat162 Fma2(__nv_bfloat162 a, __nv_bfloat162 b,
                                                                 __nv_bfloat162 c) {
#ifdef __CUDA_ARCH__
    return __hfma2(a, b, c);
#else
    const float2 x = __bfloat1622float2(a), y = __bfloat1622float2(b), z = __bfloat1622float2(c);
    return __floats2bfloat162_rn(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
#endif
  }
  static __host__ __device__ __forceinline__ float Divide(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdividef(a, b);
#else
    return a / b;
#endif
  }
  // Rows g and g + 8 rounded to T, each twice; what they then are.
  static __host__ __device__ __forceinline__ float2 Duplicate(float2 rows, Number (&to)[2]) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(rows.x, rows.y);
    to[0] = __low2bfloat162(pair), to[1] = __high2bfloat162(pair);
    return __bfloat1622float2(pair);
  }
  static __host__ __device__ __forceinline__ float2 ToFloats(std::uint32_t v) {
    return __half22float2(BitsAs<half2>(v));
  }
  static __host__ __device__ __forceinline__ float2 Bf16Floats(std::uint32_t v) {
    return make_float2(BitsAs<float>(v << 16), BitsAs<float>(v & 0xffff0000u));
  }
  static __host__ __device__ __forceinline__ std::uint32_t Bf16Pair(float first, float second) {
    return BitsAs<std::uint32_t>(__floats2bfloat162_rn(first, second));
  }
};

}  // namespace nibble
