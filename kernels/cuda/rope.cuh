// One head of a row of [q | k | v]: RMS norm, rotary embedding and the cache's elements, by a warp.
// RopeAppend and decode attention share it, so that both give the same bits.
//
// A lane has the entries lane, lane + 32, ... of the head.
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {

// Sine and cosine to 1e-6 for angles up to 2^20: whole turns taken off in three steps, the rest by
// the special functions. Few instructions: in decode attention this code is run once in a while and
// is not in the caches.
__device__ __forceinline__ void SineAndCosine(float angle, float* sine, float* cosine) {
  const float turns = rintf(angle * 0.15915494f);
  float rest = __fmaf_rn(turns, -6.28125f, angle);  // exact
  rest = __fmaf_rn(turns, -1.93405151e-3f, rest);
  rest = __fmaf_rn(turns, -1.2556659e-6f, rest);
  *sine = __sinf(rest);
  *cosine = __cosf(rest);
}

// The rotation of a lane's entries at one position; none past rope_dim.
template <int kEach>
struct Rotation {
  float cosine[kEach], sine[kEach];

  __device__ __forceinline__ void Set(const RopeAppendArgs& a, const float* inv_freq, int position,
                                      int lane) {
    const int half_dim = a.rope_dim / 2;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * 32 + lane;
      cosine[i] = 1.0f, sine[i] = 0.0f;
      if (at >= a.rope_dim) continue;
      const float turn = inv_freq[at < half_dim ? at : at - half_dim];
      SineAndCosine(__fmul_rn(static_cast<float>(position), turn), &sine[i], &cosine[i]);
      sine[i] *= at < half_dim ? -a.attention_factor : a.attention_factor;
      cosine[i] *= a.attention_factor;
    }
  }
};

template <typename T, int kEach>
struct RopeHead {
  float v[kEach];      // zeros past head_dim
  float other[kEach];  // what each is turned with: entries j and j + rope_dim / 2 are a pair

  // rope_dim: 0 for a head that is not turned.
  __device__ __forceinline__ void Load(const T* head, int head_dim, int rope_dim, int lane) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * 32 + lane;
      v[i] = at < head_dim ? ToFloat(head[at]) : 0.0f;
      other[i] = at < rope_dim ? ToFloat(head[Other(at, rope_dim)]) : 0.0f;
    }
  }

  __device__ __forceinline__ void NormAndTurn(const RopeAppendArgs& a, const float* norm,
                                              const Rotation<kEach>& rotation, int lane) {
    if (norm != nullptr) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kEach; ++i) squares = __fmaf_rn(v[i], v[i], squares);
#pragma unroll
      for (int delta = 16; delta > 0; delta /= 2) squares += __shfl_xor_sync(~0u, squares, delta);
      const float rstd = rsqrtf(__fadd_rn(__fdiv_rn(squares, a.head_dim), a.norm_eps));
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = i * 32 + lane;
        if (at < a.head_dim) v[i] *= rstd * norm[at];
        if (at < a.rope_dim) other[i] *= rstd * norm[Other(at, a.rope_dim)];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      v[i] = __fmaf_rn(v[i], rotation.cosine[i], __fmul_rn(other[i], rotation.sine[i]));
  }

 private:
  static __device__ __forceinline__ int Other(int at, int rope_dim) {
    return at < rope_dim / 2 ? at + rope_dim / 2 : at - rope_dim / 2;
  }
};

// Elements of 8 bits take their scale from the head's largest magnitude.
template <typename Element>
struct Quantized;
template <>
struct Quantized<__nv_fp8_storage_t> {
  static constexpr float kLargest = 448.0f;
  static __device__ __forceinline__ __nv_fp8_storage_t From(float v) {
    return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
  }
};
template <>
struct Quantized<std::int8_t> {
  static constexpr float kLargest = 127.0f;
  static __device__ __forceinline__ std::int8_t From(float v) {
    return static_cast<std::int8_t>(__float2int_rn(fminf(fmaxf(v, -127.0f), 127.0f)));
  }
};

// The first `dim` entries of a head as the cache holds them; returns what the elements are to be
// multiplied by, 1 where they are not scaled.
template <typename Element, int kEach>
__device__ __forceinline__ float StoreHead(Element* to, const float (&v)[kEach], int dim,
                                           int lane) {
  if constexpr (sizeof(Element) == 1) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, delta));
    const float inverse = largest > 0.0f ? Quantized<Element>::kLargest / largest : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i * 32 + lane < dim) to[i * 32 + lane] = Quantized<Element>::From(v[i] * inverse);
    }
    return largest / Quantized<Element>::kLargest;
  } else {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i * 32 + lane < dim) to[i * 32 + lane] = FromFloat<Element>(v[i]);
    }
    return 1.0f;
  }
}

}  // namespace nibble::cuda
