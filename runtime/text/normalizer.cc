#include "runtime/text/normalizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/json_fields.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxReplacedBytes = std::size_t{1} << 30;

absl::Status TooLong(std::size_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the normalized text would exceed ", limit, " bytes; shorten the text"));
}

class UnicodeNormalizer final : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}
  absl::Status Apply(std::string* text, RegexScratch&) const override {
    const bool ascii = std::all_of(text->begin(), text->end(),
                                   [](char c) { return static_cast<unsigned char>(c) < 0x80; });
    if (!ascii) *text = Normalize(*text, form_);
    return absl::OkStatus();
  }

 private:
  NormalForm form_;
};

class LowercaseNormalizer final : public Normalizer {
 public:
  absl::Status Apply(std::string* text, RegexScratch&) const override {
    *text = Lowercase(*text);
    return absl::OkStatus();
  }
};

class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  absl::Status Apply(std::string* text, RegexScratch&) const override {
    std::size_t begin = 0;
    std::size_t end = 0;  // of the last character that stays
    bool leading = left_;
    for (std::size_t position = 0; position < text->size();) {
      const std::size_t at = position;
      const bool space = IsWhiteSpace(NextCharacter(*text, &position));
      if (leading && !space) begin = at;
      leading = leading && space;
      if (!space) end = position;
    }
    if (!right_) end = text->size();
    if (leading) begin = text->size();
    *text = begin < end ? text->substr(begin, end - begin) : std::string();
    return absl::OkStatus();
  }

 private:
  bool left_;
  bool right_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(absl::string_view prefix) : prefix_(prefix) {}
  absl::Status Apply(std::string* text, RegexScratch&) const override {
    if (!text->empty()) text->insert(0, prefix_);
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class ReplaceNormalizer final : public Normalizer {
 public:
  ReplaceNormalizer(std::shared_ptr<const Regex> pattern, absl::string_view content)
      : pattern_(std::move(pattern)), content_(content) {}
  absl::Status Apply(std::string* text, RegexScratch& scratch) const override {
    std::string out;
    std::size_t kept = 0;
    bool too_long = false;
    RETURN_IF_ERROR(pattern_->ForEachMatch(*text, scratch, [&](std::size_t begin, std::size_t end) {
      too_long = too_long || out.size() + (begin - kept) + content_.size() > kMaxReplacedBytes;
      if (too_long) return;
      out.append(*text, kept, begin - kept);
      out += content_;
      kept = end;
    }));
    if (too_long) return TooLong(kMaxReplacedBytes);
    out.append(*text, kept, text->size() - kept);
    *text = std::move(out);
    return absl::OkStatus();
  }
  std::int64_t memory_bytes() const override { return pattern_->memory_bytes(); }

 private:
  std::shared_ptr<const Regex> pattern_;
  std::string content_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  absl::Status Apply(std::string* text, RegexScratch&) const override {
    *text = ToByteAlphabet(*text);
    return absl::OkStatus();
  }
};

absl::Status Append(const Json& json, Normalizers* out, bool* ends_byte_level) {
  ASSIGN_OR_RETURN(const std::string type, StringField(json, "type", "the normalizer"));
  if (*ends_byte_level) {  // something follows: the bytes must be spelled out after all
    out->push_back(std::make_unique<ByteLevelNormalizer>());
    *ends_byte_level = false;
  }
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json::Array* parts,
                     ArrayField(json, "normalizers", "normalizer Sequence"));
    for (const Json& part : *parts) RETURN_IF_ERROR(Append(part, out, ends_byte_level));
  } else if (type == "NFC") {
    out->push_back(MakeUnicodeNormalizer(NormalForm::kNfc));
  } else if (type == "NFD") {
    out->push_back(MakeUnicodeNormalizer(NormalForm::kNfd));
  } else if (type == "NFKC") {
    out->push_back(MakeUnicodeNormalizer(NormalForm::kNfkc));
  } else if (type == "NFKD") {
    out->push_back(MakeUnicodeNormalizer(NormalForm::kNfkd));
  } else if (type == "Lowercase") {
    out->push_back(std::make_unique<LowercaseNormalizer>());
  } else if (type == "Strip") {
    ASSIGN_OR_RETURN(const bool left, BoolField(json, "strip_left", true, "normalizer Strip"));
    ASSIGN_OR_RETURN(const bool right, BoolField(json, "strip_right", true, "normalizer Strip"));
    out->push_back(std::make_unique<StripNormalizer>(left, right));
  } else if (type == "Prepend") {
    ASSIGN_OR_RETURN(const std::string prefix, StringField(json, "prepend", "normalizer Prepend"));
    out->push_back(MakePrependNormalizer(prefix));
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(auto pattern, ParsePattern(json.Find("pattern"), "normalizer Replace"));
    ASSIGN_OR_RETURN(const std::string content, StringField(json, "content", "normalizer Replace"));
    out->push_back(MakeReplaceNormalizer(std::move(pattern), content));
  } else if (type == "ByteLevel") {
    *ends_byte_level = true;
  } else {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.json: normalizer \"", type.substr(0, 100), "\" is not supported"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Normalize(const Normalizers& normalizers, RegexScratch& scratch, std::size_t limit,
                       std::string* text) {
  for (const auto& normalizer : normalizers) {
    RETURN_IF_ERROR(normalizer->Apply(text, scratch));
    if (text->size() > limit) return TooLong(limit);
  }
  return absl::OkStatus();
}

std::unique_ptr<Normalizer> MakeUnicodeNormalizer(NormalForm form) {
  return std::make_unique<UnicodeNormalizer>(form);
}
std::unique_ptr<Normalizer> MakePrependNormalizer(absl::string_view prefix) {
  return std::make_unique<PrependNormalizer>(prefix);
}
std::unique_ptr<Normalizer> MakeReplaceNormalizer(std::shared_ptr<const Regex> pattern,
                                                  absl::string_view content) {
  return std::make_unique<ReplaceNormalizer>(std::move(pattern), content);
}

absl::StatusOr<std::shared_ptr<const Regex>> ParsePattern(const Json* json,
                                                          absl::string_view owner) {
  const Json* text = json == nullptr ? nullptr : json->Find("String");
  const Json* regex = json == nullptr ? nullptr : json->Find("Regex");
  if (text != nullptr && text->is_string()) return Regex::Literal(text->AsString());
  if (regex != nullptr && regex->is_string()) return Regex::Compile(regex->AsString());
  return absl::InvalidArgumentError(absl::StrCat(
      "tokenizer.json: ", owner, " needs a pattern, {\"String\": ...} or {\"Regex\": ...}"));
}

absl::StatusOr<Normalizers> ParseNormalizer(const Json& json, bool* byte_level) {
  Normalizers normalizers;
  *byte_level = false;
  if (!json.is_null()) RETURN_IF_ERROR(Append(json, &normalizers, byte_level));
  return normalizers;
}

}  // namespace nibble
