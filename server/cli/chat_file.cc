#include "server/cli/chat_file.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

absl::Status WrongKind(const std::string& where, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat(where, " must be ", wanted));
}

absl::Status UnknownKey(const std::string& where, const std::string& key) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, " has a key \"", key.substr(0, 64), "\" that a chat cannot carry"));
}

absl::Status TakeText(const std::string& where, const Json& value, std::string* text) {
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_string()) return WrongKind(where, "a string");
  *text = value.AsString();
  return absl::OkStatus();
}

// The call itself, or what stands under its key "function".
absl::Status AddCallPart(const std::string& where, const Json& json, v1::ToolCall* call) {
  for (const auto& [key, value] : json.AsObject()) {
    const std::string at = absl::StrCat(where, ".", key);
    if (key == "id") {
      RETURN_IF_ERROR(TakeText(at, value, call->mutable_id()));
    } else if (key == "name") {
      RETURN_IF_ERROR(TakeText(at, value, call->mutable_name()));
    } else if (key == "arguments") {
      call->set_arguments_json(value.is_string() ? value.AsString() : DumpJson(value));
    } else if (key == "function") {
      if (!value.is_object()) return WrongKind(at, "an object");
      RETURN_IF_ERROR(AddCallPart(at, value, call));
    } else if (key != "type") {
      return UnknownKey(where, key);
    }
  }
  return absl::OkStatus();
}

absl::Status AddCalls(const std::string& where, const Json& json, v1::ChatMessage* message) {
  if (json.is_null()) return absl::OkStatus();
  if (!json.is_array()) return WrongKind(where, "an array");
  for (std::size_t i = 0; i < json.AsArray().size(); ++i) {
    const std::string at = absl::StrCat(where, "[", i, "]");
    if (!json.AsArray()[i].is_object()) return WrongKind(at, "an object");
    RETURN_IF_ERROR(AddCallPart(at, json.AsArray()[i], message->add_tool_calls()));
  }
  return absl::OkStatus();
}

absl::Status AddMessage(const std::string& where, const Json& json, v1::ChatMessage* message) {
  if (!json.is_object()) return WrongKind(where, "an object");
  const std::pair<const char*, std::string*> texts[] = {
      {"role", message->mutable_role()},
      {"content", message->mutable_content()},
      {"name", message->mutable_name()},
      {"reasoning_content", message->mutable_reasoning_content()},
      {"tool_call_id", message->mutable_tool_call_id()},
  };
  for (const auto& [key, value] : json.AsObject()) {
    const std::string at = absl::StrCat(where, ".", key);
    if (key == "tool_calls") {
      RETURN_IF_ERROR(AddCalls(at, value, message));
      continue;
    }
    bool known = false;
    for (const auto& [name, text] : texts) {
      if (key != name) continue;
      known = true;
      RETURN_IF_ERROR(TakeText(at, value, text));
    }
    if (!known) return UnknownKey(where, key);
  }
  if (message->role().empty())
    return absl::InvalidArgumentError(absl::StrCat(where, " has no role"));
  return absl::OkStatus();
}

}  // namespace

absl::Status AddMessages(absl::string_view json, v1::Chat* chat) {
  ASSIGN_OR_RETURN(const Json messages, ParseJson(json));
  if (!messages.is_array()) return WrongKind("the messages", "an array");
  for (std::size_t i = 0; i < messages.AsArray().size(); ++i) {
    RETURN_IF_ERROR(
        AddMessage(absl::StrCat("messages[", i, "]"), messages.AsArray()[i], chat->add_messages()));
  }
  return absl::OkStatus();
}

absl::Status AddTools(absl::string_view json, v1::Chat* chat) {
  ASSIGN_OR_RETURN(const Json tools, ParseJson(json));
  if (!tools.is_array()) return WrongKind("the tools", "an array");
  for (const Json& tool : tools.AsArray()) {
    if (!tool.is_object()) return WrongKind("a tool", "an object");
    chat->add_tools_json(DumpJson(tool));
  }
  return absl::OkStatus();
}

}  // namespace nibble
