#include "runtime/text/tokenizer_config.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/text/json_fields.h"

namespace nibble {

absl::StatusOr<AddedToken> ParseAddedToken(const Json& json, std::int32_t id) {
  const std::string owner = absl::StrCat("added token ", id);
  AddedToken token;
  token.id = id;
  ASSIGN_OR_RETURN(token.content, StringField(json, "content", owner));
  ASSIGN_OR_RETURN(token.single_word, BoolField(json, "single_word", false, owner));
  ASSIGN_OR_RETURN(token.lstrip, BoolField(json, "lstrip", false, owner));
  ASSIGN_OR_RETURN(token.rstrip, BoolField(json, "rstrip", false, owner));
  ASSIGN_OR_RETURN(token.special, BoolField(json, "special", false, owner));
  ASSIGN_OR_RETURN(token.normalized, BoolField(json, "normalized", !token.special, owner));
  return token;
}

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view text) {
  constexpr absl::string_view kOwner = "tokenizer_config.json";
  TokenizerConfig config;
  if (text.empty()) return config;
  ASSIGN_OR_RETURN(const Json json, ParseFile(text, kOwner));
  if (!json.is_object())
    return absl::InvalidArgumentError("tokenizer_config.json is not an object");
  ASSIGN_OR_RETURN(config.tokenizer_class, OptionalString(json, "tokenizer_class", kOwner));
  config.tokenizer_class = std::string(absl::StripSuffix(config.tokenizer_class, "Fast"));
  for (const auto& [key, value] : json.AsObject()) {
    if (!absl::EndsWith(key, "_token")) continue;
    const Json* content = value.is_object() ? value.Find("content") : &value;
    if (content != nullptr && content->is_string()) config.special_names[key] = content->AsString();
  }
  for (auto [key, target] :
       {std::pair{"add_bos_token", &config.add_bos}, {"add_eos_token", &config.add_eos}}) {
    const Json* value = json.Find(key);
    if (value == nullptr || value->is_null()) continue;
    if (!value->is_bool()) return FieldError(kOwner, key, "true, false or null");
    *target = value->AsBool();
  }
  ASSIGN_OR_RETURN(config.add_prefix_space, BoolField(json, "add_prefix_space", false, kOwner));
  if (const Json* added = json.Find("added_tokens_decoder");
      added != nullptr && added->is_object()) {
    for (const auto& [key, value] : added->AsObject()) {
      std::int32_t id = 0;
      if (!absl::SimpleAtoi(key, &id) || id < 0) {
        return FieldError(kOwner, "added_tokens_decoder", "an object keyed by token ids");
      }
      ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(value, id));
      config.added.push_back(std::move(token));
    }
    std::sort(config.added.begin(), config.added.end(),
              [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  }
  return config;
}

}  // namespace nibble
