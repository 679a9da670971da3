// Causal attention of one kv head's query group over paged keys and values.
//
// Keys are taken in chunks that start at multiples of kAttentionChunk, whatever the query, batch or
// prefill chunk is: inside a chunk a plain softmax, between chunks the usual rescaling, in order of
// position. So a query's result depends on its own keys and nothing else, and chunks may run on
// different threads.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace nibble::cpu {

inline constexpr int kAttentionChunk = 128;
inline constexpr int kMaxQueryRows =
    64;  // query rows (tokens * heads of the group) of one task, at most

// The pages of one sequence in one layer, for one kv head.
struct KvPages {
  DType dtype;                // kF16 | kBF16 | kF32
  const void* pool;           // of the layer
  const std::int32_t* pages;  // page ids in order of position
  std::int64_t page_stride;   // elements from page to page
  std::int64_t key_offset;    // elements from a page's start to this head's keys
  std::int64_t value_offset;
  std::int32_t page_tokens;
  std::int32_t head_dim;
};

// Softmax state of query rows over the keys seen so far.
struct AttentionState {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* out;  // [rows, padded head_dim], not yet divided by sum
};

struct AttentionArgs {
  KvPages kv;
  const float* const* queries;    // [rows] pointers to head_dim floats
  const std::int32_t* positions;  // [rows], ascending
  std::int32_t rows;
  float scale;
  float softcap;        // 0: none
  std::int32_t window;  // 0: none
  std::int32_t
      chunk_begin;  // key positions [chunk_begin, chunk_end); chunk_begin % kAttentionChunk == 0
  std::int32_t chunk_end;  // at most one chunk long; never past the sequence's keys
  float* scratch;          // [AttentionScratchFloats(head_dim)]
};

constexpr std::int64_t PaddedHead(std::int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
// Transposed keys [head_dim][32], values [chunk][padded], scores [rows][chunk].
constexpr std::int64_t AttentionScratchFloats(std::int64_t head_dim) {
  return PaddedHead(head_dim) * (32 + kAttentionChunk) +
         std::int64_t{kMaxQueryRows} * kAttentionChunk;
}

}  // namespace nibble::cpu
