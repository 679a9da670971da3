// Decode attention: one query row a sequence over the paged cache.
//
// A cluster is (kv head, sequence); its blocks share the visible pages evenly. The heads of a kv
// head's group are the 16 rows of a block's products. The four warps of a block each take 16 keys
// of every page, through private rings in shared memory; warps merge in shared memory, blocks
// through that of the cluster, in fixed order.
#include <algorithm>

#include "kernels/cuda/attention_bytes.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpKeys = kPageTokens / kWarps;  // 16
constexpr int kRows = 16;                        // query heads of one block, at most
constexpr int kMaxSplits = 16;                   // blocks of a cluster

// Two or three blocks an SM, so that one streams while another begins or merges; three of 8 bits,
// which take as many instructions for half the bytes.
template <typename Tiles>
constexpr int Stages() {
  return std::clamp((Tiles::kElementBytes == 1 ? 17408 : 24576) / Tiles::TileBytes(kWarpKeys), 2,
                    8);
}
template <typename Tiles>
constexpr int RingBytes() {
  return kWarps * Stages<Tiles>() * Tiles::TileBytes(kWarpKeys);
}
// After the products: f32[kWarps][kRows][kDim + 2], the last two maximum and sum; then f32[kRows]
// [kDim + 2] of the block.
template <typename Tiles>
constexpr int SharedBytes() {
  return std::max(RingBytes<Tiles>(), (kWarps + 1) * kRows * (Tiles::kDim + 2) * 4);
}

// A block's result to the output: the sum over the blocks of its cluster.
template <typename T, int kDim>
__device__ __forceinline__ void MergeSplits(const AttentionArgs& a, const float* block, int splits,
                                            int rank, int sequence, int head0, int head_count) {
  [[maybe_unused]] const std::uint32_t at = ptx::SharedAddress(block);
  const int count = head_count * a.head_dim, step = splits * kThreads;
  for (int index = rank * kThreads + threadIdx.x; index < count; index += step) {
    const int row = index / a.head_dim, column = index % a.head_dim;
    float max = -INFINITY, sum = 0.0f, out = 0.0f;
    if (splits == 1) {
      max = block[row * (kDim + 2) + kDim], sum = block[row * (kDim + 2) + kDim + 1];
      out = block[row * (kDim + 2) + column];
    } else {
#if __CUDA_ARCH__ >= 900
      const std::uint32_t from = at + row * (kDim + 2) * 4;
      float maxima[kMaxSplits], sums[kMaxSplits], values[kMaxSplits];
#pragma unroll
      for (int i = 0; i < kMaxSplits; ++i) {
        maxima[i] = -INFINITY, sums[i] = values[i] = 0.0f;
        if (i >= splits) continue;
        maxima[i] = ptx::LoadCluster(from + kDim * 4, i);
        sums[i] = ptx::LoadCluster(from + kDim * 4 + 4, i);
        values[i] = ptx::LoadCluster(from + column * 4, i);
      }
#pragma unroll
      for (int i = 0; i < kMaxSplits; ++i) max = fmaxf(max, maxima[i]);
#pragma unroll
      for (int i = 0; i < kMaxSplits; ++i) {
        const float factor = maxima[i] == -INFINITY ? 0.0f : exp2f(maxima[i] - max);
        sum += sums[i] * factor;
        out += values[i] * factor;
      }
#endif
    }
    const int head = head0 + row;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2E, top = fmaxf(max, sink);
      const float factor = max == -INFINITY ? 0.0f : exp2f(max - top);
      sum = sum * factor + exp2f(sink - top);
      out *= factor;
    }
    static_cast<T*>(
        a.out)[(static_cast<std::int64_t>(sequence) * a.heads + head) * a.head_dim + column] =
        FromFloat<T>(sum > 0.0f ? out / sum : 0.0f);
  }
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kThreads) DecodeKernel(AttentionArgs a) {
  constexpr int kDim = Tiles::kDim, kStages = Stages<Tiles>();
  constexpr int kStageBytes = Tiles::TileBytes(kWarpKeys);
  extern __shared__ __align__(128) char shared[];
  ptx::LaunchDependents();
  if (!a.early) ptx::WaitForPrerequisites();
  const int splits = gridDim.x, rank = blockIdx.x, sequence = blockIdx.z;
  const int group = a.heads / a.kv_heads, head_blocks = (group + kRows - 1) / kRows;
  const int kv_head = blockIdx.y / head_blocks,
            head0 = kv_head * group + blockIdx.y % head_blocks * kRows;
  const int head_count = min(kRows, (kv_head + 1) * group - head0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  // ---- This block's pages ----
  const int context = a.contexts[sequence];
  const int first_visible = a.window > 0 ? max(0, context - a.window) : 0;
  const int first_page = first_visible / kPageTokens,
            pages_seen = (context + kPageTokens - 1) / kPageTokens - first_page;
  const int begin = first_page + pages_seen * rank / splits,
            count = first_page + pages_seen * (rank + 1) / splits - begin;

  // ---- Rings: 16 keys and their values a stage ----
  const std::uint32_t ring = ptx::SharedAddress(shared) + warp * kStages * kStageBytes;
  const std::int32_t* pages = a.pages + sequence * a.ld_pages;
  const auto fetch = [&](int index) {
    if (index < count) {
      const int page = begin + index;
      Tiles::template Fetch<kWarpKeys, 32>(
          ring + index % kStages * kStageBytes,
          FindPage(a, pages[page], kv_head, Tiles::kElementBytes), warp * kWarpKeys,
          context - page * kPageTokens - warp * kWarpKeys, a.head_dim, lane);
    }
    ptx::CopyAsyncCommit();
  };
  int fetched = 0;
  if (a.early) {  // all but the page of the newest key, which the previous kernel writes
    const int safe = rank == splits - 1 ? count - 1 : count;
    while (fetched < min(kStages - 1, safe)) fetch(fetched++);
    ptx::WaitForPrerequisites();
  }
  while (fetched < kStages - 1) fetch(fetched++);

  typename Tiles::Queries q;
  const T* queries = static_cast<const T*>(a.q) + sequence * a.ld_q;
  Tiles::LoadQueries(q, a.head_dim, lane, [&](int row) {
    return row < head_count ? queries + static_cast<std::int64_t>(head0 + row) * a.head_dim
                            : nullptr;
  });
  AttentionState<Tiles> state;
  state.Clear();
  const AttentionMask mask{context - 1, context - 1, a.window};
  const AttentionScale scale = ScaleOf(a);
  for (int i = 0; i < count; ++i) {
    ptx::CopyAsyncWait<kStages - 2>();
    __syncwarp();
    const int key0 = (begin + i) * kPageTokens + warp * kWarpKeys;
    const bool masked = key0 + kWarpKeys > context || key0 < first_visible;
    state.template Step<kWarpKeys, kWarpKeys>(q, ring + i % kStages * kStageBytes, 0, key0, masked,
                                              mask, scale, lane);
    __syncwarp();
    fetch(i + kStages - 1);
  }
  state.Finish(scale);

  // ---- Merge the warps ----
  ptx::CopyAsyncWait<0>();
  __syncthreads();
  float* merge = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (g + 8 * r >= head_count) continue;
    float* at = merge + (warp * kRows + g + 8 * r) * (kDim + 2);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      at[Tiles::Column(i, t)] = state.out[i][2 * r];
      at[Tiles::Column(i, t) + Tiles::kColumnStep] = state.out[i][2 * r + 1];
    }
    if (t == 0) at[kDim] = state.max[r], at[kDim + 1] = state.sum[r];
  }
  __syncthreads();
  float* block = merge + kWarps * kRows * (kDim + 2);
  for (int index = threadIdx.x; index < head_count * kDim; index += kThreads) {
    const int row = index / kDim, column = index % kDim;
    float max = -INFINITY, sum = 0.0f, out = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, merge[(w * kRows + row) * (kDim + 2) + kDim]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* at = merge + (w * kRows + row) * (kDim + 2);
      const float factor = max == -INFINITY ? 0.0f : exp2f(at[kDim] - max);
      sum += at[kDim + 1] * factor;
      out += at[column] * factor;
    }
    float* at = block + row * (kDim + 2);
    at[column] = out;
    if (column == 0) at[kDim] = max, at[kDim + 1] = sum;
  }

  // ---- Merge the blocks ----
  if (splits == 1) {
    __syncthreads();
    MergeSplits<T, kDim>(a, block, 1, 0, sequence, head0, head_count);
    return;
  }
#if __CUDA_ARCH__ >= 900
  ptx::ClusterSync();
  MergeSplits<T, kDim>(a, block, splits, rank, sequence, head0, head_count);
  ptx::ClusterSync();  // the others may still read this block
#endif
}

int DeviceMajor() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess)
    return 0;
  return major;
}

// Blocks a (sequence, kv head): a power of two.
int Splits(const AttentionArgs& args) {
  if (DeviceMajor() < 9) return 1;
  const int pages = std::max(1, (args.max_context + kPageTokens - 1) / kPageTokens);
  int splits = 1;
  if (args.split_tokens > 0) {
    while (splits < kMaxSplits && splits * args.split_tokens < args.max_context) splits *= 2;
    return splits;
  }
  const int rows = args.sequences * args.kv_heads;
  // At most a block an SM (4 sequences of 1024: 4 blocks each 10.8 us, 8 blocks 14.2), but none
  // with so many keys that the others wait for it.
  while (splits < kMaxSplits && splits * 2 <= pages && rows * splits * 2 <= 132) splits *= 2;
  while (splits < 8 && args.max_context > 2048 * splits) splits *= 2;
  return splits;
}

template <typename T, typename Tiles>
cudaError_t LaunchDecode(const AttentionArgs& args, LaunchOptions options) {
  const auto kernel = DecodeKernel<T, Tiles>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           SharedBytes<Tiles>());
  if (error != cudaSuccess) return error;
  const int splits = Splits(args), group = args.heads / args.kv_heads;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.attrs = attributes;
  if (options.dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (splits > 1) {
    if (splits > 8) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
    }
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = splits;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  config.gridDim = dim3(splits, args.kv_heads * ((group + kRows - 1) / kRows), args.sequences);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = SharedBytes<Tiles>();
  config.stream = options.stream;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace

std::int64_t DecodeWorkspaceBytes(const AttentionArgs&) { return 0; }

cudaError_t DecodeAttention(const AttentionArgs& args, LaunchOptions options) {
  if (args.sequences == 0) return cudaSuccess;
  if (!ValidAttention(args) || args.split_tokens % kPageTokens != 0) return cudaErrorInvalidValue;
  return ByDType(args.dtype, [&]<typename T>() {
    return ByTiles<T>(args.dtype, args.kv.dtype, args.head_dim,
                      [&]<typename Tiles>() { return LaunchDecode<T, Tiles>(args, options); });
  });
}

}  // namespace nibble::cuda
