// The pre-tokenizers that GGUF files name in tokenizer.ggml.pre.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/text/pre_tokenizer.h"

namespace nibble {

struct PreKind {
  std::vector<absl::string_view> names;
  std::vector<absl::string_view>
      patterns;  // each isolates its matches in the pieces of the one before
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
  bool no_bos = false;   // the vocabulary has none, whatever the file says
};

// Null for a name that is not known.
const PreKind* FindPreKind(absl::string_view name);

absl::Status AppendPrePatterns(const PreKind& kind, PreTokenizers* out);

}  // namespace nibble
