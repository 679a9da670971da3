// Decode attention: how results come together: warps, blocks that share a column, clusters.
#pragma once

#include "kernels/cuda/attention_decode.cuh"

namespace nibble::cuda::decode {

// Four entries of a row, in that order.
struct Four {
  float4 out;
  float max, sum;

  __device__ __forceinline__ void Clear() {
    out = {0.0f, 0.0f, 0.0f, 0.0f};
    max = -INFINITY, sum = 0.0f;
  }
  __device__ __forceinline__ void Add(const float4& v, const float2& top) {  // maximum, sum
    const float high = fmaxf(max, top.x);
    const float keep = max == -INFINITY ? 0.0f : PowerOf2(max - high),
                add = top.x == -INFINITY ? 0.0f : PowerOf2(top.x - high);
    out.x = out.x * keep + v.x * add, out.y = out.y * keep + v.y * add;
    out.z = out.z * keep + v.z * add, out.w = out.w * keep + v.w * add;
    sum = sum * keep + top.y * add;
    max = high;
  }
};

// One of a warp's parts, of 8 rows, in a stage of its ring: rows of kDim, 16-byte chunks at
// chunk ^ row so that neither side conflicts.
template <int kDim>
__device__ __forceinline__ float* PartAt(char* stage, int row, int chunk) {
  return reinterpret_cast<float*>(stage) + row * kDim + (chunk ^ row) * 4;
}

template <int kDim>
__device__ __forceinline__ float* Slot(const Params& p, int block, int row) {
  return static_cast<float*>(p.args.workspace) +
         (static_cast<std::int64_t>(block) * p.rows + row) * Stride<kDim>();
}
__device__ __forceinline__ void StoreFour(float* row, int chunk, int dim, const Four& v) {
  __stcg(reinterpret_cast<float4*>(row + chunk * 4), v.out);
  if (chunk == 0) __stcg(reinterpret_cast<float2*>(row + dim), make_float2(v.max, v.sum));
}

// Waits for what blocks [first, last] hand over. A barrier of the block must follow.
__device__ __forceinline__ void AwaitBlocks(const Params& p, int first, int last) {
  for (int block = first + static_cast<int>(threadIdx.x); block <= last; block += kThreads) {
    std::uint32_t* flag = p.args.flags + block;
    while (ptx::LoadAcquire(flag) == 0) __nanosleep(20);
    *flag = 0;
  }
}
template <int kDim>
__device__ __forceinline__ void AddBlocks(const Params& p, int row, int chunk, int first, int last,
                                          Four* to) {
#pragma unroll 2
  for (int block = first; block <= last; ++block) {
    const float* from = Slot<kDim>(p, block, row);
    const float4 v = __ldcg(reinterpret_cast<const float4*>(from + chunk * 4));
    to->Add(v, __ldcg(reinterpret_cast<const float2*>(from + kDim)));
  }
}

// A head's sum with its sink: what to multiply the output by.
__device__ __forceinline__ float Inverse(const AttentionArgs& a, int head, float max, float sum) {
  float factor = 1.0f;
  if (a.sinks != nullptr) {
    const float sink = a.sinks[head] * kLog2E, top = fmaxf(max, sink);
    factor = max == -INFINITY ? 0.0f : PowerOf2(max - top);
    sum = sum * factor + PowerOf2(sink - top);
  }
  return sum > 0.0f ? __fdividef(factor, sum) : 0.0f;
}

template <typename T, typename Tiles>
__device__ __forceinline__ void WriteFour(const AttentionArgs& a, int sequence, int head, int chunk,
                                          const Four& v) {
  T* to =
      static_cast<T*>(a.out) + (static_cast<std::int64_t>(sequence) * a.heads + head) * a.head_dim;
  const float inverse = Inverse(a, head, v.max, v.sum);
  const float out[4] = {v.out.x * inverse, v.out.y * inverse, v.out.z * inverse, v.out.w * inverse};
  if constexpr (Tiles::kColumnStep == 1) {
    if (chunk * 4 >= a.head_dim) return;
    *reinterpret_cast<uint2*>(to + chunk * 4) =
        make_uint2(PackPair<T>(out[0], out[1]), PackPair<T>(out[2], out[3]));
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int column = (chunk * 4 + k) % 8 * Tiles::kColumnStep + chunk / 2;
      if (column < a.head_dim) to[column] = FromFloat<T>(out[k]);
    }
  }
}

// The sum over the blocks of a cluster to the output; each block writes a part.
template <typename T, typename Tiles>
__device__ __forceinline__ void WriteCluster(const AttentionArgs& a, const float* result,
                                             int splits, int rank, int sequence, int head0,
                                             int heads) {
#if __CUDA_ARCH__ >= 900
  constexpr int kDim = Tiles::kDim;
  for (int index = rank * kThreads + threadIdx.x; index < heads * a.head_dim;
       index += splits * kThreads) {
    const int row = index / a.head_dim, column = index % a.head_dim;
    const std::uint32_t from = ptx::SharedAddress(result + row * Stride<kDim>());
    float maxima[kMaxSplits], sums[kMaxSplits], values[kMaxSplits];
#pragma unroll
    for (int i = 0; i < kMaxSplits; ++i) {
      maxima[i] = -INFINITY, sums[i] = values[i] = 0.0f;
      if (i >= splits) continue;
      maxima[i] = ptx::LoadCluster(from + kDim * 4, i);
      sums[i] = ptx::LoadCluster(from + kDim * 4 + 4, i);
      values[i] = ptx::LoadCluster(from + Tiles::Position(column) * 4, i);
    }
    float max = -INFINITY, sum = 0.0f, out = 0.0f;
#pragma unroll
    for (int i = 0; i < kMaxSplits; ++i) max = fmaxf(max, maxima[i]);
#pragma unroll
    for (int i = 0; i < kMaxSplits; ++i) {
      const float factor = maxima[i] == -INFINITY ? 0.0f : PowerOf2(maxima[i] - max);
      sum += sums[i] * factor;
      out += values[i] * factor;
    }
    static_cast<T*>(
        a.out)[(static_cast<std::int64_t>(sequence) * a.heads + head0 + row) * a.head_dim +
               column] = FromFloat<T>(out * Inverse(a, head0 + row, max, sum));
  }
#endif
}

// The warps' states to where the column's result goes: the output, the block that has the column's
// first page, or, for a cluster, `result`. Begins and ends with a barrier of the block.
template <typename T, typename Tiles>
__device__ __forceinline__ void MergeWarps(const Params& p, const Column& column,
                                           const AttentionState<Tiles>& state, char* shared,
                                           int stage, int last_block, int warp, int lane) {
  using L = Layout<T, Tiles>;
  constexpr int kDim = Tiles::kDim, kFours = kDim / 4;
  constexpr int kRingBytes = Stages<Tiles>() * Tiles::TileBytes(kWarpKeys);
  const int g = lane / 4, t = lane % 4, first_block = static_cast<int>(blockIdx.x) + 1;
  auto* tops = reinterpret_cast<float2*>(shared + L::kTops);
#pragma unroll 1
  for (int r = 0; 8 * r < p.rows; ++r) {  // rows 8 r to 8 r + 7
    const int rows = min(8, column.heads - 8 * r);
    if (g < rows) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        float* to = PartAt<kDim>(shared + warp * kRingBytes + stage, g, 2 * i + t / 2) + t % 2 * 2;
        *reinterpret_cast<float2*>(to) = {r == 0 ? state.out[i][0] : state.out[i][2],
                                          r == 0 ? state.out[i][1] : state.out[i][3]};
      }
      if (t == 0) {
        tops[warp * 8 + g] = {r == 0 ? state.max[0] : state.max[1],
                              r == 0 ? state.sum[0] : state.sum[1]};
      }
    }
    if (r == 0) AwaitBlocks(p, first_block, last_block);
    __syncthreads();
    for (int index = threadIdx.x; index < rows * kFours; index += kThreads) {
      const int row = index / kFours, chunk = index % kFours;
      Four sum;
      sum.Clear();
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum.Add(*reinterpret_cast<const float4*>(
                    PartAt<kDim>(shared + w * kRingBytes + stage, row, chunk)),
                tops[w * 8 + row]);
      }
      if (!p.even && gridDim.x > 1) {
        float* to =
            reinterpret_cast<float*>(shared + L::Result(p.rows)) + (8 * r + row) * Stride<kDim>();
        *reinterpret_cast<float4*>(to + chunk * 4) = sum.out;
        if (chunk == 0) *reinterpret_cast<float2*>(to + kDim) = {sum.max, sum.sum};
      } else if (p.even && !column.begins) {
        StoreFour(Slot<kDim>(p, blockIdx.x, 8 * r + row), chunk, kDim, sum);
      } else {
        AddBlocks<kDim>(p, 8 * r + row, chunk, first_block, last_block, &sum);
        WriteFour<T, Tiles>(p.args, column.sequence, column.head0 + 8 * r + row, chunk, sum);
      }
    }
    __syncthreads();
  }
}

}  // namespace nibble::cuda::decode
