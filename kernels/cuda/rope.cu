// Rotary embedding of q and k (with optional norms of each head) and appending k and v to the paged
// cache.
#include <cuda_fp8.h>

#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxPerLane = 8;  // head_dim <= 256

// Elements of the cache's type; scaled ones take their scale from the head's largest magnitude.
template <typename Element>
struct Quantized;
template <>
struct Quantized<__nv_fp8_storage_t> {
  static constexpr float kLargest = 448.0f;
  static __device__ __forceinline__ std::uint8_t From(float v) {
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

// One warp a (token, head); heads in the order q, k, v of the row.
template <typename T, typename Element>
__global__ void __launch_bounds__(32 * kWarps)
    RopeAppendKernel(RopeAppendArgs a, T* qkv, Element* cache) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int lane = threadIdx.x % 32;
  const int head = blockIdx.y * kWarps + threadIdx.x / 32, token = blockIdx.x;
  const int heads = a.heads + 2 * a.kv_heads, dim = a.head_dim;
  if (head >= heads) return;
  T* row = qkv + token * a.ld_qkv + static_cast<std::int64_t>(head) * dim;
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;

  float v[kMaxPerLane];
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i)
    v[i] = i * 32 + lane < dim ? ToFloat(row[i * 32 + lane]) : 0.0f;

  const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
  if (norm != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) squares += v[i] * v[i];
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) squares += __shfl_xor_sync(~0u, squares, delta);
    const float rstd = rsqrtf(squares / dim + a.norm_eps);
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) {
      if (i * 32 + lane < dim) v[i] *= rstd * norm[i * 32 + lane];
    }
  }
  // Pairs (j, j + rope_dim / 2), through shared memory: halves need not fall on lane boundaries.
  __shared__ float staged[kWarps][32 * kMaxPerLane];
  float* mine = staged[threadIdx.x / 32];
  if (!is_v && a.rope_dim > 0) {
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) mine[i * 32 + lane] = v[i];
    __syncwarp();
    const int half_dim = a.rope_dim / 2;
    const float position = static_cast<float>(a.positions[token]);
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) {
      const int at = i * 32 + lane;
      if (at >= a.rope_dim) continue;
      const int j = at % half_dim;
      float sine, cosine;
      sincosf(position * a.inv_freq[j], &sine, &cosine);
      sine *= a.attention_factor, cosine *= a.attention_factor;
      const float first = mine[j], second = mine[j + half_dim];
      v[i] = at < half_dim ? first * cosine - second * sine : second * cosine + first * sine;
    }
  }
  if (is_q) {
    if (norm == nullptr && a.rope_dim == 0) return;
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) {
      if (i * 32 + lane < dim) row[i * 32 + lane] = FromFloat<T>(v[i]);
    }
    return;
  }
  const int slot = a.slots[token];
  if (slot < 0) return;
  const KvLayout& kv = a.kv;
  const int kv_head = is_v ? head - a.heads - a.kv_heads : head - a.heads;
  Element* page = cache + slot / kv.page_tokens * kv.PageStride();
  const int offset = slot % kv.page_tokens;
  Element* to = page + (is_v ? kv.ValueOffset() : 0) + kv_head * kv.HeadStride() +
                static_cast<std::int64_t>(offset) * dim;
  if constexpr (sizeof(Element) == 1) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, delta));
    const float inverse = largest > 0.0f ? Quantized<Element>::kLargest / largest : 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) {
      if (i * 32 + lane < dim) to[i * 32 + lane] = Quantized<Element>::From(v[i] * inverse);
    }
    if (lane == 0) {
      float* scales = reinterpret_cast<float*>(page + kv.ScaleOffset());
      scales[((is_v ? a.kv_heads : 0) + kv_head) * kv.page_tokens + offset] =
          largest / Quantized<Element>::kLargest;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) {
      if (i * 32 + lane < dim) to[i * 32 + lane] = FromFloat<T>(v[i]);
    }
  }
}

}  // namespace

cudaError_t RopeAppend(const RopeAppendArgs& args, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  if (args.head_dim > 32 * kMaxPerLane || args.rope_dim > args.head_dim || args.rope_dim % 2 != 0 ||
      args.kv.head_dim != args.head_dim || args.kv.num_kv_heads != args.kv_heads) {
    return cudaErrorInvalidValue;
  }
  const dim3 grid(args.tokens, (args.heads + 2 * args.kv_heads + kWarps - 1) / kWarps);
  return ByDType(args.dtype, [&]<typename T>() {
    const auto launch = [&]<typename Element>() {
      return Launch(RopeAppendKernel<T, Element>, grid, 32 * kWarps, 0, options, args,
                    static_cast<T*>(args.qkv), static_cast<Element*>(args.layer_cache));
    };
    if (args.kv.dtype == DType::kF8E4M3) return launch.template operator()<__nv_fp8_storage_t>();
    if (args.kv.dtype == DType::kI8) return launch.template operator()<std::int8_t>();
    return args.kv.dtype == args.dtype ? launch.template operator()<T>() : cudaErrorInvalidValue;
  });
}

}  // namespace nibble::cuda
