// Where a step spends its time.
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_runner.h"

namespace nibble {

absl::StatusOr<std::vector<CudaRunner::Cost>> CudaRunner::Ledger(const LedgerStep& step,
                                                                 int repeats) {
  const int sequences = step.sequences, context = step.context, tokens = sequences * step.queries;
  CudaStepShape shape{.tokens = tokens,
                      .rows = sequences,
                      .sequences = sequences,
                      .max_queries = step.queries,
                      .max_context = context,
                      .decode = step.queries == 1};
  const DecodeGraph* graph = FindGraph(shape);
  if (in_flight() > 0 || tokens > limits_.max_tokens || context > limits_.max_context ||
      sequences > std::min(limits_.max_sequences, limits_.max_logit_rows)) {
    return absl::InvalidArgumentError(absl::StrCat("no ledger of ", tokens, " tokens in ",
                                                   sequences, " sequences of ", context, " now"));
  }
  if (graph != nullptr) {
    shape.tokens = shape.rows = shape.sequences = graph->sequences;
    shape.max_context = graph->max_context;
  }

  // The pages of the pool in turn.
  const std::int64_t pages = (context + 63) / 64;
  const std::int64_t all_pages = kv_pool_.size() / page_bytes_;
  const auto count = static_cast<std::size_t>(sequences);
  std::vector<std::int32_t> zeros(static_cast<std::size_t>(tokens), 0), slots(count),
      queries(count, step.queries), contexts(count, context), positions, offsets, tables;
  std::iota(slots.begin(), slots.end(), 0);
  for (std::int64_t s = 0; s <= sequences; ++s)
    offsets.push_back(static_cast<std::int32_t>(s * pages));
  for (std::int64_t i = 0; i < sequences * pages; ++i)
    tables.push_back(static_cast<std::int32_t>(i % all_pages));
  std::vector<LogitRow> rows;
  for (std::int32_t s = 0; s < sequences; ++s) {
    for (int q = 0; q < step.queries; ++q) positions.push_back(context - step.queries + q);
    rows.push_back({.token_index = (s + 1) * step.queries - 1, .slot = s});
  }
  StepInput input;
  input.phase = shape.decode ? Phase::kDecode : Phase::kPrefill;
  input.tokens = zeros;
  input.positions = positions;
  input.slots = slots;
  input.query_lengths = queries;
  input.context_lengths = contexts;
  input.block_table_offsets = offsets;
  input.block_tables = tables;
  input.logit_rows = rows;
  RETURN_IF_ERROR(SendInputs(input, shape, sets_[0], "a ledger"));

  std::vector<Cost> costs;
  const auto time = [&](cudaGraphExec_t exec, Cost cost) -> absl::Status {
    std::vector<double> seconds;
    for (int i = 0; i < repeats + 2; ++i) {  // the first two warm up
      RETURN_IF_ERROR(CudaError(cudaEventRecord(sets_[0].begin.get(), stream_.get()), cost.kind));
      RETURN_IF_ERROR(CudaError(cudaGraphLaunch(exec, stream_.get()), cost.kind));
      RETURN_IF_ERROR(CudaError(cudaEventRecord(sets_[0].end.get(), stream_.get()), cost.kind));
      RETURN_IF_ERROR(CudaError(cudaEventSynchronize(sets_[0].end.get()), cost.kind));
      float milliseconds = 0.0f;
      RETURN_IF_ERROR(
          CudaError(cudaEventElapsedTime(&milliseconds, sets_[0].begin.get(), sets_[0].end.get()),
                    cost.kind));
      if (i >= 2) seconds.push_back(milliseconds * 1e-3);
    }
    std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
    cost.seconds = seconds[static_cast<std::size_t>(repeats / 2)];
    costs.push_back(std::move(cost));
    return absl::OkStatus();
  };
  std::vector<std::string> kinds;
  for (const CudaProgram::Launch& launch : program_.launches()) {
    if (std::find(kinds.begin(), kinds.end(), launch.kind) == kinds.end())
      kinds.push_back(launch.kind);
  }
  const double scores = tokens * (context - (step.queries - 1) / 2.0);
  Cost whole{.kind = "step"};
  for (const std::string& kind : kinds) {
    Cost cost{.kind = kind};
    const auto run = [&]() -> absl::Status {
      for (const CudaProgram::Launch& launch : program_.launches()) {
        if (launch.kind != kind) continue;
        RETURN_IF_ERROR(
            CudaError(launch.run(shape, {stream_.get(), cost.launches > 0}), launch.kind));
        ++cost.launches;
        cost.weight_bytes += launch.weight_bytes;
        cost.key_bytes += launch.key_bytes * sequences * context;
        cost.flops += launch.flops_a_row * (launch.per_logit_row ? sequences : tokens) +
                      launch.flops_a_score * scores;
      }
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(const CudaGraphExec exec, CaptureLaunches(run, kind));
    whole.launches += cost.launches;
    whole.weight_bytes += cost.weight_bytes;
    whole.key_bytes += cost.key_bytes;
    whole.flops += cost.flops;
    RETURN_IF_ERROR(time(exec.get(), std::move(cost)));
  }
  Cost sampling{.kind = "sampling", .launches = 1};
  const auto sample = [&] {
    return CudaError(RunSampler(shape, {stream_.get(), false}), "sampling");
  };
  ASSIGN_OR_RETURN(const CudaGraphExec exec, CaptureLaunches(sample, sampling.kind));
  RETURN_IF_ERROR(time(exec.get(), std::move(sampling)));
  if (graph != nullptr) {
    RETURN_IF_ERROR(time(graph->exec.get(), std::move(whole)));
    return costs;
  }
  ASSIGN_OR_RETURN(const CudaGraphExec all,
                   CaptureLaunches([&] { return RunKernels(shape, "the step"); }, "the step"));
  RETURN_IF_ERROR(time(all.get(), std::move(whole)));
  return costs;
}

}  // namespace nibble
