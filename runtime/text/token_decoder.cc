#include "runtime/text/token_decoder.h"

#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/json_fields.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

// A file can ask for replacements that each double a token.
constexpr std::size_t kMaxTokenBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxShownBytes = std::size_t{1} << 30;  // of all tokens

std::optional<int> HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

// The byte of "<0xHH>".
std::optional<char> ByteToken(absl::string_view text) {
  if (text.size() != 6 || !absl::StartsWith(text, "<0x") || text[5] != '>') return std::nullopt;
  const std::optional<int> high = HexDigit(text[3]);
  const std::optional<int> low = HexDigit(text[4]);
  if (!high || !low) return std::nullopt;
  return static_cast<char>(*high * 16 + *low);
}

// Reads decoders in order; what they do must fit the plan's order: within tokens, bytes, then the
// whole text.
class PlanReader {
 public:
  absl::Status Read(const Json& json) {
    ASSIGN_OR_RETURN(const std::string type, StringField(json, "type", "the decoder"));
    if (type == "Sequence") {
      ASSIGN_OR_RETURN(const Json::Array* parts, ArrayField(json, "decoders", "decoder Sequence"));
      for (const Json& part : *parts) RETURN_IF_ERROR(Read(part));
      return absl::OkStatus();
    }
    if (type == "ByteLevel") {
      RETURN_IF_ERROR(Expect(Stage::kTokens, type));
      plan.byte_alphabet = true;
      stage_ = Stage::kText;  // it joins all bytes into one text
      return absl::OkStatus();
    }
    if (type == "Metaspace") return ReadMetaspace(json);
    if (type == "Replace") return ReadReplace(json);
    if (type == "ByteFallback") {
      RETURN_IF_ERROR(Expect(Stage::kTokens, type));
      plan.byte_runs = DecodePlan::ByteRuns::kAllOrNothing;
      stage_ = Stage::kBytes;
      return absl::OkStatus();
    }
    if (type == "Fuse") {
      stage_ = Stage::kText;
      return absl::OkStatus();
    }
    if (type == "Strip") return ReadStrip(json);
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.json: decoder \"", type.substr(0, 100), "\" is not supported"));
  }

  DecodePlan plan;

 private:
  enum class Stage { kTokens, kBytes, kText };

  absl::Status Expect(Stage latest, absl::string_view type) const {
    if (stage_ <= latest) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(
        "tokenizer.json: decoder \"", type, "\" is not supported at this place of its Sequence"));
  }

  absl::Status ReadMetaspace(const Json& json) {
    constexpr absl::string_view kOwner = "decoder Metaspace";
    RETURN_IF_ERROR(Expect(Stage::kTokens, "Metaspace"));
    if (!plan.replacements.empty()) {
      return absl::UnimplementedError(
          "tokenizer.json: decoder \"Metaspace\" after \"Replace\" is not supported");
    }
    ASSIGN_OR_RETURN(const std::string replacement, StringField(json, "replacement", kOwner));
    if (replacement.empty()) return FieldError(kOwner, "replacement", "one character");
    ASSIGN_OR_RETURN(const bool prefix, BoolField(json, "add_prefix_space", true, kOwner));
    ASSIGN_OR_RETURN(const std::string scheme, OptionalString(json, "prepend_scheme", kOwner));
    if (scheme.empty() ? prefix : scheme != "never") plan.first_without = replacement;
    plan.replacements.push_back({replacement, " "});
    return absl::OkStatus();
  }

  absl::Status ReadReplace(const Json& json) {
    RETURN_IF_ERROR(Expect(Stage::kTokens, "Replace"));
    const Json* pattern = json.Find("pattern");
    const Json* from = pattern == nullptr ? nullptr : pattern->Find("String");
    if (from == nullptr || !from->is_string() || from->AsString().empty()) {
      return absl::UnimplementedError(
          "tokenizer.json: decoder Replace is supported for a non-empty String only");
    }
    ASSIGN_OR_RETURN(std::string to, StringField(json, "content", "decoder Replace"));
    plan.replacements.push_back({from->AsString(), std::move(to)});
    return absl::OkStatus();
  }

  absl::Status ReadStrip(const Json& json) {
    ASSIGN_OR_RETURN(const std::string content, StringField(json, "content", "decoder Strip"));
    const Json* start = json.Find("start");
    const Json* stop = json.Find("stop");
    const std::int64_t left = start != nullptr && start->is_integer() ? start->AsInt64() : 0;
    const std::int64_t right = stop != nullptr && stop->is_integer() ? stop->AsInt64() : 0;
    if (left == 0 && right == 0) return absl::OkStatus();
    if (stage_ != Stage::kText || content != " " || left != 1 || right != 0 ||
        plan.strip_leading_space) {
      return absl::UnimplementedError(
          "tokenizer.json: decoder Strip is supported for one leading space of the fused text "
          "only");
    }
    plan.strip_leading_space = true;
    return absl::OkStatus();
  }

  Stage stage_ = Stage::kTokens;
};

}  // namespace

absl::StatusOr<DecodePlan> ParseDecoder(const Json& json) {
  PlanReader reader;
  if (json.is_null()) {
    reader.plan.separator = " ";
  } else {
    RETURN_IF_ERROR(reader.Read(json));
  }
  return std::move(reader.plan);
}

absl::string_view TokenDecoder::Table::Find(std::int32_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= spans.size()) return {};
  const Span& span = spans[static_cast<std::size_t>(id)];
  return absl::string_view(bytes).substr(span.offset, span.length);
}

void TokenDecoder::Table::Append(absl::string_view text) {
  spans.push_back(
      {static_cast<std::uint32_t>(bytes.size()), static_cast<std::uint32_t>(text.size())});
  bytes.append(text.data(), text.size());
}

absl::StatusOr<TokenDecoder> TokenDecoder::Make(const TokenTable& tokens, DecodePlan plan,
                                                absl::FunctionRef<bool(std::int32_t)> raw) {
  TokenDecoder decoder(std::move(plan));
  RETURN_IF_ERROR(decoder.Fill(tokens, raw));
  return decoder;
}

absl::Status TokenDecoder::Fill(const TokenTable& tokens,
                                absl::FunctionRef<bool(std::int32_t)> raw) {
  const bool first_differs = !plan_.first_without.empty() || !plan_.separator.empty();
  in_run_.resize(plan_.byte_runs == DecodePlan::ByteRuns::kAllOrNothing ? tokens.id_limit() : 0);
  for (std::int32_t id = 0; id < tokens.id_limit(); ++id) {
    const absl::string_view text = tokens.Text(id);
    if (!tokens.Has(id) || raw(id)) {
      bytes_.Append(text);
      if (first_differs) first_.Append(text);
      continue;
    }
    ASSIGN_OR_RETURN(std::string shown, Shown(text));
    if (plan_.byte_runs != DecodePlan::ByteRuns::kNone) {
      if (const std::optional<char> byte = ByteToken(shown)) {
        shown.assign(1, *byte);
        if (!in_run_.empty()) in_run_[static_cast<std::size_t>(id)] = true;
      }
    }
    bytes_.Append(absl::StrCat(plan_.separator, shown));
    if (first_differs) {
      if (!plan_.first_without.empty()) {
        ASSIGN_OR_RETURN(shown, Shown(absl::StrReplaceAll(text, {{plan_.first_without, ""}})));
      }
      first_.Append(shown);
    }
    if (bytes_.bytes.size() + first_.bytes.size() > kMaxShownBytes) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer: the decoder makes more than ",
                                                     kMaxShownBytes, " bytes of all tokens"));
    }
  }
  bytes_.bytes.shrink_to_fit();
  return absl::OkStatus();
}

absl::StatusOr<std::string> TokenDecoder::Shown(absl::string_view text) const {
  std::string shown(text);
  for (const DecodePlan::Replacement& replacement : plan_.replacements) {
    if (shown.size() / replacement.from.size() * replacement.to.size() > kMaxTokenBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer: the decoder's replacement of \"",
                       absl::CHexEscape(replacement.from.substr(0, 100)),
                       "\" makes too much of a token of ", text.size(), " bytes"));
    }
    shown = absl::StrReplaceAll(shown, {{replacement.from, replacement.to}});
  }
  if (plan_.byte_alphabet && IsValidUtf8(shown)) {
    if (std::optional<std::string> bytes = FromByteAlphabet(shown)) return *std::move(bytes);
  }
  return shown;
}

absl::string_view TokenDecoder::Bytes(std::int32_t id) const { return bytes_.Find(id); }

absl::string_view TokenDecoder::FirstBytes(std::int32_t id) const {
  return first_.spans.empty() ? bytes_.Find(id) : first_.Find(id);
}

std::int64_t TokenDecoder::memory_bytes() const {
  return static_cast<std::int64_t>(bytes_.bytes.capacity() + first_.bytes.capacity() +
                                   (bytes_.spans.capacity() + first_.spans.capacity()) *
                                       sizeof(Table::Span) +
                                   in_run_.capacity() / 8);
}

}  // namespace nibble
