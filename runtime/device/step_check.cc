#include "runtime/device/step_check.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("step: ", parts...));
}

}  // namespace

StepChecker::SlotState* StepChecker::FindSlot(std::int32_t slot) {
  if (slot < 0 || slot >= limits_.max_slots) return nullptr;
  return &next_[static_cast<std::size_t>(slot)];
}

absl::Status StepChecker::CheckId(const char* what, std::int32_t id) const {
  if (id >= 0 && id < vocab_) return absl::OkStatus();
  return Invalid(what, " ", id, " is not in the vocabulary of ", vocab_);
}

absl::Status StepChecker::Accept(const StepInput& input) {
  RETURN_IF_ERROR(CheckSizes(input));
  next_ = slots_;
  ++steps_;
  for (const SlotInit& init : input.slot_inits) {
    SlotState* slot = FindSlot(init.slot);
    if (slot == nullptr) return Invalid("slot ", init.slot, " of ", limits_.max_slots);
    RETURN_IF_ERROR(CheckSlotInit(init));
    *slot = {true, !init.outputs.empty(), slot->used_by};
  }
  slot_of_.clear();
  for (std::size_t s = 0; s < input.slots.size(); ++s) {
    RETURN_IF_ERROR(CheckSequence(input, s, slot_of_.size()));
    slot_of_.insert(slot_of_.end(), static_cast<std::size_t>(input.query_lengths[s]),
                    input.slots[s]);
  }
  if (slot_of_.size() != input.tokens.size()) {
    return Invalid("query lengths add up to ", slot_of_.size(), " of ", input.tokens.size(),
                   " tokens");
  }
  for (std::size_t r = 0; r < input.logit_rows.size(); ++r) {
    RETURN_IF_ERROR(CheckLogitRow(input, input.logit_rows[r], r));
  }
  for (const LogitRow& row : input.logit_rows) {
    if (row.sample) FindSlot(row.slot)->has_token = true;
  }
  slots_.swap(next_);
  return absl::OkStatus();
}

absl::Status StepChecker::CheckSizes(const StepInput& input) const {
  const std::size_t sequences = input.slots.size();
  const auto at_most = [](const char* what, std::size_t have, std::int32_t limit) {
    if (have <= static_cast<std::size_t>(limit)) return absl::OkStatus();
    return Invalid(have, " ", what, ", the limit is ", limit);
  };
  RETURN_IF_ERROR(at_most("tokens", input.tokens.size(), limits_.max_tokens));
  RETURN_IF_ERROR(at_most("sequences", sequences, limits_.max_sequences));
  RETURN_IF_ERROR(at_most("logit rows", input.logit_rows.size(), limits_.max_logit_rows));
  if (input.tokens.empty()) return Invalid("no tokens");
  if (input.positions.size() != input.tokens.size()) {
    return Invalid(input.positions.size(), " positions for ", input.tokens.size(), " tokens");
  }
  if (input.query_lengths.size() != sequences || input.context_lengths.size() != sequences ||
      input.block_table_offsets.size() != sequences + 1) {
    return Invalid(sequences, " slots, ", input.query_lengths.size(), " query lengths, ",
                   input.context_lengths.size(), " context lengths, ",
                   input.block_table_offsets.size(), " block table offsets (one more than slots)");
  }
  if (input.block_table_offsets.front() != 0 ||
      static_cast<std::size_t>(input.block_table_offsets.back()) != input.block_tables.size()) {
    return Invalid("block table offsets from ", input.block_table_offsets.front(), " to ",
                   input.block_table_offsets.back(), " over ", input.block_tables.size(), " pages");
  }
  return absl::OkStatus();
}

absl::Status StepChecker::CheckSlotInit(const SlotInit& init) const {
  for (const std::int32_t id : init.prompt) RETURN_IF_ERROR(CheckId("prompt token", id));
  for (const std::int32_t id : init.outputs) RETURN_IF_ERROR(CheckId("output token", id));
  for (const std::int32_t id : init.banned_until_min_tokens)
    RETURN_IF_ERROR(CheckId("banned token", id));
  for (const auto& [id, bias] : init.logit_bias) {
    RETURN_IF_ERROR(CheckId("biased token", id));
    if (std::isnan(bias) || bias == INFINITY) return Invalid("logit bias ", bias, " of token ", id);
  }
  const SamplingParams& p = init.sampling;
  if (!(p.temperature >= 0.0f) || std::isinf(p.temperature))
    return Invalid("temperature ", p.temperature);
  if (!(p.repetition_penalty > 0.0f)) return Invalid("repetition penalty ", p.repetition_penalty);
  return absl::OkStatus();
}

absl::Status StepChecker::CheckSequence(const StepInput& input, std::size_t s,
                                        std::size_t first_token) {
  SlotState* slot = FindSlot(input.slots[s]);
  if (slot == nullptr) return Invalid("slot ", input.slots[s], " of ", limits_.max_slots);
  if (!slot->begun) return Invalid("slot ", input.slots[s], " was never begun");
  if (slot->used_by == steps_) return Invalid("slot ", input.slots[s], " twice");
  slot->used_by = steps_;

  const std::int32_t query = input.query_lengths[s], context = input.context_lengths[s];
  if (query < 1 || query > context || context > limits_.max_context) {
    return Invalid("sequence ", s, " has ", query, " tokens in a context of ", context,
                   ", the limit is ", limits_.max_context);
  }
  if (first_token + static_cast<std::size_t>(query) > input.tokens.size()) {
    return Invalid("query lengths add up to more than ", input.tokens.size(), " tokens");
  }
  for (std::int32_t i = 0; i < query; ++i) {
    const std::size_t t = first_token + static_cast<std::size_t>(i);
    const std::int32_t token = input.tokens[t];
    if (token == StepInput::kFromSlot) {
      if (!slot->has_token) return Invalid("slot ", input.slots[s], " has no last token");
    } else {
      RETURN_IF_ERROR(CheckId("token", token));
    }
    if (input.positions[t] != context - query + i) {
      return Invalid("token ", t, " has position ", input.positions[t], ", not ",
                     context - query + i);
    }
  }

  const std::int32_t begin = input.block_table_offsets[s], end = input.block_table_offsets[s + 1];
  if (begin < 0 || begin > end || static_cast<std::size_t>(end) > input.block_tables.size() ||
      std::int64_t{end - begin} * kv_.page_tokens < context) {
    return Invalid("sequence ", s, " has pages ", begin, " to ", end, " of ", kv_.page_tokens,
                   " tokens for ", context);
  }
  for (std::int32_t i = begin; i < end; ++i) {
    const std::int32_t page = input.block_tables[static_cast<std::size_t>(i)];
    if (page < 0 || page >= kv_.num_pages) return Invalid("page ", page, " of ", kv_.num_pages);
  }
  return absl::OkStatus();
}

absl::Status StepChecker::CheckLogitRow(const StepInput& input, const LogitRow& row,
                                        std::size_t index) const {
  if (row.token_index < 0 || static_cast<std::size_t>(row.token_index) >= input.tokens.size()) {
    return Invalid("logit row ", index, " is of token ", row.token_index, " of ",
                   input.tokens.size());
  }
  if (slot_of_[static_cast<std::size_t>(row.token_index)] != row.slot) {
    return Invalid("logit row ", index, " names slot ", row.slot, ", its token is of slot ",
                   slot_of_[static_cast<std::size_t>(row.token_index)]);
  }
  if (row.output_position < 0)
    return Invalid("logit row ", index, " has output position ", row.output_position);
  if (row.score_token >= 0) RETURN_IF_ERROR(CheckId("scored token", row.score_token));
  return absl::OkStatus();
}

}  // namespace nibble
