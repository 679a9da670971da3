// The tokenizer and the chat template of a checkpoint, whichever files they are in.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/text/tokenizer.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

// The tokenizer.ggml.* keys. InvalidArgument names a key of the wrong type or an id out of range.
absl::StatusOr<GgufVocabulary> ReadGgufVocabulary(const GgufMetadata& metadata);

// From a GGUF file's keys; from tokenizer.json, or vocab.json and merges.txt, beside a Hugging Face
// checkpoint. NotFound when there is none.
absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint);

// The source of the template called `name` ("default", "tool_use", ...): chat_template.jinja, the
// string or list in tokenizer_config.json,
// tokenizer.chat_template[.NAME] of a GGUF file. Nothing when the checkpoint has none.
absl::StatusOr<std::optional<std::string>> FindChatTemplate(const Checkpoint& checkpoint,
                                                            absl::string_view name = "default");

}  // namespace nibble
