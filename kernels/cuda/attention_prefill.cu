// Prefill attention: a chunk of each sequence's query rows over the paged cache, its own keys
// included. This kernel runs everywhere; attention_wgmma.cu is faster where it runs.
//
// A block is (tile of 64 rows, head, sequence); its four warps take 16 rows each and walk the
// visible pages together, the next page on its way while one is used. Also decodes sequences of
// several query rows.
#include "kernels/cuda/attention_bytes.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16 * kWarps;

template <typename Tiles>
constexpr int SharedBytes() {
  return 2 * Tiles::TileBytes(kPageTokens);
}  // two stages

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kThreads) PrefillKernel(AttentionArgs a) {
  constexpr int kDim = Tiles::kDim, kStageBytes = Tiles::TileBytes(kPageTokens);
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
  const std::int32_t* pages = a.pages + sequence * a.ld_pages;
  const auto fetch = [&](int page) {
    if (page < page_end) {
      Tiles::template Fetch<kPageTokens, kThreads>(
          base + (page - first_page) % 2 * kStageBytes,
          FindPage(a, pages[page], kv_head, Tiles::kElementBytes), 0, context - page * kPageTokens,
          a.head_dim, threadIdx.x);
    }
    ptx::CopyAsyncCommit();
  };
  fetch(first_page);

  typename Tiles::Queries q;
  const int warp_row = tile * kTileRows + warp * 16;
  Tiles::LoadQueries(q, a.head_dim, lane, [&](int row) -> const T* {
    if (warp_row + row >= rows) return nullptr;
    return static_cast<const T*>(a.q) + (row_begin + warp_row + row) * a.ld_q +
           static_cast<std::int64_t>(head) * a.head_dim;
  });
  AttentionState<Tiles> state;
  state.Clear();
  const int warp_position = position0 + warp * 16;
  const AttentionMask mask{warp_position + g, warp_position + g + 8, a.window};
  const AttentionScale scale = ScaleOf(a);
  for (int page = first_page; page < page_end; ++page) {
    fetch(page + 1);
    ptx::CopyAsyncWait<1>();
    __syncthreads();
    const std::uint32_t stage = base + (page - first_page) % 2 * kStageBytes;
    const int key0 = page * kPageTokens;
    const bool masked = key0 + kPageTokens - 1 > warp_position ||
                        (a.window > 0 && warp_position + 15 - key0 >= a.window);
    if (key0 <= warp_position + 15) {
      constexpr int kStepKeys = kDim <= 128 ? 64 : 32;  // registers of the scores
#pragma unroll
      for (int row = 0; row < kPageTokens; row += kStepKeys) {
        state.template Step<kStepKeys, kPageTokens>(q, stage, row, key0 + row, masked, mask, scale,
                                                    lane);
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
      const int column = Tiles::Column(i, t);
      const float v[2] = {state.out[i][2 * r] * inverse, state.out[i][2 * r + 1] * inverse};
      if constexpr (Tiles::kColumnStep == 1) {
        if (column < a.head_dim)
          *reinterpret_cast<std::uint32_t*>(out + column) = PackPair<T>(v[0], v[1]);
      } else {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int at = column + c * Tiles::kColumnStep;
          if (at < a.head_dim) out[at] = FromFloat<T>(v[c]);
        }
      }
    }
  }
}

template <typename T, typename Tiles>
cudaError_t LaunchPrefill(const AttentionArgs& args, LaunchOptions options) {
  const dim3 grid((args.max_queries + kTileRows - 1) / kTileRows, args.heads, args.sequences);
  return Launch(PrefillKernel<T, Tiles>, grid, kThreads, SharedBytes<Tiles>(), options, args);
}

}  // namespace

cudaError_t PrefillAttention(const AttentionArgs& args, LaunchOptions options) {
  if (args.sequences == 0 || args.max_queries == 0) return cudaSuccess;
  if (args.query_offsets == nullptr || !ValidAttention(args)) return cudaErrorInvalidValue;
  if (!args.portable && SupportsWgmmaPrefill(args)) return WgmmaPrefill(args, options);
  return ByDType(args.dtype, [&]<typename T>() {
    return ByTiles<T>(args.dtype, args.kv.dtype, args.head_dim,
                      [&]<typename Tiles>() { return LaunchPrefill<T, Tiles>(args, options); });
  });
}

}  // namespace nibble::cuda
