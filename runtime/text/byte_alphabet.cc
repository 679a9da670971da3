#include "runtime/text/byte_alphabet.h"

namespace nibble {
namespace {

// The byte of each character below U+0144, or -1.
constexpr int kLimit = 0x100 + 68;
constexpr std::array<short, kLimit> MakeInverse() {
  std::array<short, kLimit> inverse{};
  for (short& byte : inverse) byte = -1;
  for (int byte = 0; byte < 256; ++byte) inverse[kByteAlphabet[byte]] = static_cast<short>(byte);
  return inverse;
}
constexpr std::array<short, kLimit> kInverse = MakeInverse();

}  // namespace

std::optional<std::string> FromByteAlphabet(absl::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  std::size_t position = 0;
  while (position < text.size()) {
    const char32_t code = NextCharacter(text, &position);
    if (code >= kLimit || kInverse[code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kInverse[code]));
  }
  return bytes;
}

}  // namespace nibble
