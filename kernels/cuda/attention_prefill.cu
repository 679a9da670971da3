// Prefill attention: a chunk of each sequence's query rows over the paged cache, its own keys
// included. This kernel runs everywhere; attention_wgmma.cu is faster where it runs.
//
// A block is (tile of 64 rows, head, sequence); its four warps take 16 rows each and walk the
// visible keys together, the next page (half a page of wide heads, so that two fit the smallest
// shared memory) on its way while one is used. Also decodes sequences of several query rows.
#include "kernels/cuda/attention_bytes.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16 * kWarps;

template <typename Tiles>
constexpr int StageKeys() {
  return Tiles::kDim <= 128 ? kPageTokens : kPageTokens / 2;
}
template <typename Tiles>
constexpr int SharedBytes() {
  return 2 * Tiles::TileBytes(StageKeys<Tiles>());
}  // two stages

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kThreads) PrefillKernel(AttentionArgs a) {
  constexpr int kDim = Tiles::kDim, kKeys = StageKeys<Tiles>();
  constexpr int kStageBytes = Tiles::TileBytes(kKeys);
  extern __shared__ __align__(128) char shared[];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int sequence = blockIdx.z, head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const bool decode = a.query_offsets == nullptr;
  const int row_begin = decode ? sequence : a.query_offsets[sequence];
  const int rows = decode ? 1 : a.query_offsets[sequence + 1] - row_begin;
  // The last tile first: it has the most keys.
  const int tile = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
  if (tile * kTileRows >= rows) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int context = a.contexts[sequence];
  const int position0 = context - rows + tile * kTileRows;  // of the tile's first row
  const int last_position = min(context - 1, position0 + kTileRows - 1);
  const int first_visible = a.window > 0 ? max(0, position0 - a.window + 1) : 0;
  const int first_stage = first_visible / kKeys, stage_end = last_position / kKeys + 1;

  const std::uint32_t base = ptx::SharedAddress(shared);
  const std::int32_t* pages = a.pages + sequence * a.ld_pages;
  const auto fetch = [&](int stage) {
    if (stage < stage_end) {
      const int key0 = stage * kKeys;
      Tiles::template Fetch<kKeys, kThreads>(
          base + (stage - first_stage) % 2 * kStageBytes,
          FindPage(a, pages[key0 / kPageTokens], kv_head, Tiles::kElementBytes), key0 % kPageTokens,
          context - key0, a.head_dim, threadIdx.x);
    }
    ptx::CopyAsyncCommit();
  };
  fetch(first_stage);

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
  for (int i = first_stage; i < stage_end; ++i) {
    fetch(i + 1);
    ptx::CopyAsyncWait<1>();
    __syncthreads();
    const std::uint32_t stage = base + (i - first_stage) % 2 * kStageBytes;
    const int key0 = i * kKeys;
    const bool masked =
        key0 + kKeys - 1 > warp_position || (a.window > 0 && warp_position + 15 - key0 >= a.window);
    if (key0 <= warp_position + 15) {
      state.template Step<kKeys, kKeys>(q, stage, 0, key0, masked, mask, scale, lane);
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
  return PortableAttention(args, options);
}

cudaError_t PortableAttention(const AttentionArgs& args, LaunchOptions options) {
  return ByDType(args.dtype, [&]<typename T>() {
    return ByTiles<T>(args.dtype, args.kv.dtype, args.head_dim,
                      [&]<typename Tiles>() { return LaunchPrefill<T, Tiles>(args, options); });
  });
}

}  // namespace nibble::cuda
