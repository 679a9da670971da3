// Where keys and values lie in the paged KV pool; one description for every backend.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace nibble {

// The pool of one model: element[layer][page][K|V][kv_head][page_tokens][head_dim].
// A *block* id of the block pool is a page index, the same in every layer.
//
// Elements of 8 bits (kF8E4M3, kI8) are scaled: a page ends in f32[K|V][kv_head][page_tokens], and
// element * scale is the number.
struct KvLayout {
  int num_layers = 0;
  int num_pages = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_tokens = 64;
  DType dtype = DType::kF16;

  constexpr std::int64_t HeadStride() const {
    return std::int64_t{page_tokens} * head_dim;
  }  // elements
  constexpr std::int64_t ValueOffset() const {
    return HeadStride() * num_kv_heads;
  }  // from K to V of a page
  constexpr bool Scaled() const { return BitsOf(dtype) == 8; }
  // From a page to its scales, and all of them, in elements, which are bytes.
  constexpr std::int64_t ScaleOffset() const { return 2 * ValueOffset(); }
  constexpr std::int64_t ScaleBytes() const {
    return Scaled() ? std::int64_t{2} * num_kv_heads * page_tokens * 4 : 0;
  }
  constexpr std::int64_t PageStride() const { return 2 * ValueOffset() + ScaleBytes(); }
  constexpr std::int64_t LayerStride() const { return PageStride() * num_pages; }
  constexpr std::int64_t BytesPerPage() const {  // over all layers
    return PageStride() * num_layers * BitsOf(dtype) / 8;
  }
  constexpr std::int64_t TotalBytes() const { return BytesPerPage() * num_pages; }
};

}  // namespace nibble
