#include "runtime/engine/step_builder.h"

#include <algorithm>

namespace nibble {

StepInput StepBuilder::Build(const Batch& batch) {
  for (auto* array : {&tokens_, &positions_, &slots_, &query_lengths_, &context_lengths_,
                      &table_offsets_, &tables_}) {
    array->clear();
  }
  slot_inits_.clear();
  rows_.clear();
  table_offsets_.push_back(0);
  for (const ScheduledSequence& entry : batch.entries) AddSequence(entry);
  return {.phase = batch.phase,
          .id = batch.id,
          .tokens = tokens_,
          .positions = positions_,
          .slots = slots_,
          .query_lengths = query_lengths_,
          .context_lengths = context_lengths_,
          .block_table_offsets = table_offsets_,
          .block_tables = tables_,
          .slot_inits = slot_inits_,
          .logit_rows = rows_};
}

void StepBuilder::AddSequence(const ScheduledSequence& entry) {
  const Sequence& sequence = *entry.sequence;
  const RequestState& state = *sequence.request;
  const auto first_token = static_cast<std::int32_t>(tokens_.size());
  const std::int32_t end = entry.begin + entry.count;
  for (std::int32_t position = entry.begin; position < end; ++position) {
    const bool seen = position < static_cast<std::int32_t>(sequence.tokens.size());
    tokens_.push_back(seen ? sequence.tokens[position] : StepInput::kFromSlot);
    positions_.push_back(position);
  }
  slots_.push_back(sequence.slot);
  query_lengths_.push_back(entry.count);
  context_lengths_.push_back(end);
  const std::int32_t pages = (end + page_tokens_ - 1) / page_tokens_;
  tables_.insert(tables_.end(), sequence.blocks.ids().begin(),
                 sequence.blocks.ids().begin() + pages);
  table_offsets_.push_back(static_cast<std::int32_t>(tables_.size()));

  if (entry.writes_slot) {
    SlotInit init{.slot = sequence.slot, .sampling = state.request.sampling};
    init.sampling.output_index = sequence.index;
    init.sampling.min_tokens = static_cast<std::int32_t>(
        std::min<std::int64_t>(state.request.stopping.min_tokens, state.max_outputs));
    init.sampling.top_logprobs = state.request.output.top_logprobs.has_value()
                                     ? static_cast<std::int32_t>(*state.request.output.top_logprobs)
                                     : -1;
    init.prompt = state.request.prompt;
    init.outputs = sequence.outputs;
    init.logit_bias = state.request.logit_bias;
    if (init.sampling.min_tokens > 0) init.banned_until_min_tokens = state.stop_ids;
    slot_inits_.push_back(init);
  }
  AddRows(entry, first_token);
}

void StepBuilder::AddRows(const ScheduledSequence& entry, std::int32_t first_token) {
  const Sequence& sequence = *entry.sequence;
  const RequestState& state = *sequence.request;
  for (std::int32_t i = 0; i < entry.scored_rows; ++i) {
    const std::int32_t position = entry.first_scored + i;
    rows_.push_back(
        {.token_index = first_token + position - entry.begin,
         .slot = sequence.slot,
         .sample = false,
         .score_token = state.request.prompt[position + 1],
         .top_logprobs = static_cast<std::int32_t>(*state.request.output.prompt_top_logprobs)});
  }
  if (!entry.samples && !entry.checks) return;
  // `pending` already counts this row; those before it are outputs to be.
  const std::int32_t output = static_cast<std::int32_t>(sequence.outputs.size()) +
                              sequence.pending - (entry.samples ? 1 : 0);
  rows_.push_back(
      {.token_index = first_token + entry.count - 1,
       .slot = sequence.slot,
       .output_position = output,
       .sample = entry.samples,
       // A row that only looks for bad logits scores some token.
       .score_token = entry.checks ? state.request.prompt.back() : -1,
       .top_logprobs = entry.samples && state.request.output.top_logprobs.has_value()
                           ? static_cast<std::int32_t>(*state.request.output.top_logprobs)
                           : -1});
}

}  // namespace nibble
