// Decode attention: how blocks share the pages out, and what shared memory holds
// (attention_decode.cu says who does what).
#pragma once

#include <algorithm>

#include "kernels/cuda/attention_bytes.cuh"

namespace nibble::cuda::decode {

inline constexpr int kWarps = 4;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kWarpKeys = kPageTokens / kWarps;  // 16
inline constexpr int kRows = 16;                        // query heads of a column, at most
inline constexpr int kMaxSplits = 16;                   // blocks of a cluster
inline constexpr int kLeastPages = 2;                   // of a block's share

struct Params {
  AttentionArgs args;
  RopeAppendArgs append;  // qkv null: none
  int group;              // query heads of a kv head
  int rows;               // of them a column's, at most
  int parts;              // columns of a kv head
  int columns;            // of a sequence: parts * kv_heads
  bool even;              // blocks share all pages evenly; else a cluster is (column, sequence)
  // Of a layer's cache, in bytes: a page, a head's keys or values in it, from keys to values, from
  // the page to its scales.
  std::int64_t page_bytes;
  int head_bytes, value_offset, scale_offset;

  __device__ __forceinline__ int KvHead(int column) const {
    return parts == 1 ? column : column / parts;
  }
  __device__ __forceinline__ PageHead Find(int page, int kv_head) const {
    const char* at = static_cast<const char*>(args.layer_cache) + page * page_bytes;
    const char* keys = at + kv_head * head_bytes;
    const auto* scales = reinterpret_cast<const float*>(at + scale_offset) + kv_head * kPageTokens;
    return {keys, keys + value_offset, scales, scales + args.kv_heads * kPageTokens};
  }
};

// Visible pages of a sequence.
struct Pages {
  int first, end;
};
__device__ __forceinline__ int FirstVisible(const AttentionArgs& a, int context) {
  return a.window > 0 ? max(0, context - a.window) : 0;
}
__device__ __forceinline__ Pages VisiblePages(const AttentionArgs& a, int context) {
  return {FirstVisible(a, context) / kPageTokens, (context + kPageTokens - 1) / kPageTokens};
}

// A page of a column of a sequence. They come in the order of sequences, columns, pages.
struct Place {
  int sequence, column, context, page;
  Pages pages;

  __device__ __forceinline__ void Enter(const AttentionArgs& a, int s) {
    sequence = s;
    context = a.contexts[s];
    pages = VisiblePages(a, context);
  }
  // REQUIRES: a page follows.
  __device__ __forceinline__ void Next(const Params& p) {
    if (++page < pages.end) return;
    if (++column == p.columns) {
      column = 0;
      do {
        Enter(p.args, sequence + 1);
      } while (pages.first == pages.end);
    }
    page = pages.first;
  }
};

// The pages of all columns in order, dealt evenly: block b has [Begin(b), Begin(b + 1)).
struct Shares {
  int blocks, each, more;  // the first `more` blocks have each + 1

  __device__ __forceinline__ Shares(int total, int most)
      : blocks(min(most, max(1, total / kLeastPages))),
        each(total / blocks),
        more(total - each * blocks) {}
  __device__ __forceinline__ int Begin(int block) const {
    return block >= blocks ? each * blocks + more : each * block + min(block, more);
  }
  __device__ __forceinline__ int BlockOf(int page) const {
    const int large = (each + 1) * more;
    return page < large ? page / (each + 1) : more + (page - large) / each;
  }
};

// By each warp on its own. Leaves `at` alone where this block has no pages.
__device__ __forceinline__ Shares ShareOut(const Params& p, int lane, Place* at) {
  const AttentionArgs& a = p.args;
  const auto visible = [&](int s) {
    if (s >= a.sequences) return 0;
    const Pages pages = VisiblePages(a, a.contexts[s]);
    return pages.end - pages.first;
  };
  int all = 0;
  for (int s = lane; s < a.sequences; s += 32) all += visible(s);
  all = __reduce_add_sync(~0u, all) * p.columns;
  const Shares shares(all, gridDim.x);
  const int begin = shares.Begin(blockIdx.x);
  if (begin == all) return shares;
  // The sequence of the first page: the first whose pages and those before it are more.
  for (int s0 = 0, before = 0;; s0 += 32) {
    const int mine = visible(s0 + lane);
    int sum = mine;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int other = __shfl_up_sync(~0u, sum, delta);
      if (lane >= delta) sum += other;
    }
    const unsigned more = __ballot_sync(~0u, (before + sum) * p.columns > begin);
    if (more == 0) {
      before += __shfl_sync(~0u, sum, 31);
      continue;
    }
    const int found = __ffs(static_cast<int>(more)) - 1;
    before += __shfl_sync(~0u, sum - mine, found);
    at->Enter(a, s0 + found);
    const int count = at->pages.end - at->pages.first, rest = begin - before * p.columns;
    at->column = rest / count;
    at->page = at->pages.first + rest % count;
    return shares;
  }
}

// Some consecutive pages of a column, a block's work at a time.
struct Column {
  int sequence, context, kv_head, head0, heads;
  int page, count, rest;  // the first, how many, how many are left to other blocks
  bool begins;            // with the column's first page
  bool newest;            // appends the newest key and value

  __device__ __forceinline__ void Set(const Params& p, const Place& at, int left) {
    sequence = at.sequence, context = at.context, page = at.page;
    count = min(left, at.pages.end - at.page);
    rest = at.pages.end - at.page - count;
    begins = at.page == at.pages.first;
    kv_head = p.KvHead(at.column);
    head0 = kv_head * p.group + (at.column - kv_head * p.parts) * kRows;
    heads = min(kRows, (kv_head + 1) * p.group - head0);
    newest = p.append.qkv != nullptr && rest == 0 && count > 0;
  }
  // Queries, then the newest key and value: warp w has items w, w + 4, ...
  __device__ __forceinline__ int Items() const { return heads + (newest ? 2 : 0); }
  template <typename T>
  __device__ __forceinline__ const T* Item(const Params& p, int item) const {
    const AttentionArgs& a = p.args;
    const int head = item < heads ? head0 + item : a.heads + (item - heads) * a.kv_heads + kv_head;
    return static_cast<const T*>(a.q) + sequence * a.ld_q + head * a.head_dim;
  }
};

// ---- Shared memory ----

// Whether this code is for devices below 9.0, where a block may have as little as 99 KB.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kLittleShared = true;
#else
inline constexpr bool kLittleShared = false;
#endif

// Two or three blocks an SM, so that one streams while another begins or merges; three of 8 bits,
// which take as many instructions for half the bytes.
template <typename Tiles, bool kLittle = kLittleShared>
constexpr int Stages() {
  constexpr int kBytes = Tiles::kElementBytes == 1 ? 17408 : kLittle ? 16384 : 24576;
  return std::clamp(kBytes / Tiles::TileBytes(kWarpKeys), 2, 8);
}
template <typename Tiles>
constexpr int BlocksAnSm() {
  return (Tiles::kElementBytes == 1 ? 3 : 2) - (Tiles::kDim > 128 ? 1 : 0);
}

// A block's result, f32[rows][Stride]: a row is a head's output times its sum, in the order
// of AttentionState (Tiles::Position), then its maximum and sum.
template <int kDim>
constexpr int Stride() {
  return kDim + 4;  // 16-byte rows
}

// Shared memory, in this order: the rings; maxima and sums of merging warps; q T[rows][kDim + 8];
// the newest key and value as the cache holds them and their scales; each warp's heads as they are
// in the row T[items][kDim]; inverse frequencies; clusters: the result.
template <typename T, typename Tiles, bool kLittle = kLittleShared>
struct Layout {
  static constexpr int kDim = Tiles::kDim;
  static constexpr int kTops = kWarps * Stages<Tiles, kLittle>() * Tiles::TileBytes(kWarpKeys);
  static constexpr int kQueries = kTops + kWarps * 8 * 8;
  static constexpr int kQueryStride = kDim + 8;
  static constexpr int kNewestBytes = 2 * kDim * Tiles::kElementBytes;

  static constexpr int Newest(int rows) { return kQueries + rows * kQueryStride * 2; }
  static constexpr int Items(int rows) { return (rows + 2 + kWarps - 1) / kWarps; }
  static constexpr int Heads(int rows) { return Newest(rows) + kNewestBytes + 16; }
  static constexpr int Frequencies(int rows) {
    return Heads(rows) + kWarps * Items(rows) * kDim * 2;
  }
  static constexpr int Result(int rows) { return Frequencies(rows) + kDim / 2 * 4; }
  static constexpr int Bytes(int rows, bool even) {
    return Result(rows) + (even ? 0 : rows * Stride<kDim>() * 4);
  }
};

// A warp's ring: 16 keys and their values a stage, as far ahead as it holds.
template <typename Tiles>
struct Ring {
  static constexpr int kStages = Stages<Tiles>(), kStageBytes = Tiles::TileBytes(kWarpKeys);
  std::uint32_t base;
  int filled, used;   // the next stage to fill, to use
  Place next;         // to fetch
  int left;           // pages to fetch
  std::int32_t page;  // id of next's

  __device__ __forceinline__ void Begin(const Params& p, std::uint32_t at, const Place& place,
                                        int count) {
    base = at, filled = used = 0, next = place, left = count;
    if (left > 0) FindId(p);
  }
  __device__ __forceinline__ void FindId(const Params& p) {
    page = p.args.pages[next.sequence * p.args.ld_pages + next.page];
  }
  // Whether what is fetched next holds its sequence's newest key.
  __device__ __forceinline__ bool AtNewest() const { return next.page + 1 == next.pages.end; }

  __device__ __forceinline__ void Fetch(const Params& p, int warp, int lane) {
    if (left > 0) {
      const int keys = next.context - (p.append.qkv != nullptr);  // that are in the cache
      Tiles::template Fetch<kWarpKeys, 32>(
          base + filled * kStageBytes, p.Find(page, p.KvHead(next.column)), warp * kWarpKeys,
          keys - next.page * kPageTokens - warp * kWarpKeys, p.args.head_dim, lane);
      if (--left > 0) next.Next(p), FindId(p);
    }
    ptx::CopyAsyncCommit();
    filled = filled + 1 == kStages ? 0 : filled + 1;
  }
  // The oldest stage, from shared memory's begin; what the other lanes have copied is there.
  __device__ __forceinline__ int Take() {
    ptx::CopyAsyncWait<kStages - 2>();
    __syncwarp();
    const int stage = used * kStageBytes;
    used = used + 1 == kStages ? 0 : used + 1;
    return stage;
  }
};

}  // namespace nibble::cuda::decode
