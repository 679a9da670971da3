// Routing tokens to experts and adding up what those made of them; the products are
// GroupedProduct's. Nothing here depends on the order in which blocks run.
#include <cmath>

#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// A warp: the top_k experts of a token and their weights.
__device__ void Choose(const float* logits, const ExpertRoutes& routes, int token, int experts,
                       int top_k, bool renormalize) {
  constexpr int kEach = kMostExperts / 32;
  const int lane = threadIdx.x % 32;
  logits += static_cast<std::int64_t>(token) * experts;
  float p[kEach], max = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int expert = i * 32 + lane;
    p[i] = expert < experts ? __ldcg(logits + expert) : -INFINITY;
    max = fmaxf(max, p[i]);
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, delta));
  // As integers numbers >= 0 keep their order, with NaN, which must show, above all; 0: no more.
  unsigned left[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const bool exists = i * 32 + lane < experts;
    p[i] = exists ? expf(p[i] - max) : 0.0f;
    sum += p[i];
    left[i] = exists ? (__float_as_uint(p[i]) & 0x7fffffffu) + 1 : 0;
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
  float chosen = 0.0f;
  const std::int64_t at = static_cast<std::int64_t>(token) * top_k;
  for (int rank = 0; rank < top_k; ++rank) {
    unsigned best = 0, id = kMostExperts;
#pragma unroll
    for (int i = 0; i < kEach; ++i) best = ::max(best, left[i]);
    best = __reduce_max_sync(~0u, best);
#pragma unroll
    for (int i = kEach - 1; i >= 0; --i) {  // the smaller id of equals
      if (left[i] == best) id = i * 32 + lane;
    }
    id = __reduce_min_sync(~0u, id);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (id == i * 32 + lane) left[i] = 0;
    }
    const float weight = __uint_as_float(best - 1) / sum;
    chosen += weight;
    if (lane == 0) {
      routes.chosen[at + rank] = static_cast<std::int32_t>(id);
      routes.weights[at + rank] = weight;
    }
  }
  __syncwarp();
  if (!renormalize) return;
  for (int rank = lane; rank < top_k; rank += 32) routes.weights[at + rank] /= chosen;
}

// A warp a token.
__global__ void __launch_bounds__(32) ChooseKernel(const float* logits, ExpertRoutes routes,
                                                   int experts, int top_k, bool renormalize) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  Choose(logits, routes, blockIdx.x, experts, top_k, renormalize);
}

// A block an expert: how many pairs go to smaller ones, then its own pairs in order.
__global__ void __launch_bounds__(kThreads) SortKernel(ExpertRoutes routes, int pairs, int top_k) {
  __shared__ float scratch[32];
  __shared__ int warp_counts[kThreads / 32];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int less = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < pairs; i += kThreads) less += routes.chosen[i] < expert;
  int next = static_cast<int>(BlockSum<kThreads>(static_cast<float>(less), scratch));  // exact
  if (threadIdx.x == 0) routes.offsets[expert] = next;
  // A warp has kEach times 32 pairs of a round, in order.
  constexpr int kEach = 8;
  for (int base = warp * 32 * kEach; base - warp * 32 * kEach < pairs; base += kThreads * kEach) {
    unsigned mine[kEach];
    int own = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = base + j * 32 + lane;
      mine[j] = __ballot_sync(~0u, i < pairs && routes.chosen[i] == expert);
      own += __popc(mine[j]);
    }
    if (lane == 0) warp_counts[warp] = own;
    __syncthreads();
    int before = next;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      next += warp_counts[w];
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = base + j * 32 + lane;
      if ((mine[j] >> lane & 1) != 0) {
        const int row = before + __popc(mine[j] & ((1u << lane) - 1));
        routes.rows[i] = row;
        routes.tokens[row] = i / top_k;
      }
      before += __popc(mine[j]);
    }
    __syncthreads();
  }
  if (expert == static_cast<int>(gridDim.x) - 1 && threadIdx.x == 0) {
    routes.offsets[expert + 1] = next;
  }
}

// ---- Few tokens: the router's product, the choice and the sorting in one kernel ----

constexpr int kRouteTokens = 4;  // of a block, each warp with an expert of its own
static_assert(kFewTokens / kRouteTokens + 1 == kRouteCounters);

// Whether this is the last of `blocks` blocks to come here; if so it sees what all have written.
__device__ bool LastToCome(std::uint32_t* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// What SortKernel does, by one block. counts: i32[experts] in shared memory; chosen: i16[pairs].
__device__ void SortFew(const ExpertRoutes& routes, std::int32_t* counts, std::int16_t* chosen,
                        int experts, int pairs, int top_k) {
  const int lane = threadIdx.x % 32;
  for (int e = threadIdx.x; e < experts; e += kThreads) counts[e] = 0;
  for (int i = threadIdx.x; i < pairs; i += kThreads)
    chosen[i] = static_cast<std::int16_t>(__ldcg(routes.chosen + i));
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kThreads) atomicAdd(counts + chosen[i], 1);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  int before = 0;
  for (int base = 0; base < experts; base += 32) {
    const int expert = base + lane, own = expert < experts ? counts[expert] : 0;
    int sum = own;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int lower = __shfl_up_sync(~0u, sum, delta);
      if (lane >= delta) sum += lower;
    }
    if (expert < experts) counts[expert] = routes.offsets[expert] = before + sum - own;
    before += __shfl_sync(~0u, sum, 31);
  }
  if (lane == 0) routes.offsets[experts] = before;
  __syncwarp();
  for (int base = 0; base < pairs; base += 32) {  // counts: where an expert's next row goes
    const int i = base + lane, expert = i < pairs ? chosen[i] : -1;
    const unsigned same = __match_any_sync(~0u, expert);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (expert >= 0) {
      const int row = counts[expert] + rank;
      routes.rows[i] = row;
      routes.tokens[row] = i / top_k;
    }
    __syncwarp();
    if (expert >= 0 && rank == 0) counts[expert] += __popc(same);
    __syncwarp();
  }
}

// grid (8 experts, kRouteTokens tokens).
template <typename T>
__global__ void __launch_bounds__(kThreads) RouteKernel(RouteArgs a) {
  constexpr int kHeld = 8;  // vectors of 8 weights a lane, on their way before the wait
  __shared__ std::int32_t counts[kMostExperts];
  __shared__ std::int16_t chosen[kFewTokens * kFewRanks];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int expert = blockIdx.x * (kThreads / 32) + warp, token0 = blockIdx.y * kRouteTokens;
  const int vectors = expert < a.experts ? a.k / 8 : 0;
  ptx::LaunchDependents();
  const auto* w = reinterpret_cast<const uint4*>(static_cast<const T*>(a.router) +
                                                 static_cast<std::int64_t>(expert) * a.k);
  uint4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (i * 32 + lane < vectors) held[i] = w[i * 32 + lane];
  }
  ptx::WaitForPrerequisites();
  float sums[kRouteTokens] = {};
  for (int base = 0; base < vectors; base += 32 * kHeld) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = base + i * 32 + lane;
      if (at >= vectors) break;
      const uint4 eight = base == 0 ? held[i] : w[at];
      const std::uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int j = 0; j < kRouteTokens; ++j) {
        const int token = min(token0 + j, a.tokens - 1);
        const uint4 x =
            reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + token * a.ldx)[at];
        const std::uint32_t x_words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const float2 two = UnpackPair<T>(words[v]), by = UnpackPair<T>(x_words[v]);
          sums[j] = fmaf(two.x, by.x, fmaf(two.y, by.y, sums[j]));
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kRouteTokens; ++j) {
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], delta);
    if (lane == 0 && vectors > 0 && token0 + j < a.tokens) {
      a.logits[static_cast<std::int64_t>(token0 + j) * a.experts + expert] = sums[j];
    }
  }
  if (!LastToCome(a.counters + 1 + blockIdx.y, gridDim.x)) return;
  if (warp < kRouteTokens && token0 + warp < a.tokens) {
    Choose(a.logits, a.routes, token0 + warp, a.experts, a.top_k, a.renormalize);
  }
  if (gridDim.y > 1) {
    if (!LastToCome(a.counters, gridDim.y)) return;
  } else {
    __threadfence_block();
    __syncthreads();
  }
  SortFew(a.routes, counts, chosen, a.experts, a.tokens * a.top_k, a.top_k);
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
  constexpr int kHeld = 8;  // ranks on their way at once
  for (int first = 0; first < top_k; first += kHeld) {
    uint4 held[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (first + j >= top_k) break;
      held[j] = *reinterpret_cast<const uint4*>(
          y + static_cast<std::int64_t>(routes.rows[pairs + first + j]) * dim + column);
    }
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (first + j >= top_k) break;
      const float weight = routes.weights[pairs + first + j];
      const std::uint32_t words[4] = {held[j].x, held[j].y, held[j].z, held[j].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = UnpackPair<T>(words[i]);
        v[2 * i] = fmaf(weight, two.x, v[2 * i]);
        v[2 * i + 1] = fmaf(weight, two.y, v[2 * i + 1]);
      }
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

cudaError_t RouteTokens(const RouteArgs& a, LaunchOptions options) {
  if (a.tokens == 0) return cudaSuccess;
  if (a.tokens < 0 || a.tokens > kFewTokens || a.experts < 1 || a.experts > kMostExperts ||
      a.top_k < 1 || a.top_k > a.experts || a.top_k > kFewRanks || a.k % 8 != 0 || a.ldx % 8 != 0 ||
      a.counters == nullptr || reinterpret_cast<std::uintptr_t>(a.x) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(a.router) % 16 != 0) {
    return cudaErrorInvalidValue;
  }
  const dim3 grid((a.experts + 7) / 8, (a.tokens + kRouteTokens - 1) / kRouteTokens);
  return ByDType(
      a.dtype, [&]<typename T>() { return Launch(RouteKernel<T>, grid, kThreads, 0, options, a); });
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
