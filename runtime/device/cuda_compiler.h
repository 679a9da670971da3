// From the ops of a Program to launches: which neighbours become one kernel.
#pragma once

#include <cublas_v2.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "runtime/device/cuda_program.h"

namespace nibble {

// Lives while CudaProgram::Bind runs. What it fuses:
//   product + GLU              gate and up are packed alternating
//   product + residual add     the product's tile adds itself to the stream
//   residual add + RMS norm    the product also writes what the next one, which divides, needs
//   rope, append + attention   of decode, unless of a few sequences
class CudaCompiler {
 public:
  CudaCompiler(CudaProgram& to, const KvLayout& kv, cublasHandle_t cublas,
               const CudaProgram::StepMemory& step)
      : to_(to), program_(to.program_), kv_(kv), cublas_(cublas), step_(step) {}

  absl::Status Compile();

 private:
  using Shape = CudaStepShape;
  using Options = cuda::LaunchOptions;

  static cuda::Gate GateOf(Activation activation);
  // How products are cut: a phase is the same whatever a step carries.
  static cuda::ProductCut Cut(const CudaStepShape& shape, bool deterministic);

  // Each emits one op, and may take the next with it: index_ is then moved on.
  absl::Status Emit(const EmbedOp& op);
  absl::Status Emit(const RmsNormOp& op);
  absl::Status Emit(const AddRmsNormOp& op);
  absl::Status Emit(const AddOp& op);
  absl::Status Emit(const LinearOp& op);
  absl::Status Emit(const RopeAppendOp& op);
  cuda::RopeAppendArgs RopeAppendArgsOf(const RopeAppendOp& op) const;
  absl::Status Emit(const AttentionOp& op);
  absl::Status Emit(const GluOp& op);
  absl::Status Emit(const MoeOp& op);
  absl::Status Emit(const GatherRowsOp& op);
  absl::Status Emit(const SoftcapOp& op);

  // Whether all experts of a stack are one grouped product.
  bool Grouped(const CudaLinear& stack) const;
  // Whether steps of few tokens run the mixture by kernels of their own.
  bool HasFewTokenKernels(const MoeOp& op) const;
  void EmitRouter(const MoeOp& op, bool few);
  void EmitGrouped(const MoeOp& op, bool few);
  void EmitOneByOne(const MoeOp& op);
  cuda::ExpertRoutes Routes() const;

  template <typename T>
  const T* Next() const {  // the op after this one
    const std::size_t next = index_ + 1;
    return next < program_.ops.size() ? std::get_if<T>(&program_.ops[next]) : nullptr;
  }
  // Whether only a product that can divide by the norm itself reads `normed`, which op `at` writes.
  bool NormCanWait(BufferId normed, std::size_t at) const;

  CudaProgram::Launch& Add(const std::string& kind, decltype(CudaProgram::Launch::run) run);
  // `rows`: of the step, as the buffer of the inputs has them.
  void AddProduct(const std::string& what, const CudaSegment& segment, cuda::ProductArgs args,
                  BufferId rows);
  void AddRow8Product(const std::string& what, const CudaSegment& segment,
                      const cuda::ProductArgs& args, BufferId rows);
  const void* AddPrepare(const CudaSegment& segment, const void* in, BufferId rows);

  const CudaLinear& Linear(LinearId id) const {
    return *to_.linears_[static_cast<std::size_t>(id)];
  }
  const float* Vector(VectorId id) const {
    return id == kNoVector ? nullptr : to_.vector_at_[static_cast<std::size_t>(id)];
  }
  int Dim(BufferId id) const {
    return static_cast<int>(program_.buffers[static_cast<std::size_t>(id)].dim);
  }
  bool PerLogitRow(BufferId id) const {
    return program_.buffers[static_cast<std::size_t>(id)].per_logit_row;
  }
  const std::string& Name(BufferId id) const {
    return program_.buffers[static_cast<std::size_t>(id)].name;
  }
  bool InF32(BufferId id) const { return in_f32_[static_cast<std::size_t>(id)]; }
  void SetF32(BufferId id, bool f32) { in_f32_[static_cast<std::size_t>(id)] = f32; }
  template <typename T>
  T* Scratch(std::int64_t at) const {
    return reinterpret_cast<T*>(to_.memory_ + at);
  }

  CudaProgram& to_;
  const Program& program_;
  const KvLayout kv_;
  const cublasHandle_t cublas_;
  const CudaProgram::StepMemory step_;
  std::size_t index_ = 0;
  std::vector<bool> in_f32_;              // which of its two storages an op wrote last
  std::optional<BufferId> waiting_norm_;  // written undivided: the next product divides
  cuda::NormInput waiting_;
};

}  // namespace nibble
