// A model on one GPU.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/device/backend.h"
#include "runtime/device/cuda_program.h"
#include "runtime/device/cuda_raii.h"
#include "runtime/device/cuda_slots.h"
#include "runtime/device/cuda_step.h"
#include "runtime/device/step_check.h"

namespace nibble {

// Steps run in launch order on one stream; one may be launched while another runs. A decode step is
// a graph, captured at load for a number of sequences and a bound of their contexts. One thread
// calls it; its memory outlives every launched step.
class CudaRunner final : public Runner {
 public:
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Create(
      const std::shared_ptr<CudaContext>& context, const Program& program, ModelWeights weights,
      const KvLayout& kv, const StepLimits& limits, const CompileOptions& options);
  ~CudaRunner() override;

  // Exactly memory().workspace_bytes of such a runner.
  static std::int64_t WorkspaceBytes(DType dtype, const Program& program, const StepLimits& limits);
  // About its graphs_bytes; a deterministic one has fewer.
  static std::int64_t GraphsBytes(const Program& program, const StepLimits& limits);

  int depth() const override { return 1; }
  absl::Status Launch(const StepInput& input) override;
  absl::StatusOr<StepResult> Collect() override;
  int in_flight() const override { return static_cast<int>(flying_.size()); }
  RunnerMemory memory() const override { return memory_; }

  // Where a step spends its time, for benches: all launches of a kind, one after the other as a
  // graph of their own, over the weights of every layer. The last is the whole step. Overwrites the
  // KV pool.
  struct LedgerStep {
    int sequences = 1, queries = 1, context = 1024;  // tokens of each, the last of its context
  };
  struct Cost {
    std::string kind;
    int launches = 0;
    double seconds = 0.0;  // of all of them
    std::int64_t weight_bytes = 0, key_bytes = 0;
    double flops = 0.0;
  };
  absl::StatusOr<std::vector<Cost>> Ledger(const LedgerStep& step, int repeats);

 private:
  static constexpr int kSets = CudaSlots::kSets;

  struct DecodeGraph {
    int sequences = 0, max_context = 0;
    CudaGraphExec exec;
  };
  struct Flying {
    std::uint64_t id = 0;
    int rows = 0, set = 0;
    std::string what;  // "step 12, decode of 4"
  };
  struct Set {  // of one step in flight
    CudaMemory inputs, results;
    CudaEvent begin, end;
  };

  CudaRunner(std::shared_ptr<CudaContext> context, const Program& program, const KvLayout& kv,
             const StepLimits& limits, const CompileOptions& options);
  absl::Status Allocate(ModelWeights weights, const KvLayout& kv);
  // Every step that is captured at load.
  static std::vector<CudaStepShape> DecodeShapes(const Program& program, const StepLimits& limits,
                                                 const CompileOptions& options);
  absl::Status CaptureGraphs();
  absl::Status Capture(const CudaStepShape& shape);
  absl::Status SendInputs(const StepInput& input, const CudaStepShape& shape, const Set& set,
                          const std::string& what);
  absl::Status SendEmpty(const CudaStepShape& shape);
  absl::StatusOr<CudaGraphExec> CaptureLaunches(const std::function<absl::Status()>& launch,
                                                const std::string& what);
  absl::Status LaunchStep(const StepInput& input, const std::string& what);
  absl::Status RunKernels(const CudaStepShape& shape, const std::string& what);
  cudaError_t RunSampler(const CudaStepShape& shape, cuda::LaunchOptions options);
  // The smallest graph that holds the step; null: none.
  const DecodeGraph* FindGraph(const CudaStepShape& shape) const;
  absl::Status Fail(absl::Status status);

  const std::shared_ptr<CudaContext> context_;
  const StepLimits limits_;
  const CompileOptions options_;
  CudaLayout layout_;  // the three below reserve from it in their constructors
  CudaProgram program_;
  CudaStepLayout step_layout_;
  CudaSlots slots_;
  std::int64_t inputs_at_, results_at_, cublas_at_;
  StepChecker checker_;

  CudaMemory workspace_, kv_pool_;
  CudaStream stream_;
  CublasHandle cublas_;
  std::array<Set, kSets> sets_;
  std::vector<DecodeGraph> graphs_;  // by sequences, then context
  RunnerMemory memory_;
  const std::int64_t page_bytes_;  // of KV, over all layers

  std::deque<Flying> flying_;
  int next_set_ = 0;
  absl::Status sticky_;
};

}  // namespace nibble
