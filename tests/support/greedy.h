// One sequence on a Runner, driven by hand: what the engine does for many, without its machinery.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/kv_layout.h"
#include "kernels/sampling.h"
#include "runtime/base/status.h"
#include "runtime/device/backend.h"
#include "runtime/device/step.h"

namespace nibble {

class GreedySequence {
 public:
  // Takes slot 0 and all pages of `runner`, the last page first, so that position and page never
  // agree by chance.
  GreedySequence(Runner& runner, const KvLayout& kv)
      : runner_(runner), page_tokens_(kv.page_tokens) {
    pages_.resize(kv.num_pages);
    std::iota(pages_.rbegin(), pages_.rend(), 0);
  }

  // Appends `tokens` in one step and reports the 20 likeliest after each: `RowResult::top`, scored
  // and not sampled.
  absl::StatusOr<std::vector<RowResult>> AppendAll(std::span<const std::int32_t> tokens) {
    std::vector<std::int32_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    return Run(tokens, rows, /*sample=*/false);
  }

  // Appends `tokens` in one step; the likeliest next token after the last one, and the 20 best.
  absl::StatusOr<RowResult> Append(std::span<const std::int32_t> tokens) {
    const std::int32_t last = static_cast<std::int32_t>(tokens.size()) - 1;
    ASSIGN_OR_RETURN(std::vector<RowResult> rows, Run(tokens, {&last, 1}, /*sample=*/true));
    return std::move(rows.front());
  }

  // `count` greedy tokens after `prompt`.
  absl::StatusOr<std::vector<std::int32_t>> Generate(std::span<const std::int32_t> prompt,
                                                     int count) {
    std::vector<std::int32_t> out;
    ASSIGN_OR_RETURN(RowResult row, Append(prompt));
    while (true) {
      out.push_back(row.token);
      if (static_cast<int>(out.size()) == count) return out;
      const std::int32_t token = row.token;
      ASSIGN_OR_RETURN(row, Append({&token, 1}));
    }
  }

 private:
  absl::StatusOr<std::vector<RowResult>> Run(std::span<const std::int32_t> tokens,
                                             std::span<const std::int32_t> rows, bool sample) {
    std::vector<std::int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), length_);
    const auto count = static_cast<std::int32_t>(tokens.size());
    const std::int32_t context = length_ + count;
    const std::int32_t used = (context + page_tokens_ - 1) / page_tokens_;
    const std::int32_t slot = 0;
    const std::int32_t offsets[2] = {0, used};
    std::vector<LogitRow> logit_rows;
    for (const std::int32_t index : rows) {
      LogitRow row;
      row.token_index = index;
      row.slot = slot;
      row.output_position = length_ + index;
      row.sample = sample;
      if (!sample) row.score_token = tokens[index];
      row.top_logprobs = kMaxTopLogprobs;
      logit_rows.push_back(row);
    }
    SlotInit init;
    init.slot = slot;
    init.sampling.temperature = 0.0f;
    init.sampling.top_logprobs = kMaxTopLogprobs;

    StepInput step;
    step.phase = count == 1 && length_ > 0 ? Phase::kDecode : Phase::kPrefill;
    step.id = ++steps_;
    step.tokens = tokens;
    step.positions = positions;
    step.slots = {&slot, 1};
    step.query_lengths = {&count, 1};
    step.context_lengths = {&context, 1};
    step.block_table_offsets = offsets;
    step.block_tables = std::span(pages_).first(used);
    if (length_ == 0) step.slot_inits = {&init, 1};
    step.logit_rows = logit_rows;
    RETURN_IF_ERROR(runner_.Launch(step));
    ASSIGN_OR_RETURN(StepResult result, runner_.Collect());
    length_ = context;
    return std::move(result.rows);
  }

  Runner& runner_;
  std::int32_t page_tokens_;
  std::vector<std::int32_t> pages_;
  std::int32_t length_ = 0;
  std::uint64_t steps_ = 0;
};

}  // namespace nibble
