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
  struct Call {
    const AttentionOp& op;
    const float* qkv;
    std::int64_t qkv_stride;
    float* out;
    std::int64_t out_stride;
    const float* sinks;
  };

  void RunTask(const Call& call, const Tile& tile, std::int32_t kv_head, std::int32_t head_begin,
               std::int32_t head_end, int thread);

  const CpuContext& context_;
  const std::int32_t heads_, kv_heads_, head_dim_;
  std::int32_t group_, block_heads_,
      head_blocks_;                             // heads a kv head; heads a task; tasks a kv head
  std::int64_t scratch_floats_, state_floats_;  // of one thread
  std::int64_t scratch_at_, state_at_;
  float* scratch_ = nullptr;
  float* states_ = nullptr;
  KvLayout kv_;
  std::byte* pool_ = nullptr;

  StepInput input_;
  std::vector<Tile> tiles_;
};

}  // namespace nibble
