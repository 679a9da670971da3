// Sixteen lanes of f32 or i32 for whichever instruction set the including file is compiled for:
// AVX-512, AVX2 with FMA and F16C, or plain C++. Everything has internal linkage, so that code
// compiled for a newer machine can never be chosen by the linker for an older one. Include only
// from the kernels_<isa>.cc files.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

// Where a call in the innermost loop would cost more than the work.
#define NIBBLE_INLINE inline __attribute__((always_inline))
#define NIBBLE_NOINLINE __attribute__((noinline))
// Before a short loop over registers, which must not stay a loop. Plain lanes are in no registers.
#if !defined(__AVX2__)
#define NIBBLE_UNROLL
#elif defined(__clang__)
#define NIBBLE_UNROLL _Pragma("unroll")
#else
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")
#endif
// Before a loop whose body fills the registers by itself.
#if defined(__clang__)
#define NIBBLE_KEEP_LOOP _Pragma("nounroll")
#else
#define NIBBLE_KEEP_LOOP _Pragma("GCC unroll 1")
#endif

namespace nibble::cpu {
namespace {

// What was stored stays in memory, where registers are wanted for something else.
NIBBLE_INLINE void KeepInMemory() { __asm__ volatile("" ::: "memory"); }

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

#if defined(__AVX512F__)
#include "kernels/cpu/vec_avx512.inc"
#elif defined(__AVX2__)
#include "kernels/cpu/vec_avx2.inc"
#else
#include "kernels/cpu/vec_plain.inc"
#endif

inline F32x16 LoadBf16(const std::uint16_t* p) { return AsFloat(Shl<16>(LoadU16(p))); }

// Round to nearest, ties to even; NaN stays NaN.
inline void StoreBf16(std::uint16_t* p, F32x16 a) {
  const I32x16 bits = AsInt(a);
  const I32x16 rounded = Shr<16>(bits + SetI(0x7fff) + (Shr<16>(bits) & SetI(1)));
  const I32x16 quiet = Shr<16>(bits) | SetI(0x40);
  StoreLow16(p, AsInt(Select(IsNan(a), AsFloat(quiet), AsFloat(rounded))));
}

// The first `count` lanes from memory, zero above; and the first `count` lanes to memory.
#if !defined(__AVX512F__)
inline F32x16 LoadFirst(const float* p, int count) {
  if (count >= 16) return Load(p);
  float lanes[16] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return Load(lanes);
}
inline void StoreFirst(float* p, F32x16 a, int count) {
  if (count >= 16) return Store(p, a);
  float lanes[16];
  Store(lanes, a);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
#endif

// Horizontal reductions in one fixed order: lane i with lane i + 8, then 4, 2, 1.
#if defined(__AVX2__)
#if defined(__AVX512F__)
inline __m256 LowHalf(F32x16 a) { return _mm512_castps512_ps256(a.v); }
inline __m256 HighHalf(F32x16 a) { return _mm512_extractf32x8_ps(a.v, 1); }
inline __m256i LowHalf(I32x16 a) { return _mm512_castsi512_si256(a.v); }
inline __m256i HighHalf(I32x16 a) { return _mm512_extracti32x8_epi32(a.v, 1); }
#else
inline __m256 LowHalf(F32x16 a) { return a.lo; }
inline __m256 HighHalf(F32x16 a) { return a.hi; }
inline __m256i LowHalf(I32x16 a) { return a.lo; }
inline __m256i HighHalf(I32x16 a) { return a.hi; }
#endif
inline float Sum(F32x16 a) {
  const __m256 eight = _mm256_add_ps(LowHalf(a), HighHalf(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float MaxLane(F32x16 a) {
  const __m256 eight = _mm256_max_ps(LowHalf(a), HighHalf(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline std::int32_t SumLanes(I32x16 a) {
  const __m256i eight = _mm256_add_epi32(LowHalf(a), HighHalf(a));
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0x55)));
}
#else
inline float Sum(F32x16 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  }
  return a.v[0];
}
inline float MaxLane(F32x16 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
  }
  return a.v[0];
}
inline std::int32_t SumLanes(I32x16 a) {
  std::int32_t sum = 0;
  for (const std::int32_t x : a.v) sum += x;
  return sum;
}
#endif

#if !defined(__AVX512F__)
// p * 2^n of whole n, in two factors, so that n = 128 does not overflow before the product does.
inline F32x16 TimesPowerOfTwo(F32x16 p, F32x16 n) {
  const I32x16 exponent = ToInt(n), half = Sar<1>(exponent);
  const F32x16 a = AsFloat(Shl<23>(half + SetI(127)));
  const F32x16 b = AsFloat(Shl<23>(exponent - half + SetI(127)));
  return p * a * b;
}
#endif

// e^x within 2 ulp; 0 below -87.3, +inf above 88.7, NaN stays NaN. Cody-Waite reduction by ln 2,
// then the degree-6 polynomial of the Taylor family with minimax coefficients (Cephes expf).
inline F32x16 Exp(F32x16 x) {
  const F32x16 clamped = Min(Set(89.0f), Max(Set(-87.5f), x));  // which return NaN where x is
  const F32x16 n = RoundEven(clamped * Set(1.44269504088896341f));
  F32x16 r = Fma(n, Set(-0.693359375f), clamped);
  r = Fma(n, Set(2.12194440e-4f), r);
  F32x16 p = Set(1.9875691500e-4f);
  p = Fma(p, r, Set(1.3981999507e-3f));
  p = Fma(p, r, Set(8.3334519073e-3f));
  p = Fma(p, r, Set(4.1665795894e-2f));
  p = Fma(p, r, Set(1.6666665459e-1f));
  p = Fma(p, r, Set(5.0000001201e-1f));
  p = Fma(p, r * r, r + Set(1.0f));
  return Select(Less(x, Set(-87.336f)), Zero(), TimesPowerOfTwo(p, n));
}

// tanh x: an odd polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel.
inline F32x16 Tanh(F32x16 x) {
  const F32x16 z = x * x;
  F32x16 p = Set(-5.70498872745e-3f);
  p = Fma(p, z, Set(2.06390887954e-2f));
  p = Fma(p, z, Set(-5.37397155531e-2f));
  p = Fma(p, z, Set(1.33314422036e-1f));
  p = Fma(p, z, Set(-3.33332819422e-1f));
  const F32x16 near = Fma(p * z, x, x);
  const F32x16 far = Set(1.0f) - Set(2.0f) / (Exp(x + x) + Set(1.0f));
  return Select(Less(Abs(x), Set(0.625f)), near, far);
}

}  // namespace
}  // namespace nibble::cpu
