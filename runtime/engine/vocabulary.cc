#include "runtime/engine/vocabulary.h"

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

absl::Status WrongType(absl::string_view key, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("GGUF key ", key, " must be ", wanted));
}

absl::Status ReadString(const GgufMetadata& metadata, const char* key, std::string* out) {
  const std::string* value = metadata.String(key);
  if (value == nullptr)
    return metadata.Find(key) == nullptr ? absl::OkStatus() : WrongType(key, "a string");
  *out = *value;
  return absl::OkStatus();
}

absl::Status ReadStrings(const GgufMetadata& metadata, const char* key,
                         std::vector<std::string>* out) {
  const std::vector<std::string>* values = metadata.Strings(key);
  if (values == nullptr) {
    return metadata.Find(key) == nullptr ? absl::OkStatus() : WrongType(key, "an array of strings");
  }
  *out = *values;
  return absl::OkStatus();
}

absl::Status ReadId(const GgufMetadata& metadata, const char* key,
                    std::optional<std::int32_t>* out) {
  if (metadata.Find(key) == nullptr) return absl::OkStatus();
  const std::optional<std::int64_t> value = metadata.Integer(key);
  if (!value) return WrongType(key, "an integer");
  // Some converters write "none" as -1 in an unsigned field.
  if (*value == -1 || *value == std::numeric_limits<std::uint32_t>::max()) return absl::OkStatus();
  if (*value < 0 || *value > std::numeric_limits<std::int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("GGUF key ", key, " is ", *value, ", which is no token id"));
  }
  *out = static_cast<std::int32_t>(*value);
  return absl::OkStatus();
}

absl::Status ReadBool(const GgufMetadata& metadata, const char* key, std::optional<bool>* out) {
  if (metadata.Find(key) == nullptr) return absl::OkStatus();
  *out = metadata.Bool(key);
  return out->has_value() ? absl::OkStatus() : WrongType(key, "true or false");
}

// The side file, or nothing when it is not there.
absl::StatusOr<std::optional<std::string>> OptionalSideFile(const Checkpoint& checkpoint,
                                                            absl::string_view name) {
  absl::StatusOr<std::string> text = checkpoint.ReadSideFile(name);
  if (text.ok()) return std::optional<std::string>(*std::move(text));
  if (absl::IsNotFound(text.status())) return std::optional<std::string>();
  return text.status();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> FromSideFiles(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(const std::optional<std::string> config,
                   OptionalSideFile(checkpoint, "tokenizer_config.json"));
  ASSIGN_OR_RETURN(const std::optional<std::string> json,
                   OptionalSideFile(checkpoint, "tokenizer.json"));
  if (json) return Tokenizer::FromJson(*json, config.value_or(""));
  ASSIGN_OR_RETURN(const std::optional<std::string> vocab,
                   OptionalSideFile(checkpoint, "vocab.json"));
  ASSIGN_OR_RETURN(const std::optional<std::string> merges,
                   OptionalSideFile(checkpoint, "merges.txt"));
  if (vocab && merges) return Tokenizer::FromVocabAndMerges(*vocab, *merges, config.value_or(""));
  return absl::NotFoundError(
      absl::StrCat(checkpoint.path(),
                   " has no tokenizer: provide tokenizer.json, or vocab.json and merges.txt"));
}

absl::StatusOr<std::optional<std::string>> TemplateOfConfig(const Checkpoint& checkpoint,
                                                            absl::string_view name) {
  ASSIGN_OR_RETURN(const std::optional<std::string> text,
                   OptionalSideFile(checkpoint, "tokenizer_config.json"));
  if (!text) return std::optional<std::string>();
  ASSIGN_OR_RETURN(const Json config, ParseJson(*text));
  const Json* value = config.Find("chat_template");
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_string()) {
    return name == "default" ? std::optional<std::string>(value->AsString()) : std::nullopt;
  }
  if (!value->is_array()) return std::optional<std::string>();
  for (const Json& entry : value->AsArray()) {
    const Json* entry_name = entry.Find("name");
    const Json* source = entry.Find("template");
    const bool named =
        entry_name != nullptr && entry_name->is_string() && entry_name->AsString() == name;
    if (named && source != nullptr && source->is_string())
      return std::optional<std::string>(source->AsString());
  }
  return std::optional<std::string>();
}

}  // namespace

absl::StatusOr<GgufVocabulary> ReadGgufVocabulary(const GgufMetadata& metadata) {
  GgufVocabulary v;
  RETURN_IF_ERROR(ReadString(metadata, "tokenizer.ggml.model", &v.model));
  if (v.model.empty())
    return absl::NotFoundError("the GGUF file has no tokenizer (tokenizer.ggml.model)");
  v.pre = "default";
  RETURN_IF_ERROR(ReadString(metadata, "tokenizer.ggml.pre", &v.pre));
  RETURN_IF_ERROR(ReadString(metadata, "general.name", &v.name));
  RETURN_IF_ERROR(ReadStrings(metadata, "tokenizer.ggml.tokens", &v.tokens));
  RETURN_IF_ERROR(ReadStrings(metadata, "tokenizer.ggml.merges", &v.merges));
  constexpr const char* kScores = "tokenizer.ggml.scores";
  if (const std::vector<double>* scores = metadata.Numbers(kScores)) {
    v.scores.assign(scores->begin(), scores->end());
  } else if (metadata.Find(kScores) != nullptr) {
    return WrongType(kScores, "an array of floats");
  }
  constexpr const char* kTypes = "tokenizer.ggml.token_type";
  if (const std::vector<std::int64_t>* types = metadata.Integers(kTypes)) {
    for (const std::int64_t type : *types)
      v.types.push_back(type >= 0 && type <= 6 ? static_cast<int>(type) : 0);
  } else if (metadata.Find(kTypes) != nullptr) {
    return WrongType(kTypes, "an array of integers");
  }
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.bos_token_id", &v.bos));
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.eos_token_id", &v.eos));
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.eot_token_id", &v.eot));
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.eom_token_id", &v.eom));
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.unknown_token_id", &v.unk));
  RETURN_IF_ERROR(ReadId(metadata, "tokenizer.ggml.padding_token_id", &v.pad));
  RETURN_IF_ERROR(ReadBool(metadata, "tokenizer.ggml.add_bos_token", &v.add_bos));
  RETURN_IF_ERROR(ReadBool(metadata, "tokenizer.ggml.add_eos_token", &v.add_eos));
  RETURN_IF_ERROR(ReadBool(metadata, "tokenizer.ggml.add_space_prefix", &v.add_space_prefix));
  return v;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint) {
  std::unique_ptr<Tokenizer> tokenizer;
  if (const GgufMetadata* metadata = checkpoint.gguf()) {
    ASSIGN_OR_RETURN(const GgufVocabulary vocabulary, ReadGgufVocabulary(*metadata));
    ASSIGN_OR_RETURN(tokenizer, Tokenizer::FromGguf(vocabulary));
  } else {
    ASSIGN_OR_RETURN(tokenizer, FromSideFiles(checkpoint));
  }
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::StatusOr<std::optional<std::string>> FindChatTemplate(const Checkpoint& checkpoint,
                                                            absl::string_view name) {
  if (const GgufMetadata* metadata = checkpoint.gguf()) {
    const std::string key = name == "default" ? "tokenizer.chat_template"
                                              : absl::StrCat("tokenizer.chat_template.", name);
    const std::string* source = metadata->String(key);
    return source == nullptr ? std::optional<std::string>() : std::optional<std::string>(*source);
  }
  if (name == "default") {
    ASSIGN_OR_RETURN(std::optional<std::string> source,
                     OptionalSideFile(checkpoint, "chat_template.jinja"));
    if (source) return source;
  }
  return TemplateOfConfig(checkpoint, name);
}

}  // namespace nibble
