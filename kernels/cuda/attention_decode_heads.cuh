// Decode attention: a column's queries, and the newest key and value where decode appends them.
#pragma once

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/rope.cuh"

namespace nibble::cuda::decode {

// A warp's items of a column to shared memory, asynchronously.
template <typename T, typename Tiles>
__device__ __forceinline__ void CopyHeads(const Params& p, const Column& column, char* shared,
                                          int warp, int lane) {
  using L = Layout<T, Tiles>;
  constexpr int kChunks = Tiles::kDim / 8;
  std::uint32_t to =
      ptx::SharedAddress(shared + L::Heads(p.rows)) + warp * L::Items(p.rows) * Tiles::kDim * 2;
  for (int item = warp; item < column.Items(); item += kWarps, to += Tiles::kDim * 2) {
    if (lane < kChunks && lane * 8 < p.args.head_dim)
      ptx::CopyAsync16(to + lane * 16, column.Item<T>(p, item) + lane * 8, 16);
  }
}

// The column's queries, and the newest key and value, as RopeAppend makes them, to shared memory:
// from the row itself or from the copy that CopyHeads made. A barrier of the block must follow.
template <typename T, typename Tiles>
__device__ __forceinline__ void MakeHeads(const Params& p, const Column& column, bool copied,
                                          const Rotation<Tiles::kDim / 32>& rotation, char* shared,
                                          int warp, int lane) {
  using L = Layout<T, Tiles>;
  using Element = typename Tiles::Element;
  const RopeAppendArgs& a = p.append;
  const T* copy =
      reinterpret_cast<const T*>(shared + L::Heads(p.rows)) + warp * L::Items(p.rows) * Tiles::kDim;
  const int heads = column.heads;
#pragma unroll 1
  for (int item = warp; item < column.Items(); item += kWarps, copy += Tiles::kDim) {
    RopeHead<T, Tiles::kDim / 32> head;
    head.Load(copied ? copy : column.Item<T>(p, item), p.args.head_dim,
              item > heads ? 0 : a.rope_dim, lane);
    if (a.qkv != nullptr && item <= heads)
      head.NormAndTurn(a, item < heads ? a.q_norm : a.k_norm, rotation, lane);
    if (item < heads) {
      StoreHead(reinterpret_cast<T*>(shared + L::kQueries) + item * L::kQueryStride, head.v,
                Tiles::kDim, lane);
      continue;
    }
    char* to = shared + L::Newest(p.rows);
    const float scale = StoreHead(reinterpret_cast<Element*>(to) + (item - heads) * Tiles::kDim,
                                  head.v, Tiles::kDim, lane);
    if (lane == 0) reinterpret_cast<float*>(to + L::kNewestBytes)[item - heads] = scale;
  }
}

// The newest key and value from shared memory to their place in a stage, and to the cache.
template <typename T, typename Tiles>
__device__ __forceinline__ void PlaceNewest(const Params& p, const Column& column, int slot,
                                            std::uint32_t stage, const char* shared, int lane) {
  using L = Layout<T, Tiles>;
  constexpr int kChunks = L::kNewestBytes / 32;  // of 16 bytes, of the key
  const RopeAppendArgs& a = p.append;
  const char* from = shared + L::Newest(p.rows);
  const int kv_head = column.kv_head, key = (column.context - 1) % kWarpKeys;
  if (column.head0 != kv_head * p.group) slot = -1;  // another column of the kv head writes it
  char* page = static_cast<char*>(a.layer_cache) +
               slot / kPageTokens * a.kv.PageStride() * Tiles::kElementBytes;
#pragma unroll
  for (int i = 0; i < (2 * kChunks + 31) / 32; ++i) {
    const int index = i * 32 + lane, chunk = index % kChunks;
    if (index >= 2 * kChunks) break;
    const bool value = index >= kChunks;
    const uint4 v = reinterpret_cast<const uint4*>(from)[index];
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(
                     Tiles::template At<kWarpKeys>(stage, value, key, chunk)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
    if (slot < 0 || chunk * 16 >= a.head_dim * Tiles::kElementBytes) continue;
    const std::int64_t to = (value ? a.kv.ValueOffset() : 0) + kv_head * a.kv.HeadStride() +
                            static_cast<std::int64_t>(slot % kPageTokens) * a.head_dim;
    *reinterpret_cast<uint4*>(page + to * Tiles::kElementBytes + chunk * 16) = v;
  }
  if constexpr (Tiles::kElementBytes == 1) {
    if (lane < 2) {
      const float scale = reinterpret_cast<const float*>(from + L::kNewestBytes)[lane];
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(
                       Tiles::template ScaleAt<kWarpKeys>(stage, lane == 1, key)),
                   "f"(scale)
                   : "memory");
      if (slot >= 0) {
        reinterpret_cast<float*>(
            page +
            a.kv.ScaleOffset())[(lane * a.kv_heads + kv_head) * kPageTokens + slot % kPageTokens] =
            scale;
      }
    }
  }
  __syncwarp();
}

}  // namespace nibble::cuda::decode
