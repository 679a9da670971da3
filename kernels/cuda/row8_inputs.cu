// Rounds inputs to 8 bits a token, and lists the columns of its outliers.
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row8.h"

namespace nibble::cuda {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kHeld = 4;  // vectors of 8 inputs a thread keeps between the absmax and the codes
static_assert(kHeld * 8 * kMostThreads >= kMostRow8Columns);

// The largest `v` and the sum of `add` of the block, to every thread. scratch u32[64].
__device__ unsigned BlockMaxAndSum(unsigned v, float* add, unsigned* scratch) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const auto sum_up = [](float sum) {
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
    return sum;
  };
  v = __reduce_max_sync(~0u, v);
  *add = sum_up(*add);
  if (lane == 0) {
    scratch[threadIdx.x / 32] = v;
    scratch[32 + threadIdx.x / 32] = __float_as_uint(*add);
  }
  __syncthreads();
  *add = sum_up(lane < warps ? __uint_as_float(scratch[32 + lane]) : 0.0f);
  return __reduce_max_sync(~0u, lane < warps ? scratch[lane] : 0);
}

enum class ByteCodes : std::uint8_t { kInt8, kE4m3, kSplit };

// The low bytes of four integers.
__device__ std::uint32_t PackBytes(unsigned a, unsigned b, unsigned c, unsigned d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// A block a token.
template <typename T, ByteCodes kCodes>
__global__ void __launch_bounds__(kMostThreads) QuantizeKernel(QuantizeArgs a) {
  constexpr bool kSplit = kCodes == ByteCodes::kSplit;
  using Held = std::conditional_t<kSplit, half, T>;  // LLM.int8() sees inputs as halves
  __shared__ unsigned scratch[64];
  __shared__ unsigned outliers;
  __shared__ std::uint16_t listed[kOutlierList - 1];
  ptx::LaunchDependents();
  if constexpr (kSplit) {
    if (threadIdx.x == 0) outliers = 0;
    __syncthreads();
  }
  ptx::WaitForPrerequisites();
  const float threshold = kSplit && a.threshold > 0.0f ? a.threshold : INFINITY;
  const auto* x = reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + blockIdx.x * a.ldx);
  const int vectors = a.k / 8;

  std::uint32_t held[kHeld][4];
  unsigned absmax = 0;  // as bits: NaN is the largest
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int vector = i * blockDim.x + threadIdx.x;
    if (vector >= vectors) break;
    const uint4 eight = x[vector];
    held[i][0] = eight.x, held[i][1] = eight.y, held[i][2] = eight.z, held[i][3] = eight.w;
    unsigned marks = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float2 two = UnpackPair<T>(held[i][j]);
      if constexpr (!std::is_same_v<Held, T>) {
        held[i][j] = PackPair<Held>(two.x, two.y);
        two = UnpackPair<Held>(held[i][j]);
      }
      const float low = fabsf(two.x), high = fabsf(two.y);
      if (kSplit && low >= threshold) {
        marks |= 1u << 2 * j;
      } else {
        absmax = max(absmax, __float_as_uint(low));
      }
      if (kSplit && high >= threshold) {
        marks |= 2u << 2 * j;
      } else {
        absmax = max(absmax, __float_as_uint(high));
      }
    }
    for (; kSplit && marks != 0; marks &= marks - 1) {
      const unsigned at = atomicAdd(&outliers, 1);
      if (at < kOutlierList - 1)
        listed[at] = static_cast<std::uint16_t>(vector * 8 + __ffs(marks) - 1);
    }
  }
  float squares = 0.0f;
  if (a.norm_in.square_sums != nullptr) {
    const float* sums = a.norm_in.square_sums + std::int64_t{blockIdx.x} * a.norm_in.count;
    for (int i = threadIdx.x; i < a.norm_in.count; i += blockDim.x) squares += sums[i];
  }
  absmax = BlockMaxAndSum(absmax, &squares, scratch);
  const float largest = __uint_as_float(absmax);
  const float rstd =
      a.norm_in.square_sums == nullptr ? 1.0f : rsqrtf(squares / a.norm_in.dim + a.norm_in.eps);

  const bool fixed =
      a.rounding == InputRounding::kInt8Static || a.rounding == InputRounding::kE4m3Static;
  constexpr float kMost = kSplit ? 127.0f : kCodes == ByteCodes::kInt8 ? 127.5f : 448.0f;
  float scale = a.scale, inverse = rstd / a.scale;  // of a code; of an input
  if (!fixed) {                                     // the largest input becomes code kMost
    inverse = largest > 0.0f ? kMost / largest : 0.0f;
    scale = largest > 0.0f ? largest * rstd / kMost : 1.0f;
  }
  if (threadIdx.x == 0) a.out.scales[blockIdx.x] = isnan(largest) ? largest : scale;

  auto* codes = reinterpret_cast<uint2*>(a.out.codes + std::int64_t{blockIdx.x} * a.k);
  const float least = -128.0f - a.zero, most = 127.0f - a.zero;
  const int zero = static_cast<int>(a.zero);
  const auto code = [&](float v) -> unsigned {  // in the low byte; any for NaN
    if (kSplit && fabsf(v) >= threshold) return 0;
    // Beside 1.5 * 2^23 a number is rounded to an integer, which are the low bits.
    return __float_as_uint(fminf(fmaxf(v * inverse, least), most) + 12582912.0f) + zero;
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int vector = i * blockDim.x + threadIdx.x;
    if (vector >= vectors) break;
    std::uint32_t out[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 v = UnpackPair<Held>(held[i][2 * j]), w = UnpackPair<Held>(held[i][2 * j + 1]);
      if constexpr (kCodes == ByteCodes::kE4m3) {
        const auto pair = [&](float2 u) -> std::uint32_t {
          return __nv_cvt_float2_to_fp8x2(make_float2(u.x * inverse, u.y * inverse), __NV_SATFINITE,
                                          __NV_E4M3);
        };
        out[j] = pair(v) | pair(w) << 16;
      } else {
        out[j] = PackBytes(code(v.x), code(v.y), code(w.x), code(w.y));
      }
    }
    codes[vector] = make_uint2(out[0], out[1]);
  }
  if constexpr (kSplit) {  // all have counted theirs before BlockMaxAndSum's barrier
    if (a.out.outliers == nullptr) return;
    std::uint16_t* to = a.out.outliers + std::int64_t{blockIdx.x} * kOutlierList;
    for (unsigned i = threadIdx.x; i <= min(outliers, kOutlierList - 1u); i += blockDim.x)
      to[i] = i == 0 ? static_cast<std::uint16_t>(outliers) : listed[i - 1];
  }
}

template <typename T>
cudaError_t LaunchQuantize(const QuantizeArgs& args, int threads, LaunchOptions options) {
  auto kernel = QuantizeKernel<T, ByteCodes::kInt8>;
  if (args.rounding == InputRounding::kOutlierSplit) kernel = QuantizeKernel<T, ByteCodes::kSplit>;
  if (args.rounding == InputRounding::kE4m3Dynamic || args.rounding == InputRounding::kE4m3Static)
    kernel = QuantizeKernel<T, ByteCodes::kE4m3>;
  return Launch(kernel, args.tokens, threads, 0, options, args);
}

}  // namespace

cudaError_t QuantizeRows(const QuantizeArgs& args, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  const bool split = args.rounding == InputRounding::kOutlierSplit && args.threshold > 0.0f;
  if (args.tokens < 0 || args.k <= 0 || args.k % 16 != 0 || args.k > kMostRow8Columns ||
      args.ldx % 8 != 0 || reinterpret_cast<std::uintptr_t>(args.x) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(args.out.codes) % 16 != 0 || args.x == nullptr ||
      args.out.codes == nullptr || args.out.scales == nullptr ||
      args.rounding == InputRounding::kNone ||
      (args.rounding == InputRounding::kOutlierSplit && args.norm_in.square_sums != nullptr) ||
      (split && args.out.outliers == nullptr)) {
    return cudaErrorInvalidValue;
  }
  // Few tokens: as many threads as there are vectors; many: blocks small enough to overlap.
  const int vectors = args.tokens <= 64 ? args.k / 8 : (args.k / 8 + kHeld - 1) / kHeld;
  const int threads = std::clamp((vectors + 31) / 32 * 32, 32, kMostThreads);
  return ByDType(args.dtype,
                 [&]<typename T>() { return LaunchQuantize<T>(args, threads, options); });
}

}  // namespace nibble::cuda
