// Prefill attention by warpgroup products (sm_90a).
//
// A tile is 128 rows of one kv head: consecutive queries times the query heads that share the kv
// head, so that keys and values are read once for all of them. Two consumer warpgroups own 64 rows
// each. A third, the producers, runs ahead of them, into the next tile: it brings queries, and keys
// and values page by page, from the last visible ones to the first, two stages deep. Where tiles
// are few each is several items, parts of its keys; the last that is done adds them up. A 16-bit
// cache is copied by one thread through a tensor map; an 8-bit one is widened by all producers on
// the way. While one consumer has its products in the tensor cores the other computes its softmax,
// and within a consumer the softmax of a stage overlaps out += p v of the stage before.
#include <algorithm>

#include "kernels/cuda/attention_bytes.cuh"
#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_wgmma.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/tensor_map.h"

namespace nibble::cuda {
namespace prefill {
namespace {

// How the cache holds an element.
enum class Cached { kHalf, kFloat8, kInt8 };

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Tiles of the most keys first, whatever their sequence; false: the sequence has fewer rows, or the
// tile fewer parts.
__device__ __forceinline__ bool FindTile(const Params& p, int item, int keys, Tile* tile) {
  const AttentionArgs& a = p.args;
  tile->part = item % p.splits;
  item /= p.splits;
  tile->index = item;
  const int head_tiles = a.heads / p.pack, across = head_tiles * a.sequences;
  const int s = item % across / head_tiles;
  tile->sequence = s;
  tile->head = item % head_tiles * p.pack;
  tile->kv_head = tile->head / (a.heads / a.kv_heads);
  const int begin = a.query_offsets[s], end = a.query_offsets[s + 1];
  tile->context = a.contexts[s];
  tile->row_begin = begin;
  tile->rows = end - begin;
  tile->first_row = (p.row_tiles - 1 - item / across) * p.tile_queries;
  tile->position = tile->context - tile->rows + tile->first_row;
  const int last = min(tile->context - 1, tile->position + p.tile_queries - 1) / keys;
  const int first = a.window > 0 ? max(0, tile->position - a.window + 1) / keys : 0;
  tile->parts = min(p.splits, last - first + 1);
  tile->first = first + (last - first + 1) * tile->part / tile->parts;
  tile->last = first + (last - first + 1) * (tile->part + 1) / tile->parts - 1;
  return tile->first_row < tile->rows && tile->part < tile->parts;
}

// One thread: finds the block's next tile and tells all that read tiles; false: there is none. A
// tile is drawn no sooner than its copies can begin: drawn earlier, the last would wait for a block
// still at work.
struct Dealer {
  int drawn = 0;

  __device__ __forceinline__ int Draw(const Params& p) {
    if (drawn++ == 0) return blockIdx.x;
    if (p.args.counter == nullptr) return p.items;
    return static_cast<int>(gridDim.x) + atomicAdd(p.args.counter, 1);
  }

  template <int kKeys>
  __device__ __forceinline__ bool Deal(const Params& p, Control* control, int turn, Tile* tile) {
    std::int32_t* counter = p.args.counter;
    bool more = false, found = false;
    while (!found) {
      const int item = Draw(p);
      more = item < p.items;
      if (!more) break;
      found = FindTile(p, item, kKeys, tile);
    }
    if (!more) tile->sequence = -1;
    ptx::BarrierWait(ptx::SharedAddress(&control->tile_empty[turn % 2]), (turn / 2 & 1) ^ 1);
    control->tiles[turn % 2] = *tile;
    ptx::BarrierArrive(ptx::SharedAddress(&control->tile_full[turn % 2]));
    // The last block to run out of tiles leaves the counter as it was.
    if (!more && counter != nullptr &&
        atomicAdd(counter + 1, 1) == static_cast<int>(gridDim.x) - 1) {
      counter[0] = 0, counter[1] = 0;
    }
    return more;
  }
};

// The copying thread.
template <int kDim>
__device__ __forceinline__ void CopyTiles(const Params& p, std::uint32_t keys_at,
                                          Control* control) {
  constexpr int kKeys = TileKeys<kDim>(), kPages = kKeys / kPageTokens;
  const AttentionArgs& a = p.args;
  int stage = 0, parity = 1;
  Dealer dealer;
  Tile tile;
  for (int turn = 0; dealer.Deal<kKeys>(p, control, turn, &tile); ++turn) {
    const std::int32_t* pages = a.pages + tile.sequence * a.ld_pages;
    const int last_page = (tile.context - 1) / kPageTokens;
    int page[kPages];
    const auto find = [&](int n) {  // past the context any page does: its values are cleared
#pragma unroll
      for (int i = 0; i < kPages; ++i) page[i] = pages[min(n * kPages + i, last_page)];
    };
    find(tile.last);
    for (int n = tile.last; n >= tile.first; --n) {
      int row[kPages];
#pragma unroll
      for (int i = 0; i < kPages; ++i)
        row[i] = (page[i] * 2 * a.kv_heads + tile.kv_head) * kPageTokens;
      if (n > tile.first) find(n - 1);
#pragma unroll
      for (int values = 0; values < 2; ++values) {
        const int slot = values * kStages + stage;
        const std::uint32_t barrier = ptx::SharedAddress(&control->full[slot]),
                            to = keys_at + slot * TileBytes<kDim>();
        ptx::BarrierWait(ptx::SharedAddress(&control->empty[slot]), parity);
        ptx::BarrierExpect(barrier, TileBytes<kDim>());
#pragma unroll
        for (int i = 0; i < kPages; ++i) {
#pragma unroll
          for (int half = 0; half < Halves<kDim>(); ++half) {
            ptx::TensorCopy(to + (half * kKeys + i * kPageTokens) * 128, &p.cache, half * 64,
                            row[i] + values * a.kv_heads * kPageTokens, barrier);
          }
        }
      }
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  }
}

// Queries of a tile to shared memory by kCount threads; rows and columns outside are zeros.
template <typename T, int kDim, int kCount>
__device__ __forceinline__ void LoadQueries(const Params& p, const Tile& tile, std::uint32_t to,
                                            Control* control, int turn, int thread) {
  const AttentionArgs& a = p.args;
  constexpr int kChunks = Halves<kDim>() * 8;
  ptx::BarrierWait(ptx::SharedAddress(&control->queries_empty), (turn & 1) ^ 1);
  const T* from = static_cast<const T*>(a.q) + tile.row_begin * a.ld_q +
                  static_cast<std::int64_t>(tile.head) * a.head_dim;
#pragma unroll 4
  for (int index = thread; index < kRows * kChunks; index += kCount) {
    const int chunk = index % kChunks, row = index / kChunks;
    const int query = tile.first_row + row / p.pack;
    const bool inside =
        query < tile.rows && row < p.pack * p.tile_queries && chunk * 8 < a.head_dim;
    const std::int64_t at = inside ? query * a.ld_q + row % p.pack * a.head_dim + chunk * 8 : 0;
    ptx::CopyAsync16(to + (chunk / 8 * kRows + row) * 128 + ((chunk % 8 ^ (row & 7)) << 4),
                     from + at, inside ? 16 : 0);
  }
  ptx::CopyAsyncCommit();
  ptx::CopyAsyncWait<0>();
  ptx::FenceShared();
  ptx::BarrierArrive(ptx::SharedAddress(&control->queries_full));
}

// Four bytes of the cache, scaled, as two pairs of T.
template <typename T, Cached kCached>
__device__ __forceinline__ uint2 ScaleBytes(std::uint32_t word, float scale) {
  std::uint32_t wide[2];
  WidenBytes<kCached == Cached::kFloat8>(word, wide);
  const float bias = kCached == Cached::kFloat8 ? 0.0f : -kByteBias * scale;
  const float2 low = UnpackPair<half>(wide[0]), high = UnpackPair<half>(wide[1]);
  return {PackPair<T>(fmaf(low.x, scale, bias), fmaf(low.y, scale, bias)),
          PackPair<T>(fmaf(high.x, scale, bias), fmaf(high.y, scale, bias))};
}

// One stage of keys or values of an 8-bit cache, widened by all producers. A thread takes 16 bytes
// of a key at a time; lane i holds the scale of the i-th key that its warp meets.
template <typename T, int kDim, Cached kCached>
__device__ __forceinline__ void WidenStage(const AttentionArgs& a, const Tile& tile, int n,
                                           bool values, std::uint32_t to, std::uint32_t empty,
                                           int parity, int thread) {
  constexpr int kKeys = TileKeys<kDim>(), kPages = kKeys / kPageTokens;
  constexpr int kChunks = Halves<kDim>() * 4, kStep = 128 / kChunks;  // keys at a time
  constexpr int kEach = kKeys / kStep, kWarpKeys = 32 / kChunks;
  const int first_key = n * kKeys, valid = tile.context - first_key, lane = thread % 32;
  const int chunk = thread % kChunks, own = thread / kChunks;
  const char* from[kPages];  // the thread's bytes of the first keys of a page
#pragma unroll
  for (int i = 0; i < kPages; ++i) {
    from[i] = nullptr;
    if (i * kPageTokens >= valid) continue;
    const int page = a.pages[tile.sequence * a.ld_pages + n * kPages + i];
    const PageHead head = FindPage(a, page, tile.kv_head, 1);
    from[i] = (values ? head.values : head.keys) + own * a.head_dim + chunk * 16;
  }
  float scale = 0.0f;
  if (const int key = lane / kWarpKeys * kStep + thread / 32 * kWarpKeys + lane % kWarpKeys;
      key < min(kKeys, valid)) {
    const int page = a.pages[tile.sequence * a.ld_pages + n * kPages + key / kPageTokens];
    const PageHead head = FindPage(a, page, tile.kv_head, 1);
    scale = (values ? head.value_scales : head.key_scales)[key % kPageTokens];
  }
  uint4 bytes[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    bytes[i] = make_uint4(0, 0, 0, 0);
    if (i * kStep + own < valid && chunk * 16 < a.head_dim) {
      bytes[i] = __ldg(reinterpret_cast<const uint4*>(from[i * kStep / kPageTokens] +
                                                      i * kStep % kPageTokens * a.head_dim));
    }
  }
  ptx::BarrierWait(empty, parity);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int key = i * kStep + own;
    const float s = __shfl_sync(~0u, scale, i * kWarpKeys + lane / kChunks);
    const std::uint32_t words[4] = {bytes[i].x, bytes[i].y, bytes[i].z, bytes[i].w};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint2 low = ScaleBytes<T, kCached>(words[2 * part], s),
                  high = ScaleBytes<T, kCached>(words[2 * part + 1], s);
      const std::uint32_t at =
          to + (chunk / 4 * kKeys + key) * 128 + (((chunk % 4 * 2 + part) ^ (key & 7)) << 4);
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(low.x), "r"(low.y),
                   "r"(high.x), "r"(high.y)
                   : "memory");
    }
  }
  ptx::FenceShared();
}

// All producers, for an 8-bit cache.
template <typename T, int kDim, Cached kCached>
__device__ __forceinline__ void WidenTiles(const Params& p, std::uint32_t queries_at,
                                           std::uint32_t keys_at, Control* control, int thread) {
  constexpr int kKeys = TileKeys<kDim>();
  Dealer dealer;
  int stage = 0, parity = 1;
  for (int turn = 0;; ++turn) {
    if (thread == 0) {
      Tile found;
      dealer.Deal<kKeys>(p, control, turn, &found);
    }
    __syncwarp();
    const Tile tile = TakeTile(control, turn);
    if (tile.sequence < 0) return;
    for (int n = tile.last; n >= tile.first; --n) {
#pragma unroll
      for (int values = 0; values < 2; ++values) {
        const int slot = values * kStages + stage;
        WidenStage<T, kDim, kCached>(p.args, tile, n, values == 1,
                                     keys_at + slot * TileBytes<kDim>(),
                                     ptx::SharedAddress(&control->empty[slot]), parity, thread);
        ptx::BarrierArrive(ptx::SharedAddress(&control->full[slot]));
        if (n == tile.last && values == 0)
          LoadQueries<T, kDim, 128>(p, tile, queries_at, control, turn, thread);
      }
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T, int kDim, Cached kCached>
__global__ void __launch_bounds__(kThreads, 1)
    WgmmaPrefillKernel(const __grid_constant__ Params p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  // Of the 168 a thread that the block begins with.
  constexpr int kProducerRegisters = kCached == Cached::kHalf ? 56 : 88;
  extern __shared__ char unaligned[];
  ptx::LaunchDependents();
  const std::uint32_t begin = ptx::SharedAddress(unaligned), base = (begin + 1023) & ~1023u;
  const std::uint32_t keys_at = base + QueryBytes<kDim>();
  auto* control =
      reinterpret_cast<Control*>(unaligned + (keys_at - begin) + 2 * kStages * TileBytes<kDim>());
  if (threadIdx.x == 0) {
    const auto init = [](std::uint64_t* barrier, int arrivals) {
      ptx::BarrierInit(ptx::SharedAddress(barrier), arrivals);
    };
    for (int i = 0; i < 2 * kStages; ++i) {
      init(&control->full[i], kCached == Cached::kHalf ? 1 : 128);
      init(&control->empty[i], 4 * kConsumers);
    }
    constexpr int kLoaders = kCached == Cached::kHalf ? 96 : 128;
    init(&control->queries_full, kLoaders);
    init(&control->queries_empty, 4 * kConsumers);
    for (int i = 0; i < 2; ++i) {
      init(&control->tile_full[i], 1);
      init(&control->tile_empty[i], 4 * kConsumers + kLoaders / 32);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  ptx::WaitForPrerequisites();
  const int producer = static_cast<int>(threadIdx.x) - 128 * kConsumers;
  if (producer >= 0) {
    ptx::FewerRegisters<kProducerRegisters>();
    if constexpr (kCached != Cached::kHalf) {
      WidenTiles<T, kDim, kCached>(p, base, keys_at, control, producer);
    } else if (producer >= 32) {
      for (int turn = 0;; ++turn) {
        const Tile tile = TakeTile(control, turn);
        if (tile.sequence < 0) break;
        LoadQueries<T, kDim, 96>(p, tile, base, control, turn, producer - 32);
      }
    } else if (producer == 0) {
      CopyTiles<kDim>(p, keys_at, control);
    }
  } else {
    ptx::MoreRegisters<(3 * 168 - kProducerRegisters) / 2>();
    Consume<T, kDim>(p, base, keys_at, control);
  }
#endif
}

// Few tiles are split by keys, so that they occupy the SMs: into so many parts in all, of at least
// so many stages each.
constexpr int kMostParts = 160, kLeastStages = 4;
static_assert(kMostParts * kConsumers <= kAttentionFlags);

// Heads of a tile: as many of a kv head's group as divide it, at most 16.
int PackedHeads(int group) {
  int pack = std::min(group, 16);
  while (group % pack != 0) --pack;
  return pack;
}

template <typename T, int kDim, Cached kCached>
cudaError_t LaunchTiles(const AttentionArgs& args, LaunchOptions options) {
  Params p;
  p.args = args;
  p.pack = PackedHeads(args.heads / args.kv_heads);
  p.tile_queries = kRows / p.pack;
  cudaError_t error = cudaSuccess;
  if constexpr (kCached == Cached::kHalf) {
    const KvLayout& kv = args.kv;
    error = EncodeSwizzledHalves(&p.cache, args.layer_cache, kv.head_dim,
                                 kv.LayerStride() / kv.head_dim, std::int64_t{2} * kv.head_dim,
                                 kPageTokens);
    if (error != cudaSuccess) return error;
  }
  DeviceTraits device;
  error = CurrentDevice(&device);
  if (error != cudaSuccess) return error;
  p.row_tiles = (args.max_queries + p.tile_queries - 1) / p.tile_queries;
  const int tiles = p.row_tiles * args.sequences * (args.heads / p.pack);
  p.splits = 1;
  if (args.flags != nullptr && args.workspace != nullptr) {
    const int stages = (args.max_context + TileKeys<kDim>() - 1) / TileKeys<kDim>();
    p.splits =
        std::max(1, std::min(std::min(device.sms, kMostParts) / tiles, stages / kLeastStages));
  }
  p.items = tiles * p.splits;
  const int blocks =
      args.counter != nullptr ? std::min(device.sms, p.items) : p.items;  // one an SM
  return Launch(WgmmaPrefillKernel<T, kDim, kCached>, blocks, kThreads, SharedBytes<kDim>(),
                options, p);
}

template <typename T, Cached kCached>
cudaError_t LaunchByDim(const AttentionArgs& args, LaunchOptions options) {
  if (args.head_dim <= 64) return LaunchTiles<T, 64, kCached>(args, options);
  if (args.head_dim <= 96) return LaunchTiles<T, 96, kCached>(args, options);
  if (args.head_dim <= 128) return LaunchTiles<T, 128, kCached>(args, options);
  return LaunchTiles<T, 256, kCached>(args, options);
}

}  // namespace
}  // namespace prefill

std::int64_t WgmmaWorkspaceBytes(const AttentionArgs& args) {
  const int fours = PaddedHeadDim(args.head_dim) / 8 + 1;
  return std::int64_t{prefill::kMostParts} * prefill::kConsumers * fours * 128 * 16;
}

bool SupportsWgmmaPrefill(const AttentionArgs& args) {
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  };
  DeviceTraits traits;
  return CurrentDevice(&traits) == cudaSuccess && traits.has_warpgroups() && aligned(args.q) &&
         aligned(args.out) && aligned(args.layer_cache);
}

cudaError_t WgmmaPrefill(const AttentionArgs& args, LaunchOptions options) {
  using prefill::Cached;
  return ByDType(args.dtype, [&]<typename T>() {
    if (args.kv.dtype == DType::kF8E4M3)
      return prefill::LaunchByDim<T, Cached::kFloat8>(args, options);
    if (args.kv.dtype == DType::kI8) return prefill::LaunchByDim<T, Cached::kInt8>(args, options);
    return args.kv.dtype == args.dtype ? prefill::LaunchByDim<T, Cached::kHalf>(args, options)
                                       : cudaErrorInvalidValue;
  });
}

}  // namespace nibble::cuda
