// tokenizer.json, and vocab.json with merges.txt.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/text/json_fields.h"
#include "runtime/text/pipeline.h"
#include "runtime/text/pre_patterns.h"
#include "runtime/text/tokenizer_config.h"

namespace nibble {
namespace {

using Merges = std::vector<std::pair<std::string, std::string>>;

const Json& NullJson() {
  static const Json null;
  return null;
}

const Json& MemberOrNull(const Json& json, absl::string_view key) {
  const Json* value = json.Find(key);
  return value == nullptr ? NullJson() : *value;
}

absl::Status ReadVocab(const Json& vocab, TokenTable* tokens) {
  if (!vocab.is_object())
    return absl::InvalidArgumentError("tokenizer: \"vocab\" is not an object of ids");
  std::int64_t bytes = 0;
  std::int64_t limit = 0;
  for (const auto& [text, id] : vocab.AsObject()) {
    ASSIGN_OR_RETURN(const std::int32_t value,
                     IdOf(&id, absl::StrCat("token \"", absl::CHexEscape(text), "\"")));
    bytes += static_cast<std::int64_t>(text.size());
    limit = std::max<std::int64_t>(limit, std::int64_t{value} + 1);
  }
  RETURN_IF_ERROR(
      tokens->Reserve(static_cast<std::int64_t>(vocab.AsObject().size()), bytes, limit));
  for (const auto& [text, id] : vocab.AsObject()) {
    RETURN_IF_ERROR(tokens->Add(static_cast<std::int32_t>(id.AsInt64()), text));
  }
  return absl::OkStatus();
}

absl::Status AddMerge(absl::string_view line, Merges* merges) {
  const std::size_t space = line.find(' ');
  if (space == absl::string_view::npos || line.find(' ', space + 1) != absl::string_view::npos ||
      space == 0 || space + 1 == line.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer: merge ", merges->size(), ", \"",
                                                   absl::CHexEscape(line.substr(0, 200)),
                                                   "\", is not two tokens with a space between"));
  }
  merges->emplace_back(line.substr(0, space), line.substr(space + 1));
  return absl::OkStatus();
}

absl::StatusOr<Merges> ReadMerges(const Json& json) {
  if (!json.is_array())
    return absl::InvalidArgumentError("tokenizer.json: \"merges\" is not an array");
  Merges merges;
  merges.reserve(json.AsArray().size());
  for (const Json& merge : json.AsArray()) {
    const bool pair = merge.is_array() && merge.AsArray().size() == 2 &&
                      merge.AsArray()[0].is_string() && merge.AsArray()[1].is_string();
    if (pair) {
      merges.emplace_back(merge.AsArray()[0].AsString(), merge.AsArray()[1].AsString());
    } else if (merge.is_string()) {
      RETURN_IF_ERROR(AddMerge(merge.AsString(), &merges));
    } else {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: merge ", merges.size(),
                                                     " is neither \"a b\" nor [\"a\", \"b\"]"));
    }
  }
  return merges;
}

absl::StatusOr<BpeOptions> ReadBpeOptions(const Json& model, const TokenTable& tokens,
                                          bool byte_level) {
  constexpr absl::string_view kOwner = "model BPE";
  BpeOptions options;
  options.byte_level = byte_level;
  ASSIGN_OR_RETURN(options.byte_fallback, BoolField(model, "byte_fallback", false, kOwner));
  ASSIGN_OR_RETURN(options.fuse_unk, BoolField(model, "fuse_unk", false, kOwner));
  ASSIGN_OR_RETURN(options.ignore_merges, BoolField(model, "ignore_merges", false, kOwner));
  ASSIGN_OR_RETURN(options.continuing_prefix,
                   OptionalString(model, "continuing_subword_prefix", kOwner));
  ASSIGN_OR_RETURN(options.end_suffix, OptionalString(model, "end_of_word_suffix", kOwner));
  ASSIGN_OR_RETURN(const std::string unk, OptionalString(model, "unk_token", kOwner));
  if (!unk.empty()) {
    options.unk = tokens.Find(unk);
    if (options.unk == kNoToken && !byte_level) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokenizer.json: unk_token \"", absl::CHexEscape(unk), "\" is not in the vocabulary"));
    }
  }
  return options;
}

absl::Status ReadModel(const Json& json, bool byte_level, TokenizerParts* parts) {
  if (!json.is_object()) return absl::InvalidArgumentError("tokenizer.json has no \"model\"");
  ASSIGN_OR_RETURN(std::string type, OptionalString(json, "type", "the model"));
  if (type.empty() && json.Find("merges") != nullptr) type = "BPE";  // files of 2020
  if (type != "BPE") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.json: model \"", type.substr(0, 100),
                                                 "\" is not supported, only BPE"));
  }
  RETURN_IF_ERROR(ReadVocab(MemberOrNull(json, "vocab"), &parts->model_tokens));
  ASSIGN_OR_RETURN(const Merges merges, ReadMerges(MemberOrNull(json, "merges")));
  ASSIGN_OR_RETURN(BpeOptions options, ReadBpeOptions(json, parts->model_tokens, byte_level));
  if (byte_level && (!options.continuing_prefix.empty() || !options.end_suffix.empty())) {
    return absl::UnimplementedError(
        "tokenizer.json: ByteLevel with continuing_subword_prefix or end_of_word_suffix is not "
        "supported");
  }
  ASSIGN_OR_RETURN(parts->model,
                   BpeModel::FromMerges(parts->model_tokens, merges, std::move(options),
                                        /*last_wins=*/true));
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& json, TokenizerParts* parts) {
  if (json.is_null()) return absl::OkStatus();
  if (!json.is_array())
    return absl::InvalidArgumentError("tokenizer.json: \"added_tokens\" is not an array");
  for (const Json& entry : json.AsArray()) {
    ASSIGN_OR_RETURN(const std::int32_t id, IdOf(entry.Find("id"), "an added token"));
    ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(entry, id));
    if (token.content.empty()) continue;
    const std::int32_t known = parts->model_tokens.Find(token.content);
    if (known != kNoToken && known != id) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added token \"",
                                                     absl::CHexEscape(token.content), "\" has id ",
                                                     id, " but the vocabulary says ", known));
    }
    parts->added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// The library that wraps tokenizer.json adds what only tokenizer_config.json lists.
void AddTokensOfConfig(const TokenizerConfig& config, TokenizerParts* parts) {
  absl::flat_hash_set<std::string> contents;
  absl::flat_hash_set<std::int32_t> ids;
  for (const AddedToken& token : parts->added) {
    contents.insert(token.content);
    ids.insert(token.id);
  }
  for (const AddedToken& token : config.added) {
    const bool known =
        contents.contains(token.content) || parts->model_tokens.Find(token.content) != kNoToken;
    const bool taken = ids.contains(token.id) || parts->model_tokens.Has(token.id);
    if (!known && !taken && !token.content.empty()) parts->added.push_back(token);
  }
}

// The ids before and after the text that a TemplateProcessing's "single" asks for.
absl::Status ReadTemplate(const Json& json, TokenizerParts* parts) {
  constexpr absl::string_view kOwner = "post_processor TemplateProcessing";
  ASSIGN_OR_RETURN(const Json::Array* single, ArrayField(json, "single", kOwner));
  const Json& tokens = MemberOrNull(json, "special_tokens");
  bool after = false;
  for (const Json& element : *single) {
    if (element.Find("Sequence") != nullptr) {
      if (after)
        return absl::UnimplementedError(
            "tokenizer.json: a template with the text twice is not supported");
      after = true;
      continue;
    }
    const Json* special = element.Find("SpecialToken");
    if (special == nullptr)
      return FieldError(kOwner, "single", "a list of SpecialToken and Sequence");
    ASSIGN_OR_RETURN(const std::string name, StringField(*special, "id", kOwner));
    const Json* entry = tokens.Find(name);
    if (entry == nullptr)
      return FieldError(kOwner, "special_tokens", absl::StrCat("an object with \"", name, "\""));
    ASSIGN_OR_RETURN(const Json::Array* ids, ArrayField(*entry, "ids", kOwner));
    for (const Json& id : *ids) {
      ASSIGN_OR_RETURN(const std::int32_t value, IdOf(&id, kOwner));
      (after ? parts->suffix : parts->prefix).push_back(value);
    }
  }
  if (!after) return FieldError(kOwner, "single", "a list with a Sequence");
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const Json& json, TokenizerParts* parts) {
  if (json.is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string type, StringField(json, "type", "the post_processor"));
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets only
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json::Array* steps,
                     ArrayField(json, "processors", "post_processor Sequence"));
    for (const Json& step : *steps) RETURN_IF_ERROR(ReadPostProcessor(step, parts));
    return absl::OkStatus();
  }
  if (type != "TemplateProcessing") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.json: post_processor \"",
                                                 type.substr(0, 100), "\" is not supported"));
  }
  // A later template wraps what an earlier one made.
  TokenizerParts wrapped;
  RETURN_IF_ERROR(ReadTemplate(json, &wrapped));
  parts->prefix.insert(parts->prefix.begin(), wrapped.prefix.begin(), wrapped.prefix.end());
  parts->suffix.insert(parts->suffix.end(), wrapped.suffix.begin(), wrapped.suffix.end());
  return absl::OkStatus();
}

std::int32_t FindToken(const TokenizerParts& parts, absl::string_view content) {
  for (const AddedToken& token : parts.added) {
    if (token.content == content) return token.id;
  }
  return parts.model_tokens.Find(content);
}

// Names, end tokens, and add_bos_token/add_eos_token over what the file's template says.
absl::Status ApplyConfig(const TokenizerConfig& config, TokenizerParts* parts) {
  parts->special_names = config.special_names;
  const auto named = [&](const char* name) {
    const auto found = config.special_names.find(name);
    return found == config.special_names.end() ? kNoToken : FindToken(*parts, found->second);
  };
  const std::int32_t bos = named("bos_token");
  const std::int32_t eos = named("eos_token");
  if (bos != kNoToken) parts->bos = bos;
  if (eos != kNoToken) parts->end_ids.push_back(eos);
  std::vector<std::int32_t>& prefix = parts->prefix;
  std::vector<std::int32_t>& suffix = parts->suffix;
  const bool has_bos = bos != kNoToken && !prefix.empty() && prefix.front() == bos;
  const bool has_eos = eos != kNoToken && !suffix.empty() && suffix.back() == eos;
  if (config.add_bos == true && !has_bos) {
    if (bos == kNoToken) {
      return absl::InvalidArgumentError(
          "tokenizer_config.json: add_bos_token is true but bos_token is no token");
    }
    prefix.insert(prefix.begin(), bos);
  } else if (config.add_bos == false && has_bos) {
    prefix.erase(prefix.begin());
  }
  if (config.add_eos == true && !has_eos) {
    if (eos == kNoToken) {
      return absl::InvalidArgumentError(
          "tokenizer_config.json: add_eos_token is true but eos_token is no token");
    }
    suffix.push_back(eos);
  } else if (config.add_eos == false && has_eos) {
    suffix.pop_back();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(absl::string_view json,
                                                               absl::string_view config_json) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, ParseTokenizerConfig(config_json));
  ASSIGN_OR_RETURN(const Json file, ParseFile(json, "tokenizer.json"));
  if (!file.is_object()) return absl::InvalidArgumentError("tokenizer.json is not an object");
  TokenizerParts parts;
  bool normalizes_to_bytes = false;
  bool splits_to_bytes = false;
  ASSIGN_OR_RETURN(parts.normalizers,
                   ParseNormalizer(MemberOrNull(file, "normalizer"), &normalizes_to_bytes));
  ASSIGN_OR_RETURN(parts.pre_tokenizers,
                   ParsePreTokenizer(MemberOrNull(file, "pre_tokenizer"), &splits_to_bytes));
  if (normalizes_to_bytes && (splits_to_bytes || !parts.pre_tokenizers.empty())) {
    return absl::UnimplementedError(
        "tokenizer.json: normalizer ByteLevel together with a pre_tokenizer is not supported");
  }
  RETURN_IF_ERROR(
      ReadModel(MemberOrNull(file, "model"), normalizes_to_bytes || splits_to_bytes, &parts));
  RETURN_IF_ERROR(ReadAddedTokens(MemberOrNull(file, "added_tokens"), &parts));
  AddTokensOfConfig(config, &parts);
  if (normalizes_to_bytes) {
    for (const AddedToken& token : parts.added) {
      if (token.normalized) {
        return absl::UnimplementedError(absl::StrCat("tokenizer.json: added token ", token.id,
                                                     " is normalized, under normalizer ByteLevel"));
      }
    }
  }
  RETURN_IF_ERROR(ReadPostProcessor(MemberOrNull(file, "post_processor"), &parts));
  ASSIGN_OR_RETURN(parts.decoder, ParseDecoder(MemberOrNull(file, "decoder")));
  RETURN_IF_ERROR(ApplyConfig(config, &parts));
  return MakeTokenizer(std::move(parts));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromVocabAndMerges(
    absl::string_view vocab_json, absl::string_view merges_text, absl::string_view config_json) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, ParseTokenizerConfig(config_json));
  TokenizerParts parts;
  absl::string_view pre;
  if (config.tokenizer_class == "Qwen2Tokenizer") {
    parts.normalizers.push_back(MakeUnicodeNormalizer(NormalForm::kNfc));
    pre = "qwen2";
  } else if (config.tokenizer_class == "GPT2Tokenizer" || config.tokenizer_class.empty()) {
    pre = "gpt-2";
  } else {
    return absl::UnimplementedError(absl::StrCat("vocab.json of tokenizer_class \"",
                                                 config.tokenizer_class,
                                                 "\" is not supported; provide tokenizer.json"));
  }
  if (config.add_prefix_space) parts.pre_tokenizers.push_back(MakePrefixSpace());
  RETURN_IF_ERROR(AppendPrePatterns(*FindPreKind(pre), &parts.pre_tokenizers));
  ASSIGN_OR_RETURN(const Json vocab, ParseFile(vocab_json, "vocab.json"));
  RETURN_IF_ERROR(ReadVocab(vocab, &parts.model_tokens));
  Merges merges;
  for (absl::string_view line : absl::StrSplit(merges_text, '\n')) {
    line = absl::StripSuffix(line, "\r");
    if (line.empty() || absl::StartsWith(line, "#version")) continue;
    RETURN_IF_ERROR(AddMerge(line, &merges));
  }
  BpeOptions options;
  options.byte_level = true;
  ASSIGN_OR_RETURN(parts.model, BpeModel::FromMerges(parts.model_tokens, merges, std::move(options),
                                                     /*last_wins=*/true));
  parts.added = config.added;
  parts.decoder.byte_alphabet = true;
  RETURN_IF_ERROR(ApplyConfig(config, &parts));
  return MakeTokenizer(std::move(parts));
}

}  // namespace nibble
