// Decode attention: one query row a sequence over the paged cache, keys split over blocks.
//
// A block is (split, kv head, sequence): the heads of a kv head's group are the 16 rows of its
// products. Its four warps each take 16 keys of every 64-key page, through private rings in shared
// memory, and are merged at the end. With more than one split, partial results are merged by a
// second kernel in fixed order.
#include <algorithm>

#include "kernels/cuda/attention.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpKeys = kPageTokens / kWarps;  // 16
constexpr int kRows = 16;                        // query heads of one block, at most

template <int kDim>
constexpr int Stages() {
  return kDim <= 64 ? 6 : kDim <= 128 ? 4 : 2;
}
template <int kDim>
constexpr int StageBytes() {
  return 2 * kWarpKeys * kDim * 2;
}  // keys and values of one warp
template <int kDim>
constexpr int SharedBytes() {
  return std::max(kWarps * Stages<kDim>() * StageBytes<kDim>(),
                  (kWarps * kRows * (kDim + 2)) * 4);  // the merge reuses it
}

// Partial results in the workspace: f32[sequence][head][split][head_dim + 2], the last two maximum
// and sum.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) DecodeKernel(AttentionArgs a, int splits) {
  extern __shared__ __align__(128) char shared[];
  ptx::LaunchDependents();
  const int split = blockIdx.x, sequence = blockIdx.z;
  const int group = a.heads / a.kv_heads, head_blocks = (group + kRows - 1) / kRows;
  const int kv_head = blockIdx.y / head_blocks,
            head0 = kv_head * group + blockIdx.y % head_blocks * kRows;
  const int head_count = min(kRows, (kv_head + 1) * group - head0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  ptx::WaitForPrerequisites();
  const int context = a.contexts[sequence];
  const int first_visible = a.window > 0 ? max(0, context - a.window) : 0;
  const int begin = max(split * a.split_tokens, first_visible / kPageTokens * kPageTokens);
  const int end = min(context, (split + 1) * a.split_tokens);
  float* partial = static_cast<float*>(a.workspace);
  const auto partial_at = [&](int head) {
    return partial + ((static_cast<std::int64_t>(sequence) * a.heads + head) * splits + split) *
                         (a.head_dim + 2);
  };
  if (begin >= end) {  // nothing here: say so to the merge
    if (splits > 1 && threadIdx.x < head_count) {
      float* at = partial_at(head0 + threadIdx.x) + a.head_dim;
      at[0] = -INFINITY, at[1] = 0.0f;
    }
    if (splits > 1) return;
  }

  // ---- Rings: 16 keys and their values a stage ----
  constexpr int kStages = Stages<kDim>(), kChunks = kDim / 8;
  const std::uint32_t ring = ptx::SharedAddress(shared) + warp * kStages * StageBytes<kDim>();
  const T* cache = static_cast<const T*>(a.layer_cache);
  const std::int32_t* pages = a.pages + sequence * a.ld_pages;
  const int first_page = begin / kPageTokens,
            page_count = begin < end ? (end + kPageTokens - 1) / kPageTokens - first_page : 0;
  const auto fetch = [&](int index) {
    if (index < page_count) {
      const T* page =
          cache + pages[first_page + index] * a.kv.PageStride() + kv_head * a.kv.HeadStride();
      const std::uint32_t stage = ring + index % kStages * StageBytes<kDim>();
      const int key0 = (first_page + index) * kPageTokens + warp * kWarpKeys;
#pragma unroll
      for (int i = 0; i < kWarpKeys * kChunks / 32; ++i) {
        const int key = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks;
        const T* from = page + (warp * kWarpKeys + key) * a.head_dim + chunk * 8;
        const bool inside = chunk * 8 < a.head_dim && key0 + key < context;
        ptx::CopyAsync16(SwizzledChunk<kDim>(stage, key, chunk), inside ? from : cache,
                         inside ? 16 : 0);
        ptx::CopyAsync16(SwizzledChunk<kDim>(stage + StageBytes<kDim>() / 2, key, chunk),
                         inside ? from + a.kv.ValueOffset() : cache, inside ? 16 : 0);
      }
    }
    ptx::CopyAsyncCommit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  std::uint32_t q[kDim / 16][4];
  const T* queries = static_cast<const T*>(a.q) + sequence * a.ld_q;
  LoadQueries<T, kDim>(q, a.head_dim, lane, [&](int row) {
    return row < head_count ? queries + static_cast<std::int64_t>(head0 + row) * a.head_dim
                            : nullptr;
  });
  AttentionState<T, kDim> state;
  state.Clear();
  const AttentionMask mask{context - 1, context - 1, a.window};
  const AttentionScale scale = ScaleOf(a);
  for (int i = 0; i < page_count; ++i) {
    ptx::CopyAsyncWait<kStages - 2>();
    __syncwarp();
    const std::uint32_t stage = ring + i % kStages * StageBytes<kDim>();
    const int key0 = (first_page + i) * kPageTokens + warp * kWarpKeys;
    const bool masked = key0 + kWarpKeys > end || key0 < first_visible;
    state.template Step<kWarpKeys>(q, stage, stage + StageBytes<kDim>() / 2, 0, key0, masked, mask,
                                   scale, lane);
    __syncwarp();
    fetch(i + kStages - 1);
  }
  state.Finish(scale);

  // ---- Merge the warps: f32[warp][row][kDim + 2] ----
  ptx::CopyAsyncWait<0>();
  __syncthreads();
  float* merge = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float* at = merge + (warp * kRows + g + 8 * r) * (kDim + 2);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i)
      at[8 * i + 2 * t] = state.out[i][2 * r], at[8 * i + 2 * t + 1] = state.out[i][2 * r + 1];
    if (t == 0) at[kDim] = state.max[r], at[kDim + 1] = state.sum[r];
  }
  __syncthreads();
  for (int index = threadIdx.x; index < head_count * kDim; index += kThreads) {
    const int row = index / kDim, column = index % kDim;
    if (column >= a.head_dim) continue;
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
    const int head = head0 + row;
    if (splits > 1) {
      float* at = partial_at(head);
      at[column] = out;
      if (column == 0) at[a.head_dim] = max, at[a.head_dim + 1] = sum;
    } else {
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
}

// out = sum over splits. One block a (head, sequence), a thread a column.
template <typename T>
__global__ void __launch_bounds__(256) MergeSplitsKernel(AttentionArgs a, int splits) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int head = blockIdx.x, sequence = blockIdx.y, column = threadIdx.x;
  if (column >= a.head_dim) return;
  const std::int64_t row = static_cast<std::int64_t>(sequence) * a.heads + head;
  const float* partial = static_cast<const float*>(a.workspace) + row * splits * (a.head_dim + 2);
  const int used = min(splits, (a.contexts[sequence] + a.split_tokens - 1) / a.split_tokens);
  float max = -INFINITY;
#pragma unroll 8
  for (int s = 0; s < used; ++s) max = fmaxf(max, partial[s * (a.head_dim + 2) + a.head_dim]);
  float sum = 0.0f, out = 0.0f;
  if (a.sinks != nullptr) {
    max = fmaxf(max, a.sinks[head] * kLog2E);
    sum = exp2f(a.sinks[head] * kLog2E - max);
  }
#pragma unroll 8
  for (int s = 0; s < used; ++s) {
    const float* at = partial + s * (a.head_dim + 2);
    const float mass = at[a.head_dim + 1], value = at[column];
    const float factor = mass == 0.0f ? 0.0f : exp2f(at[a.head_dim] - max);
    sum += mass * factor;
    out += mass == 0.0f ? 0.0f : value * factor;  // the columns of an empty split are not written
  }
  static_cast<T*>(a.out)[row * a.head_dim + column] = FromFloat<T>(sum > 0.0f ? out / sum : 0.0f);
}

int SplitTokens(const AttentionArgs& args) {
  if (args.split_tokens > 0) return args.split_tokens;
  // At most a block an SM at the longest context, in whole pages, at least two pages a block:
  // merging more splits costs more than it wins (one sequence of 8k: 16 splits 18.8 us, 64 splits
  // 40).
  const int rows = args.sequences * args.kv_heads;
  const int pages = (args.max_context + kPageTokens - 1) / kPageTokens;
  const int splits = std::max(1, std::min(pages / 2, 132 / std::max(rows, 1)));
  return (pages + splits - 1) / splits * kPageTokens;
}

int Splits(const AttentionArgs& args, int split_tokens) {
  return std::max(1, (args.max_context + split_tokens - 1) / split_tokens);
}

template <typename T, int kDim>
cudaError_t LaunchDecode(AttentionArgs args, LaunchOptions options) {
  args.split_tokens = SplitTokens(args);
  const int splits = Splits(args, args.split_tokens), group = args.heads / args.kv_heads;
  if (splits > 1 && args.workspace == nullptr) return cudaErrorInvalidValue;
  const dim3 grid(splits, args.kv_heads * ((group + kRows - 1) / kRows), args.sequences);
  cudaError_t error =
      Launch(DecodeKernel<T, kDim>, grid, kThreads, SharedBytes<kDim>(), options, args, splits);
  if (error != cudaSuccess || splits == 1) return error;
  return Launch(MergeSplitsKernel<T>, dim3(args.heads, args.sequences), 256, 0,
                LaunchOptions{options.stream, options.dependent}, args, splits);
}

}  // namespace

std::int64_t DecodeWorkspaceBytes(const AttentionArgs& args) {
  const int splits = Splits(args, SplitTokens(args));
  return splits == 1 ? 0
                     : std::int64_t{4} * args.sequences * args.heads * splits * (args.head_dim + 2);
}

cudaError_t DecodeAttention(const AttentionArgs& args, LaunchOptions options) {
  if (args.sequences == 0) return cudaSuccess;
  if (args.kv.page_tokens != kPageTokens || args.head_dim % 8 != 0 || args.head_dim > 256 ||
      args.heads % args.kv_heads != 0 || args.ld_q % 8 != 0 ||
      args.split_tokens % kPageTokens != 0 || args.kv.dtype != args.dtype ||
      args.kv.head_dim != args.head_dim) {
    return cudaErrorInvalidValue;
  }
  return ByDType(args.dtype, [&]<typename T>() {
    switch (PaddedHeadDim(args.head_dim)) {
      case 64: return LaunchDecode<T, 64>(args, options);
      case 128: return LaunchDecode<T, 128>(args, options);
      default: return LaunchDecode<T, 256>(args, options);
    }
  });
}

}  // namespace nibble::cuda
