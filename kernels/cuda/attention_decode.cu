// Decode attention: one query row a sequence over the paged cache.
//
// A column is up to 16 heads that share a kv head, the rows of a block's products. Few sequences: a
// cluster of blocks is a column of a sequence and shares its pages. Many: every block takes the
// same number of pages, from wherever its share begins, through the ends of columns and sequences;
// a column cut by such a border is finished by the block that has its first page, which waits for
// the others at its end, when they have long been through.
//
// The four warps of a block each take 16 keys of every page, through private rings in shared memory
// that run ahead into the next column. So do the queries: what a warp is to make of the next
// column's heads is copied while this one is attended. Warps merge through the stage of the ring
// they have just used; everything is summed in fixed order.
#include <algorithm>

#include "kernels/cuda/attention_decode_heads.cuh"
#include "kernels/cuda/attention_decode_merge.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace nibble::cuda {
namespace decode {
namespace {

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kThreads, BlocksAnSm<Tiles>())
    DecodeKernel(const __grid_constant__ Params p) {
  constexpr int kDim = Tiles::kDim, kStages = Stages<Tiles>();
  using L = Layout<T, Tiles>;
  extern __shared__ __align__(128) char shared[];
  const AttentionArgs& a = p.args;
  const bool append = p.append.qkv != nullptr;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  ptx::LaunchDependents();
  if (!a.early) ptx::WaitForPrerequisites();

  // ---- This block's pages ----
  Place at;
  Shares shares(0, 1);
  int left, begin = 0;  // pages to go; the first, of all
  if (p.even) {
    shares = ShareOut(p, lane, &at);
    begin = shares.Begin(blockIdx.x);
    left = shares.Begin(blockIdx.x + 1) - begin;
  } else {
    at.Enter(a, blockIdx.z);
    at.column = blockIdx.y;
    const int seen = at.pages.end - at.pages.first, splits = gridDim.x, rank = blockIdx.x;
    at.page = at.pages.first + seen * rank / splits;
    left = at.pages.first + seen * (rank + 1) / splits - at.page;
  }
  Ring<Tiles> ring;
  ring.Begin(p, ptx::SharedAddress(shared) + warp * kStages * Ring<Tiles>::kStageBytes, at, left);
  int fetched = 0;
  // Early: up to a page of a newest key that the previous kernel writes.
#pragma unroll 1
  for (; fetched < kStages - 1 && (!a.early || append || (ring.left > 0 && !ring.AtNewest()));
       ++fetched) {
    ring.Fetch(p, warp, lane);
  }
  float* inv_freq = reinterpret_cast<float*>(shared + L::Frequencies(p.rows));
  int position = 0, slot = -1;  // of the next column's newest key
  const auto find_newest = [&] {
    if (append) position = p.append.positions[at.sequence], slot = p.append.slots[at.sequence];
  };
  if (left > 0) find_newest();
  if (append) {
    for (int i = threadIdx.x; i < p.append.rope_dim / 2; i += kThreads)
      inv_freq[i] = p.append.inv_freq[i];
    __syncthreads();
  }

  // ---- Column after column ----
  bool copied = false;  // of the column's heads
  int since = 0;        // pages since they were asked for
  while (!p.even || left > 0) {
    Column column;
    column.Set(p, at, left);
    Rotation<kDim / 32> rotation;
    if (append) rotation.Set(p.append, inv_freq, position, lane);
    if (!copied) {
      if (a.early) ptx::WaitForPrerequisites();
#pragma unroll 1
      for (; fetched < kStages - 1; ++fetched) ring.Fetch(p, warp, lane);
    } else if (since < kStages - 1) {
      ptx::CopyAsyncWait<0>();
    } else {
      ptx::CopyAsyncWait<kStages - 2>();
    }
    __syncwarp();
    MakeHeads<T, Tiles>(p, column, copied, rotation, shared, warp, lane);
    __syncthreads();
    typename Tiles::Queries q;
    const T* queries = reinterpret_cast<const T*>(shared + L::kQueries);
    Tiles::LoadQueries(q, a.head_dim, lane, [&](int row) {
      return row < column.heads ? queries + row * L::kQueryStride : nullptr;
    });
    const int newest_slot = slot;
    begin += column.count, left -= column.count;
    if (left > 0) {
      at.page += column.count - 1, at.Next(p);
      find_newest();
      Column next;
      next.Set(p, at, left);
      CopyHeads<T, Tiles>(p, next, shared, warp, lane);
    }
    copied = true, since = column.count;

    AttentionState<Tiles> state;
    state.Clear();
    const AttentionMask mask{column.context - 1, column.context - 1, a.window};
    const AttentionScale scale = ScaleOf(a);
    const int first_visible = FirstVisible(a, column.context);
    int stage = 0;
    for (int i = 0;; ++i) {
      if (i < column.count) {
        stage = ring.Take();
        const int key0 = (column.page + i) * kPageTokens + warp * kWarpKeys;
        if (column.newest && key0 / kWarpKeys == (column.context - 1) / kWarpKeys)
          PlaceNewest<T, Tiles>(p, column, newest_slot, ring.base + stage, shared, lane);
        const bool masked = key0 + kWarpKeys > column.context || key0 < first_visible;
        state.template Step<kWarpKeys, kWarpKeys>(q, ring.base + stage, 0, key0, masked, mask,
                                                  scale, lane);
        __syncwarp();
      }
      const bool last = i + 1 >= column.count;
      if (last) {
        state.Finish(scale);
        // A column that goes on is for the blocks after this one to hand over.
        const int last_block = p.even && column.begins && column.rest > 0
                                   ? shares.BlockOf(begin - 1 + column.rest)
                                   : 0;
        MergeWarps<T, Tiles>(p, column, state, shared, stage, last_block, warp, lane);
        if (!p.even) break;
        if (!column.begins && threadIdx.x == 0) ptx::StoreRelease(a.flags + blockIdx.x, 1);
      }
      ring.Fetch(p, warp, lane);  // into the stage just used
      if (last) break;
    }
    if (!p.even) {
#if __CUDA_ARCH__ >= 900
      if (gridDim.x == 1) return;
      ptx::ClusterSync();
      WriteCluster<T, Tiles>(a, reinterpret_cast<const float*>(shared + L::Result(p.rows)),
                             gridDim.x, blockIdx.x, column.sequence, column.head0, column.heads);
      ptx::ClusterSync();  // the others may still read this block
#endif
      return;
    }
  }

  // ---- Sequences without keys: zeros ----
  if (!copied && a.early) ptx::WaitForPrerequisites();
  const int width = a.heads * a.head_dim;
  for (int s = blockIdx.x; s < a.sequences; s += static_cast<int>(gridDim.x)) {
    if (a.contexts[s] > 0) continue;
    for (int i = threadIdx.x; i < width; i += kThreads)
      static_cast<T*>(a.out)[static_cast<std::int64_t>(s) * width + i] = FromFloat<T>(0.0f);
  }
}

// Blocks of a cluster: a power of two.
int Splits(const AttentionArgs& args, const DeviceTraits& device, int columns) {
  if (!device.has_clusters()) return 1;
  const int pages = std::max(1, (args.max_context + kPageTokens - 1) / kPageTokens);
  int splits = 1;
  if (args.split_tokens > 0) {
    while (splits < kMaxSplits && splits * args.split_tokens < args.max_context) splits *= 2;
    return splits;
  }
  // At most a block an SM (4 sequences of 1024: 4 blocks each 10.8 us, 8 blocks 14.2), but none
  // with so many keys that the others wait for it.
  while (splits < kMaxSplits && splits * 2 <= pages &&
         args.sequences * columns * splits * 2 <= 132) {
    splits *= 2;
  }
  while (splits < 8 && args.max_context > 2048 * splits) splits *= 2;
  return splits;
}

// Where shared memory is too little for rings of wide heads.
cudaError_t DecodeByRows(AttentionArgs args, LaunchOptions options) {
  if (args.append != nullptr) {
    const cudaError_t error = RopeAppend(*args.append, options);
    if (error != cudaSuccess) return error;
    options.dependent = true;
  }
  return PortableAttention(args, options);
}

template <typename T, typename Tiles>
cudaError_t LaunchDecode(const AttentionArgs& args, LaunchOptions options) {
  const auto kernel = DecodeKernel<T, Tiles>;
  Params p;
  p.args = args;
  if (args.append != nullptr) {
    p.append = *args.append;
    p.args.q = p.append.qkv, p.args.ld_q = p.append.ld_qkv;
  }
  p.group = args.heads / args.kv_heads;
  p.rows = std::min(p.group, kRows);
  p.parts = (p.group + kRows - 1) / kRows;
  p.columns = p.parts * args.kv_heads;
  p.page_bytes = args.kv.PageStride() * Tiles::kElementBytes;
  p.head_bytes = static_cast<int>(args.kv.HeadStride()) * Tiles::kElementBytes;
  p.value_offset = static_cast<int>(args.kv.ValueOffset()) * Tiles::kElementBytes;
  p.scale_offset = static_cast<int>(args.kv.ScaleOffset()) * Tiles::kElementBytes;
  DeviceTraits device;
  cudaError_t error = CurrentDevice(&device);
  if (error != cudaSuccess) return error;
  // Clusters are quicker where they fill a device once and no block has very many keys.
  const int splits = Splits(args, device, p.columns);
  p.even = args.split_tokens == kSplitEvenly ||
           (args.split_tokens == 0 && args.flags != nullptr && args.workspace != nullptr &&
            (!device.has_clusters() || args.sequences * p.columns * 2 > device.sms ||
             args.max_context > 1024 * splits));
  const int bytes = device.arch < 90 ? Layout<T, Tiles, true>::Bytes(p.rows, p.even)
                                     : Layout<T, Tiles, false>::Bytes(p.rows, p.even);
  if (bytes > device.shared_bytes) return DecodeByRows(p.args, options);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.attrs = attributes;
  if (options.dependent && device.launches_dependent()) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (p.even) {
    int resident = 0;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, bytes);
    if (error != cudaSuccess) return error;
    config.gridDim = dim3(std::min(std::max(1, resident) * device.sms, kAttentionFlags));
  } else {
    config.gridDim = dim3(splits, p.columns, args.sequences);
    if (splits > 8) {
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
    }
    if (splits > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = splits;
      attributes[config.numAttrs].val.clusterDim.y = 1;
      attributes[config.numAttrs++].val.clusterDim.z = 1;
    }
  }
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = options.stream;
  return cudaLaunchKernelEx(&config, kernel, p);
}

bool ValidAppend(const AttentionArgs& args) {
  const RopeAppendArgs& append = *args.append;
  return append.qkv != nullptr && append.ld_qkv % 8 == 0 &&
         reinterpret_cast<std::uintptr_t>(append.qkv) % 16 == 0 && append.dtype == args.dtype &&
         append.tokens == args.sequences && append.heads == args.heads &&
         append.kv_heads == args.kv_heads && append.head_dim == args.head_dim &&
         append.rope_dim <= args.head_dim && append.rope_dim % 2 == 0 &&
         append.layer_cache == args.layer_cache && append.kv.PageStride() == args.kv.PageStride();
}

}  // namespace
}  // namespace decode

std::int64_t AttentionWorkspaceBytes(const AttentionArgs& args) {
  const int rows = std::min(args.heads / args.kv_heads, decode::kRows);
  return std::max(std::int64_t{4} * kAttentionFlags * rows * (PaddedHeadDim(args.head_dim) + 4),
                  WgmmaWorkspaceBytes(args));
}

cudaError_t DecodeAttention(const AttentionArgs& args, LaunchOptions options) {
  if (args.sequences == 0) return cudaSuccess;
  const bool even = args.split_tokens == kSplitEvenly;
  if (!ValidAttention(args) || (!even && args.split_tokens % kPageTokens != 0) ||
      (even && (args.flags == nullptr || args.workspace == nullptr)) ||
      reinterpret_cast<std::uintptr_t>(args.q) % 16 != 0 ||
      (args.append != nullptr && !decode::ValidAppend(args))) {
    return cudaErrorInvalidValue;
  }
  return ByDType(args.dtype, [&]<typename T>() {
    return ByTiles<T>(args.dtype, args.kv.dtype, args.head_dim, [&]<typename Tiles>() {
      return decode::LaunchDecode<T, Tiles>(args, options);
    });
  });
}

}  // namespace nibble::cuda
