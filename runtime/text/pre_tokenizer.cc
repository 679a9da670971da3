#include "runtime/text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/json_fields.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/unicode.h"

namespace nibble {

namespace {

// Matches and what lies between them, in order, as a behavior joins them into pieces.
class PieceJoiner {
 public:
  PieceJoiner(const TextPiece& piece, SplitBehavior behavior, bool invert,
              std::vector<TextPiece>* out)
      : piece_(piece), behavior_(behavior), invert_(invert), out_(out) {}

  void Match(std::size_t begin, std::size_t end) {
    if (end_ < begin) Add(end_, begin, invert_);
    Add(begin, end, !invert_);
    end_ = end;
  }
  void Finish() {
    if (end_ < piece_.text.size()) Add(end_, piece_.text.size(), invert_);
    Flush();
  }

 private:
  void Add(std::size_t begin, std::size_t end, bool match) {
    switch (behavior_) {
      case SplitBehavior::kRemoved:
        if (!match) Start(begin, end);
        break;
      case SplitBehavior::kIsolated: Start(begin, end); break;
      case SplitBehavior::kMergedWithPrevious:
        // A match after a match starts anew, as the reference has it.
        if (match && !last_match_ && open_) {
          open_end_ = end;
        } else {
          Start(begin, end);
        }
        break;
      case SplitBehavior::kMergedWithNext:
        // Read from the right: text joins the match before it unless that match has joined a match.
        if (open_ && last_match_ && !match) {
          open_end_ = end;
        } else {
          Start(begin, end);
        }
        break;
      case SplitBehavior::kContiguous:
        if (open_ && match == last_match_) {
          open_end_ = end;
        } else {
          Start(begin, end);
        }
        break;
    }
    last_match_ = match;
  }

  void Start(std::size_t begin, std::size_t end) {
    Flush();
    open_ = true;
    open_begin_ = begin;
    open_end_ = end;
  }

  void Flush() {
    if (open_ && open_begin_ < open_end_) {
      out_->push_back({piece_.text.substr(open_begin_, open_end_ - open_begin_),
                       piece_.begins_text && open_begin_ == 0});
    }
    open_ = false;
  }

  const TextPiece& piece_;
  const SplitBehavior behavior_;
  const bool invert_;
  std::vector<TextPiece>* out_;
  std::size_t end_ = 0;
  bool open_ = false;
  std::size_t open_begin_ = 0;
  std::size_t open_end_ = 0;
  bool last_match_ = false;
};

class SplitPreTokenizer final : public PreTokenizer {
 public:
  SplitPreTokenizer(std::shared_ptr<const Regex> pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  absl::Status Split(const TextPiece& piece, PreTokenizeScratch& scratch,
                     std::vector<TextPiece>* out) const override {
    PieceJoiner joiner(piece, behavior_, invert_, out);
    RETURN_IF_ERROR(pattern_->ForEachMatch(
        piece.text, scratch.regex,
        [&](std::size_t begin, std::size_t end) { joiner.Match(begin, end); }));
    joiner.Finish();
    return absl::OkStatus();
  }
  std::int64_t memory_bytes() const override { return pattern_->memory_bytes(); }

 private:
  std::shared_ptr<const Regex> pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

// Each character that `is_match` likes is a match of its own.
class CharacterSplit final : public PreTokenizer {
 public:
  CharacterSplit(bool (*is_match)(char32_t), SplitBehavior behavior)
      : is_match_(is_match), behavior_(behavior) {}

  absl::Status Split(const TextPiece& piece, PreTokenizeScratch&,
                     std::vector<TextPiece>* out) const override {
    PieceJoiner joiner(piece, behavior_, /*invert=*/false, out);
    for (std::size_t position = 0; position < piece.text.size();) {
      const std::size_t at = position;
      if (is_match_(NextCharacter(piece.text, &position))) joiner.Match(at, position);
    }
    joiner.Finish();
    return absl::OkStatus();
  }

 private:
  bool (*is_match_)(char32_t);
  SplitBehavior behavior_;
};

class PrefixSpace final : public PreTokenizer {
 public:
  absl::Status Split(const TextPiece& piece, PreTokenizeScratch& scratch,
                     std::vector<TextPiece>* out) const override {
    TextPiece prefixed = piece;
    if (piece.text[0] != ' ')
      prefixed.text = scratch.storage.emplace_back(absl::StrCat(" ", piece.text));
    out->push_back(prefixed);
    return absl::OkStatus();
  }
};

class SpellBytes final : public PreTokenizer {
 public:
  absl::Status Split(const TextPiece& piece, PreTokenizeScratch& scratch,
                     std::vector<TextPiece>* out) const override {
    out->push_back({scratch.storage.emplace_back(ToByteAlphabet(piece.text)), piece.begins_text});
    return absl::OkStatus();
  }
};

class Metaspace final : public PreTokenizer {
 public:
  enum class Prepend { kAlways, kFirst, kNever };

  Metaspace(std::string replacement, Prepend prepend, std::shared_ptr<const Regex> split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(std::move(split)) {}

  absl::Status Split(const TextPiece& piece, PreTokenizeScratch& scratch,
                     std::vector<TextPiece>* out) const override {
    std::string& text = scratch.storage.emplace_back();
    const bool wanted =
        prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.begins_text);
    if (wanted && piece.text[0] != ' ' && !absl::StartsWith(piece.text, replacement_))
      text = replacement_;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += replacement_;
      } else {
        text.push_back(c);
      }
    }
    const TextPiece whole{text, piece.begins_text};
    if (split_ == nullptr) {
      out->push_back(whole);
      return absl::OkStatus();
    }
    PieceJoiner joiner(whole, SplitBehavior::kMergedWithNext, /*invert=*/false, out);
    RETURN_IF_ERROR(split_->ForEachMatch(
        text, scratch.regex,
        [&](std::size_t begin, std::size_t end) { joiner.Match(begin, end); }));
    joiner.Finish();
    return absl::OkStatus();
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  std::shared_ptr<const Regex> split_;
};

absl::StatusOr<SplitBehavior> BehaviorField(const Json& json, absl::string_view owner) {
  ASSIGN_OR_RETURN(const std::string name, StringField(json, "behavior", owner));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return absl::UnimplementedError(absl::StrCat("tokenizer.json: ", owner, ": behavior \"",
                                               name.substr(0, 100), "\" is not supported"));
}

absl::Status AppendByteLevel(const Json& json, PreTokenizers* out) {
  ASSIGN_OR_RETURN(const bool prefix,
                   BoolField(json, "add_prefix_space", true, "pre_tokenizer ByteLevel"));
  ASSIGN_OR_RETURN(const bool use_regex,
                   BoolField(json, "use_regex", true, "pre_tokenizer ByteLevel"));
  if (prefix) out->push_back(MakePrefixSpace());
  if (use_regex) {
    ASSIGN_OR_RETURN(auto pattern, Regex::Compile(kGpt2Pattern));
    out->push_back(MakeSplit(std::move(pattern), SplitBehavior::kIsolated));
  }
  return absl::OkStatus();
}

absl::Status AppendMetaspace(const Json& json, PreTokenizers* out) {
  constexpr absl::string_view kOwner = "pre_tokenizer Metaspace";
  ASSIGN_OR_RETURN(const std::string replacement, StringField(json, "replacement", kOwner));
  if (replacement.empty() || replacement.size() > 4)
    return FieldError(kOwner, "replacement", "one character");
  // Files before 2024 say add_prefix_space instead of prepend_scheme.
  ASSIGN_OR_RETURN(const bool prefix, BoolField(json, "add_prefix_space", true, kOwner));
  ASSIGN_OR_RETURN(std::string scheme, OptionalString(json, "prepend_scheme", kOwner));
  if (scheme.empty()) scheme = prefix ? "always" : "never";
  ASSIGN_OR_RETURN(const bool split, BoolField(json, "split", true, kOwner));
  auto prepend = Metaspace::Prepend::kAlways;
  if (scheme == "first") {
    prepend = Metaspace::Prepend::kFirst;
  } else if (scheme == "never") {
    prepend = Metaspace::Prepend::kNever;
  } else if (scheme != "always") {
    return FieldError(kOwner, "prepend_scheme", "always, first or never");
  }
  std::shared_ptr<const Regex> at;
  if (split) {
    ASSIGN_OR_RETURN(at, Regex::Literal(replacement));
  }
  out->push_back(std::make_unique<Metaspace>(replacement, prepend, std::move(at)));
  return absl::OkStatus();
}

absl::Status AppendSplit(const Json& json, PreTokenizers* out) {
  ASSIGN_OR_RETURN(auto pattern, ParsePattern(json.Find("pattern"), "pre_tokenizer Split"));
  ASSIGN_OR_RETURN(const SplitBehavior behavior, BehaviorField(json, "pre_tokenizer Split"));
  ASSIGN_OR_RETURN(const bool invert, BoolField(json, "invert", false, "pre_tokenizer Split"));
  out->push_back(MakeSplit(std::move(pattern), behavior, invert));
  return absl::OkStatus();
}

absl::Status Append(const Json& json, PreTokenizers* out, bool* ends_byte_level) {
  ASSIGN_OR_RETURN(const std::string type, StringField(json, "type", "the pre_tokenizer"));
  if (*ends_byte_level) {  // something follows: the bytes must be spelled out after all
    out->push_back(std::make_unique<SpellBytes>());
    *ends_byte_level = false;
  }
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const Json::Array* parts,
                     ArrayField(json, "pretokenizers", "pre_tokenizer Sequence"));
    for (const Json& part : *parts) RETURN_IF_ERROR(Append(part, out, ends_byte_level));
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    *ends_byte_level = true;
    return AppendByteLevel(json, out);
  }
  if (type == "Split") return AppendSplit(json, out);
  if (type == "Metaspace") return AppendMetaspace(json, out);
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool each,
                     BoolField(json, "individual_digits", false, "pre_tokenizer Digits"));
    out->push_back(std::make_unique<CharacterSplit>(
        &IsNumeric, each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
  } else if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (json.Find("behavior") != nullptr) {
      ASSIGN_OR_RETURN(behavior, BehaviorField(json, "pre_tokenizer Punctuation"));
    }
    out->push_back(std::make_unique<CharacterSplit>(&IsPunctuation, behavior));
  } else if (type == "WhitespaceSplit") {
    out->push_back(std::make_unique<CharacterSplit>(&IsWhiteSpace, SplitBehavior::kRemoved));
  } else if (type == "Whitespace") {
    ASSIGN_OR_RETURN(auto pattern, Regex::Compile(R"(\w+|[^\w\s]+)"));
    out->push_back(MakeSplit(std::move(pattern), SplitBehavior::kRemoved, /*invert=*/true));
  } else if (type == "CharDelimiterSplit") {
    ASSIGN_OR_RETURN(const std::string delimiter,
                     StringField(json, "delimiter", "pre_tokenizer CharDelimiterSplit"));
    ASSIGN_OR_RETURN(auto pattern, Regex::Literal(delimiter));
    out->push_back(MakeSplit(std::move(pattern), SplitBehavior::kRemoved));
  } else {
    return absl::UnimplementedError(absl::StrCat("tokenizer.json: pre_tokenizer \"",
                                                 type.substr(0, 100), "\" is not supported"));
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<PreTokenizer> MakeSplit(std::shared_ptr<const Regex> pattern,
                                        SplitBehavior behavior, bool invert) {
  return std::make_unique<SplitPreTokenizer>(std::move(pattern), behavior, invert);
}

std::unique_ptr<PreTokenizer> MakePrefixSpace() { return std::make_unique<PrefixSpace>(); }

absl::StatusOr<PreTokenizers> ParsePreTokenizer(const Json& json, bool* byte_level) {
  PreTokenizers steps;
  *byte_level = false;
  if (!json.is_null()) RETURN_IF_ERROR(Append(json, &steps, byte_level));
  return steps;
}

}  // namespace nibble
