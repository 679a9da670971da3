#include "runtime/text/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble::python {
namespace {

// Bytes of the code point that starts at text[position]; 1 for what is not UTF-8.
std::size_t Width(absl::string_view text, std::size_t position, char32_t* code_point) {
  const auto lead = static_cast<unsigned char>(text[position]);
  *code_point = lead;
  if (lead < 0x80) return 1;
  utf8proc_int32_t decoded = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + position;
  const auto width =
      utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - position), &decoded);
  if (width <= 0) return 1;
  *code_point = static_cast<char32_t>(decoded);
  return static_cast<std::size_t>(width);
}

// Start of the code point that ends at `end`.
std::size_t Before(absl::string_view text, std::size_t end) {
  std::size_t start = end - 1;
  while (start > 0 && end - start < 4 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80)
    --start;
  char32_t ignored;
  return start + Width(text, start, &ignored) == end ? start : end - 1;
}

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

void AppendUpper(char32_t c, std::string* out) {
  if (c == 0xDF) {  // the one character of everyday text whose upper case is longer
    *out += "SS";
  } else {
    Encode(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void AppendLower(char32_t c, std::string* out) {
  Encode(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
}

template <typename Predicate>
absl::string_view StripIf(absl::string_view text, Side side, const Predicate& strip) {
  std::size_t begin = 0;
  std::size_t end = text.size();
  if (side != Side::kRight) {
    while (begin < end) {
      std::size_t next = begin;
      if (!strip(Decode(text, &next))) break;
      begin = next;
    }
  }
  if (side != Side::kLeft) {
    while (end > begin) {
      const std::size_t previous = Before(text, end);
      std::size_t position = previous;
      if (!strip(Decode(text, &position))) break;
      end = previous;
    }
  }
  return text.substr(begin, end - begin);
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

char32_t Decode(absl::string_view text, std::size_t* position) {
  char32_t code_point;
  *position += Width(text, *position, &code_point);
  return code_point;
}

void Encode(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

bool IsValidUtf8(absl::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    char32_t code_point;
    const std::size_t width = Width(text, i, &code_point);
    if (width == 1 && static_cast<unsigned char>(text[i]) >= 0x80) return false;
    i += width;
  }
  return true;
}

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

std::int64_t Length(absl::string_view text) {
  std::int64_t length = 0;
  for (std::size_t i = 0; i < text.size(); ++length) Decode(text, &i);
  return length;
}

std::size_t ByteOffset(absl::string_view text, std::int64_t code_points) {
  std::size_t position = 0;
  while (code_points-- > 0 && position < text.size()) Decode(text, &position);
  return position;
}

std::vector<absl::string_view> Characters(absl::string_view text) {
  std::vector<absl::string_view> characters;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    Decode(text, &i);
    characters.push_back(text.substr(start, i - start));
  }
  return characters;
}

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsAlpha(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimal(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_ND; }
bool IsUpper(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_LU; }
bool IsLower(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_LL; }

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
  }
}

absl::string_view Strip(absl::string_view text, Side side) { return StripIf(text, side, IsSpace); }

absl::string_view Strip(absl::string_view text, absl::string_view characters, Side side) {
  std::vector<char32_t> set;
  for (std::size_t i = 0; i < characters.size();) set.push_back(Decode(characters, &i));
  std::sort(set.begin(), set.end());
  return StripIf(text, side,
                 [&](char32_t c) { return std::binary_search(set.begin(), set.end(), c); });
}

std::string Upper(absl::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) AppendUpper(Decode(text, &i), &out);
  return out;
}

std::string Lower(absl::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) AppendLower(Decode(text, &i), &out);
  return out;
}

std::string Capitalize(absl::string_view text) {
  std::string out;
  std::size_t i = 0;
  if (!text.empty()) AppendUpper(Decode(text, &i), &out);
  return out + Lower(text.substr(i));
}

std::string SwapCase(absl::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = Decode(text, &i);
    IsUpper(c) ? AppendLower(c, &out) : AppendUpper(c, &out);
  }
  return out;
}

std::string Title(absl::string_view text) {
  std::string out;
  bool after_letter = false;
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = Decode(text, &i);
    after_letter ? AppendLower(c, &out) : AppendUpper(c, &out);
    after_letter = IsUpper(c) || IsLower(c) || Category(c) == UTF8PROC_CATEGORY_LT;
  }
  return out;
}

std::size_t Find(absl::string_view text, absl::string_view pattern, std::size_t from) {
  if (from > text.size()) return absl::string_view::npos;
  if (pattern.empty()) return from;
  if (pattern.size() > text.size() - from) return absl::string_view::npos;
  const void* found =
      memmem(text.data() + from, text.size() - from, pattern.data(), pattern.size());
  return found == nullptr ? absl::string_view::npos
                          : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

std::size_t FindLast(absl::string_view text, absl::string_view pattern) {
  // Searched backwards in reversed copies, which stays linear where a backward scan would not.
  const std::string reversed_text(text.rbegin(), text.rend());
  const std::string reversed_pattern(pattern.rbegin(), pattern.rend());
  const std::size_t at = Find(reversed_text, reversed_pattern);
  return at == absl::string_view::npos ? at : text.size() - at - pattern.size();
}

std::int64_t Count(absl::string_view text, absl::string_view pattern) {
  if (pattern.empty()) return Length(text) + 1;
  std::int64_t count = 0;
  for (std::size_t at = Find(text, pattern); at != absl::string_view::npos;
       at = Find(text, pattern, at + pattern.size())) {
    ++count;
  }
  return count;
}

std::vector<absl::string_view> SplitSpace(absl::string_view text, std::int64_t most,
                                          bool from_right) {
  std::vector<absl::string_view> parts;
  const Side near = from_right ? Side::kRight : Side::kLeft;
  text = Strip(text, near);
  while (!text.empty()) {
    if (most >= 0 && static_cast<std::int64_t>(parts.size()) == most) {
      parts.push_back(text);  // with the white space at its far end, as in Python
      break;
    }
    if (from_right) {
      std::size_t start = text.size();
      while (start > 0) {
        const std::size_t previous = Before(text, start);
        std::size_t position = previous;
        if (IsSpace(Decode(text, &position))) break;
        start = previous;
      }
      parts.push_back(text.substr(start));
      text = Strip(text.substr(0, start), near);
    } else {
      std::size_t end = 0;
      while (end < text.size()) {
        std::size_t next = end;
        if (IsSpace(Decode(text, &next))) break;
        end = next;
      }
      parts.push_back(text.substr(0, end));
      text = Strip(text.substr(end), near);
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<absl::string_view> Split(absl::string_view text, absl::string_view separator,
                                     std::int64_t most, bool from_right) {
  std::vector<std::size_t> cuts;
  if (from_right && most >= 0) {
    // Matches are taken from the right, so overlapping ones differ from the left-to-right ones.
    const std::string reversed_text(text.rbegin(), text.rend());
    const std::string reversed_separator(separator.rbegin(), separator.rend());
    std::size_t at = Find(reversed_text, reversed_separator);
    while (at != absl::string_view::npos && static_cast<std::int64_t>(cuts.size()) < most) {
      cuts.push_back(text.size() - at - separator.size());
      at = Find(reversed_text, reversed_separator, at + separator.size());
    }
    std::reverse(cuts.begin(), cuts.end());
  } else {
    for (std::size_t at = Find(text, separator);
         at != absl::string_view::npos &&
         (most < 0 || static_cast<std::int64_t>(cuts.size()) < most);
         at = Find(text, separator, at + separator.size())) {
      cuts.push_back(at);
    }
  }
  std::vector<absl::string_view> parts;
  std::size_t start = 0;
  for (const std::size_t cut : cuts) {
    parts.push_back(text.substr(start, cut - start));
    start = cut + separator.size();
  }
  parts.push_back(text.substr(start));
  return parts;
}

std::vector<absl::string_view> SplitLines(absl::string_view text, bool keep_ends) {
  std::vector<absl::string_view> lines;
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t at = i;
    const char32_t c = Decode(text, &i);
    if (!IsLineBreak(c)) continue;
    if (c == '\r' && i < text.size() && text[i] == '\n') ++i;
    lines.push_back(text.substr(start, (keep_ends ? i : at) - start));
    start = i;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const absl::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16)
    return std::string(text);  // both write at least two exponent digits
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string out(buffer, fixed.ptr);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string StringRepr(absl::string_view text) {
  const char quote =
      text.find('\'') != absl::string_view::npos && text.find('"') == absl::string_view::npos
          ? '"'
          : '\'';
  std::string out(1, quote);
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = Decode(text, &i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      absl::StrAppend(&out, text.substr(start, i - start));
    } else if (c <= 0xFF) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned>(c));
    } else if (c <= 0xFFFF) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned>(c));
    } else {
      absl::StrAppendFormat(&out, "\\U%08x", static_cast<unsigned>(c));
    }
  }
  out += quote;
  return out;
}

}  // namespace nibble::python
