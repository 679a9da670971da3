#include "server/wire.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "server/errors.h"

namespace nibble {
namespace {

// Written so that NaN fails; -0 is refused where zero is the least value, as every negative number
// is.
void CheckFloat(absl::string_view field, float value, float low, float high,
                Violations* violations) {
  const bool inside = value >= low && value <= high && !(low == 0.0f && std::signbit(value));
  if (!inside)
    violations->Add(field, absl::StrCat("must be from ", low, " to ", high, ", is ", value));
}

void CheckAtMost(absl::string_view field, std::uint64_t value, std::uint64_t limit,
                 Violations* violations) {
  if (value > limit)
    violations->Add(field, absl::StrCat("must be at most ", limit, ", is ", value));
}

void CheckTokenId(absl::string_view field, std::uint32_t id, const ServedModel& model,
                  Violations* violations) {
  const auto vocab = static_cast<std::uint32_t>(model.info.vocab);
  if (id >= vocab) {
    violations->Add(
        field, absl::StrCat("token id must be less than the vocabulary's ", vocab, ", is ", id));
  }
}

void CheckLabel(absl::string_view field, absl::string_view value, Violations* violations) {
  if (value.size() > kMaxLabelBytes) {
    violations->Add(
        field, absl::StrCat("must have at most ", kMaxLabelBytes, " bytes, has ", value.size()));
  }
  for (const char c : value) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      violations->Add(field, absl::StrCat("must not contain control characters: ", Quote(value)));
      return;
    }
  }
}

// Text may hold anything but NUL, where other programs would end it.
void CheckText(absl::string_view field, absl::string_view text, Violations* violations) {
  const std::size_t nul = text.find('\0');
  if (nul != absl::string_view::npos)
    violations->Add(field, absl::StrCat("has a NUL at byte ", nul));
}

std::vector<std::int32_t> TakeTokenIds(absl::string_view field,
                                       const google::protobuf::RepeatedField<std::uint32_t>& ids,
                                       const ServedModel& model, Violations* violations) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= static_cast<std::uint32_t>(model.info.vocab)) {
      CheckTokenId(absl::StrCat(field, "[", i, "]"), ids[i], model, violations);
    }
  }
  return {ids.begin(), ids.end()};
}

std::uint64_t RandomBits() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

void TakeSampling(const v1::SamplingOptions& proto, const ServedModel& model, Request* request,
                  Violations* violations) {
  SamplingParams& sampling = request->sampling;
  const auto take = [&](const char* field, bool set, float value, float low, float high,
                        float* target) {
    if (!set) return;
    CheckFloat(absl::StrCat("sampling.", field), value, low, high, violations);
    *target = value;
  };
  take("temperature", proto.has_temperature(), proto.temperature(), 0, 100, &sampling.temperature);
  take("min_p", proto.has_min_p(), proto.min_p(), 0, 1, &sampling.min_p);
  take("repetition_penalty", proto.has_repetition_penalty(), proto.repetition_penalty(), 0.01f, 100,
       &sampling.repetition_penalty);
  take("presence_penalty", proto.has_presence_penalty(), proto.presence_penalty(), -2, 2,
       &sampling.presence_penalty);
  take("frequency_penalty", proto.has_frequency_penalty(), proto.frequency_penalty(), -2, 2,
       &sampling.frequency_penalty);
  if (proto.has_top_p()) {
    if (!(proto.top_p() > 0 && proto.top_p() <= 1)) {
      violations->Add("sampling.top_p",
                      absl::StrCat("must be above 0 and at most 1, is ", proto.top_p()));
    }
    sampling.top_p = proto.top_p();
  }
  if (proto.has_top_k()) {
    const bool all = proto.top_k() >= static_cast<std::uint32_t>(model.info.vocab);
    sampling.top_k = all ? 0 : static_cast<std::int32_t>(proto.top_k());
  }
  sampling.seed = proto.has_seed() ? proto.seed() : RandomBits();

  CheckAtMost("sampling.logit_bias", static_cast<std::uint64_t>(proto.logit_bias_size()),
              kMaxLogitBias, violations);
  for (const auto& [id, bias] : proto.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    CheckTokenId(field, id, model, violations);
    CheckFloat(field, bias, -1000, 1000, violations);
    request->logit_bias.emplace_back(static_cast<std::int32_t>(id), bias);
  }
  std::sort(request->logit_bias.begin(), request->logit_bias.end());
}

void TakeMaxDuration(const google::protobuf::Duration& proto, Stopping* stopping,
                     Violations* violations) {
  const std::optional<absl::Duration> duration = ToDuration(proto);
  if (!duration.has_value() || *duration <= absl::ZeroDuration()) {
    violations->Add("stopping.max_duration",
                    absl::StrCat("must be a positive duration, is ", proto.seconds(), " s and ",
                                 proto.nanos(), " ns"));
    return;
  }
  stopping->max_duration = duration;
}

void TakeStopping(const v1::StoppingOptions& proto, const ServedModel& model, Request* request,
                  Violations* violations) {
  Stopping& stopping = request->stopping;
  stopping.max_tokens = model.defaults.max_tokens;
  if (proto.has_max_tokens()) stopping.max_tokens = proto.max_tokens();
  stopping.min_tokens = proto.min_tokens();
  const auto context = static_cast<std::uint32_t>(model.info.context);
  CheckAtMost("stopping.min_tokens", proto.min_tokens(), context, violations);
  if (stopping.max_tokens.has_value() && proto.min_tokens() > *stopping.max_tokens) {
    violations->Add("stopping.min_tokens",
                    absl::StrCat("must be at most max_tokens, which is ", *stopping.max_tokens,
                                 "; is ", proto.min_tokens()));
  }
  if (stopping.max_tokens.has_value())
    stopping.max_tokens = std::min(*stopping.max_tokens, context);

  CheckAtMost("stopping.stop_strings", static_cast<std::uint64_t>(proto.stop_strings_size()),
              kMaxStopStrings, violations);
  for (int i = 0; i < std::min(proto.stop_strings_size(), kMaxStopStrings); ++i) {
    const std::string& stop = proto.stop_strings(i);
    const std::string field = absl::StrCat("stopping.stop_strings[", i, "]");
    CheckText(field, stop, violations);
    if (stop.empty() || stop.size() > kMaxStopStringBytes) {
      violations->Add(
          field, absl::StrCat("must have 1 to ", kMaxStopStringBytes, " bytes, has ", stop.size()));
    }
    stopping.stop_strings.push_back(stop);
  }
  CheckAtMost("stopping.stop_token_ids", static_cast<std::uint64_t>(proto.stop_token_ids_size()),
              kMaxStopTokenIds, violations);
  stopping.stop_token_ids =
      TakeTokenIds("stopping.stop_token_ids", proto.stop_token_ids(), model, violations);
  stopping.ignore_eos = proto.ignore_eos();
  stopping.include_stop_string = proto.include_stop_string();
  if (proto.has_max_duration()) TakeMaxDuration(proto.max_duration(), &stopping, violations);
}

void TakeOutput(const v1::OutputOptions& proto, Request* request, Violations* violations) {
  Output& output = request->output;
  if (proto.has_num_outputs()) {
    if (proto.num_outputs() < 1 || proto.num_outputs() > kMaxNumOutputs) {
      violations->Add("output.num_outputs", absl::StrCat("must be from 1 to ", kMaxNumOutputs,
                                                         ", is ", proto.num_outputs()));
    }
    output.num_outputs = proto.num_outputs();
  }
  if (proto.has_top_logprobs()) {
    CheckAtMost("output.top_logprobs", proto.top_logprobs(), kMaxTopLogprobs, violations);
    output.top_logprobs = proto.top_logprobs();
  }
  if (proto.has_prompt_top_logprobs()) {
    CheckAtMost("output.prompt_top_logprobs", proto.prompt_top_logprobs(), kMaxTopLogprobs,
                violations);
    output.prompt_top_logprobs = proto.prompt_top_logprobs();
  }
  output.output_token_ids = proto.output_token_ids();
  output.prompt_token_ids = proto.prompt_token_ids();
  output.keep_special_tokens = proto.keep_special_tokens();
  output.final_only = proto.final_only();
}

void CheckChat(const v1::Chat& chat, Violations* violations) {
  if (chat.messages().empty()) violations->Add("chat.messages", "must not be empty");
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    const std::string path = absl::StrCat("chat.messages[", i, "].");
    if (message.role().empty()) violations->Add(path + "role", "must not be empty");
    CheckLabel(path + "role", message.role(), violations);
    CheckLabel(path + "name", message.name(), violations);
    CheckText(path + "content", message.content(), violations);
    CheckText(path + "reasoning_content", message.reasoning_content(), violations);
    for (int j = 0; j < message.tool_calls_size(); ++j) {
      if (message.tool_calls(j).name().empty()) {
        violations->Add(absl::StrCat(path, "tool_calls[", j, "].name"), "must not be empty");
      }
    }
  }
  CheckAtMost("chat.tools_json", static_cast<std::uint64_t>(chat.tools_json_size()), kMaxTools,
              violations);
  if (chat.continue_last_message() && chat.has_add_generation_prompt() &&
      chat.add_generation_prompt()) {
    violations->Add("chat.continue_last_message",
                    "excludes add_generation_prompt: a turn is continued or opened");
  }
}

void TakePrompt(const v1::GenerateRequest& proto, const ServedModel& model, Request* request,
                Violations* violations) {
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText:
      if (proto.text().empty()) violations->Add("text", "must not be empty");
      CheckText("text", proto.text(), violations);
      break;
    case v1::GenerateRequest::kTokens:
      if (proto.tokens().ids().empty()) violations->Add("tokens.ids", "must not be empty");
      request->prompt = TakeTokenIds("tokens.ids", proto.tokens().ids(), model, violations);
      break;
    case v1::GenerateRequest::kChat: CheckChat(proto.chat(), violations); break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      violations->Add("prompt", "one of text, tokens and chat must be set");
      break;
  }
  if (proto.has_truncate_prompt_tokens() && proto.truncate_prompt_tokens() == 0) {
    violations->Add("truncate_prompt_tokens", "must be at least 1");
  }
}

EncodeOptions ToEncodeOptions(bool parse_special, std::optional<bool> add_special) {
  EncodeOptions options;
  options.parse_special = parse_special;
  options.add_special = add_special;
  return options;
}

absl::StatusOr<std::vector<std::int32_t>> Render(const v1::Chat& chat, const ServedModel& model,
                                                 bool parse_special, absl::Time now) {
  if (model.chat_template == nullptr) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat("model ", Quote(model.info.name),
                                                   " has no chat template: send text or tokens, or "
                                                   "serve an instruction-tuned checkpoint")),
        "NO_CHAT_TEMPLATE");
  }
  ASSIGN_OR_RETURN(const Json variables, ChatVariables(chat));
  return model.RenderChat(variables, now, parse_special);
}

}  // namespace

std::optional<absl::Duration> ToDuration(const google::protobuf::Duration& proto) {
  constexpr std::int64_t kMaxSeconds = 315'576'000'000;
  constexpr std::int32_t kSecond = 1'000'000'000;
  const bool well_formed = proto.seconds() >= -kMaxSeconds && proto.seconds() <= kMaxSeconds &&
                           proto.nanos() > -kSecond && proto.nanos() < kSecond;
  if (!well_formed) return std::nullopt;
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

absl::StatusOr<Request> ValidateGenerate(const v1::GenerateRequest& proto,
                                         const ServedModel& model) {
  if (proto.has_constraint()) {
    return WithReason(
        absl::UnimplementedError("constraint: this build has no structured output; leave it unset"),
        "UNSUPPORTED");
  }
  Violations violations;
  Request request;
  request.sampling = model.defaults.sampling;
  TakePrompt(proto, model, &request, &violations);
  TakeSampling(proto.sampling(), model, &request, &violations);
  TakeStopping(proto.stopping(), model, &request, &violations);
  TakeOutput(proto.output(), &request, &violations);
  CheckLabel("model", proto.model(), &violations);
  CheckLabel("request_id", proto.request_id(), &violations);
  CheckLabel("cache_salt", proto.cache_salt(), &violations);
  CheckLabel("tenant", proto.tenant(), &violations);
  RETURN_IF_ERROR(violations.ToStatus());

  request.sampling.min_tokens = static_cast<std::int32_t>(request.stopping.min_tokens);
  request.sampling.top_logprobs = request.output.top_logprobs.has_value()
                                      ? static_cast<std::int32_t>(*request.output.top_logprobs)
                                      : -1;
  request.priority = proto.priority();
  request.id = proto.request_id();
  request.cache_salt = proto.cache_salt();
  request.tenant = proto.tenant();
  return request;
}

absl::StatusOr<std::vector<std::int32_t>> PreparePrompt(const v1::GenerateRequest& proto,
                                                        const ServedModel& model, absl::Time now) {
  std::vector<std::int32_t> prompt;
  if (proto.has_text()) {
    std::optional<bool> add_special;
    if (proto.has_add_special_tokens()) add_special = proto.add_special_tokens();
    ASSIGN_OR_RETURN(prompt,
                     model.tokenizer->Encode(
                         proto.text(), ToEncodeOptions(proto.parse_special_tokens(), add_special)));
  } else if (proto.has_tokens()) {
    prompt.assign(proto.tokens().ids().begin(), proto.tokens().ids().end());
  } else {
    ASSIGN_OR_RETURN(prompt, Render(proto.chat(), model, proto.parse_special_tokens(), now));
  }
  if (prompt.empty())
    return InvalidField(proto.has_chat() ? "chat" : "text", "makes a prompt without tokens");
  if (proto.has_truncate_prompt_tokens() && prompt.size() > proto.truncate_prompt_tokens()) {
    prompt.erase(prompt.begin(),
                 prompt.end() - static_cast<std::ptrdiff_t>(proto.truncate_prompt_tokens()));
  }
  return prompt;
}

absl::StatusOr<std::vector<std::int32_t>> Tokenize(const v1::TokenizeRequest& proto,
                                                   const ServedModel& model, absl::Time now) {
  Violations violations;
  if (proto.has_text()) {
    CheckText("text", proto.text(), &violations);
  } else if (proto.has_chat()) {
    CheckChat(proto.chat(), &violations);
  } else {
    violations.Add("input", "one of text and chat must be set");
  }
  RETURN_IF_ERROR(violations.ToStatus());
  if (proto.has_chat()) return Render(proto.chat(), model, proto.parse_special_tokens(), now);
  std::optional<bool> add_special;
  if (proto.has_add_special_tokens()) add_special = proto.add_special_tokens();
  return model.tokenizer->Encode(proto.text(),
                                 ToEncodeOptions(proto.parse_special_tokens(), add_special));
}

absl::StatusOr<std::string> Detokenize(const v1::DetokenizeRequest& proto,
                                       const ServedModel& model) {
  Violations violations;
  const std::vector<std::int32_t> ids =
      TakeTokenIds("token_ids", proto.token_ids(), model, &violations);
  RETURN_IF_ERROR(violations.ToStatus());
  return model.tokenizer->Decode(ids, !proto.keep_special_tokens());
}

}  // namespace nibble
