// tokenizer_config.json: special tokens by name and what overrides tokenizer.json.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/text/added_tokens.h"

namespace nibble {

struct TokenizerConfig {
  std::string tokenizer_class;  // without "Fast"; empty when absent
  std::map<std::string, std::string>
      special_names;              // bos_token, eos_token, unk_token, pad_token, ...
  std::vector<AddedToken> added;  // added_tokens_decoder, by id
  std::optional<bool> add_bos, add_eos;
  bool add_prefix_space = false;
};

// Empty text: nothing said. InvalidArgument names what cannot be read.
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view text);

// {content, single_word, lstrip, rstrip, normalized, special}; the id is the caller's.
absl::StatusOr<AddedToken> ParseAddedToken(const Json& json, std::int32_t id);

}  // namespace nibble
