// Products of any number of tokens: streamed while few, through dense 16-bit weights and cuBLAS
// beyond.
#include <cublas_v2.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFinishColumns = 1024;  // of the output, a block
constexpr int kStreamTokens = 16;     // beyond, the stream would read the weights again

// What a product has left for its epilogue: T[m, n], or the sum of f32[splits, m, n].
struct RawProduct {
  const void* data = nullptr;
  bool f32 = false;
  int splits = 1;
};

// The epilogue of ProductArgs. grid (token, kFinishColumns of the output).
template <typename T>
__global__ void __launch_bounds__(kThreads) FinishKernel(ProductArgs a, RawProduct raw) {
  __shared__ float scratch[32];
  const int n = static_cast<int>(a.w.shape.n), token = blockIdx.x,
            begin = blockIdx.y * kFinishColumns;
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  float rstd = 1.0f;
  if (a.norm_in.square_sums != nullptr) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < a.norm_in.count; i += kThreads) {
      sum += a.norm_in.square_sums[static_cast<std::int64_t>(token) * a.norm_in.count + i];
    }
    rstd = rsqrtf(BlockSum<kThreads>(sum, scratch) / a.norm_in.dim + a.norm_in.eps);
  }
  const std::int64_t split_step = static_cast<std::int64_t>(a.m) * n;
  const auto value = [&](int column) {
    const std::int64_t at = static_cast<std::int64_t>(token) * n + column;
    float v = 0.0f;
    if (raw.f32) {
      const float* from = static_cast<const float*>(raw.data) + at;
#pragma unroll 4
      for (int i = 0; i < raw.splits; ++i) v += from[i * split_step];
    } else {
      v = ToFloat(static_cast<const T*>(raw.data)[at]);
    }
    return v * rstd + (a.bias == nullptr ? 0.0f : a.bias[column]);
  };
  if (a.output == Output::kGlu) {
    for (int i = begin + threadIdx.x; i < min(n / 2, begin + kFinishColumns); i += kThreads) {
      const int gate = i / 16 * 32 + i % 16;  // packed order: 16 gates, 16 ups
      static_cast<T*>(a.out)[token * a.ldo + i] =
          FromFloat<T>(GateOf(a.gate, value(gate)) * value(gate + 16));
    }
    return;
  }
  const int tiles = (n + 15) / 16;
  for (int i = begin + threadIdx.x; i < min(tiles * 16, begin + kFinishColumns); i += kThreads) {
    const float v = i < n ? value(i) : 0.0f;
    if (a.output == Output::kStore && i < n)
      static_cast<T*>(a.out)[token * a.ldo + i] = FromFloat<T>(v);
    if (a.output == Output::kStoreF32 && i < n) static_cast<float*>(a.out)[token * a.ldo + i] = v;
    if (a.output != Output::kResidual) continue;
    const std::int64_t at = static_cast<std::int64_t>(token) * n + i;
    float sum = 0.0f;
    if (i < n) {
      sum = a.residual[at] + v;
      a.residual[at] = sum;
      if (a.norm_out.normed != nullptr)
        static_cast<T*>(a.norm_out.normed)[at] = FromFloat<T>(sum * a.norm_out.weight[i]);
    }
    if (a.norm_out.square_sums != nullptr) {
      float squares = sum * sum;
      const unsigned mask = 0xffffu << (threadIdx.x & 16);
#pragma unroll
      for (int delta = 8; delta > 0; delta /= 2) squares += __shfl_xor_sync(mask, squares, delta);
      if (i % 16 == 0)
        a.norm_out.square_sums[static_cast<std::int64_t>(token) * tiles + i / 16] = squares;
    }
  }
}

cudaError_t Finish(const ProductArgs& args, const RawProduct& raw, LaunchOptions options) {
  return ByDType(args.dtype, [&]<typename T>() {
    const auto columns =
        static_cast<unsigned>(args.output == Output::kGlu ? args.w.shape.n / 2 : args.w.shape.n);
    const dim3 grid(args.m, (columns + kFinishColumns - 1) / kFinishColumns);
    return Launch(FinishKernel<T>, grid, kThreads, 0, options, args, raw);
  });
}

cudaError_t Status(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return cudaSuccess;
  return status == CUBLAS_STATUS_ALLOC_FAILED ? cudaErrorMemoryAllocation : cudaErrorUnknown;
}

// out[m, n] = x[m, k] * w[n, k]^T, row-major; out of type T or f32.
cudaError_t Gemm(cublasContext* cublas, DType dtype, const ProductArgs& a, const void* w, void* out,
                 std::int64_t ldo, bool f32, cudaStream_t stream) {
  const float one = 1.0f, zero = 0.0f;
  const cudaDataType_t type = dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
  cublasStatus_t status = cublasSetStream(cublas, stream);
  if (status != CUBLAS_STATUS_SUCCESS) return Status(status);
  return Status(cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(a.w.shape.n), a.m,
                             static_cast<int>(a.w.shape.k), &one, w, type,
                             static_cast<int>(a.w.shape.k), a.x, type, static_cast<int>(a.ldx),
                             &zero, out, f32 ? CUDA_R_32F : type, static_cast<int>(ldo),
                             CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

}  // namespace

cudaError_t DenseProduct(const ProductArgs& args, const void* w, const ProductScratch& scratch,
                         cudaStream_t stream) {
  if (args.m == 0) return cudaSuccess;
  if (args.m < 0 || args.x == nullptr || w == nullptr || scratch.cublas == nullptr ||
      (args.output == Output::kResidual ? args.residual == nullptr : args.out == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const bool plain = args.norm_in.square_sums == nullptr && args.bias == nullptr &&
                     (args.output == Output::kStore || args.output == Output::kStoreF32);
  const bool f32 = args.output == Output::kStoreF32;
  void* raw = plain || f32 ? args.out : scratch.raw;
  if (raw == nullptr) return cudaErrorInvalidValue;
  if (f32 && !plain && args.ldo != args.w.shape.n)
    return cudaErrorInvalidValue;  // finished in place
  const std::int64_t ldo = raw == args.out ? args.ldo : args.w.shape.n;
  cudaError_t error = Gemm(scratch.cublas, args.dtype, args, w, raw, ldo, f32, stream);
  if (error != cudaSuccess || plain) return error;
  return Finish(args, {raw, f32}, {stream, false});
}

cudaError_t TiledProduct(const ProductArgs& args, const TilePlan& plan,
                         const TileWorkspace& workspace, cudaStream_t stream) {
  const cudaError_t error = TileProduct(args, plan, workspace, stream);
  if (error != cudaSuccess || plan.splits == 1 || plan.shared) return error;
  return Finish(args, {workspace.partials, true, plan.splits}, {stream, true});
}

namespace {

// Where the stream is faster than tiles, measured on an H200 (tests/bench/results/cuda_h200.md).
// Its second 8 tokens cost it dear where the columns are many, or operands dear and the rows many.
bool PrefersStream(const ProductArgs& args, bool tiles_swap) {
  const PackedShape& shape = args.w.shape;
  if (args.m > kStreamTokens || !SupportsStream(shape)) return false;
  if (args.m <= 8 || !tiles_swap) return true;
  if (shape.k >= 2 * shape.n) return false;
  if (shape.kind == CodeKind::kCodebook) return shape.n <= 8192;
  return shape.bits != 8 || shape.group != kUnitColumns;
}

// Where cuBLAS makes up for expanding the weights first: sooner where groups are finer than a unit
// or codes lie in several planes, which costs tiles a third.
bool PrefersDense(const ProductArgs& args, const ProductScratch& scratch) {
  if (scratch.cublas == nullptr || scratch.weights == nullptr || scratch.raw == nullptr)
    return false;
  const PackedShape& shape = args.w.shape;
  const bool plain = shape.kind == CodeKind::kInteger && shape.group == kUnitColumns &&
                     (shape.bits == 4 || shape.bits == 8);
  return plain ? args.m >= 2048 && args.output != Output::kGlu : args.m >= 1024;
}

}  // namespace

cudaError_t Product(const ProductArgs& args, const ProductScratch& scratch, cudaStream_t stream) {
  if (args.m == 0) return cudaSuccess;
  int device = 0, sms = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  if (major == 9) {
    if (PrefersStream(args, scratch.weights != nullptr && scratch.flags != nullptr))
      return StreamProduct(args, stream);
    if (!PrefersDense(args, scratch)) {
      TileWorkspace workspace;
      if (scratch.weights != nullptr) {
        workspace = {static_cast<float*>(scratch.weights), 2 * args.w.shape.n * args.w.shape.k,
                     scratch.flags};
      }
      return TiledProduct(args, ChooseTiles(args, workspace, sms), workspace, stream);
    }
  }
  if (scratch.weights == nullptr) return cudaErrorInvalidValue;
  error = DequantizePacked(args.w, args.dtype, scratch.weights, stream);
  return error != cudaSuccess ? error : DenseProduct(args, scratch.weights, scratch, stream);
}

}  // namespace nibble::cuda
