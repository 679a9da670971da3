#include "server/wire_response.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nibble {
namespace {

// Parts stay below the limit with room for what a response carries besides them.
constexpr std::size_t kMaxPartBytes = kMaxResponseBytes - 4096;
constexpr std::size_t kMaxTokenBytes = 8;  // an id, or the frame of a field

void SetDuration(absl::Duration duration, google::protobuf::Duration* proto) {
  const absl::Duration whole =
      std::clamp(duration, absl::ZeroDuration(), absl::Hours(24 * 365 * 100));
  proto->set_seconds(absl::ToInt64Seconds(whole));
  proto->set_nanos(
      static_cast<int>(absl::ToInt64Nanoseconds(whole - absl::Seconds(proto->seconds()))));
}

v1::TokenLogprob ToProto(const TokenLogprob& logprob, bool has_logprob) {
  v1::TokenLogprob proto;
  proto.set_token_id(static_cast<std::uint32_t>(logprob.token));
  if (has_logprob) proto.set_logprob(logprob.logprob);
  proto.set_token(logprob.bytes);
  for (const TokenLogprob::Top& top : logprob.top) {
    v1::TopLogprob* added = proto.add_top();
    added->set_token_id(static_cast<std::uint32_t>(top.token));
    added->set_logprob(top.logprob);
    added->set_token(top.bytes);
  }
  return proto;
}

// How many bytes of `text` fit into `room`, whole characters only. At least one character.
std::size_t FittingPrefix(absl::string_view text, std::size_t room) {
  if (text.size() <= room) return text.size();
  std::size_t end = std::max<std::size_t>(room, 4);
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

// Token ids and log-probabilities, walked together: entry i of both belongs to token i.
class TokenCursor {
 public:
  TokenCursor(const std::vector<std::int32_t>& ids, const std::vector<TokenLogprob>& logprobs)
      : ids_(ids), logprobs_(logprobs), count_(std::max(ids.size(), logprobs.size())) {}

  bool done() const { return at_ == count_; }
  std::size_t at() const { return at_; }

  // Moves tokens into `part` (an OutputChunk or PromptTokens) while they fit into `room`.
  template <typename Part>
  void Fill(Part* part, std::size_t room, bool first_has_logprob) {
    for (std::size_t used = 0; at_ < count_; ++at_) {
      v1::TokenLogprob logprob;
      std::size_t size = kMaxTokenBytes;
      if (at_ < logprobs_.size()) {
        logprob = ToProto(logprobs_[at_], at_ > 0 || first_has_logprob);
        size += logprob.ByteSizeLong() + kMaxTokenBytes;
      }
      if (used > 0 && used + size > room) return;
      used += size;
      if (at_ < ids_.size()) part->add_token_ids(static_cast<std::uint32_t>(ids_[at_]));
      if (at_ < logprobs_.size()) *part->add_logprobs() = std::move(logprob);
    }
  }

 private:
  const std::vector<std::int32_t>& ids_;
  const std::vector<TokenLogprob>& logprobs_;
  const std::size_t count_;
  std::size_t at_ = 0;
};

std::vector<v1::GenerateResponse> Convert(const StartedEvent& event,
                                          const std::string& request_id) {
  std::vector<v1::GenerateResponse> responses(1);
  v1::GenerationStarted* started = responses[0].mutable_started();
  started->set_request_id(request_id);
  started->set_model(event.model);
  started->set_model_revision(event.model_revision);
  started->set_prompt_tokens(static_cast<std::uint32_t>(event.prompt_tokens));
  started->set_cached_prompt_tokens(static_cast<std::uint32_t>(event.cached_prompt_tokens));
  return responses;
}

std::vector<v1::GenerateResponse> Convert(const PromptEvent& event, const std::string&) {
  std::vector<v1::GenerateResponse> responses;
  TokenCursor tokens(event.token_ids, event.logprobs);
  do {
    v1::PromptTokens* part = responses.emplace_back().mutable_prompt();
    part->set_offset(static_cast<std::uint32_t>(event.offset) +
                     static_cast<std::uint32_t>(tokens.at()));
    tokens.Fill(part, kMaxPartBytes, /*first_has_logprob=*/event.offset > 0);
  } while (!tokens.done());
  return responses;
}

std::vector<v1::GenerateResponse> Convert(const ChunkEvent& event, const std::string&) {
  std::vector<v1::GenerateResponse> responses;
  absl::string_view text = event.text;
  TokenCursor tokens(event.token_ids, event.logprobs);
  do {
    v1::OutputChunk* part = responses.emplace_back().mutable_chunk();
    part->set_output_index(event.output_index);
    const std::size_t size = FittingPrefix(text, kMaxPartBytes / 2);
    part->set_text(std::string(text.substr(0, size)));
    text.remove_prefix(size);
    tokens.Fill(part, kMaxPartBytes - size, /*first_has_logprob=*/true);
  } while (!text.empty() || !tokens.done());
  return responses;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return v1::FINISH_REASON_STOP;
    case FinishReason::kLength: return v1::FINISH_REASON_LENGTH;
    case FinishReason::kContext: return v1::FINISH_REASON_CONTEXT;
    case FinishReason::kTimeLimit: return v1::FINISH_REASON_TIME_LIMIT;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

std::vector<v1::GenerateResponse> Convert(const FinishedEvent& event, const std::string&) {
  std::vector<v1::GenerateResponse> responses(1);
  v1::OutputFinished* finished = responses[0].mutable_finished();
  finished->set_output_index(event.output_index);
  finished->set_reason(ToProto(event.reason));
  if (event.stop_string.has_value()) finished->set_stop_string(*event.stop_string);
  if (event.stop_token_id.has_value()) {
    finished->set_stop_token_id(static_cast<std::uint32_t>(*event.stop_token_id));
  }
  if (event.eos_token_id.has_value())
    finished->set_eos_token_id(static_cast<std::uint32_t>(*event.eos_token_id));
  finished->set_completion_tokens(static_cast<std::uint32_t>(event.completion_tokens));
  finished->set_recomputed_tokens(static_cast<std::uint32_t>(event.recomputed_tokens));
  v1::Timing* timing = finished->mutable_timing();
  SetDuration(event.timing.queue, timing->mutable_queue());
  SetDuration(event.timing.prefill, timing->mutable_prefill());
  SetDuration(event.timing.decode, timing->mutable_decode());
  SetDuration(event.timing.time_to_first_token, timing->mutable_time_to_first_token());
  return responses;
}

v1::ModelState ToProto(ModelState state) {
  switch (state) {
    case ModelState::kLoading: return v1::MODEL_STATE_LOADING;
    case ModelState::kServing: return v1::MODEL_STATE_SERVING;
    case ModelState::kDraining: return v1::MODEL_STATE_DRAINING;
    case ModelState::kFailed: return v1::MODEL_STATE_FAILED;
    case ModelState::kUnloaded: break;  // never listed
  }
  return v1::MODEL_STATE_UNSPECIFIED;
}

}  // namespace

std::vector<v1::GenerateResponse> ToResponses(const StreamEvent& event,
                                              const std::string& request_id) {
  return std::visit([&](const auto& kind) { return Convert(kind, request_id); }, event);
}

v1::Model ToProto(const ModelInfo& info) {
  v1::Model proto;
  proto.set_name(info.name);
  proto.set_revision(info.revision);
  proto.set_path(info.path);
  proto.set_format(info.format);
  proto.set_architecture(info.architecture);
  proto.set_parameters(info.parameters);
  proto.set_context(static_cast<std::uint32_t>(info.context));
  proto.set_vocabulary(static_cast<std::uint32_t>(info.vocab));
  for (const std::string& device : info.devices) proto.add_devices(device);
  proto.set_compute(info.compute);
  *proto.mutable_memory() = ToProto(info.plan);
  SetDuration(info.load_time, proto.mutable_load_time());
  return proto;
}

v1::Model ToProto(const ModelStatus& status) {
  v1::Model proto;
  if (status.model != nullptr) {
    proto = ToProto(status.model->info);
    proto.set_has_chat_template(status.model->chat_template != nullptr);
    for (const std::int32_t id : status.model->eos_ids)
      proto.add_eos_token_ids(static_cast<std::uint32_t>(id));
  }
  proto.set_name(status.name);
  proto.set_state(ToProto(status.state));
  proto.set_error(status.error);
  return proto;
}

v1::MemoryPlan ToProto(const MemoryPlan& plan) {
  v1::MemoryPlan proto;
  proto.set_weights_bytes(plan.weights_bytes);
  proto.set_expanded_bytes(plan.expanded_bytes);
  proto.set_kv_bytes(plan.kv_bytes);
  proto.set_workspace_bytes(plan.workspace_bytes);
  proto.set_graphs_bytes(plan.graphs_bytes);
  proto.set_other_bytes(plan.other_bytes);
  proto.set_total_bytes(plan.total_bytes());
  proto.set_budget_bytes(plan.budget_bytes);
  proto.set_kv_bytes_per_token(plan.kv_bytes_per_token);
  proto.set_kv_tokens(plan.kv_tokens);
  proto.set_page_tokens(static_cast<std::uint32_t>(plan.kv.page_tokens));
  proto.set_max_context(static_cast<std::uint32_t>(plan.limits.max_context));
  proto.set_max_batch(static_cast<std::uint32_t>(plan.limits.max_slots));
  proto.set_max_step_tokens(static_cast<std::uint32_t>(plan.limits.max_tokens));
  proto.set_balance_batch(plan.balance_batch);
  proto.set_bits_per_weight(plan.bits_per_weight);
  proto.set_deterministic(plan.deterministic);
  return proto;
}

}  // namespace nibble
