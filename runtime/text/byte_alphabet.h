// The byte alphabet of byte-level BPE: each byte as one printable character (GPT-2's table).
#pragma once

#include <array>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "runtime/text/unicode.h"

namespace nibble {

// 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for themselves; the other 68 bytes are U+0100, U+0101,
// ... in increasing order (space: U+0120, line feed: U+010A).
constexpr std::array<char32_t, 256> MakeByteAlphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = itself ? static_cast<char32_t>(byte) : next++;
  }
  return alphabet;
}
inline constexpr std::array<char32_t, 256> kByteAlphabet = MakeByteAlphabet();

inline std::string ToByteAlphabet(absl::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) AppendUtf8(kByteAlphabet[static_cast<unsigned char>(byte)], &out);
  return out;
}

// The bytes that `text` spells; nothing when a character is outside the alphabet. REQUIRES: valid
// UTF-8.
std::optional<std::string> FromByteAlphabet(absl::string_view text);

}  // namespace nibble
