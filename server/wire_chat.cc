// Chats as templates expect them: the variables that Hugging Face's apply_chat_template passes.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/wire.h"

namespace nibble {
namespace {

constexpr JsonLimits kChatJsonLimits{.max_depth = 64, .max_values = 100'000};
constexpr std::array<absl::string_view, 5> kReserved{
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"};

absl::StatusOr<Json> ParseObject(const std::string& field, const std::string& text) {
  absl::StatusOr<Json> parsed = ParseJson(text, kChatJsonLimits);
  if (!parsed.ok()) {
    return InvalidField(field,
                        absl::StrCat("is no JSON: ", std::string(parsed.status().message())));
  }
  if (!parsed->is_object())
    return InvalidField(field, absl::StrCat("is no JSON object: ", Quote(text)));
  return parsed;
}

absl::StatusOr<Json> ToolCalls(const std::string& path, const v1::ChatMessage& message) {
  Json::Array calls;
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    const v1::ToolCall& call = message.tool_calls(i);
    Json function;
    function.Set("name", call.name());
    Json arguments(Json::Object{});
    if (!call.arguments_json().empty()) {
      ASSIGN_OR_RETURN(arguments,
                       ParseObject(absl::StrCat(path, "tool_calls[", i, "].arguments_json"),
                                   call.arguments_json()));
    }
    function.Set("arguments", std::move(arguments));
    Json entry;
    if (!call.id().empty()) entry.Set("id", call.id());
    entry.Set("type", "function");
    entry.Set("function", std::move(function));
    calls.push_back(std::move(entry));
  }
  return Json(std::move(calls));
}

absl::StatusOr<Json> Message(int index, const v1::ChatMessage& message) {
  Json entry;
  entry.Set("role", message.role());
  entry.Set("content", message.content());
  if (!message.name().empty()) entry.Set("name", message.name());
  if (!message.reasoning_content().empty())
    entry.Set("reasoning_content", message.reasoning_content());
  if (message.tool_calls_size() > 0) {
    ASSIGN_OR_RETURN(Json calls, ToolCalls(absl::StrCat("chat.messages[", index, "]."), message));
    entry.Set("tool_calls", std::move(calls));
  }
  if (!message.tool_call_id().empty()) entry.Set("tool_call_id", message.tool_call_id());
  return entry;
}

}  // namespace

absl::StatusOr<Json> ChatVariables(const v1::Chat& chat) {
  Json variables(Json::Object{});
  Json::Array messages;
  for (int i = 0; i < chat.messages_size(); ++i) {
    ASSIGN_OR_RETURN(Json message, Message(i, chat.messages(i)));
    messages.push_back(std::move(message));
  }
  variables.Set("messages", std::move(messages));

  // Templates test these against none, so they are there even when empty.
  Json tools;
  if (chat.tools_json_size() > 0) {
    Json::Array parsed;
    for (int i = 0; i < chat.tools_json_size(); ++i) {
      ASSIGN_OR_RETURN(Json tool,
                       ParseObject(absl::StrCat("chat.tools_json[", i, "]"), chat.tools_json(i)));
      parsed.push_back(std::move(tool));
    }
    tools = Json(std::move(parsed));
  }
  variables.Set("tools", std::move(tools));
  variables.Set("documents", nullptr);
  const bool open_turn = !chat.has_add_generation_prompt() || chat.add_generation_prompt();
  variables.Set("add_generation_prompt", open_turn && !chat.continue_last_message());
  variables.Set("continue_final_message", chat.continue_last_message());

  if (!chat.template_variables_json().empty()) {
    ASSIGN_OR_RETURN(const Json own,
                     ParseObject("chat.template_variables_json", chat.template_variables_json()));
    for (const auto& [name, value] : own.AsObject()) {
      if (std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end()) {
        return InvalidField(
            "chat.template_variables_json",
            absl::StrCat("must not set ", Quote(name), ", which has a field of its own"));
      }
      variables.Set(name, value);
    }
  }
  return variables;
}

}  // namespace nibble
