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

namespace nibble::cpu {
namespace {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

#if defined(__AVX512F__)

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct Mask16 {
  __mmask16 v;
};

inline F32x16 Zero() { return {_mm512_setzero_ps()}; }
inline F32x16 Set(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void Store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 Max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 Min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 Abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 RoundEven(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Mask16 Less(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask16 IsNan(F32x16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline bool Any(Mask16 m) { return m.v != 0; }
inline F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm512_mask_blend_ps(m.v, no.v, yes.v)};
}

inline I32x16 SetI(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32x16 LoadI(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void StoreI(void* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kBits>
inline I32x16 Shr(I32x16 a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
template <int kBits>
inline I32x16 Shl(I32x16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline I32x16 Sar(I32x16 a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
inline Mask16 Equal(I32x16 a, I32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline Mask16 LessI(I32x16 a, I32x16 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
inline F32x16 ToFloat(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32x16 ToInt(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest even
inline F32x16 AsFloat(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I32x16 AsInt(F32x16 a) { return {_mm512_castps_si512(a.v)}; }

inline I32x16 LoadI8(const std::int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32x16 LoadU8(const std::uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32x16 LoadU16(const std::uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 LoadF16(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void StoreF16(std::uint16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void StoreLow16(std::uint16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
inline void StoreLow8(std::int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// table[index] of sixteen floats. REQUIRES: 0 <= index < 16.
inline F32x16 Lookup(F32x16 table, I32x16 index) {
  return {_mm512_permutexvar_ps(index.v, table.v)};
}

// acc[lane] += sum over j < 4 of u8(w[lane][j]) * s8(x[j]), exactly.
inline I32x16 DotU8S8(I32x16 acc, I32x16 w, std::int32_t x) {
  return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(x))};
}

// Columns of a 16 x 16 block from its rows, in place.
inline void Transpose(F32x16 r[16]) {
  __m512 s[4][4];  // s[g][j]: 128-bit lane l holds column 4 l + j of rows 4 g .. 4 g + 3
  for (int g = 0; g < 4; ++g) {
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[4 * g].v, r[4 * g + 1].v));
    const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[4 * g].v, r[4 * g + 1].v));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[4 * g + 2].v, r[4 * g + 3].v));
    const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[4 * g + 2].v, r[4 * g + 3].v));
    s[g][0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
    s[g][1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
    s[g][2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
    s[g][3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even01 = _mm512_shuffle_f32x4(s[0][j], s[1][j], 0x88);
    const __m512 even23 = _mm512_shuffle_f32x4(s[2][j], s[3][j], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(s[0][j], s[1][j], 0xdd);
    const __m512 odd23 = _mm512_shuffle_f32x4(s[2][j], s[3][j], 0xdd);
    r[j].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    r[4 + j].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    r[8 + j].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    r[12 + j].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

inline constexpr int kVectorRegisters = 32;  // of sixteen lanes

#elif defined(__AVX2__)

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct Mask16 {
  __m256 lo, hi;
};

inline F32x16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32x16 Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 Max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F32x16 Min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F32x16 Abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F32x16 RoundEven(F32x16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
inline Mask16 Less(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline Mask16 IsNan(F32x16 a) {
  return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)};
}
inline bool Any(Mask16 m) { return (_mm256_movemask_ps(m.lo) | _mm256_movemask_ps(m.hi)) != 0; }
inline F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}

inline I32x16 SetI(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32x16 LoadI(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
inline void StoreI(void* p, I32x16 a) {
  auto* v = static_cast<__m256i*>(p);
  _mm256_storeu_si256(v, a.lo);
  _mm256_storeu_si256(v + 1, a.hi);
}
inline I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline I32x16 operator-(I32x16 a, I32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
inline I32x16 operator&(I32x16 a, I32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
inline I32x16 operator|(I32x16 a, I32x16 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
template <int kBits>
inline I32x16 Shr(I32x16 a) {
  return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
template <int kBits>
inline I32x16 Shl(I32x16 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
inline I32x16 Sar(I32x16 a) {
  return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)};
}
inline Mask16 Equal(I32x16 a, I32x16 b) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.lo, b.lo)),
          _mm256_castsi256_ps(_mm256_cmpeq_epi32(a.hi, b.hi))};
}
inline Mask16 LessI(I32x16 a, I32x16 b) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.lo, a.lo)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.hi, a.hi))};
}
inline F32x16 ToFloat(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I32x16 ToInt(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F32x16 AsFloat(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I32x16 AsInt(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }

inline __m128i Load64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
inline I32x16 LoadI8(const std::int8_t* p) {
  return {_mm256_cvtepi8_epi32(Load64(p)), _mm256_cvtepi8_epi32(Load64(p + 8))};
}
inline I32x16 LoadU8(const std::uint8_t* p) {
  return {_mm256_cvtepu8_epi32(Load64(p)), _mm256_cvtepu8_epi32(Load64(p + 8))};
}
inline __m128i Load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline I32x16 LoadU16(const std::uint16_t* p) {
  return {_mm256_cvtepu16_epi32(Load128(p)), _mm256_cvtepu16_epi32(Load128(p + 8))};
}
inline F32x16 LoadF16(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(Load128(p)), _mm256_cvtph_ps(Load128(p + 8))};
}
inline void StoreF16(std::uint16_t* p, F32x16 a) {
  auto* v = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(v, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(v + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline void StoreLow16(std::uint16_t* p, I32x16 a) {
  alignas(32) std::uint32_t lanes[16];
  StoreI(lanes, a);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::uint16_t>(lanes[i]);
}
inline void StoreLow8(std::int8_t* p, I32x16 a) {
  alignas(32) std::int32_t lanes[16];
  StoreI(lanes, a);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(lanes[i]);
}
inline F32x16 Lookup(F32x16 table, I32x16 index) {
  const __m256i seven = _mm256_set1_epi32(7);
  const auto half = [&](__m256i i) {
    const __m256 low = _mm256_permutevar8x32_ps(table.lo, i);
    const __m256 high = _mm256_permutevar8x32_ps(table.hi, i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_cmpgt_epi32(i, seven)));
  };
  return {half(index.lo), half(index.hi)};
}

#if defined(__AVXVNNI__)
inline I32x16 DotU8S8(I32x16 acc, I32x16 w, std::int32_t x) {
  const __m256i b = _mm256_set1_epi32(x);
  return {_mm256_dpbusd_avx_epi32(acc.lo, w.lo, b), _mm256_dpbusd_avx_epi32(acc.hi, w.hi, b)};
}
#else
// Through 16-bit products: the 8-bit multiply-add of AVX2 saturates.
inline I32x16 DotU8S8(I32x16 acc, I32x16 w, std::int32_t x) {
  const __m256i b = _mm256_set1_epi32(x);
  const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8);
  const __m256i x_odd = _mm256_srai_epi16(b, 8);
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  const auto half = [&](__m256i sum, __m256i u) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low_byte), x_even);
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), x_odd);
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  };
  return {half(acc.lo, w.lo), half(acc.hi, w.hi)};
}
#endif

inline void Transpose8(__m256 r[8]) {
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m256 s[8];
  for (int i = 0; i < 2; ++i) {
    s[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    s[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    s[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    s[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(s[i], s[i + 4], 0x31);
  }
}
inline void Transpose(F32x16 r[16]) {
  __m256 quarter[4][8];  // [row half * 2 + column half]
  for (int i = 0; i < 8; ++i) {
    quarter[0][i] = r[i].lo;
    quarter[1][i] = r[i].hi;
    quarter[2][i] = r[i + 8].lo;
    quarter[3][i] = r[i + 8].hi;
  }
  for (auto& q : quarter) Transpose8(q);
  for (int i = 0; i < 8; ++i) {
    r[i] = {quarter[0][i], quarter[2][i]};
    r[i + 8] = {quarter[1][i], quarter[3][i]};
  }
}

inline constexpr int kVectorRegisters = 8;

#else

struct F32x16 {
  float v[16];
};
struct I32x16 {
  std::int32_t v[16];
};
struct Mask16 {
  bool v[16];
};

#define NIBBLE_LANES for (int i = 0; i < 16; ++i)
inline F32x16 Set(float x) {
  F32x16 r;
  NIBBLE_LANES r.v[i] = x;
  return r;
}
inline F32x16 Zero() { return Set(0.0f); }
inline F32x16 Load(const float* p) {
  F32x16 r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
inline void Store(float* p, F32x16 a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline F32x16 operator+(F32x16 a, F32x16 b) {
  NIBBLE_LANES a.v[i] += b.v[i];
  return a;
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  NIBBLE_LANES a.v[i] -= b.v[i];
  return a;
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  NIBBLE_LANES a.v[i] *= b.v[i];
  return a;
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  NIBBLE_LANES a.v[i] /= b.v[i];
  return a;
}
inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  NIBBLE_LANES c.v[i] = a.v[i] * b.v[i] + c.v[i];
  return c;
}
inline F32x16 Max(F32x16 a, F32x16 b) {
  NIBBLE_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
inline F32x16 Min(F32x16 a, F32x16 b) {
  NIBBLE_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}
inline F32x16 Abs(F32x16 a) {
  NIBBLE_LANES a.v[i] = __builtin_fabsf(a.v[i]);
  return a;
}
inline F32x16 RoundEven(F32x16 a) {
  NIBBLE_LANES a.v[i] = __builtin_rintf(a.v[i]);
  return a;
}
inline Mask16 Less(F32x16 a, F32x16 b) {
  Mask16 r;
  NIBBLE_LANES r.v[i] = a.v[i] < b.v[i];
  return r;
}
inline Mask16 IsNan(F32x16 a) {
  Mask16 r;
  NIBBLE_LANES r.v[i] = a.v[i] != a.v[i];
  return r;
}
inline bool Any(Mask16 m) {
  bool any = false;
  NIBBLE_LANES any |= m.v[i];
  return any;
}
inline F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) {
  NIBBLE_LANES no.v[i] = m.v[i] ? yes.v[i] : no.v[i];
  return no;
}

inline I32x16 SetI(std::int32_t x) {
  I32x16 r;
  NIBBLE_LANES r.v[i] = x;
  return r;
}
inline I32x16 LoadI(const void* p) {
  I32x16 r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
inline void StoreI(void* p, I32x16 a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline I32x16 operator+(I32x16 a, I32x16 b) {
  NIBBLE_LANES a.v[i] += b.v[i];
  return a;
}
inline I32x16 operator-(I32x16 a, I32x16 b) {
  NIBBLE_LANES a.v[i] -= b.v[i];
  return a;
}
inline I32x16 operator&(I32x16 a, I32x16 b) {
  NIBBLE_LANES a.v[i] &= b.v[i];
  return a;
}
inline I32x16 operator|(I32x16 a, I32x16 b) {
  NIBBLE_LANES a.v[i] |= b.v[i];
  return a;
}
template <int kBits>
inline I32x16 Shr(I32x16 a) {
  NIBBLE_LANES a.v[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) >> kBits);
  return a;
}
template <int kBits>
inline I32x16 Shl(I32x16 a) {
  NIBBLE_LANES a.v[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) << kBits);
  return a;
}
template <int kBits>
inline I32x16 Sar(I32x16 a) {
  NIBBLE_LANES a.v[i] >>= kBits;
  return a;
}
inline Mask16 Equal(I32x16 a, I32x16 b) {
  Mask16 r;
  NIBBLE_LANES r.v[i] = a.v[i] == b.v[i];
  return r;
}
inline Mask16 LessI(I32x16 a, I32x16 b) {
  Mask16 r;
  NIBBLE_LANES r.v[i] = a.v[i] < b.v[i];
  return r;
}
inline F32x16 ToFloat(I32x16 a) {
  F32x16 r;
  NIBBLE_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
inline I32x16 ToInt(F32x16 a) {
  I32x16 r;
  NIBBLE_LANES r.v[i] = static_cast<std::int32_t>(__builtin_rintf(a.v[i]));
  return r;
}
inline F32x16 AsFloat(I32x16 a) {
  F32x16 r;
  std::memcpy(r.v, a.v, sizeof(r.v));
  return r;
}
inline I32x16 AsInt(F32x16 a) {
  I32x16 r;
  std::memcpy(r.v, a.v, sizeof(r.v));
  return r;
}

inline I32x16 LoadI8(const std::int8_t* p) {
  I32x16 r;
  NIBBLE_LANES r.v[i] = p[i];
  return r;
}
inline I32x16 LoadU8(const std::uint8_t* p) {
  I32x16 r;
  NIBBLE_LANES r.v[i] = p[i];
  return r;
}
inline I32x16 LoadU16(const std::uint16_t* p) {
  I32x16 r;
  NIBBLE_LANES r.v[i] = p[i];
  return r;
}
inline F32x16 LoadF16(const std::uint16_t* p) {
  // Shift exponent and fraction into place, scale by 2^112; infinity and NaN get the full exponent.
  const I32x16 half = LoadU16(p);
  const I32x16 sign = Shl<16>(half & SetI(0x8000));
  const I32x16 magnitude = Shl<13>(half & SetI(0x7fff));
  const I32x16 scaled = AsInt(AsFloat(magnitude) * Set(0x1p112f));
  const Mask16 finite = LessI(magnitude, SetI(0x0f800000));
  return AsFloat(AsInt(Select(finite, AsFloat(scaled), AsFloat(magnitude | SetI(0x7f800000)))) |
                 sign);
}
inline void StoreF16(std::uint16_t* p, F32x16 a) {
  NIBBLE_LANES {
    std::uint32_t bits;
    std::memcpy(&bits, &a.v[i], 4);
    const std::uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    std::uint32_t half;
    if (magnitude > 0x7f800000) {
      half = 0x7e00;
    } else if (magnitude >= 0x477ff000) {
      half = 0x7c00;
    } else if (magnitude < 0x38800000) {
      float shifted;
      std::memcpy(&shifted, &magnitude, 4);
      shifted += 0.5f;
      std::memcpy(&half, &shifted, 4);
      half -= 0x3f000000;
    } else {
      half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
    }
    p[i] = static_cast<std::uint16_t>(sign | half);
  }
}
inline void StoreLow16(std::uint16_t* p, I32x16 a) {
  NIBBLE_LANES p[i] = static_cast<std::uint16_t>(a.v[i]);
}
inline void StoreLow8(std::int8_t* p, I32x16 a) {
  NIBBLE_LANES p[i] = static_cast<std::int8_t>(a.v[i]);
}
inline F32x16 Lookup(F32x16 table, I32x16 index) {
  F32x16 r;
  NIBBLE_LANES r.v[i] = table.v[index.v[i]];
  return r;
}
inline I32x16 DotU8S8(I32x16 acc, I32x16 w, std::int32_t x) {
  std::uint8_t codes[64];
  std::int8_t four[4];
  std::memcpy(codes, w.v, 64);
  std::memcpy(four, &x, 4);
  NIBBLE_LANES {
    acc.v[i] += codes[4 * i] * four[0] + codes[4 * i + 1] * four[1] + codes[4 * i + 2] * four[2] +
                codes[4 * i + 3] * four[3];
  }
  return acc;
}
inline void Transpose(F32x16 r[16]) {
  for (int j = 0; j < 16; ++j) {
    for (int i = 0; i < j; ++i) {
      const float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
  }
}
#undef NIBBLE_LANES

inline constexpr int kVectorRegisters = 8;

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

// e^x within 2 ulp; 0 below -87.3, +inf above 88.7, NaN stays NaN. Cody-Waite reduction by ln 2,
// then the degree-6 polynomial of the Taylor family with minimax coefficients (Cephes expf).
inline F32x16 Exp(F32x16 x) {
  const F32x16 n = RoundEven(Min(Max(x, Set(-87.5f)), Set(89.0f)) * Set(1.44269504088896341f));
  F32x16 r = Fma(n, Set(-0.693359375f), x);
  r = Fma(n, Set(2.12194440e-4f), r);
  F32x16 p = Set(1.9875691500e-4f);
  p = Fma(p, r, Set(1.3981999507e-3f));
  p = Fma(p, r, Set(8.3334519073e-3f));
  p = Fma(p, r, Set(4.1665795894e-2f));
  p = Fma(p, r, Set(1.6666665459e-1f));
  p = Fma(p, r, Set(5.0000001201e-1f));
  p = Fma(p, r * r, r + Set(1.0f));
  // 2^n in two factors, so that n = 128 does not overflow before the product does.
  const I32x16 exponent = ToInt(n);
  const I32x16 half = Sar<1>(exponent);
  const F32x16 a = AsFloat(Shl<23>(half + SetI(127)));
  const F32x16 b = AsFloat(Shl<23>(exponent - half + SetI(127)));
  F32x16 y = p * a * b;
  y = Select(Less(x, Set(-87.336f)), Zero(), y);
  y = Select(Less(Set(88.7228f), x), Set(__builtin_inff()), y);
  return Select(IsNan(x), x, y);
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
