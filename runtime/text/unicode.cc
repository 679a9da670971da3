#include "runtime/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

namespace nibble {
namespace {

bool IsContinuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

utf8proc_category_t Category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

// Canonical decomposition (or compatibility) of one segment, marks in canonical order.
void Decompose(absl::string_view text, bool compatibility, std::vector<utf8proc_int32_t>* out) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                      (compatibility ? UTF8PROC_COMPAT : 0));
  utf8proc_int32_t buffer[64];  // the longest decomposition has 18 characters
  std::size_t position = 0;
  while (position < text.size()) {
    const auto code = static_cast<utf8proc_int32_t>(NextCharacter(text, &position));
    const utf8proc_ssize_t count = utf8proc_decompose_char(code, buffer, 64, options, nullptr);
    if (count < 0 || count > 64) {
      out->push_back(code);
    } else {
      out->insert(out->end(), buffer, buffer + count);
    }
  }
  // utf8proc sorts marks by insertion, quadratic in a hostile run of them; a stable sort is not.
  const auto combining_class = [](utf8proc_int32_t code) {
    return utf8proc_get_property(code)->combining_class;
  };
  for (std::size_t begin = 0; begin < out->size();) {
    if (combining_class((*out)[begin]) == 0) {
      ++begin;
      continue;
    }
    std::size_t end = begin;
    while (end < out->size() && combining_class((*out)[end]) != 0) ++end;
    std::stable_sort(out->begin() + begin, out->begin() + end,
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) {
                       return combining_class(a) < combining_class(b);
                     });
    begin = end;
  }
}

}  // namespace

Utf8Sequence ScanUtf8(absl::string_view bytes) {
  using Kind = Utf8Sequence::Kind;
  const auto lead = static_cast<unsigned char>(bytes[0]);
  if (lead < 0x80) return {Kind::kCharacter, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::kInvalid, 1, 0};
  const int length = CharacterLength(lead);
  char32_t code = lead & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (static_cast<std::size_t>(i) >= bytes.size()) return {Kind::kIncomplete, i, 0};
    const auto byte = static_cast<unsigned char>(bytes[i]);
    unsigned char low = 0x80;
    unsigned char high = 0xBF;
    if (i == 1) {  // overlong forms, surrogates, beyond U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte < low || byte > high) return {Kind::kInvalid, i, 0};
    code = (code << 6) | (byte & 0x3F);
  }
  return {Kind::kCharacter, length, code};
}

bool IsValidUtf8(absl::string_view bytes) {
  while (!bytes.empty()) {
    if (static_cast<unsigned char>(bytes[0]) < 0x80) {
      bytes.remove_prefix(1);
      continue;
    }
    const Utf8Sequence sequence = ScanUtf8(bytes);
    if (sequence.kind != Utf8Sequence::Kind::kCharacter) return false;
    bytes.remove_prefix(sequence.length);
  }
  return true;
}

char32_t NextCharacter(absl::string_view text, std::size_t* position) {
  const auto lead = static_cast<unsigned char>(text[*position]);
  const int length = CharacterLength(lead);
  if (length == 1) {
    ++*position;
    return lead;
  }
  char32_t code = lead & (0x7F >> length);
  for (int i = 1; i < length; ++i) code = (code << 6) | (text[*position + i] & 0x3F);
  *position += length;
  return code;
}

void AppendUtf8(char32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
    return;
  }
  if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code >> 6)));
  } else {
    if (code < 0x10000) {
      out->push_back(static_cast<char>(0xE0 | (code >> 12)));
    } else {
      out->push_back(static_cast<char>(0xF0 | (code >> 18)));
      out->push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3F)));
    }
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
  }
  out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
}

void AppendLossyUtf8(absl::string_view bytes, std::string* out) {
  while (!bytes.empty()) {
    const Utf8Sequence sequence = ScanUtf8(bytes);
    const absl::string_view text = sequence.kind == Utf8Sequence::Kind::kCharacter
                                       ? bytes.substr(0, sequence.length)
                                       : kReplacementCharacter;
    out->append(text.data(), text.size());
    bytes.remove_prefix(sequence.length);
  }
}

std::size_t IncompleteTail(absl::string_view bytes) {
  for (std::size_t tail = 1; tail <= 3 && tail <= bytes.size(); ++tail) {
    const absl::string_view end = bytes.substr(bytes.size() - tail);
    if (IsContinuation(static_cast<unsigned char>(end[0]))) continue;
    const Utf8Sequence sequence = ScanUtf8(end);
    const bool open = sequence.kind == Utf8Sequence::Kind::kIncomplete &&
                      static_cast<std::size_t>(sequence.length) == tail;
    return open ? tail : 0;
  }
  return 0;
}

bool IsWhiteSpace(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool IsWordCharacter(char32_t code) {
  if (code < 0x80) {
    return (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') ||
           (code >= 'a' && code <= 'z') || code == '_';
  }
  switch (Category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  // Symbols that are Alphabetic all the same (circled and squared letters), and the two joiners.
  return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
         (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189) ||
         code == 0x200C || code == 0x200D;
}

bool IsPunctuation(char32_t code) {
  if (code < 0x80) {
    return (code >= 0x21 && code <= 0x2F) || (code >= 0x3A && code <= 0x40) ||
           (code >= 0x5B && code <= 0x60) || (code >= 0x7B && code <= 0x7E);
  }
  const utf8proc_category_t category = Category(code);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool IsNumeric(char32_t code) {
  const utf8proc_category_t category = Category(code);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

std::string Normalize(absl::string_view text, NormalForm form) {
  const bool compatibility = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> codes;
  const auto is_ascii = [&](std::size_t i) { return static_cast<unsigned char>(text[i]) < 0x80; };
  for (std::size_t begin = 0; begin < text.size();) {
    // ASCII stays as it is, but its last character may take the marks that follow.
    std::size_t ascii_end = begin;
    while (ascii_end < text.size() && is_ascii(ascii_end)) ++ascii_end;
    std::size_t end = ascii_end;
    while (end < text.size() && !is_ascii(end)) ++end;
    const std::size_t segment = end > ascii_end && ascii_end > begin ? ascii_end - 1 : ascii_end;
    out.append(text.data() + begin, segment - begin);
    codes.clear();
    Decompose(text.substr(segment, end - segment), compatibility, &codes);
    utf8proc_ssize_t count = static_cast<utf8proc_ssize_t>(codes.size());
    if (compose && count > 0) {
      const utf8proc_ssize_t composed = utf8proc_normalize_utf32(
          codes.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      if (composed >= 0) count = composed;
    }
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      AppendUtf8(static_cast<char32_t>(codes[i]), &out);
    }
    begin = end;
  }
  return out;
}

std::string Lowercase(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::size_t position = 0;
  while (position < text.size()) {
    const char32_t code = NextCharacter(text, &position);
    if (code == 0x130) {  // the only character whose lower case is two
      out += "i\xCC\x87";
    } else {
      AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))),
                 &out);
    }
  }
  return out;
}

}  // namespace nibble
