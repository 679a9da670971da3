#include "runtime/device/cuda_step.h"

#include <algorithm>

namespace nibble {

CudaStepShape ShapeOf(const StepInput& input) {
  CudaStepShape shape;
  shape.tokens = static_cast<int>(input.tokens.size());
  shape.rows = static_cast<int>(input.logit_rows.size());
  shape.sequences = static_cast<int>(input.slots.size());
  shape.max_queries = *std::max_element(input.query_lengths.begin(), input.query_lengths.end());
  shape.max_context = *std::max_element(input.context_lengths.begin(), input.context_lengths.end());
  shape.decode = input.phase == Phase::kDecode && shape.tokens == shape.sequences;
  return shape;
}

CudaStepLayout::CudaStepLayout(const StepLimits& limits, const KvLayout& kv)
    : page_tokens_(kv.page_tokens),
      ld_pages_((limits.max_context + kv.page_tokens - 1) / kv.page_tokens) {
  const auto ints = [this](std::int64_t count) { return layout_.Take(count * 4); };
  tokens_ = ints(limits.max_tokens);
  token_slots_ = ints(limits.max_tokens);
  positions_ = ints(limits.max_tokens);
  places_ = ints(limits.max_tokens);
  query_offsets_ = ints(limits.max_sequences + 1);
  contexts_ = ints(limits.max_sequences);
  row_tokens_ = ints(limits.max_logit_rows);
  rows_ = layout_.Take(limits.max_logit_rows * std::int64_t{sizeof(cuda::SampleRow)});
  pages_ = ints(limits.max_sequences * ld_pages_);  // last: a step copies what it uses of it
}

std::int64_t CudaStepLayout::Write(const StepInput& input, const CudaStepShape& shape,
                                   std::byte* host) const {
  const auto ints = [host](std::int64_t offset) {
    return reinterpret_cast<std::int32_t*>(host + offset);
  };
  std::int32_t* token_slots = ints(token_slots_);
  std::int32_t* places = ints(places_);
  std::int32_t* query_offsets = ints(query_offsets_);
  std::int32_t* contexts = ints(contexts_);
  const auto tokens = static_cast<int>(input.tokens.size());
  const auto sequences = static_cast<int>(input.slots.size());
  std::copy(input.tokens.begin(), input.tokens.end(), ints(tokens_));
  std::copy(input.positions.begin(), input.positions.end(), ints(positions_));
  int token = 0;
  query_offsets[0] = 0;
  for (int s = 0; s < sequences; ++s) {
    const auto sequence = static_cast<std::size_t>(s);
    const std::int32_t first = input.block_table_offsets[sequence];
    const auto pages = input.block_tables.subspan(
        static_cast<std::size_t>(first),
        static_cast<std::size_t>(input.block_table_offsets[sequence + 1] - first));
    const std::size_t used = std::min(pages.size(), static_cast<std::size_t>(ld_pages_));
    std::copy_n(pages.begin(), used, ints(pages_) + s * ld_pages_);
    contexts[s] = input.context_lengths[sequence];
    for (std::int32_t i = 0; i < input.query_lengths[sequence]; ++i, ++token) {
      const std::int64_t position = input.positions[static_cast<std::size_t>(token)];
      token_slots[token] = input.slots[sequence];
      places[token] = static_cast<std::int32_t>(
          pages[static_cast<std::size_t>(position / page_tokens_)] * page_tokens_ +
          position % page_tokens_);
    }
    query_offsets[s + 1] = token;
  }
  for (int t = tokens; t < shape.tokens; ++t) {
    ints(tokens_)[t] = token_slots[t] = ints(positions_)[t] = 0;
    places[t] = -1;
  }
  for (int s = sequences; s < shape.sequences; ++s) {
    contexts[s] = 0;
    query_offsets[s + 1] = query_offsets[s] + 1;
  }

  std::int32_t* row_tokens = ints(row_tokens_);
  auto* rows = reinterpret_cast<cuda::SampleRow*>(host + rows_);
  for (int r = 0; r < shape.rows; ++r) {
    if (r >= static_cast<int>(input.logit_rows.size())) {
      row_tokens[r] = 0;
      rows[r] = {.sample = false};
      continue;
    }
    const LogitRow& row = input.logit_rows[static_cast<std::size_t>(r)];
    row_tokens[r] = row.token_index;
    rows[r] = {.slot = row.slot,
               .output_position = row.output_position,
               .score_token = row.sample ? -1 : row.score_token,
               .top_logprobs = row.top_logprobs,
               .sample = row.sample};
  }
  return pages_ + shape.sequences * ld_pages_ * 4;
}

}  // namespace nibble
