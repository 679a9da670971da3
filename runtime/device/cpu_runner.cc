#include "runtime/device/cpu_runner.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {

// The parts reserve from layout_ in the order of their construction.
CpuRunner::CpuRunner(const CpuContext& context, const Program& program, const StepLimits& limits,
                     const KvLayout& kv)
    : executor_(context, program, limits, layout_),
      sampler_(context, program.vocab, limits, layout_),
      checker_(limits, program.vocab, kv) {
  tokens_.reserve(static_cast<std::size_t>(limits.max_tokens));
}

std::int64_t CpuRunner::WorkspaceBytes(const CpuContext& context, const Program& program,
                                       const StepLimits& limits) {
  MemoryLayout layout;
  const CpuExecutor executor(context, program, limits, layout);
  const CpuSampler sampler(context, program.vocab, limits, layout);
  return HostMemory::Rounded(layout.total());
}

absl::StatusOr<std::unique_ptr<CpuRunner>> CpuRunner::Create(const CpuContext& context,
                                                             const Program& program,
                                                             ModelWeights weights,
                                                             const KvLayout& kv,
                                                             const StepLimits& limits) {
  std::unique_ptr<CpuRunner> runner(new CpuRunner(context, program, limits, kv));
  ASSIGN_OR_RETURN(runner->workspace_, HostMemory::Allocate(runner->layout_.total()));
  ASSIGN_OR_RETURN(runner->kv_pool_, HostMemory::Allocate(kv.TotalBytes()));
  for (const auto& linear : weights.linears) runner->weights_bytes_ += linear->bytes;
  for (const std::vector<float>& vector : weights.vectors)
    runner->weights_bytes_ += static_cast<std::int64_t>(vector.size() * sizeof(float));
  RETURN_IF_ERROR(
      runner->executor_.Bind(runner->workspace_, std::move(weights), kv, runner->kv_pool_.data()));
  runner->sampler_.Bind(runner->workspace_);
  return runner;
}

absl::Status CpuRunner::Launch(const StepInput& input) {
  if (result_.has_value()) {
    return absl::InternalError(absl::StrCat("step ", input.id, " launched before step ",
                                            result_->id,
                                            " was collected; the cpu runs one at a time"));
  }
  RETURN_IF_ERROR(checker_.Accept(input));
  const HostMemory::Busy busy;
  const auto start = std::chrono::steady_clock::now();
  for (const SlotInit& init : input.slot_inits) sampler_.Begin(init);

  tokens_.clear();
  std::size_t token = 0;
  for (std::size_t s = 0; s < input.slots.size(); ++s) {
    for (std::int32_t i = 0; i < input.query_lengths[s]; ++i, ++token) {
      const std::int32_t id = input.tokens[token];
      tokens_.push_back(id == StepInput::kFromSlot ? sampler_.last_token(input.slots[s]) : id);
    }
  }
  executor_.Run(input, tokens_);

  StepResult result;
  result.id = input.id;
  result.rows =
      sampler_.Run(input.logit_rows, [this](std::int64_t row) { return executor_.logits(row); });
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result_ = std::move(result);
  return absl::OkStatus();
}

absl::StatusOr<StepResult> CpuRunner::Collect() {
  if (!result_.has_value()) return absl::InternalError("nothing was launched");
  StepResult result = *std::move(result_);
  result_.reset();
  return result;
}

}  // namespace nibble
