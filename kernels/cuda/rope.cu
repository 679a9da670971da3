// Rotary embedding of q and k (with optional norms of each head) and appending k and v to the paged
// cache.
#include "kernels/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kEach = 8;  // head_dim <= 256

// One warp a (token, head); heads in the order q, k, v of the row.
template <typename T, typename Element>
__global__ void __launch_bounds__(32 * kWarps)
    RopeAppendKernel(RopeAppendArgs a, T* qkv, Element* cache) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int lane = threadIdx.x % 32;
  const int head = blockIdx.y * kWarps + threadIdx.x / 32, token = blockIdx.x;
  const int heads = a.heads + 2 * a.kv_heads, dim = a.head_dim;
  if (head >= heads) return;
  T* row = qkv + token * a.ld_qkv + static_cast<std::int64_t>(head) * dim;
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;

  RopeHead<T, kEach> values;
  values.Load(row, dim, is_v ? 0 : a.rope_dim, lane);
  if (!is_v) {
    const float* norm = is_q ? a.q_norm : a.k_norm;
    if (is_q && norm == nullptr && a.rope_dim == 0) return;
    Rotation<kEach> rotation;
    rotation.Set(a, a.inv_freq, a.positions[token], lane);
    values.NormAndTurn(a, norm, rotation, lane);
  }
  if (is_q) {
    __syncwarp();  // all have read
    StoreHead(row, values.v, dim, lane);
    return;
  }
  const int slot = a.slots[token];
  if (slot < 0) return;
  const KvLayout& kv = a.kv;
  const int kv_head = is_v ? head - a.heads - a.kv_heads : head - a.heads;
  Element* page = cache + slot / kv.page_tokens * kv.PageStride();
  const int offset = slot % kv.page_tokens;
  Element* to = page + (is_v ? kv.ValueOffset() : 0) + kv_head * kv.HeadStride() +
                static_cast<std::int64_t>(offset) * dim;
  const float scale = StoreHead(to, values.v, dim, lane);
  if (kv.Scaled() && lane == 0) {
    float* scales = reinterpret_cast<float*>(page + kv.ScaleOffset());
    scales[((is_v ? a.kv_heads : 0) + kv_head) * kv.page_tokens + offset] = scale;
  }
}

}  // namespace

cudaError_t RopeAppend(const RopeAppendArgs& args, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  if (args.head_dim > 32 * kEach || args.rope_dim > args.head_dim || args.rope_dim % 2 != 0 ||
      args.kv.head_dim != args.head_dim || args.kv.num_kv_heads != args.kv_heads) {
    return cudaErrorInvalidValue;
  }
  const dim3 grid(args.tokens, (args.heads + 2 * args.kv_heads + kWarps - 1) / kWarps);
  return ByDType(args.dtype, [&]<typename T>() {
    const auto launch = [&]<typename Element>() {
      return Launch(RopeAppendKernel<T, Element>, grid, 32 * kWarps, 0, options, args,
                    static_cast<T*>(args.qkv), static_cast<Element*>(args.layer_cache));
    };
    if (args.kv.dtype == DType::kF8E4M3) return launch.template operator()<__nv_fp8_storage_t>();
    if (args.kv.dtype == DType::kI8) return launch.template operator()<std::int8_t>();
    return args.kv.dtype == args.dtype ? launch.template operator()<T>() : cudaErrorInvalidValue;
  });
}

}  // namespace nibble::cuda
