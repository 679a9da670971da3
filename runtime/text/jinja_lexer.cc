#include "runtime/text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

using absl::string_view;

std::string NormalizeNewlines(string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

int HexValue(char c) {
  if (absl::ascii_isdigit(static_cast<unsigned char>(c))) return c - '0';
  return absl::ascii_tolower(static_cast<unsigned char>(c)) - 'a' + 10;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (position_ < source_.size()) RETURN_IF_ERROR(LexTextAndTag());
    Add(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  absl::Status Error(string_view reason) const {
    return absl::InvalidArgumentError(absl::StrCat("chat template, line ", line_, ": ", reason));
  }

  char At(std::size_t position) const {
    return position < source_.size() ? source_[position] : '\0';
  }
  bool Starts(string_view text) const {
    return string_view(source_).substr(position_, text.size()) == text;
  }

  void Add(TokenKind kind, std::string text = "") {
    tokens_.push_back(Token{kind, line_, std::move(text)});
  }

  void MoveTo(std::size_t position) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(position_),
                                    source_.begin() + static_cast<std::ptrdiff_t>(position), '\n'));
    position_ = position;
  }

  // First position from `position` on that is not whitespace.
  std::size_t SkipSpace(std::size_t position) const {
    while (position < source_.size()) {
      std::size_t next = position;
      if (!python::IsSpace(python::Decode(source_, &next))) break;
      position = next;
    }
    return position;
  }

  // Text up to a tag whose sign ('-', '+' or none) follows its two opening characters at `tag`.
  void AddText(std::size_t tag, bool is_output) {
    const string_view text = string_view(source_).substr(position_, tag - position_);
    const char sign = At(tag + 2);
    string_view kept = text;
    if (sign == '-') {
      kept = python::Strip(text, python::Side::kRight);
    } else if (sign != '+' && !is_output) {
      const std::size_t newline = text.rfind('\n');
      const std::size_t line_start = newline == string_view::npos ? 0 : newline + 1;
      const bool at_line_start = line_start > 0 || line_starting_;
      if (at_line_start && python::Strip(text.substr(line_start), python::Side::kLeft).empty()) {
        kept = text.substr(0, line_start);
      }
    }
    if (!kept.empty()) Add(TokenKind::kText, std::string(kept));
    MoveTo(tag);
  }

  // Ends a tag whose closing characters start at `close`: "-" there swallows the whitespace behind,
  // and a block's newline goes unless "+" keeps it.
  void CloseTag(std::size_t close, bool trims_newline) {
    std::size_t end = close + 2;
    if (At(close) == '-' || At(close) == '+') {
      ++end;
      if (At(close) == '-') end = SkipSpace(end);
    } else if (trims_newline && At(end) == '\n') {
      ++end;
    }
    MoveTo(end);
    line_starting_ = end > 0 && source_[end - 1] == '\n';
  }

  absl::Status LexTextAndTag() {
    std::size_t tag = position_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) {
        Add(TokenKind::kText, source_.substr(position_));
        MoveTo(source_.size());
        return absl::OkStatus();
      }
      if (At(tag + 1) == '%' || At(tag + 1) == '{' || At(tag + 1) == '#') break;
    }
    const char type = source_[tag + 1];
    AddText(tag, type == '{');
    std::size_t inside = tag + 2;
    if (At(inside) == '-' || At(inside) == '+') ++inside;
    if (type == '#') return LexComment(inside);
    if (type == '%') {
      if (const std::size_t close = WordTag(inside, "raw", /*plus=*/false);
          close != std::string::npos) {
        return LexRaw(close);
      }
    }
    Add(type == '{' ? TokenKind::kOutputBegin : TokenKind::kBlockBegin);
    MoveTo(inside);
    return LexTag(type == '{');
  }

  absl::Status LexComment(std::size_t inside) {
    const std::size_t end = source_.find("#}", inside);
    if (end == std::string::npos) return Error("missing end of comment");
    const bool has_sign = end > inside && (source_[end - 1] == '-' || source_[end - 1] == '+');
    CloseTag(end - (has_sign ? 1 : 0), /*trims_newline=*/true);
    return absl::OkStatus();
  }

  // If only `word` stands between `inside` and the end of the tag: where the closing characters
  // start.
  std::size_t WordTag(std::size_t inside, string_view word, bool plus) const {
    std::size_t position = SkipSpace(inside);
    if (string_view(source_).substr(position, word.size()) != word) return std::string::npos;
    position = SkipSpace(position + word.size());
    const std::size_t sign = At(position) == '-' || (plus && At(position) == '+') ? 1 : 0;
    return At(position + sign) == '%' && At(position + sign + 1) == '}' ? position
                                                                        : std::string::npos;
  }

  absl::Status LexRaw(std::size_t close) {
    CloseTag(close, /*trims_newline=*/false);
    for (std::size_t tag = source_.find("{%", position_); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      const std::size_t inside = tag + (At(tag + 2) == '-' || At(tag + 2) == '+' ? 3 : 2);
      const std::size_t end = WordTag(inside, "endraw", /*plus=*/true);
      if (end == std::string::npos) continue;
      AddText(tag, /*is_output=*/false);
      CloseTag(end, /*trims_newline=*/true);
      return absl::OkStatus();
    }
    return Error("missing end of raw block");
  }

  absl::Status LexTag(bool is_output) {
    while (true) {
      if (brackets_.empty() && AtTagEnd(is_output)) {
        Add(is_output ? TokenKind::kOutputEnd : TokenKind::kBlockEnd);
        CloseTag(position_, /*trims_newline=*/!is_output);
        return absl::OkStatus();
      }
      if (position_ >= source_.size()) {
        return Error(brackets_.empty()
                         ? absl::StrCat("missing end of tag: ", is_output ? "}}" : "%}")
                         : absl::StrCat("missing '", string_view(&brackets_.back(), 1), "'"));
      }
      if (const std::size_t next = SkipSpace(position_); next != position_) {
        MoveTo(next);
        continue;
      }
      RETURN_IF_ERROR(LexToken());
    }
  }

  bool AtTagEnd(bool is_output) const {
    if (is_output) return Starts("}}") || Starts("-}}");
    return Starts("%}") || Starts("-%}") || Starts("+%}");
  }

  absl::Status LexToken() {
    const auto c = static_cast<unsigned char>(source_[position_]);
    if (absl::ascii_isdigit(c)) return LexNumber();
    if (c == '\'' || c == '"') return LexString(static_cast<char>(c));
    std::size_t end = position_;
    while (end < source_.size()) {
      std::size_t next = end;
      const char32_t letter = python::Decode(source_, &next);
      if (letter != '_' && !python::IsAlpha(letter) && !python::IsDecimal(letter)) break;
      end = next;
    }
    if (end > position_) {
      Add(TokenKind::kName, source_.substr(position_, end - position_));
      MoveTo(end);
      return absl::OkStatus();
    }
    return LexOperator();
  }

  absl::Status LexOperator() {
    static constexpr std::array<string_view, 27> kOperators = {
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
        "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ",", ";", "!"};
    for (const string_view op : kOperators) {
      if (!Starts(op) || op == "!") continue;
      RETURN_IF_ERROR(Balance(op[0]));
      Add(TokenKind::kOperator, std::string(op));
      MoveTo(position_ + op.size());
      return absl::OkStatus();
    }
    std::size_t next = position_;
    python::Decode(source_, &next);
    return Error(
        absl::StrCat("unexpected character ",
                     python::StringRepr(string_view(source_).substr(position_, next - position_))));
  }

  absl::Status Balance(char c) {
    if (c == '(') brackets_ += ')';
    if (c == '[') brackets_ += ']';
    if (c == '{') brackets_ += '}';
    if (c != ')' && c != ']' && c != '}') return absl::OkStatus();
    if (brackets_.empty()) return Error(absl::StrCat("unexpected '", string_view(&c, 1), "'"));
    if (brackets_.back() != c) {
      return Error(absl::StrCat("unexpected '", string_view(&c, 1), "', expected '",
                                string_view(&brackets_.back(), 1), "'"));
    }
    brackets_.pop_back();
    return absl::OkStatus();
  }

  // Digits of the base from `position`, single underscores between them.
  std::size_t Digits(std::size_t position, int base) const {
    const auto digit = [&](std::size_t at) {
      const auto c = static_cast<unsigned char>(At(at));
      return absl::ascii_isxdigit(c) && HexValue(static_cast<char>(c)) < base;
    };
    while (digit(position) || (At(position) == '_' && digit(position + 1))) ++position;
    return position;
  }

  absl::Status LexNumber() {
    const char prefix = absl::ascii_tolower(static_cast<unsigned char>(At(position_ + 1)));
    const int base = source_[position_] != '0' ? 10
                     : prefix == 'x'           ? 16
                     : prefix == 'o'           ? 8
                     : prefix == 'b'           ? 2
                                               : 10;
    const std::size_t start = position_;
    std::size_t end = Digits(start + (base == 10 ? 0 : 2), base);
    bool is_float = false;
    // "a.1.5" reads items 1 and 5, no fraction.
    const bool after_dot = start > 0 && source_[start - 1] == '.';
    if (base == 10 && !after_dot) {
      if (At(end) == '.' && absl::ascii_isdigit(static_cast<unsigned char>(At(end + 1)))) {
        end = Digits(end + 1, 10);
        is_float = true;
      }
      if (At(end) == 'e' || At(end) == 'E') {
        const std::size_t digits = end + (At(end + 1) == '+' || At(end + 1) == '-' ? 2 : 1);
        if (absl::ascii_isdigit(static_cast<unsigned char>(At(digits)))) {
          end = Digits(digits, 10);
          is_float = true;
        }
      }
    }
    std::string text = source_.substr(start, end - start);
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    Token token{is_float ? TokenKind::kFloat : TokenKind::kInteger, line_, text};
    if (is_float) {
      token.number = std::strtod(text.c_str(), nullptr);
    } else {
      const char* digits = text.data() + (base == 10 ? 0 : 2);
      const auto parsed = std::from_chars(digits, text.data() + text.size(), token.integer, base);
      if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
        return Error(absl::StrCat("integer ", text, " is malformed or not below 2^63"));
      }
    }
    tokens_.push_back(std::move(token));
    MoveTo(end);
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    std::size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Error("missing end of string");
    ASSIGN_OR_RETURN(std::string text,
                     Unescape(string_view(source_).substr(position_ + 1, end - position_ - 1)));
    Add(TokenKind::kString, std::move(text));
    MoveTo(end + 1);
    return absl::OkStatus();
  }

  // Python's escapes; an unknown one stays as written.
  absl::StatusOr<std::string> Unescape(string_view text) const {
    std::string out;
    char32_t high = 0;  // a pending high surrogate, which only a low one may follow
    for (std::size_t i = 0; i < text.size();) {
      char32_t code = 0;
      bool surrogate_ok = false;
      if (text[i] != '\\') {
        code = python::Decode(text, &i);
      } else {
        const char kind = text[i + 1];
        i += 2;
        static constexpr string_view kNames = "\\'\"abfnrtv";
        static constexpr string_view kValues = "\\'\"\a\b\f\n\r\t\v";
        if (kind == '\n') continue;
        if (const std::size_t simple = kNames.find(kind); simple != string_view::npos) {
          code = static_cast<unsigned char>(kValues[simple]);
        } else if (kind == 'x' || kind == 'u' || kind == 'U') {
          const std::size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
          const string_view hex = text.substr(i, digits);
          if (hex.size() != digits || !std::all_of(hex.begin(), hex.end(), [](unsigned char c) {
                return absl::ascii_isxdigit(c);
              })) {
            return Error(
                absl::StrCat("\\", string_view(&kind, 1), " needs ", digits, " hex digits"));
          }
          for (const char c : hex) code = code * 16 + static_cast<char32_t>(HexValue(c));
          i += digits;
          surrogate_ok = true;
        } else if (kind >= '0' && kind <= '7') {
          code = static_cast<char32_t>(kind - '0');
          for (int n = 0; n < 2 && i < text.size() && text[i] >= '0' && text[i] <= '7'; ++n) {
            code = code * 8 + static_cast<char32_t>(text[i++] - '0');
          }
        } else if (kind == 'N') {
          return absl::UnimplementedError(
              absl::StrCat("chat template, line ", line_, ": \\N{name} escapes"));
        } else {
          if (high != 0) return Error("lone surrogate in string");
          out += '\\';
          --i;
          continue;
        }
      }
      if (high != 0) {
        if (!surrogate_ok || code < 0xDC00 || code > 0xDFFF)
          return Error("lone surrogate in string");
        python::Encode(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00), &out);
        high = 0;
      } else if (code >= 0xD800 && code <= 0xDBFF) {
        high = code;
      } else if (code > 0x10FFFF || (code >= 0xDC00 && code <= 0xDFFF)) {
        return Error("escape is no Unicode character");
      } else {
        python::Encode(code, &out);
      }
    }
    if (high != 0) return Error("lone surrogate in string");
    return out;
  }

  const std::string source_;
  std::size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag ended with a newline (or there was none yet)
  std::string brackets_;       // closing ones that are due
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  if (!python::IsValidUtf8(source)) return absl::InvalidArgumentError("chat template is not UTF-8");
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace nibble::jinja
