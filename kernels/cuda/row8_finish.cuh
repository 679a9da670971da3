// The epilogue of products of 8-bit rows.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_params.cuh"
#include "kernels/cuda/row8_outliers.cuh"

namespace nibble::cuda {

struct Row8Params : EpilogueParams, OutlierParams {
  CUtensorMap w, x;  // boxes of 128 and kTokens rows by 128 columns
  const float *scales, *offsets, *x_scales;
  int units;                   // of 128 columns
  int row_items, token_items;  // tiles of the output
  int shared_tiles;            // of them, cut evenly among all workers
  int stages;
  bool stream_once;  // nobody reads these weights again
  void* partials;    // a worker's part of a tile that another finishes, 128 x kTokens words each
  std::uint32_t* flags;  // that it is there; 0 before and after the kernel
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// count numbers to `out`, 16 bytes at a time where that is allowed.
template <int kCount>
__device__ __forceinline__ void StoreNumbers(float* out, const float (&v)[kCount], bool vector) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    if (vector) {
      *reinterpret_cast<float4*>(out + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i + j] = v[i + j];
    }
  }
}
template <int kCount, typename T>
__device__ __forceinline__ void StoreNumbers(T* out, const float (&v)[kCount], bool vector) {
  if (!vector) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = FromFloat<T>(v[i]);
  } else if constexpr (kCount == 8) {
    *reinterpret_cast<uint4*>(out) = make_uint4(PackPair<T>(v[0], v[1]), PackPair<T>(v[2], v[3]),
                                                PackPair<T>(v[4], v[5]), PackPair<T>(v[6], v[7]));
  } else {
    *reinterpret_cast<uint2*>(out) = make_uint2(PackPair<T>(v[0], v[1]), PackPair<T>(v[2], v[3]));
  }
}

// Writes a token's rows row0 .. row0 + 63, scaled products from[64]: eight threads side by side, 8
// rows each. n is a multiple of 16, so that rows count or do not by sixteens.
template <typename T>
__device__ __forceinline__ void WriteRow8(const Row8Params& p, const float* from, int row0,
                                          int token) {
  const int part = threadIdx.x % 8;
  const auto values = [&](int at, float* v) {
    const float4 four = *reinterpret_cast<const float4*>(from + at);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (p.offsets != nullptr) v[i] += p.offsets[row0 + at + i];
      if (p.bias != nullptr) v[i] += p.bias[row0 + at + i];
    }
  };
  if (p.output == Output::kGlu) {  // sixteens of rows: gate, up, gate, up
    const int at = part / 4 * 32 + part % 4 * 4;
    if (token >= p.m || row0 + at >= p.n) return;
    float v[4], up[4];
    values(at, v);
    values(at + 16, up);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = GateOf(p.gate, v[i]) * up[i];
    StoreNumbers(static_cast<T*>(p.out) + token * p.ldo + row0 / 2 + part / 4 * 16 + part % 4 * 4,
                 v, p.vector);
    return;
  }
  const int row = row0 + part * 8;
  const bool valid = token < p.m && row < p.n;
  float v[8] = {};
  if (valid) {
    values(part * 8, v);
    values(part * 8 + 4, v + 4);
  }
  if (p.output == Output::kStore) {
    if (valid) StoreNumbers(static_cast<T*>(p.out) + token * p.ldo + row, v, p.vector);
    return;
  }
  if (p.output == Output::kStoreF32) {
    if (valid) StoreNumbers(static_cast<float*>(p.out) + token * p.ldo + row, v, p.vector);
    return;
  }
  const std::int64_t at = static_cast<std::int64_t>(token) * p.n + row;
  if (valid) {
    float normed[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += p.residual[at + i];
    StoreNumbers(p.residual + at, v, p.vector);
    if (p.norm_out.normed != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) normed[i] = v[i] * p.norm_out.weight[row + i];
      StoreNumbers(static_cast<T*>(p.norm_out.normed) + at, normed, p.vector);
    }
  }
  if (p.norm_out.square_sums == nullptr) return;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(v[i], v[i], sum);
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (valid && part % 2 == 0)
    p.norm_out.square_sums[static_cast<std::int64_t>(token) * (p.n / 16) + row / 16] = sum;
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace nibble::cuda
