// What is left of a product when another kernel has multiplied: norm, bias, gate or residual add,
// and the next norm, in one pass at the speed of memory.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;  // columns a thread takes at once: 16 bytes of T

// Both memory layouts allow 16-byte accesses of whole runs.
bool AllowsVectors(const ProductArgs& a, const RawProduct& raw) {
  return a.w.shape.n % kRun == 0 && Aligned(raw.data) && AllowsVectors(a, kRun);
}

// Runs of f32 or T. `vector`: 16 bytes at a time; otherwise `count` elements, the others are zero.
__device__ __forceinline__ void LoadRun(const float* from, int count, bool vector,
                                        float (&v)[kRun]) {
  if (vector) {
    const float4 a = reinterpret_cast<const float4*>(from)[0];
    const float4 b = reinterpret_cast<const float4*>(from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) v[i] = i < count ? from[i] : 0.0f;
}
template <typename T>
__device__ __forceinline__ void LoadRun(const T* from, int count, bool vector, float (&v)[kRun]) {
  if (vector) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));  // nobody reads it again
    const std::uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = UnpackPair<T>(pairs[i]);
      v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) v[i] = i < count ? ToFloat(from[i]) : 0.0f;
}
__device__ __forceinline__ void StoreRun(float* to, int count, bool vector,
                                         const float (&v)[kRun]) {
  if (vector) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < count) to[i] = v[i];
  }
}
template <typename T>
__device__ __forceinline__ void StoreRun(T* to, int count, bool vector, const float (&v)[kRun]) {
  if (vector) {
    *reinterpret_cast<uint4*>(to) = make_uint4(PackPair<T>(v[0], v[1]), PackPair<T>(v[2], v[3]),
                                               PackPair<T>(v[4], v[5]), PackPair<T>(v[6], v[7]));
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < count) to[i] = FromFloat<T>(v[i]);
  }
}

// One token's product.
template <typename T>
struct TokenProduct {
  const ProductArgs& a;
  const RawProduct& raw;
  bool vector;
  int n;
  std::int64_t row;  // of its first element
  float rstd = 1.0f;

  // By every thread of the block.
  __device__ __forceinline__ void ReadNorm(int token, float* scratch) {
    if (a.norm_in.square_sums == nullptr) return;
    const float* sums = a.norm_in.square_sums + static_cast<std::int64_t>(token) * a.norm_in.count;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < a.norm_in.count; i += kThreads) sum += sums[i];
    rstd = rsqrtf(BlockSum<kThreads>(sum, scratch) / a.norm_in.dim + a.norm_in.eps);
  }

  // Columns from `column` on, normed and biased; zeros past the matrix.
  __device__ __forceinline__ void Load(int column, float (&v)[kRun]) const {
    const int count = n - column;
    if (!raw.f32) {
      LoadRun(static_cast<const T*>(raw.data) + row + column, count, vector, v);
    } else {
      const float* from = static_cast<const float*>(raw.data) + row + column;
      LoadRun(from, count, vector, v);
      for (int split = 1; split < raw.splits; ++split) {
        float more[kRun];
        LoadRun(from + split * static_cast<std::int64_t>(a.m) * n, count, vector, more);
#pragma unroll
        for (int i = 0; i < kRun; ++i) v[i] += more[i];
      }
    }
    float bias[kRun] = {};
    if (a.bias != nullptr) LoadRun(a.bias + column, count, vector, bias);
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] = fmaf(v[i], rstd, bias[i]);
  }

  // The residual stream with this product added, also in memory.
  __device__ __forceinline__ void AddResidual(int column, float (&v)[kRun]) const {
    const int count = n - column;
    LoadRun(a.residual + row + column, count, vector, v);
    if (raw.data == nullptr) return;
    float product[kRun];
    Load(column, product);
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] += product[i];
    StoreRun(a.residual + row + column, count, vector, v);
  }

  __device__ __forceinline__ void StoreNormed(int column, float factor, float (&v)[kRun]) const {
    float weight[kRun];
    LoadRun(a.norm_out.weight + column, n - column, vector, weight);
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] *= factor * weight[i];
    StoreRun(static_cast<T*>(a.norm_out.normed) + row + column, n - column, vector, v);
  }
};

// A run a thread. grid (token, kThreads runs of the output).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FinishKernel(ProductArgs a, RawProduct raw, bool vector) {
  __shared__ float scratch[32];
  const int n = static_cast<int>(a.w.shape.n), token = blockIdx.x, tiles = (n + 15) / 16;
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int run = blockIdx.y * kThreads + threadIdx.x, column = run * kRun;
  vector = vector && column < n;  // a last tile of 8 columns ends in a run past the matrix
  TokenProduct<T> product{a, raw, vector, n, static_cast<std::int64_t>(token) * n};
  product.ReadNorm(token, scratch);
  float v[kRun];
  if (a.output == Output::kGlu) {
    if (column >= n / 2) return;
    const int gate = run / 2 * 32 + run % 2 * kRun;  // packed order: 16 gates, 16 ups
    float up[kRun];
    product.Load(gate, v);
    product.Load(gate + 16, up);
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] = GateOf(a.gate, v[i]) * up[i];
    StoreRun(static_cast<T*>(a.out) + token * a.ldo + column, kRun, vector, v);
    return;
  }
  if (column >= tiles * 16) return;
  if (a.output != Output::kResidual) {
    product.Load(column, v);
    const std::int64_t at = token * a.ldo + column;
    if (a.output == Output::kStoreF32) {
      StoreRun(static_cast<float*>(a.out) + at, n - column, vector, v);
    } else {
      StoreRun(static_cast<T*>(a.out) + at, n - column, vector, v);
    }
    return;
  }
  product.AddResidual(column, v);
  if (a.norm_out.square_sums != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kRun; ++i) squares = fmaf(v[i], v[i], squares);
    squares += __shfl_xor_sync(3u << (threadIdx.x & 30), squares, 1);
    if (run % 2 == 0)
      a.norm_out.square_sums[static_cast<std::int64_t>(token) * tiles + run / 2] = squares;
  }
  if (a.norm_out.normed != nullptr) product.StoreNormed(column, 1.0f, v);
}

// Residual add and the whole norm (NormOutput::eps). A block a token; its stream f32[n] waits in
// shared memory for the sum of its squares.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FinishNormKernel(ProductArgs a, RawProduct raw, bool vector) {
  extern __shared__ __align__(16) float stream[];
  __shared__ float scratch[32];
  const int n = static_cast<int>(a.w.shape.n), token = blockIdx.x;
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  TokenProduct<T> product{a, raw, vector, n, static_cast<std::int64_t>(token) * n};
  product.ReadNorm(token, scratch);
  float squares = 0.0f;
#pragma unroll 2
  for (int column = threadIdx.x * kRun; column < n; column += kThreads * kRun) {
    float v[kRun];
    product.AddResidual(column, v);
    StoreRun(stream + column, n - column, vector, v);
#pragma unroll
    for (int i = 0; i < kRun; ++i) squares = fmaf(v[i], v[i], squares);
  }
  const float factor = rsqrtf(BlockSum<kThreads>(squares, scratch) / n + a.norm_out.eps);
  for (int column = threadIdx.x * kRun; column < n; column += kThreads * kRun) {
    float v[kRun];
    LoadRun(stream + column, n - column, vector, v);  // what this thread stored
    product.StoreNormed(column, factor, v);
  }
}

}  // namespace

cudaError_t FinishProduct(const ProductArgs& args, const RawProduct& raw, LaunchOptions options) {
  const bool vector = AllowsVectors(args, raw), whole_norm = args.norm_out.eps > 0;
  const auto n = static_cast<unsigned>(args.w.shape.n);
  return ByDType(args.dtype, [&]<typename T>() {
    if (args.output == Output::kResidual && whole_norm) {
      return Launch(FinishNormKernel<T>, args.m, kThreads, n * sizeof(float), options, args, raw,
                    vector);
    }
    const unsigned columns = args.output == Output::kGlu ? n / 2 : n;
    const dim3 grid(args.m, (columns + kThreads * kRun - 1) / (kThreads * kRun));
    return Launch(FinishKernel<T>, grid, kThreads, 0, options, args, raw, vector);
  });
}

}  // namespace nibble::cuda
