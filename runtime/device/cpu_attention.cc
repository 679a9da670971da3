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
      split_tasks_(context.pool->threads() > 1 ? 4 * context.pool->threads() : 0),
      split_units_(4 * context.pool->threads()),
      scratch_floats_(cpu::RoundUp(cpu::AttentionScratchFloats(head_dim_), 16)),
      state_floats_(kMaxQueryRows * (cpu::PaddedHead(head_dim_) + 2)),
      scratch_at_(layout.Take(context.pool->threads() * scratch_floats_ * 4)),
      state_at_(layout.Take((split_tasks_ + split_units_) * state_floats_ * 4)) {
  tasks_.reserve(static_cast<std::size_t>(split_tasks_));
}

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
  const std::int64_t tasks = num_tasks();
  if (tasks == 0) return;
  if (tasks < split_tasks_) return RunSplit(call);
  context_.pool->For(tasks, 1, [&](std::int64_t index, std::int64_t, int thread) {
    Task task;
    MakeTask(call, tasks - 1 - index, task);  // the longest first
    const cpu::AttentionState state = FreshState(thread, task.rows);
    for (std::int32_t chunk = task.first_chunk; chunk < task.keys; chunk += kAttentionChunk) {
      AttendChunk(call, task, chunk, state, thread);
    }
    Finish(call, task, state);
  });
}

// Fewer tasks than would keep the threads busy: chunks of keys are shared out, some regions of
// them, and folded in order, which gives the bits of the plain loop above.
void CpuAttention::RunSplit(const Call& call) {
  const std::int64_t tasks = num_tasks();
  tasks_.resize(static_cast<std::size_t>(tasks));
  std::int64_t units = 0;
  for (std::int64_t i = 0; i < tasks; ++i) {
    Task& task = tasks_[static_cast<std::size_t>(i)];
    MakeTask(call, i, task);
    FreshState(i, task.rows);
    units += cpu::DivideUp(task.keys - task.first_chunk, kAttentionChunk);
  }
  struct Cursor {
    std::int64_t task = 0;
    std::int32_t chunk = 0;
  } next{0, tasks_[0].first_chunk};
  const auto advance = [&](Cursor& cursor) {
    const Cursor here = cursor;
    cursor.chunk += kAttentionChunk;
    if (cursor.chunk >= tasks_[static_cast<std::size_t>(here.task)].keys && ++cursor.task < tasks) {
      cursor.chunk = tasks_[static_cast<std::size_t>(cursor.task)].first_chunk;
    }
    return here;
  };
  for (std::int64_t done = 0; done < units; done += split_units_) {
    const std::int64_t count = std::min(split_units_, units - done);
    context_.pool->For(count, 1, [&](std::int64_t unit, std::int64_t, int thread) {
      Cursor cursor = next;
      for (std::int64_t i = 0; i < unit; ++i) advance(cursor);
      const Task& task = tasks_[static_cast<std::size_t>(cursor.task)];
      AttendChunk(call, task, cursor.chunk, FreshState(tasks + unit, task.rows), thread);
    });
    for (std::int64_t unit = 0; unit < count; ++unit) {
      const Cursor cursor = advance(next);
      const Task& task = tasks_[static_cast<std::size_t>(cursor.task)];
      context_.kernels->attend_merge(StateAt(cursor.task), StateAt(tasks + unit), task.rows,
                                     head_dim_);
    }
  }
  for (std::int64_t i = 0; i < tasks; ++i)
    Finish(call, tasks_[static_cast<std::size_t>(i)], StateAt(i));
}

cpu::AttentionState CpuAttention::StateAt(std::int64_t index) const {
  float* memory = states_ + index * state_floats_;
  return {memory, memory + kMaxQueryRows, memory + 2 * kMaxQueryRows};
}

cpu::AttentionState CpuAttention::FreshState(std::int64_t index, std::int32_t rows) const {
  const cpu::AttentionState state = StateAt(index);
  std::fill_n(state.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, rows * cpu::PaddedHead(head_dim_), 0.0f);
  return state;
}

void CpuAttention::MakeTask(const Call& call, std::int64_t index, Task& task) const {
  const std::int64_t per_tile = std::int64_t{kv_heads_} * head_blocks_;
  const Tile& tile = tiles_[static_cast<std::size_t>(index / per_tile)];
  const auto block = static_cast<std::int32_t>(index % head_blocks_);
  task.sequence = tile.sequence;
  task.token_begin = tile.token_begin;
  task.kv_head = static_cast<std::int32_t>(index % per_tile / head_blocks_);
  task.head_begin = task.kv_head * group_ + block * block_heads_;
  task.heads = std::min(block_heads_, group_ - block * block_heads_);
  task.rows = 0;
  for (std::int32_t token = tile.token_begin; token < tile.token_end; ++token) {
    for (std::int32_t head = 0; head < task.heads; ++head, ++task.rows) {
      task.queries[task.rows] =
          call.qkv + token * call.qkv_stride + std::int64_t{task.head_begin + head} * head_dim_;
      task.positions[task.rows] = input_.positions[static_cast<std::size_t>(token)];
    }
  }
  task.keys = task.positions[task.rows - 1] + 1;
  task.first_chunk = call.op.window > 0 ? std::max(0, task.positions[0] - call.op.window + 1) : 0;
  task.first_chunk -= task.first_chunk % kAttentionChunk;
}

void CpuAttention::AttendChunk(const Call& call, const Task& task, std::int32_t chunk,
                               const cpu::AttentionState& state, int thread) const {
  cpu::AttentionArgs args{};
  args.kv = {kv_.dtype,
             layer(call.op.layer),
             input_.block_tables.data() +
                 input_.block_table_offsets[static_cast<std::size_t>(task.sequence)],
             kv_.PageStride(),
             task.kv_head * kv_.HeadStride(),
             kv_.ValueOffset() + task.kv_head * kv_.HeadStride(),
             kv_.page_tokens,
             head_dim_};
  args.queries = task.queries;
  args.positions = task.positions;
  args.rows = task.rows;
  args.scale = call.op.scale;
  args.softcap = call.op.softcap;
  args.window = call.op.window;
  args.chunk_begin = chunk;
  args.chunk_end = std::min(task.keys, chunk + kAttentionChunk);
  args.scratch = scratch_ + thread * scratch_floats_;
  context_.kernels->attend_chunk(args, state);
}

void CpuAttention::Finish(const Call& call, const Task& task,
                          const cpu::AttentionState& state) const {
  for (std::int32_t r = 0; r < task.rows; ++r) {
    const std::int32_t head = task.head_begin + r % task.heads,
                       token = task.token_begin + r / task.heads;
    context_.kernels->attend_finish(
        state, r, head_dim_, call.sinks == nullptr ? nullptr : call.sinks + head,
        call.out + token * call.out_stride + std::int64_t{head} * head_dim_);
  }
}

}  // namespace nibble
