// Routing tokens to experts and adding up what those made of them; the products are
// GroupedProduct's. Nothing here depends on the order in which blocks run.
#include <cmath>

#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// A warp a token: its top_k experts and their weights.
__global__ void __launch_bounds__(32) ChooseKernel(const float* logits, ExpertRoutes routes,
                                                   int experts, int top_k, bool renormalize) {
  __shared__ float p[kMostExperts];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int lane = threadIdx.x;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * experts;
  float max = -INFINITY, sum = 0.0f;
  for (int e = lane; e < experts; e += 32) max = fmaxf(max, logits[row + e]);
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, delta));
  for (int e = lane; e < experts; e += 32) {
    p[e] = expf(logits[row + e] - max);
    sum += p[e];
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
  __syncwarp();
  float chosen = 0.0f;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * top_k;
  for (int rank = 0; rank < top_k; ++rank) {
    float best = -2.0f;
    int id = experts;
    for (int e = lane; e < experts; e += 32) {
      if (!(p[e] <= best)) best = p[e], id = e;  // NaN wins: it must show
    }
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) {
      const float other = __shfl_xor_sync(~0u, best, delta);
      const int other_id = __shfl_xor_sync(~0u, id, delta);
      if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
    id = min(__shfl_sync(~0u, id, 0), experts - 1);  // NaN may leave the lanes of two minds
    const float weight = p[id] / sum;
    chosen += weight;
    __syncwarp();
    if (lane == 0) {
      routes.chosen[at + rank] = id;
      routes.weights[at + rank] = weight;
      p[id] = -1.0f;
    }
    __syncwarp();
  }
  if (!renormalize) return;
  for (int rank = lane; rank < top_k; rank += 32) routes.weights[at + rank] /= chosen;
}

// A block an expert: how many pairs go to smaller ones, then its own pairs in order.
__global__ void __launch_bounds__(kThreads) SortKernel(ExpertRoutes routes, int pairs, int top_k) {
  __shared__ float scratch[32];
  __shared__ int warp_counts[kThreads / 32];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int less = 0;
  for (int i = threadIdx.x; i < pairs; i += kThreads) less += routes.chosen[i] < expert;
  int next = static_cast<int>(BlockSum<kThreads>(static_cast<float>(less), scratch));  // exact
  if (threadIdx.x == 0) routes.offsets[expert] = next;
  for (int base = 0; base < pairs; base += kThreads) {
    const int i = base + threadIdx.x;
    const bool mine = i < pairs && routes.chosen[i] == expert;
    const unsigned ballot = __ballot_sync(~0u, mine);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    int before = next;
    for (int w = 0; w < kThreads / 32; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      next += warp_counts[w];
    }
    if (mine) {
      const int row = before + __popc(ballot & ((1u << lane) - 1));
      routes.rows[i] = row;
      routes.tokens[row] = i / top_k;
    }
    __syncthreads();
  }
  if (expert == static_cast<int>(gridDim.x) - 1 && threadIdx.x == 0) {
    routes.offsets[expert + 1] = next;
  }
}

// grid (token, 8 * kThreads columns): 8 columns a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    CombineKernel(float* sum, const T* y, ExpertRoutes routes, int top_k, bool add, int dim) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int column = (blockIdx.y * kThreads + threadIdx.x) * 8;
  if (column >= dim) return;
  const std::int64_t pairs = static_cast<std::int64_t>(blockIdx.x) * top_k;
  float* to = sum + static_cast<std::int64_t>(blockIdx.x) * dim + column;
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = add ? to[i] : 0.0f;
  for (int rank = 0; rank < top_k; ++rank) {
    const float weight = routes.weights[pairs + rank];
    const uint4 eight = *reinterpret_cast<const uint4*>(
        y + static_cast<std::int64_t>(routes.rows[pairs + rank]) * dim + column);
    const std::uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = UnpackPair<T>(words[i]);
      v[2 * i] = fmaf(weight, two.x, v[2 * i]);
      v[2 * i + 1] = fmaf(weight, two.y, v[2 * i + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = v[i];
}

}  // namespace

cudaError_t SortByExpert(const float* logits, const ExpertRoutes& routes, int tokens, int experts,
                         int top_k, bool renormalize, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  if (tokens < 0 || experts < 1 || experts > kMostExperts || top_k < 1 || top_k > experts ||
      tokens > (1 << 24) / top_k) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error =
      Launch(ChooseKernel, tokens, 32, 0, options, logits, routes, experts, top_k, renormalize);
  if (error != cudaSuccess) return error;
  return Launch(SortKernel, experts, kThreads, 0, {options.stream, true}, routes, tokens * top_k,
                top_k);
}

cudaError_t CombineExperts(DType dtype, float* sum, const void* y, const ExpertRoutes& routes,
                           int top_k, bool add, int tokens, int dim, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  if (tokens < 0 || dim % 8 != 0 || top_k < 1) return cudaErrorInvalidValue;
  const dim3 grid(tokens, (dim + 8 * kThreads - 1) / (8 * kThreads));
  return ByDType(dtype, [&]<typename T>() {
    return Launch(CombineKernel<T>, grid, kThreads, 0, options, sum, static_cast<const T*>(y),
                  routes, top_k, add, dim);
  });
}

}  // namespace nibble::cuda
