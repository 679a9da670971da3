// The vocabularies of GGUF files: "llama" (SentencePiece's BPE with scores) and "gpt2" (byte-level
// BPE).
#include <algorithm>
#include <cctype>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/pipeline.h"
#include "runtime/text/pre_patterns.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

// tokenizer.ggml.token_type
enum TokenType : std::int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// Tokens that end a turn in files whose keys name only one of several.
constexpr absl::string_view kEndTokens[] = {
    "<|eot_id|>",         "<|im_end|>",           "<|end|>",         "<|return|>", "<|call|>",
    "<end_of_turn>",      "<|endoftext|>",        "<|end_of_text|>", "<EOT>",      "<|eom_id|>",
    "<end_of_utterance>", "<｜end▁of▁sentence｜>"};

TokenType TypeOf(const GgufVocabulary& vocabulary, std::int32_t id) {
  return vocabulary.types.empty() ? kNormal : static_cast<TokenType>(vocabulary.types[id]);
}

absl::Status CheckCounts(const GgufVocabulary& vocabulary) {
  const std::size_t count = vocabulary.tokens.size();
  if (count == 0) return absl::InvalidArgumentError("tokenizer.ggml.tokens is absent or empty");
  if (!vocabulary.scores.empty() && vocabulary.scores.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.ggml.scores has ", vocabulary.scores.size(), " entries for ", count, " tokens"));
  }
  if (!vocabulary.types.empty() && vocabulary.types.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type has ",
                                                   vocabulary.types.size(), " entries for ", count,
                                                   " tokens"));
  }
  return absl::OkStatus();
}

absl::Status FillTable(const GgufVocabulary& vocabulary, TokenTable* tokens) {
  constexpr std::size_t kEmptyNameBytes = 24;
  std::int64_t bytes = 0;
  for (const std::string& text : vocabulary.tokens) bytes += std::max(text.size(), kEmptyNameBytes);
  const auto count = static_cast<std::int64_t>(vocabulary.tokens.size());
  RETURN_IF_ERROR(tokens->Reserve(count, bytes, count));
  for (std::int32_t id = 0; id < count; ++id) {
    const std::string& text = vocabulary.tokens[static_cast<std::size_t>(id)];
    RETURN_IF_ERROR(tokens->Add(id, text.empty() ? absl::StrCat("[EMPTY_", id, "]") : text));
  }
  return absl::OkStatus();
}

absl::Status CheckId(const std::optional<std::int32_t>& id, const GgufVocabulary& vocabulary,
                     absl::string_view key) {
  if (!id || (*id >= 0 && static_cast<std::size_t>(*id) < vocabulary.tokens.size()))
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tokenizer.ggml.", key, " is ", *id, " but there are ", vocabulary.tokens.size(), " tokens"));
}

// Ids of the keys, with SentencePiece's usual ones where a llama file is silent.
struct SpecialIds {
  std::optional<std::int32_t> bos, eos, eot, eom, unk;
};

absl::StatusOr<SpecialIds> ReadSpecialIds(const GgufVocabulary& v) {
  RETURN_IF_ERROR(CheckId(v.bos, v, "bos_token_id"));
  RETURN_IF_ERROR(CheckId(v.eos, v, "eos_token_id"));
  RETURN_IF_ERROR(CheckId(v.eot, v, "eot_token_id"));
  RETURN_IF_ERROR(CheckId(v.eom, v, "eom_token_id"));
  RETURN_IF_ERROR(CheckId(v.unk, v, "unknown_token_id"));
  SpecialIds ids{v.bos, v.eos, v.eot, v.eom, v.unk};
  if (v.model == "llama" && v.tokens.size() > 2) {
    if (!ids.unk) ids.unk = 0;
    if (!ids.bos) ids.bos = 1;
    if (!ids.eos) ids.eos = 2;
  }
  return ids;
}

// Control, unknown and user-defined tokens are found before the model runs; the last in any text.
void ReadAdded(const GgufVocabulary& vocabulary, TokenizerParts* parts) {
  const std::string name = absl::AsciiStrToLower(vocabulary.name);
  const bool phi3 = absl::StrContains(name, "phi-3") || absl::StrContains(name, "phi3");
  for (std::int32_t id = 0; id < parts->model_tokens.id_limit(); ++id) {
    const TokenType type = TypeOf(vocabulary, id);
    if (type != kControl && type != kUnknown && type != kUserDefined) continue;
    AddedToken token;
    token.id = id;
    token.content = std::string(parts->model_tokens.Text(id));
    token.special = type != kUserDefined;
    // The file does not say it, Phi-3's tokenizer.json does.
    token.rstrip = phi3 && token.content != "<unk>" && token.content != "<s>" &&
                   token.content != "<|endoftext|>";
    parts->added.push_back(std::move(token));
  }
  parts->raw_added = true;
}

void ReadEndIds(const GgufVocabulary& vocabulary, const SpecialIds& special,
                TokenizerParts* parts) {
  std::vector<std::int32_t>& ends = parts->end_ids;
  const auto add = [&](std::int32_t id) {
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  };
  for (const std::optional<std::int32_t>& id : {special.eos, special.eot, special.eom}) {
    if (id) add(*id);
  }
  const TokenTable& tokens = parts->model_tokens;
  // In the harmony format <|end|> ends a message, not the turn.
  const bool harmony = tokens.Find("<|return|>") != kNoToken && tokens.Find("<|call|>") != kNoToken;
  for (const absl::string_view text : kEndTokens) {
    const std::int32_t id = tokens.Find(text);
    if (id == kNoToken || TypeOf(vocabulary, id) != kControl || (harmony && text == "<|end|>"))
      continue;
    add(id);
  }
}

absl::Status ReadAffixes(const GgufVocabulary& vocabulary, const SpecialIds& special,
                         bool default_add_bos, TokenizerParts* parts) {
  if (vocabulary.add_bos.value_or(default_add_bos)) {
    if (!special.bos)
      return absl::InvalidArgumentError("a BOS token is to be added, but bos_token_id is not set");
    parts->prefix.push_back(*special.bos);
  }
  if (vocabulary.add_eos.value_or(false)) {
    if (!special.eos)
      return absl::InvalidArgumentError("an EOS token is to be added, but eos_token_id is not set");
    parts->suffix.push_back(*special.eos);
  }
  return absl::OkStatus();
}

void ReadNames(const GgufVocabulary& vocabulary, const SpecialIds& special, TokenizerParts* parts) {
  const auto name = [&](const char* key, const std::optional<std::int32_t>& id) {
    if (id && parts->model_tokens.Has(*id))
      parts->special_names[key] = std::string(parts->model_tokens.Text(*id));
  };
  parts->bos = special.bos;
  name("bos_token", special.bos);
  name("eos_token", special.eos);
  name("unk_token", special.unk);
  name("pad_token", vocabulary.pad);
}

absl::Status ReadScored(const GgufVocabulary& vocabulary, const SpecialIds& special,
                        BpeOptions options, TokenizerParts* parts) {
  if (vocabulary.scores.empty()) {
    return absl::InvalidArgumentError("tokenizer.ggml.model \"llama\" needs tokenizer.ggml.scores");
  }
  options.byte_fallback = true;
  options.fuse_unk = true;
  if (special.unk) options.unk = *special.unk;
  ASSIGN_OR_RETURN(parts->model, BpeModel::FromScores(parts->model_tokens, vocabulary.scores,
                                                      std::move(options)));
  const bool add_space = vocabulary.add_space_prefix.value_or(true);
  if (add_space) parts->normalizers.push_back(MakePrependNormalizer(kLowerOneEighthBlock));
  ASSIGN_OR_RETURN(auto space, Regex::Literal(" "));
  parts->normalizers.push_back(MakeReplaceNormalizer(std::move(space), kLowerOneEighthBlock));
  parts->decoder.replacements.push_back({std::string(kLowerOneEighthBlock), " "});
  parts->decoder.byte_runs = DecodePlan::ByteRuns::kLossy;
  parts->decoder.strip_leading_space = add_space;
  return absl::OkStatus();
}

absl::Status ReadByteLevel(const GgufVocabulary& vocabulary, const PreKind& kind,
                           BpeOptions options, TokenizerParts* parts) {
  options.byte_level = true;
  options.ignore_merges = kind.ignore_merges;
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(vocabulary.merges.size());
  for (const std::string& merge : vocabulary.merges) {
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string::npos || space + 1 == merge.size()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.merges: entry ", merges.size(),
                                                     ", \"", absl::CHexEscape(merge.substr(0, 200)),
                                                     "\", is not two tokens with a space between"));
    }
    merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  ASSIGN_OR_RETURN(parts->model,
                   BpeModel::FromMerges(parts->model_tokens, merges, std::move(options),
                                        /*last_wins=*/false));
  RETURN_IF_ERROR(AppendPrePatterns(kind, &parts->pre_tokenizers));
  parts->decoder.byte_alphabet = true;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufVocabulary& vocabulary) {
  const bool scored = vocabulary.model == "llama";
  if (!scored && vocabulary.model != "gpt2") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.model \"",
                                                 absl::CHexEscape(vocabulary.model.substr(0, 100)),
                                                 "\" is not supported, only llama and gpt2"));
  }
  RETURN_IF_ERROR(CheckCounts(vocabulary));
  const PreKind* kind = scored ? nullptr : FindPreKind(vocabulary.pre);
  if (!scored && kind == nullptr) {
    return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.pre \"",
                                                 absl::CHexEscape(vocabulary.pre.substr(0, 100)),
                                                 "\" is not supported"));
  }
  ASSIGN_OR_RETURN(SpecialIds special, ReadSpecialIds(vocabulary));
  if (kind != nullptr && kind->no_bos) special.bos = std::nullopt;
  TokenizerParts parts;
  RETURN_IF_ERROR(FillTable(vocabulary, &parts.model_tokens));
  BpeOptions options;
  options.excluded.resize(vocabulary.tokens.size());
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const TokenType type = TypeOf(vocabulary, static_cast<std::int32_t>(id));
    const bool bytes = scored && type == kByte;
    options.excluded[id] = type == kControl || type == kUnknown || bytes;
  }
  ReadAdded(vocabulary, &parts);
  RETURN_IF_ERROR(scored ? ReadScored(vocabulary, special, std::move(options), &parts)
                         : ReadByteLevel(vocabulary, *kind, std::move(options), &parts));
  RETURN_IF_ERROR(ReadAffixes(vocabulary, special, kind == nullptr || kind->add_bos, &parts));
  ReadEndIds(vocabulary, special, &parts);
  ReadNames(vocabulary, special, &parts);
  return MakeTokenizer(std::move(parts));
}

}  // namespace nibble
