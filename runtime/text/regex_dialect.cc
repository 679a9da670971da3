#include "runtime/text/regex_dialect.h"

#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

// White_Space; PCRE2's own \s has U+180E besides.
constexpr absl::string_view kSpace =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr absl::string_view kNotSpace =
    R"(\x00-\x08\x0e-\x1f\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{d7ff}\x{e000}-\x{10ffff})";
// Alphabetic, marks, decimal digits, connectors; PCRE2's own \w has no marks.
constexpr absl::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

absl::Status Refuse(absl::string_view pattern, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat("regular expression \"", pattern.substr(0, 200),
                                               "\" uses ", what, ", which is not supported"));
}

bool IsAsciiDigit(char c) { return c >= '0' && c <= '9'; }

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (!IsValidUtf8(pattern_))
      return absl::InvalidArgumentError("a regular expression is not UTF-8");
    while (position_ < pattern_.size()) RETURN_IF_ERROR(Next());
    if (in_class_) return Refuse(pattern_, "a character class without end");
    return std::move(out_);
  }

 private:
  absl::string_view rest() const { return pattern_.substr(position_); }

  absl::Status Next() {
    const char c = pattern_[position_];
    if (c == '\\') return Escape();
    if (in_class_) return InClass(c);
    if (c == '[') return OpenClass();
    if (c == '(') return Group();
    if (c == '{') return Interval();
    return Copy(1);
  }

  absl::Status Copy(std::size_t bytes) {
    out_.append(pattern_.data() + position_, bytes);
    position_ += bytes;
    return absl::OkStatus();
  }

  absl::Status OpenClass() {
    in_class_ = true;
    RETURN_IF_ERROR(Copy(1));
    if (absl::StartsWith(rest(), "^")) RETURN_IF_ERROR(Copy(1));
    if (absl::StartsWith(rest(), "]")) return Refuse(pattern_, "an unescaped ] first in a class");
    return absl::OkStatus();
  }

  absl::Status InClass(char c) {
    if (c == '[') return Refuse(pattern_, "a class within a class");
    if (absl::StartsWith(rest(), "&&")) return Refuse(pattern_, "an intersection of classes (&&)");
    if (c == ']') in_class_ = false;
    return Copy(1);
  }

  // Groups whose head means the same in both: (?: (?= (?! (?> (?<= (?<! (?i: (?-i: and captures.
  absl::Status Group() {
    for (absl::string_view head :
         {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:", "(?i)"}) {
      if (absl::StartsWith(rest(), head)) return Copy(head.size());
    }
    if (absl::StartsWith(rest(), "(?") || absl::StartsWith(rest(), "(*")) {
      return Refuse(pattern_, absl::StrCat("the group ", rest().substr(0, 4)));
    }
    return Copy(1);
  }

  absl::Status Interval() {
    const std::size_t close = rest().find('}');
    const absl::string_view inside =
        rest().substr(1, close == absl::string_view::npos ? 0 : close - 1);
    bool numbers = !inside.empty() && IsAsciiDigit(inside[0]);
    for (char c : inside) numbers = numbers && (IsAsciiDigit(c) || c == ',');
    if (!numbers) return Refuse(pattern_, "a { that is no {n}, {n,} or {n,m}; write \\{");
    const absl::string_view after = rest().substr(close + 1);
    if (absl::StartsWith(after, "+")) return Refuse(pattern_, "a + after an interval");
    return Copy(close + 1);
  }

  void Emit(absl::string_view text, std::size_t consumed) {
    out_.append(text.data(), text.size());
    position_ += consumed;
  }

  absl::Status Escape() {
    if (position_ + 1 >= pattern_.size()) return Refuse(pattern_, "a \\ at its end");
    const char c = pattern_[position_ + 1];
    switch (c) {
      case 's':
        Emit(in_class_ ? std::string(kSpace) : absl::StrCat("[", kSpace, "]"), 2);
        return absl::OkStatus();
      case 'S':
        Emit(in_class_ ? std::string(kNotSpace) : absl::StrCat("[^", kSpace, "]"), 2);
        return absl::OkStatus();
      case 'w':
        Emit(in_class_ ? std::string(kWord) : absl::StrCat("[", kWord, "]"), 2);
        return absl::OkStatus();
      case 'W':
        if (in_class_) return Refuse(pattern_, "\\W in a class");
        Emit(absl::StrCat("[^", kWord, "]"), 2);
        return absl::OkStatus();
      case 'b':
        if (in_class_) return Refuse(pattern_, "\\b in a class");
        Emit(absl::StrCat("(?:(?<=[", kWord, "])(?![", kWord, "])|(?<![", kWord, "])(?=[", kWord,
                          "]))"),
             2);
        return absl::OkStatus();
      case 'B':
        if (in_class_) return Refuse(pattern_, "\\B in a class");
        Emit(absl::StrCat("(?:(?<=[", kWord, "])(?=[", kWord, "])|(?<![", kWord, "])(?![", kWord,
                          "]))"),
             2);
        return absl::OkStatus();
      case 'v': Emit("\\x0b", 2); return absl::OkStatus();
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f': return Copy(2);
      case 'A':
      case 'z':
      case 'Z':
        if (in_class_) break;
        return Copy(2);
      case 'p':
      case 'P': return Property();
      case 'u':
      case 'x': return CodePoint(c);
      default: break;
    }
    const bool letter_or_digit =
        IsAsciiDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (letter_or_digit || static_cast<unsigned char>(c) >= 0x80) {
      return Refuse(pattern_, absl::StrCat("the escape \\", pattern_.substr(position_ + 1, 1)));
    }
    return Copy(2);
  }

  absl::Status Property() {
    const std::size_t close = rest().find('}');
    if (rest().size() < 3 || rest()[2] != '{' || close == absl::string_view::npos) {
      return Refuse(pattern_, "\\p without {}");
    }
    return Copy(close + 1);  // a name that PCRE2 does not know fails to compile
  }

  // \uHHHH, \xHH below 80 (above, Oniguruma means a byte) and \x{H...}.
  absl::Status CodePoint(char kind) {
    const bool braced = kind == 'x' && absl::StartsWith(rest().substr(2), "{");
    const std::size_t first = braced ? 3 : 2;
    std::size_t end = first;
    const std::size_t most = braced ? 6 : kind == 'u' ? 4 : 2;
    const auto is_hex = [](char c) {
      return IsAsciiDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    };
    while (end < rest().size() && end - first < most && is_hex(rest()[end])) ++end;
    const absl::string_view digits = rest().substr(first, end - first);
    const bool closed = !braced || absl::StartsWith(rest().substr(end), "}");
    const bool complete = braced ? !digits.empty() : digits.size() == most;
    const bool byte = kind == 'x' && !braced && !digits.empty() && digits[0] >= '8';
    if (!closed || !complete || byte) {
      return Refuse(pattern_, absl::StrCat("the escape ", rest().substr(0, end)));
    }
    Emit(absl::StrCat("\\x{", digits, "}"), end + (braced ? 1 : 0));
    return absl::OkStatus();
  }

  absl::string_view pattern_;
  std::size_t position_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslateOniguruma(absl::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace nibble
