#include "runtime/engine/served_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "runtime/engine/submit_queue.h"

namespace nibble {
namespace {

constexpr char kReasonPayload[] = "type.nibble.dev/reason";
constexpr char kRetryPayload[] = "type.nibble.dev/retry-milliseconds";

// Where a message spells a special token, the spelling is put between two noncharacters before the
// template renders it, and tokenized as plain text afterwards: a user cannot end their own turn.
constexpr absl::string_view kOpen = "\xEF\xB7\x90";   // U+FDD0
constexpr absl::string_view kClose = "\xEF\xB7\x91";  // U+FDD1
// Where the last message ends, if it is to be continued: what the template writes after it is cut.
constexpr absl::string_view kEnd = "\xEF\xB7\x92";  // U+FDD2

std::string GuardText(absl::string_view text, const AddedTokenMatcher& specials) {
  const std::string clean = absl::StrReplaceAll(text, {{kOpen, ""}, {kClose, ""}, {kEnd, ""}});
  std::string guarded;
  specials.Split(clean, /*parse_special=*/true, [&](std::int32_t id, absl::string_view part) {
    if (id == kNoToken) {
      absl::StrAppend(&guarded, part);
    } else {
      absl::StrAppend(&guarded, kOpen, part, kClose);
    }
  });
  return guarded;
}

Json Guard(const Json& value, const AddedTokenMatcher& specials) {
  if (value.is_string()) return Json(GuardText(value.AsString(), specials));
  if (value.is_array()) {
    Json::Array guarded;
    for (const Json& item : value.AsArray()) guarded.push_back(Guard(item, specials));
    return Json(std::move(guarded));
  }
  if (value.is_object()) {
    Json::Object guarded;
    for (const auto& [name, item] : value.AsObject())
      guarded.emplace_back(GuardText(name, specials), Guard(item, specials));
    return Json(std::move(guarded));
  }
  return value;
}

void MarkEndOfLastMessage(Json* variables) {
  const Json* found = variables->Find("messages");
  if (found == nullptr || !found->is_array() || found->AsArray().empty()) return;
  Json messages = *found;
  Json& last = messages.AsArray().back();
  const Json* content = last.Find("content");
  if (content == nullptr || !content->is_string()) return;
  last.Set("content", absl::StrCat(content->AsString(), kEnd));
  variables->Set("messages", std::move(messages));
}

absl::Status CutAfterLastMessage(std::string* rendered) {
  const std::size_t end = rendered->rfind(kEnd.data(), std::string::npos, kEnd.size());
  if (end == std::string::npos) {
    return WithReason(
        absl::InvalidArgumentError(
            "the chat template leaves out the last message, so it cannot be continued"),
        "CHAT_TEMPLATE_REFUSED");
  }
  *rendered = absl::StrReplaceAll(rendered->substr(0, end), {{kEnd, ""}});
  return absl::OkStatus();
}

struct Span {
  std::string text;
  bool guarded = false;
};

// A template may have cut a guarded spelling apart, so the marks need not pair up.
std::vector<Span> SplitGuarded(const std::string& text) {
  std::vector<Span> spans(1);
  for (std::size_t at = 0; at < text.size();) {
    const absl::string_view rest = absl::string_view(text).substr(at);
    const bool open = absl::StartsWith(rest, kOpen);
    if (open || absl::StartsWith(rest, kClose)) {
      spans.push_back({"", open});
      at += kOpen.size();
    } else {
      spans.back().text.push_back(text[at++]);
    }
  }
  std::erase_if(spans, [](const Span& span) { return span.text.empty(); });
  return spans;
}

}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  if (!status.ok()) status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kReasonPayload);
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status WithRetry(absl::Status status, absl::Duration delay) {
  if (!status.ok())
    status.SetPayload(kRetryPayload, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(delay))));
  return status;
}

std::optional<absl::Duration> RetryOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryPayload);
  std::int64_t milliseconds = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &milliseconds))
    return std::nullopt;
  return absl::Milliseconds(milliseconds);
}

absl::StatusOr<std::vector<std::int32_t>> ServedModel::RenderChat(
    const Json& variables, absl::Time now, bool parse_special_in_messages) const {
  if (chat_template == nullptr) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "model '", info.name, "' has no chat template; send text or token ids instead")),
        "NO_CHAT_TEMPLATE");
  }
  Json all = template_variables.is_object() ? template_variables : Json(Json::Object{});
  if (variables.is_object()) {
    for (const auto& [name, value] : variables.AsObject()) {
      all.Set(name, parse_special_in_messages ? value : Guard(value, special_spellings));
    }
  }
  const Json* continued = variables.Find("continue_final_message");
  const bool continues = continued != nullptr && continued->is_bool() && continued->AsBool();
  if (continues) MarkEndOfLastMessage(&all);
  const Json* tools = variables.Find("tools");
  const bool has_tools = tools != nullptr && tools->is_array() && !tools->AsArray().empty();
  const ChatTemplate& chosen =
      has_tools && tool_template != nullptr ? *tool_template : *chat_template;
  absl::StatusOr<std::string> rendered = chosen.Render(all, now);
  if (!rendered.ok()) return WithReason(std::move(rendered).status(), "CHAT_TEMPLATE_REFUSED");
  if (continues) RETURN_IF_ERROR(CutAfterLastMessage(&*rendered));

  // Templates write bos themselves; adding it again is a classic mistake.
  std::vector<std::int32_t> tokens;
  for (const Span& span : SplitGuarded(*rendered)) {
    ASSIGN_OR_RETURN(
        const std::vector<std::int32_t> ids,
        tokenizer->Encode(span.text, {.parse_special = !span.guarded, .add_special = false}));
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  return tokens;
}

absl::Status ServedModel::Submit(Request request, std::shared_ptr<TokenStream> stream) const {
  return queue->Push(std::move(request), std::move(stream));
}

}  // namespace nibble
