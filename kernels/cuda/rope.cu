// Rotary embedding of q and k (with optional norms of each head) and appending k and v to the paged
// cache.
#include "kernels/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;

// A block is a token and every gridDim.y-th four of its heads, a warp each; heads in the order q,
// k, v of the row.
template <typename T, typename Element, int kEach>
__global__ void __launch_bounds__(32 * kWarps)
    RopeAppendKernel(const __grid_constant__ RopeAppendArgs a) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int lane = threadIdx.x % 32, token = blockIdx.x, dim = a.head_dim;
  T* row = static_cast<T*>(a.qkv) + token * a.ld_qkv;
  Rotation<kEach> rotation;
  rotation.Set(a, a.inv_freq, a.positions[token], lane);
  const KvLayout& kv = a.kv;
  const int slot = a.slots[token], offset = slot % kv.page_tokens;
  Element* page = static_cast<Element*>(a.layer_cache) + slot / kv.page_tokens * kv.PageStride();
  for (int head = blockIdx.y * kWarps + threadIdx.x / 32; head < a.heads + 2 * a.kv_heads;
       head += static_cast<int>(gridDim.y) * kWarps) {
    const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
    RopeHead<T, kEach> values;
    values.Load(row + head * dim, dim, is_v ? 0 : a.rope_dim, lane);
    if (!is_v) values.NormAndTurn(a, is_q ? a.q_norm : a.k_norm, rotation, lane);
    if (is_q) {
      __syncwarp();  // all have read
      StoreHead(row + head * dim, values.v, dim, lane);
      continue;
    }
    if (slot < 0) break;
    const int kv_head = head - a.heads - (is_v ? a.kv_heads : 0);
    const float scale = StoreHead(page + (is_v ? kv.ValueOffset() : 0) + kv_head * kv.HeadStride() +
                                      std::int64_t{offset} * dim,
                                  values.v, dim, lane);
    if (kv.Scaled() && lane == 0) {
      float* scales = reinterpret_cast<float*>(page + kv.ScaleOffset());
      scales[((is_v ? a.kv_heads : 0) + kv_head) * kv.page_tokens + offset] = scale;
    }
  }
}

template <typename T, typename Element>
cudaError_t LaunchRope(const RopeAppendArgs& args, LaunchOptions options) {
  // Many tokens: few blocks a token, which then finds its rotation only so many times.
  const int fours = (args.heads + 2 * args.kv_heads + kWarps - 1) / kWarps;
  const dim3 grid(args.tokens, args.tokens >= 256 ? (fours + 5) / 6 : fours);
  const auto launch = [&](auto kernel) {
    return Launch(kernel, grid, 32 * kWarps, 0, options, args);
  };
  if (args.head_dim <= 64) return launch(RopeAppendKernel<T, Element, 2>);
  if (args.head_dim <= 128) return launch(RopeAppendKernel<T, Element, 4>);
  return launch(RopeAppendKernel<T, Element, 8>);
}

}  // namespace

cudaError_t RopeAppend(const RopeAppendArgs& args, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  if (args.head_dim > 256 || args.rope_dim > args.head_dim || args.rope_dim % 2 != 0 ||
      args.kv.head_dim != args.head_dim || args.kv.num_kv_heads != args.kv_heads) {
    return cudaErrorInvalidValue;
  }
  return ByDType(args.dtype, [&]<typename T>() {
    if (args.kv.dtype == DType::kF8E4M3) return LaunchRope<T, __nv_fp8_storage_t>(args, options);
    if (args.kv.dtype == DType::kI8) return LaunchRope<T, std::int8_t>(args, options);
    return args.kv.dtype == args.dtype ? LaunchRope<T, T>(args, options) : cudaErrorInvalidValue;
  });
}

}  // namespace nibble::cuda
