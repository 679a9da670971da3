// The tokenizer that every file format ends in: added tokens, normalizers, pre-tokenizers, one BPE
// model, a decoder.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe_model.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/pre_tokenizer.h"
#include "runtime/text/token_decoder.h"
#include "runtime/text/token_table.h"
#include "runtime/text/tokenizer.h"

namespace nibble {

// What a file says, as its reader understood it.
struct TokenizerParts {
  TokenTable model_tokens;        // what the model knows
  std::vector<AddedToken> added;  // may repeat model tokens, with the same id
  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  std::unique_ptr<const BpeModel> model;  // REQUIRED
  DecodePlan decoder;
  bool raw_added = false;  // added tokens are shown as they are spelled, whatever the decoder

  std::vector<std::int32_t> prefix, suffix;  // what add_special adds
  std::optional<std::int32_t> bos;
  std::vector<std::int32_t> end_ids;
  std::map<std::string, std::string> special_names;  // "bos_token" -> "<s>"
};

// InvalidArgument when the parts contradict each other.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(TokenizerParts parts);

}  // namespace nibble
