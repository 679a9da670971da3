#include "runtime/device/cpu_attention.h"

#include <algorithm>
#include <limits>

namespace nibble {

using cpu::kAttentionChunk;
using cpu::kMaxQueryRows;

CpuAttention::CpuAttention(const CpuContext& context, const Program& program, MemoryLayout& layout)
    : context_(context),
      heads_(program.num_heads),
      kv_heads_(program.num_kv_heads),
      head_dim_(program.head_dim),
      group_(heads_ / kv_heads_),
      block_heads_(std::min(group_, kMaxQueryRows)),
      head_blocks_((group_ + block_heads_ - 1) / block_heads_),
      scratch_floats_(cpu::RoundUp(cpu::AttentionScratchFloats(head_dim_), 16)),
      state_floats_(kMaxQueryRows * (cpu::PaddedHead(head_dim_) + 2)),
      scratch_at_(layout.Take(context.pool->threads() * scratch_floats_ * 4)),
      state_at_(layout.Take(context.pool->threads() * state_floats_ * 4)) {}

void CpuAttention::Bind(const HostMemory& memory, const KvLayout& kv, void* pool) {
  scratch_ = memory.At<float>(scratch_at_);
  states_ = memory.At<float>(state_at_);
  kv_ = kv;
  pool_ = static_cast<std::byte*>(pool);
}

std::byte* CpuAttention::layer(std::int32_t layer) const {
  return pool_ + layer * kv_.LayerStride() * BitsOf(kv_.dtype) / 8;
}

std::int64_t CpuAttention::KeyOffset(std::int32_t sequence, std::int32_t position) const {
  const std::int32_t page =
      input_.block_tables[input_.block_table_offsets[sequence] + position / kv_.page_tokens];
  return page * kv_.PageStride() + std::int64_t{position % kv_.page_tokens} * kv_.head_dim;
}

void CpuAttention::BeginStep(const StepInput& input) {
  input_ = input;
  tiles_.clear();
  const std::int32_t tile_tokens = std::max(1, kMaxQueryRows / block_heads_);
  std::int32_t token = 0;
  for (std::int32_t s = 0; s < static_cast<std::int32_t>(input.slots.size()); ++s) {
    const std::int32_t end = token + input.query_lengths[s];
    for (; token < end; token += tile_tokens)
      tiles_.push_back({s, token, std::min(end, token + tile_tokens)});
    token = end;
  }
}

void CpuAttention::Run(const AttentionOp& op, const float* qkv, std::int64_t qkv_stride, float* out,
                       std::int64_t out_stride, const float* sinks) {
  const Call call{op, qkv, qkv_stride, out, out_stride, sinks};
  const std::int64_t per_tile = std::int64_t{kv_heads_} * head_blocks_;
  const auto tiles = static_cast<std::int64_t>(tiles_.size());
  context_.pool->For(tiles * per_tile, 1, [&](std::int64_t begin, std::int64_t, int thread) {
    const Tile& tile =
        tiles_[static_cast<std::size_t>(tiles - 1 - begin / per_tile)];  // the longest first
    const auto kv_head = static_cast<std::int32_t>(begin % per_tile / head_blocks_);
    const auto block = static_cast<std::int32_t>(begin % head_blocks_);
    const std::int32_t head = kv_head * group_ + block * block_heads_;
    RunTask(call, tile, kv_head, head, std::min(head + block_heads_, (kv_head + 1) * group_),
            thread);
  });
}

void CpuAttention::RunTask(const Call& call, const Tile& tile, std::int32_t kv_head,
                           std::int32_t head_begin, std::int32_t head_end, int thread) {
  const std::int32_t rows = (tile.token_end - tile.token_begin) * (head_end - head_begin);
  const float* queries[kMaxQueryRows];
  std::int32_t positions[kMaxQueryRows];
  std::int32_t row = 0;
  for (std::int32_t token = tile.token_begin; token < tile.token_end; ++token) {
    for (std::int32_t head = head_begin; head < head_end; ++head, ++row) {
      queries[row] = call.qkv + token * call.qkv_stride + std::int64_t{head} * head_dim_;
      positions[row] = input_.positions[token];
    }
  }

  const std::int64_t width = cpu::PaddedHead(head_dim_);
  float* memory = states_ + thread * state_floats_;
  const cpu::AttentionState state{memory, memory + kMaxQueryRows, memory + 2 * kMaxQueryRows};
  std::fill_n(state.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, rows * width, 0.0f);

  cpu::AttentionArgs args{};
  args.kv = {kv_.dtype,
             layer(call.op.layer),
             input_.block_tables.data() + input_.block_table_offsets[tile.sequence],
             kv_.PageStride(),
             kv_head * kv_.HeadStride(),
             kv_.ValueOffset() + kv_head * kv_.HeadStride(),
             kv_.page_tokens,
             head_dim_};
  args.queries = queries;
  args.positions = positions;
  args.rows = rows;
  args.scale = call.op.scale;
  args.softcap = call.op.softcap;
  args.window = call.op.window;
  args.scratch = scratch_ + thread * scratch_floats_;
  const std::int32_t keys = positions[rows - 1] + 1;
  std::int32_t first = call.op.window > 0 ? std::max(0, positions[0] - call.op.window + 1) : 0;
  first -= first % kAttentionChunk;
  for (std::int32_t chunk = first; chunk < keys; chunk += kAttentionChunk) {
    args.chunk_begin = chunk;
    args.chunk_end = std::min(keys, chunk + kAttentionChunk);
    context_.kernels->attend_chunk(args, state);
  }

  for (std::int32_t r = 0; r < rows; ++r) {
    const std::int32_t head = head_begin + r % (head_end - head_begin);
    const std::int32_t token = tile.token_begin + r / (head_end - head_begin);
    context_.kernels->attend_finish(
        state, r, head_dim_, call.sinks == nullptr ? nullptr : call.sinks + head,
        call.out + token * call.out_stride + std::int64_t{head} * head_dim_);
  }
}

}  // namespace nibble
