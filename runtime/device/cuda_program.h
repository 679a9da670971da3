// A Program compiled to launches of CUDA kernels, with neighbours fused.
#pragma once

#include <cublas_v2.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/model_ops.h"
#include "runtime/device/backend.h"
#include "runtime/device/cuda_linear.h"
#include "runtime/device/cuda_step.h"
#include "runtime/device/program.h"

namespace nibble {

// Owns the weights and knows where activations lie; one thread calls it. The constructor only
// reserves device memory in the layout, from the program alone, so that a plan can ask for the
// size; Bind gives the memory and the weights and compiles.
class CudaProgram {
 public:
  // One kernel of a step, or a few that belong together.
  struct Launch {
    std::string kind;  // "product qkv"
    int op = 0;        // index into Program::ops, for errors
    std::function<cudaError_t(const CudaStepShape&, cuda::LaunchOptions)> run;
    // What it cannot do without, for ledgers: bytes a step, bytes a key of the cache, and
    // operations a row of its input (a row of logits or a token) and a query and key.
    std::int64_t weight_bytes = 0;
    std::int64_t key_bytes = 0;
    double flops_a_row = 0.0, flops_a_score = 0.0;
    bool per_logit_row = false;
  };
  // Fixed addresses that steps read and write besides activations.
  struct StepMemory {
    const CudaStepLayout* layout = nullptr;
    const std::byte* inputs = nullptr;  // on the device
    const std::int32_t* last_tokens = nullptr;
    void* kv_pool = nullptr;
  };

  CudaProgram(Program program, DType dtype, const StepLimits& limits, CudaLayout& layout);

  // Internal when the program and the weights disagree; Unimplemented names what has no kernel.
  absl::Status Bind(const CudaMemory& memory, ModelWeights weights, const KvLayout& kv,
                    const CompileOptions& options, cublasHandle_t cublas, const StepMemory& step,
                    cudaStream_t stream);

  // In order; each may be launched dependent on the one before.
  const std::vector<Launch>& launches() const { return launches_; }
  float* logits() const { return F32(program_.logits); }
  const Program& program() const { return program_; }
  std::int64_t weights_bytes() const { return weights_bytes_; }
  std::int64_t expanded_bytes() const { return expanded_.size(); }

 private:
  friend class CudaCompiler;
  // Where a buffer's values lie: residual streams and logits in f32, what products read in T; an
  // op may turn one into the other in place, so a buffer can have both.
  struct Storage {
    std::int64_t f32 = -1, typed = -1;
  };

  float* F32(BufferId id) const;
  void* Typed(BufferId id) const;
  // Products may write whole kInvariantRows.
  std::int64_t MaxTokens() const { return Padded(limits_.max_tokens); }
  std::int64_t MaxRows(BufferId id) const;
  static std::int64_t Padded(std::int64_t rows) {
    return (rows + cuda::kInvariantRows - 1) / cuda::kInvariantRows * cuda::kInvariantRows;
  }
  void PlanStorage(CudaLayout& layout);
  void PlanScratch(CudaLayout& layout);
  absl::Status ExpandWeights(cudaStream_t stream);

  const Program program_;
  const DType dtype_;
  const StepLimits limits_;
  CompileOptions options_;  // Bind's
  std::vector<Storage> storage_;
  std::vector<std::int64_t> ropes_at_;                  // f32[rope_dim / 2] of each table
  std::int64_t expanded_at_ = -1, expanded_bytes_ = 0;  // ProductScratch::weights
  std::int64_t raw_at_ = -1, prepared_at_ = -1, square_sums_at_ = -1, attention_at_ = -1;
  std::int64_t zeros_at_ = -1;     // kZeroWords that kernels find zero and leave zero
  std::int64_t outliers_at_ = -1;  // Row8Inputs::outliers
  // Mixtures of experts: rows are (token, rank) pairs.
  struct MoeScratch {
    std::int64_t logits = -1, weights = -1, sum = -1;                  // of tokens
    std::int64_t chosen = -1, offsets = -1, tokens = -1, rows = -1;    // ExpertRoutes
    std::int64_t inputs = -1, gate_up = -1, activated = -1, out = -1;  // of rows
  } moe_;
  // Of products, of attention's tiles, and of its parts.
  static constexpr std::int64_t kTileCounter = cuda::kProductFlags, kPartFlags = kTileCounter + 2,
                                kZeroWords = kPartFlags + cuda::kAttentionFlags;

  std::byte* memory_ = nullptr;
  ModelWeights weights_;
  std::vector<CudaLinear*> linears_;
  CudaMemory expanded_;  // of TokenLinears(), one after the other
  CudaMemory vectors_;   // f32 of every norm, one after the other
  std::vector<const float*> vector_at_;
  std::int64_t weights_bytes_ = 0;
  std::vector<Launch> launches_;
};

}  // namespace nibble
