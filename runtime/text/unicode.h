// UTF-8 and the few Unicode properties that tokenizers ask for.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace nibble {

// The sequence that starts at bytes[0]. `length` is that of the character, or of the maximal part
// of one when the bytes are no character (Unicode 15, table 3-8): at least 1.
struct Utf8Sequence {
  enum class Kind {
    kCharacter,
    kInvalid,
    kIncomplete
  };  // kIncomplete: more bytes could complete it
  Kind kind = Kind::kInvalid;
  int length = 1;
  char32_t code = 0;
};
// REQUIRES: bytes is not empty.
Utf8Sequence ScanUtf8(absl::string_view bytes);

bool IsValidUtf8(absl::string_view bytes);

// The character at text[*position], which moves past it. REQUIRES: valid UTF-8, *position inside
// it.
char32_t NextCharacter(absl::string_view text, std::size_t* position);
// Bytes of the character whose first byte is `lead`. REQUIRES: valid UTF-8.
inline int CharacterLength(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

void AppendUtf8(char32_t code, std::string* out);

inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// Each maximal invalid sequence becomes one U+FFFD.
void AppendLossyUtf8(absl::string_view bytes, std::string* out);
// Bytes at the end that begin a character which more bytes could complete: 0 to 3.
std::size_t IncompleteTail(absl::string_view bytes);

bool IsWhiteSpace(char32_t code);  // White_Space
bool IsWordCharacter(
    char32_t code);  // Alphabetic, marks, decimal digits, connector punctuation, joiners
bool IsPunctuation(char32_t code);  // category P, or an ASCII symbol
bool IsNumeric(char32_t code);      // category N

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
// O(n log n) also for long runs of combining marks. REQUIRES: valid UTF-8.
std::string Normalize(absl::string_view text, NormalForm form);

// Character by character, without context (so a final sigma is a sigma). REQUIRES: valid UTF-8.
std::string Lowercase(absl::string_view text);

}  // namespace nibble
