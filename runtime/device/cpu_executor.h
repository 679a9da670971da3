// Interprets a Program on the CPU, one op after the other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kv_layout.h"
#include "runtime/device/backend.h"
#include "runtime/device/cpu_attention.h"
#include "runtime/device/cpu_linear.h"
#include "runtime/device/cpu_moe.h"
#include "runtime/device/cpu_products.h"
#include "runtime/device/program.h"

namespace nibble {

// Owns the weights and knows where activations lie; one thread calls it. Every value is f32. The
// constructor only reserves memory in the layout, so that a plan can ask for the size; Bind gives
// the memory and the weights.
class CpuExecutor {
 public:
  CpuExecutor(const CpuContext& context, Program program, const StepLimits& limits,
              MemoryLayout& layout);

  // Internal when the program and the weights disagree.
  absl::Status Bind(const HostMemory& memory, ModelWeights weights, const KvLayout& kv,
                    void* kv_pool);

  // `tokens` are the input's, none of them kFromSlot any more. REQUIRES: the input passed
  // StepChecker.
  void Run(const StepInput& input, std::span<const std::int32_t> tokens);

  float* logits(std::int64_t row) const { return Row(program_.logits, row); }
  const Program& program() const { return program_; }

 private:
  float* Row(BufferId id, std::int64_t row) const {
    return buffers_[static_cast<std::size_t>(id)] + row * strides_[static_cast<std::size_t>(id)];
  }
  std::int64_t Stride(BufferId id) const { return strides_[static_cast<std::size_t>(id)]; }
  std::int64_t Dim(BufferId id) const { return program_.buffers[static_cast<std::size_t>(id)].dim; }
  const CpuLinear& Linear(LinearId id) const { return *linears_[static_cast<std::size_t>(id)]; }
  const float* Vector(VectorId id) const {
    return id == kNoVector ? nullptr : weights_.vectors[static_cast<std::size_t>(id)].data();
  }
  std::int64_t Rows(BufferId id) const {
    return program_.buffers[static_cast<std::size_t>(id)].per_logit_row ? logit_rows_ : num_tokens_;
  }

  void FillRopes();
  // After the last keys are appended: moves the rows that logits are wanted of to the front, for no
  // other is ever looked at again.
  void KeepLogitRows();
  void Run(const EmbedOp& op);
  void Run(const RmsNormOp& op);
  void Run(const AddRmsNormOp& op);
  void Run(const AddOp& op);
  void Run(const LinearOp& op);
  void Run(const RopeAppendOp& op);
  void Run(const AttentionOp& op);
  // `op` and the GLU over its outputs at once, where the products know how; false: nothing done.
  bool RunWithGlu(const LinearOp& op, const Op& next);
  void Run(const GluOp& op);
  void Run(const MoeOp& op);
  void Run(const GatherRowsOp& op);
  void Run(const SoftcapOp& op);

  const CpuContext& context_;
  const Program program_;
  CpuProducts products_;
  CpuAttention attention_;
  CpuMoe moe_;
  std::vector<std::int64_t> strides_;  // floats a row, of each buffer
  std::vector<std::int64_t> offsets_;
  std::vector<std::int64_t> rope_at_;  // of each table: cos[tokens, half], then sin
  std::vector<float*> buffers_;
  std::vector<float*> ropes_;
  std::int64_t max_tokens_;
  std::size_t last_append_ = 0;  // op

  ModelWeights weights_;
  std::vector<const CpuLinear*> linears_;
  std::vector<ProductJob> jobs_;

  // Of the step that runs.
  StepInput input_;
  std::span<const std::int32_t> tokens_;
  std::vector<std::int32_t> sequence_of_;  // [tokens]
  std::int64_t num_tokens_ = 0;
  std::vector<std::int32_t> kept_;  // tokens whose rows are left, ascending
  std::vector<std::int32_t> kept_positions_, kept_lengths_;
  std::int64_t logit_rows_ = 0;
};

}  // namespace nibble
