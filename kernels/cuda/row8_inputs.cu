// Rounds inputs to 8 bits a token, and lists the columns that hold outliers.
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row8.h"

namespace nibble::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kHeld = 4;  // vectors of 8 inputs a thread keeps between the absmax and the codes
static_assert(kHeld * 8 * kMostThreads >= kMostRow8Columns);

// Largest of the block, to every thread. scratch u32[32].
__device__ unsigned BlockMax(unsigned v, unsigned* scratch) {
  v = __reduce_max_sync(~0u, v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0;
  return __reduce_max_sync(~0u, v);
}

// Sum of the block's threads before this one; `total` of all. scratch i32[32].
__device__ int BlockPrefix(int v, int* scratch, int* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = v;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const int lower = __shfl_up_sync(~0u, sum, delta);
    if (lane >= delta) sum += lower;
  }
  __syncthreads();  // the scratch of a round before
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  int before = 0;
  *total = 0;
  for (int w = 0; w < blockDim.x / 32; ++w) {
    before += w < warp ? scratch[w] : 0;
    *total += scratch[w];
  }
  return before + sum - v;
}

// The last block to come here turns the marks of all blocks into the list of columns.
__device__ void ListOutliers(std::int32_t* outliers, int k, int* scratch) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(outliers + 1, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int words = static_cast<int>(OutlierMarks(k));
  auto* marks = reinterpret_cast<unsigned*>(outliers + 2);
  std::int32_t* columns = outliers + 2 + words;
  int count = 0;
  for (int base = 0; base < words; base += blockDim.x) {
    const int word = base + threadIdx.x;
    unsigned mark = word < words ? __ldcg(marks + word) : 0;
    if (mark != 0) marks[word] = 0;
    int found;
    int at = count + BlockPrefix(__popc(mark), scratch, &found);
    for (; mark != 0; mark &= mark - 1) columns[at++] = word * 32 + __ffs(mark) - 1;
    count += found;
  }
  if (threadIdx.x == 0) outliers[0] = count, outliers[1] = 0;
}

__device__ std::uint32_t ByteOf(float v) {  // of an integer in [-128, 127]; NaN: 0
  return static_cast<std::uint32_t>(__float2int_rn(v)) & 0xff;
}

// A block a token.
template <typename T>
__global__ void __launch_bounds__(kMostThreads) QuantizeKernel(QuantizeArgs a) {
  __shared__ unsigned scratch[32];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const bool split = a.rounding == InputRounding::kOutlierSplit;
  const float threshold = split && a.threshold > 0.0f ? a.threshold : INFINITY;
  const auto* x = reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + blockIdx.x * a.ldx);
  const int vectors = a.k / 8;

  uint4 held[kHeld];
  unsigned absmax = 0;  // as bits: NaN is the largest
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int vector = i * blockDim.x + threadIdx.x;
    if (vector >= vectors) break;
    held[i] = x[vector];
    const std::uint32_t words[4] = {held[i].x, held[i].y, held[i].z, held[i].w};
    unsigned marks = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 two = UnpackPair<T>(words[j / 2]);
      float v = fabsf(j % 2 == 0 ? two.x : two.y);
      if (split) v = __half2float(__float2half_rn(v));
      if (v >= threshold) {
        marks |= 1u << j;
      } else {
        absmax = max(absmax, __float_as_uint(v));
      }
    }
    if (marks != 0 && a.out.outliers != nullptr) {
      atomicOr(reinterpret_cast<unsigned*>(a.out.outliers) + 2 + vector / 4,
               marks << (vector % 4 * 8));
    }
  }
  absmax = BlockMax(absmax, scratch);
  const float largest = __uint_as_float(absmax);

  float scale = a.scale, inverse = 0.0f;  // x = scale * code
  switch (a.rounding) {
    case InputRounding::kInt8Dynamic: scale = largest > 0.0f ? largest / 127.5f : 1.0f; break;
    case InputRounding::kE4m3Dynamic:
      scale = largest > 0.0f ? largest * (1.0f / 448.0f) : 1.0f;
      break;
    case InputRounding::kOutlierSplit:
      scale = largest * (1.0f / 127.0f);
      inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
      break;
    default: break;
  }
  if (threadIdx.x == 0) a.out.scales[blockIdx.x] = isnan(largest) ? largest : scale;

  auto* codes = reinterpret_cast<uint2*>(a.out.codes + std::int64_t{blockIdx.x} * a.k);
  const bool bytes =
      a.rounding == InputRounding::kE4m3Dynamic || a.rounding == InputRounding::kE4m3Static;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int vector = i * blockDim.x + threadIdx.x;
    if (vector >= vectors) break;
    const std::uint32_t words[4] = {held[i].x, held[i].y, held[i].z, held[i].w};
    std::uint32_t out[2] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 v = UnpackPair<T>(words[j]);
      std::uint32_t pair;
      if (bytes) {
        pair = __nv_cvt_float2_to_fp8x2(make_float2(v.x / scale, v.y / scale), __NV_SATFINITE,
                                        __NV_E4M3);
      } else if (split) {
        const auto code = [&](float u) {
          u = __half2float(__float2half_rn(u));
          return fabsf(u) >= threshold ? 0u : ByteOf(rintf(u * inverse));
        };
        pair = code(v.x) | code(v.y) << 8;
      } else {
        const auto code = [&](float u) {
          return ByteOf(fminf(fmaxf(rintf(u / scale) + a.zero, -128.0f), 127.0f));
        };
        pair = code(v.x) | code(v.y) << 8;
      }
      out[j / 2] |= pair << (j % 2 * 16);
    }
    codes[vector] = make_uint2(out[0], out[1]);
  }
  if (split && a.out.outliers != nullptr) {
    ListOutliers(a.out.outliers, a.k, reinterpret_cast<int*>(scratch));
  }
}

}  // namespace

cudaError_t QuantizeRows(const QuantizeArgs& args, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  const bool split = args.rounding == InputRounding::kOutlierSplit && args.threshold > 0.0f;
  if (args.tokens < 0 || args.k <= 0 || args.k % 16 != 0 || args.k > kMostRow8Columns ||
      args.ldx % 8 != 0 || reinterpret_cast<std::uintptr_t>(args.x) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(args.out.codes) % 16 != 0 || args.x == nullptr ||
      args.out.codes == nullptr || args.out.scales == nullptr ||
      args.rounding == InputRounding::kNone || (split && args.out.outliers == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const int threads = std::clamp((args.k / 8 + 31) / 32 * 32, 32, kMostThreads);
  return ByDType(args.dtype, [&]<typename T>() {
    return Launch(QuantizeKernel<T>, args.tokens, threads, 0, options, args);
  });
}

}  // namespace nibble::cuda
