// Oniguruma's regular expressions, as tokenizer.json has them, rewritten for PCRE2.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

// The same expression for PCRE2 with UTF, UCP and MULTILINE. Unimplemented names what would change
// its meaning.
absl::StatusOr<std::string> TranslateOniguruma(absl::string_view pattern);

}  // namespace nibble
