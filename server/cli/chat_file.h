// Chats as people keep them in files: JSON arrays of messages and of tools, as OpenAI's API has
// them.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nibble/v1/generation.pb.h"

namespace nibble {

// [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"id": "1", "type":
// "function", "function":
// {"name": "f", "arguments": {...} or "text"}}]}, {"role": "tool", "tool_call_id": "1", "content":
// "..."}]. InvalidArgument names the message and the key.
absl::Status AddMessages(absl::string_view json, v1::Chat* chat);

// An array of tools, each handed on as it is.
absl::Status AddTools(absl::string_view json, v1::Chat* chat);

}  // namespace nibble
