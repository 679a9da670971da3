// Splits a template into text and the tokens of its tags, applying Jinja's whitespace rules as
// Hugging Face sets them: trim_blocks, lstrip_blocks, the template's last newline dropped, "\r\n"
// and "\r" read as "\n".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble::jinja {

enum class TokenKind {
  kText,         // text
  kOutputBegin,  // {{
  kOutputEnd,    // }}
  kBlockBegin,   // {%
  kBlockEnd,     // %}
  kName,         // text
  kString,       // text, escapes resolved
  kInteger,      // integer
  kFloat,        // number
  kOperator,     // text: "==", "|", "(" ...
  kEnd,
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;
  std::int64_t integer = 0;
  double number = 0;
};

// The last token is kEnd. InvalidArgument carries line and reason.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

}  // namespace nibble::jinja
