// RMS norms, and the residual stream between them.
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// out[t, :] = in[t, :] / rms(in[t, :]) * weight. One block a token.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(T* out, const T* in, const float* weight, int dim, float eps) {
  __shared__ float scratch[32];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  in += static_cast<std::int64_t>(blockIdx.x) * dim;
  out += static_cast<std::int64_t>(blockIdx.x) * dim;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < dim; i += kThreads) squares += ToFloat(in[i]) * ToFloat(in[i]);
  const float rstd = rsqrtf(BlockSum<kThreads>(squares, scratch) / dim + eps);
  for (int i = threadIdx.x; i < dim; i += kThreads)
    out[i] = FromFloat<T>(ToFloat(in[i]) * rstd * weight[i]);
}

// residual += delta (when there is one); out = residual / rms(residual) * weight. One block a
// token.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddRmsNormKernel(float* residual, const T* delta, const float* weight, T* out, int dim,
                     float eps) {
  __shared__ float scratch[32];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * dim;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    float v = residual[row + i];
    if (delta != nullptr) {
      v += ToFloat(delta[row + i]);
      residual[row + i] = v;
    }
    squares += v * v;
  }
  const float rstd = rsqrtf(BlockSum<kThreads>(squares, scratch) / dim + eps);
  // Each thread reads back what it wrote.
  for (int i = threadIdx.x; i < dim; i += kThreads)
    out[row + i] = FromFloat<T>(residual[row + i] * rstd * weight[i]);
}

// What NormOutput describes, for a residual stream no product has written: normed = T(residual *
// weight), sums of squares of 16 columns. One thread two columns, 8 lanes a sum.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    PrepareNormKernel(const float* residual, const float* weight, T* normed, float* square_sums,
                      int dim) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int groups = (dim + 15) / 16;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * dim;
  for (int i = threadIdx.x; i < groups * 16; i += kThreads) {
    const float v = i < dim ? residual[row + i] : 0.0f;
    if (i < dim) normed[row + i] = FromFloat<T>(v * weight[i]);
    float squares = v * v;
    const unsigned mask = 0xffffu << (threadIdx.x & 16);
#pragma unroll
    for (int delta = 8; delta > 0; delta /= 2) squares += __shfl_xor_sync(mask, squares, delta);
    if (i % 16 == 0) square_sums[static_cast<std::int64_t>(blockIdx.x) * groups + i / 16] = squares;
  }
}

// residual += delta. Grid-stride.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddKernel(float* residual, const T* delta, std::int64_t count) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads) {
    residual[i] += ToFloat(delta[i]);
  }
}

}  // namespace

cudaError_t RmsNorm(DType dtype, void* out, const void* in, const float* weight, int tokens,
                    int dim, float eps, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  return ByDType(dtype, [&]<typename T>() {
    return Launch(RmsNormKernel<T>, tokens, kThreads, 0, options, static_cast<T*>(out),
                  static_cast<const T*>(in), weight, dim, eps);
  });
}

cudaError_t AddRmsNorm(DType dtype, float* residual, const void* delta, const float* weight,
                       void* out, int tokens, int dim, float eps, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  return ByDType(dtype, [&]<typename T>() {
    return Launch(AddRmsNormKernel<T>, tokens, kThreads, 0, options, residual,
                  static_cast<const T*>(delta), weight, static_cast<T*>(out), dim, eps);
  });
}

cudaError_t PrepareNorm(DType dtype, const float* residual, const NormOutput& out, int tokens,
                        int dim, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  return ByDType(dtype, [&]<typename T>() {
    return Launch(PrepareNormKernel<T>, tokens, kThreads, 0, options, residual, out.weight,
                  static_cast<T*>(out.normed), out.square_sums, dim);
  });
}

cudaError_t AddResidual(DType dtype, float* residual, const void* delta, std::int64_t count,
                        LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>((count + kThreads - 1) / kThreads, 1024));
  return ByDType(dtype, [&]<typename T>() {
    return Launch(AddKernel<T>, blocks, kThreads, 0, options, residual,
                  static_cast<const T*>(delta), count);
  });
}

}  // namespace nibble::cuda
