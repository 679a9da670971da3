// Attention of a step over the paged KV pool, spread over the CPU backend's threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kv_layout.h"
#include "runtime/device/cpu_products.h"
#include "runtime/device/program.h"
#include "runtime/device/step.h"

namespace nibble {

// Owns the scratch of attention; one thread calls it. The constructor only reserves: Bind gives the
// memory.
class CpuAttention {
 public:
  CpuAttention(const CpuContext& context, const Program& program, MemoryLayout& layout);
  void Bind(const HostMemory& memory, const KvLayout& kv, void* pool);

  // Cuts the step's queries into tasks; once a step.
  void BeginStep(const StepInput& input);

  // `qkv` and `out` are rows of the op's buffers; `sinks` [heads] or null.
  void Run(const AttentionOp& op, const float* qkv, std::int64_t qkv_stride, float* out,
           std::int64_t out_stride, const float* sinks);

  // Where key `position` of sequence `sequence` lies in `layer`'s pool: elements of the first kv
  // head's key.
  std::int64_t KeyOffset(std::int32_t sequence, std::int32_t position) const;
  const KvLayout& kv() const { return kv_; }
  std::byte* layer(std::int32_t layer) const;

 private:
  // Some consecutive tokens of one sequence.
  struct Tile {
    std::int32_t sequence, token_begin, token_end;
  };
  // The query rows of one tile and some heads of one kv head's group: token after token, heads
  // inside.
  struct Task {
    std::int32_t sequence, token_begin, kv_head, head_begin, heads, rows;
    std::int32_t first_chunk, keys;  // key positions [first_chunk, keys)
    const float* queries[cpu::kMaxQueryRows];
    std::int32_t positions[cpu::kMaxQueryRows];
  };
  struct Call {
    const AttentionOp& op;
    const float* qkv;
    std::int64_t qkv_stride;
    float* out;
    std::int64_t out_stride;
    const float* sinks;
  };

  std::int64_t num_tasks() const {
    return static_cast<std::int64_t>(tiles_.size()) * kv_heads_ * head_blocks_;
  }
  void MakeTask(const Call& call, std::int64_t index, Task& task) const;
  void AttendChunk(const Call& call, const Task& task, std::int32_t chunk,
                   const cpu::AttentionState& state, int thread) const;
  void Finish(const Call& call, const Task& task, const cpu::AttentionState& state) const;
  void RunSplit(const Call& call);
  cpu::AttentionState StateAt(std::int64_t index) const;
  cpu::AttentionState FreshState(std::int64_t index, std::int32_t rows) const;

  const CpuContext& context_;
  const std::int32_t heads_, kv_heads_, head_dim_;
  std::int32_t group_, block_heads_,
      head_blocks_;                         // heads a kv head; heads a task; tasks a kv head
  std::int64_t split_tasks_, split_units_;  // fewer tasks than this are split; chunks in one region
  std::int64_t scratch_floats_, state_floats_;  // of one thread; of one task
  std::int64_t scratch_at_, state_at_;
  float* scratch_ = nullptr;
  float* states_ =
      nullptr;  // [split tasks + split units]; a task that is not split uses its thread's
  KvLayout kv_;
  std::byte* pool_ = nullptr;

  StepInput input_;
  std::vector<Tile> tiles_;
  std::vector<Task> tasks_;  // of a split
};

}  // namespace nibble
