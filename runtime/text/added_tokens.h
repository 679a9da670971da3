// Tokens that are found in the text before anything else: special ones and others outside the
// model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/text/token_table.h"

namespace nibble {

struct AddedToken {
  std::int32_t id = kNoToken;
  std::string content;
  bool single_word = false;  // not next to a word character
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // looked for in the normalized text
  bool special = false;      // found only when special tokens are parsed
};

// Finds the tokens of one pass. Filled once, then immutable and thread-safe.
class AddedTokenMatcher {
 public:
  // InvalidArgument for an empty or overlong text. A text twice: the first counts. One that is not
  // UTF-8 is never found.
  absl::Status Add(const AddedToken& token, absl::string_view text);
  bool empty() const { return tokens_.empty(); }

  // Cuts `text` at the leftmost-longest matches: calls `emit(kNoToken, part)` for what lies between
  // (never empty) and `emit(id, match)` for each token, with the white space it swallows.
  void Split(absl::string_view text, bool parse_special,
             absl::FunctionRef<void(std::int32_t, absl::string_view)> emit) const;

  std::int64_t memory_bytes() const;

 private:
  struct Token {
    std::int32_t id;
    bool single_word, lstrip, rstrip, special;
  };
  static std::uint64_t Edge(std::uint32_t node, char byte) {
    return (std::uint64_t{node} << 8) | static_cast<unsigned char>(byte);
  }
  const Token* Longest(absl::string_view text, bool parse_special, std::size_t* length) const;

  std::vector<Token> tokens_;
  std::vector<std::int32_t> ends_{kNoToken};  // index into tokens_ a trie node
  absl::flat_hash_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<bool> first_bytes_ = std::vector<bool>(256);
};

}  // namespace nibble
