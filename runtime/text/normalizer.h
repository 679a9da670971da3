// The text before it is split: Unicode forms, replacements, a leading ▁.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/text/regex.h"
#include "runtime/text/unicode.h"

namespace nibble {

inline constexpr absl::string_view kLowerOneEighthBlock =
    "\xE2\x96\x81";  // ▁, the space of SentencePiece

// Immutable; thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // REQUIRES: *text is valid UTF-8, and leaves it so.
  virtual absl::Status Apply(std::string* text, RegexScratch& scratch) const = 0;
  virtual std::int64_t memory_bytes() const { return 64; }
};
using Normalizers = std::vector<std::unique_ptr<Normalizer>>;  // applied in order

// Applies all of them. ResourceExhausted when the text outgrows `limit`.
absl::Status Normalize(const Normalizers& normalizers, RegexScratch& scratch, std::size_t limit,
                       std::string* text);

std::unique_ptr<Normalizer> MakeUnicodeNormalizer(NormalForm form);
std::unique_ptr<Normalizer> MakePrependNormalizer(absl::string_view prefix);
std::unique_ptr<Normalizer> MakeReplaceNormalizer(std::shared_ptr<const Regex> pattern,
                                                  absl::string_view content);

// The "normalizer" of tokenizer.json (null: none), sequences flattened. `*byte_level` is set, and
// nothing is appended, for a ByteLevel normalizer at the end: the model then reads bytes.
// Unimplemented names a type it does not know.
absl::StatusOr<Normalizers> ParseNormalizer(const Json& json, bool* byte_level);

// {"String": "..."} or {"Regex": "..."}. An empty string is refused.
absl::StatusOr<std::shared_ptr<const Regex>> ParsePattern(const Json* json,
                                                          absl::string_view owner);

}  // namespace nibble
