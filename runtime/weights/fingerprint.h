// A 128-bit fingerprint of a sequence of values, for telling versions apart; not a cryptographic
// hash.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace nibble {

class Fingerprint {
 public:
  void Add(std::uint64_t value) {
    low_ = Mix(low_ ^ value);
    high_ = Mix(high_ + value + 0x9e3779b97f4a7c15u);
  }
  // The length counts, so that ("ab", "c") and ("a", "bc") differ.
  void Add(absl::string_view text) {
    Add(static_cast<std::uint64_t>(text.size()));
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      word |= static_cast<std::uint64_t>(static_cast<unsigned char>(text[i])) << (i % 8 * 8);
      if (i % 8 == 7 || i + 1 == text.size()) {
        Add(word);
        word = 0;
      }
    }
  }
  std::string Hex() const { return absl::StrFormat("%016x%016x", high_, low_); }

 private:
  // The finalizer of splitmix64.
  static std::uint64_t Mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }

  std::uint64_t low_ = 0x243f6a8885a308d3u;
  std::uint64_t high_ = 0x13198a2e03707344u;
};

}  // namespace nibble
