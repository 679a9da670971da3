// Prefill attention: a chunk of each sequence's query rows over the paged cache, its own keys
// included.
//
// A block is (tile of 64 rows, head, sequence); its four warps take 16 rows each and walk the
// visible pages together, the next page on its way while one is used. Also decodes sequences of
// several query rows.
#include "kernels/cuda/attention.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16 * kWarps;

template <int kDim>
constexpr int PageBytes() {
  return kPageTokens * kDim * 2;
}  // keys, or values
template <int kDim>
constexpr int SharedBytes() {
  return 4 * PageBytes<kDim>();
}  // two stages

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) PrefillKernel(AttentionArgs a) {
  extern __shared__ __align__(128) char shared[];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int sequence = blockIdx.z, head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const int row_begin = a.query_offsets[sequence], rows = a.query_offsets[sequence + 1] - row_begin;
  // The last tile first: it has the most keys.
  const int tile = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
  if (tile * kTileRows >= rows) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int context = a.contexts[sequence];
  const int position0 = context - rows + tile * kTileRows;  // of the tile's first row
  const int last_position = min(context - 1, position0 + kTileRows - 1);
  const int first_visible = a.window > 0 ? max(0, position0 - a.window + 1) : 0;
  const int first_page = first_visible / kPageTokens, page_end = last_position / kPageTokens + 1;

  const std::uint32_t base = ptx::SharedAddress(shared);
  const T* cache = static_cast<const T*>(a.layer_cache);
  const std::int32_t* pages = a.pages + sequence * a.ld_pages;
  constexpr int kChunks = kDim / 8;
  const auto fetch = [&](int page_index) {
    if (page_index < page_end) {
      const T* page = cache + pages[page_index] * a.kv.PageStride() + kv_head * a.kv.HeadStride();
      const std::uint32_t stage = base + (page_index - first_page) % 2 * 2 * PageBytes<kDim>();
#pragma unroll
      for (int i = 0; i < kPageTokens * kChunks / kThreads; ++i) {
        const int key = (i * kThreads + threadIdx.x) / kChunks,
                  chunk = (i * kThreads + threadIdx.x) % kChunks;
        const T* from = page + key * a.head_dim + chunk * 8;
        const bool inside = chunk * 8 < a.head_dim && page_index * kPageTokens + key < context;
        ptx::CopyAsync16(SwizzledChunk<kDim>(stage, key, chunk), inside ? from : cache,
                         inside ? 16 : 0);
        ptx::CopyAsync16(SwizzledChunk<kDim>(stage + PageBytes<kDim>(), key, chunk),
                         inside ? from + a.kv.ValueOffset() : cache, inside ? 16 : 0);
      }
    }
    ptx::CopyAsyncCommit();
  };
  fetch(first_page);

  std::uint32_t q[kDim / 16][4];
  const int warp_row = tile * kTileRows + warp * 16;
  LoadQueries<T, kDim>(q, a.head_dim, lane, [&](int row) -> const T* {
    if (warp_row + row >= rows) return nullptr;
    return static_cast<const T*>(a.q) + (row_begin + warp_row + row) * a.ld_q +
           static_cast<std::int64_t>(head) * a.head_dim;
  });
  AttentionState<T, kDim> state;
  state.Clear();
  const int warp_position = position0 + warp * 16;
  const AttentionMask mask{warp_position + g, warp_position + g + 8, a.window};
  const AttentionScale scale = ScaleOf(a);
  for (int page = first_page; page < page_end; ++page) {
    fetch(page + 1);
    ptx::CopyAsyncWait<1>();
    __syncthreads();
    const std::uint32_t stage = base + (page - first_page) % 2 * 2 * PageBytes<kDim>();
    const int key0 = page * kPageTokens;
    const bool masked = key0 + kPageTokens - 1 > warp_position ||
                        (a.window > 0 && warp_position + 15 - key0 >= a.window);
    if (key0 <= warp_position + 15) {
      constexpr int kStepKeys = kDim <= 128 ? 64 : 32;  // registers of the scores
#pragma unroll
      for (int row = 0; row < kPageTokens; row += kStepKeys) {
        state.template Step<kStepKeys>(q, stage, stage + PageBytes<kDim>(), row, key0 + row, masked,
                                       mask, scale, lane);
      }
    }
    __syncthreads();
  }
  ptx::CopyAsyncWait<0>();
  state.Finish(scale);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + g + 8 * r;
    if (row >= rows) continue;
    float sum = state.sum[r], factor = 1.0f;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2E, top = fmaxf(state.max[r], sink);
      factor = exp2f(state.max[r] - top);
      sum = sum * factor + exp2f(sink - top);
    }
    const float inverse = sum > 0.0f ? factor / sum : 0.0f;
    T* out = static_cast<T*>(a.out) +
             (static_cast<std::int64_t>(row_begin + row) * a.heads + head) * a.head_dim;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const int column = 8 * i + 2 * t;
      if (column < a.head_dim) {
        *reinterpret_cast<std::uint32_t*>(out + column) =
            PackPair<T>(state.out[i][2 * r] * inverse, state.out[i][2 * r + 1] * inverse);
      }
    }
  }
}

template <typename T, int kDim>
cudaError_t LaunchPrefill(const AttentionArgs& args, LaunchOptions options) {
  const dim3 grid((args.max_queries + kTileRows - 1) / kTileRows, args.heads, args.sequences);
  return Launch(PrefillKernel<T, kDim>, grid, kThreads, SharedBytes<kDim>(), options, args);
}

}  // namespace

cudaError_t PrefillAttention(const AttentionArgs& args, LaunchOptions options) {
  if (args.sequences == 0 || args.max_queries == 0) return cudaSuccess;
  if (args.query_offsets == nullptr || args.kv.page_tokens != kPageTokens ||
      args.head_dim % 8 != 0 || args.head_dim > 256 || args.heads % args.kv_heads != 0 ||
      args.ld_q % 8 != 0 || args.kv.dtype != args.dtype || args.kv.head_dim != args.head_dim) {
    return cudaErrorInvalidValue;
  }
  return ByDType(args.dtype, [&]<typename T>() {
    switch (PaddedHeadDim(args.head_dim)) {
      case 64: return LaunchPrefill<T, 64>(args, options);
      case 128: return LaunchPrefill<T, 128>(args, options);
      default: return LaunchPrefill<T, 256>(args, options);
    }
  });
}

}  // namespace nibble::cuda
