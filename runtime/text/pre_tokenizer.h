// Splits normalized text into the pieces that the model encodes one by one.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/text/regex.h"

namespace nibble {

struct TextPiece {
  absl::string_view text;    // never empty
  bool begins_text = false;  // it holds the first character of the whole text
};

// What one Encode works in; pieces point into `storage` or into the text.
struct PreTokenizeScratch {
  RegexScratch regex;
  std::deque<std::string> storage;
};

// What becomes of the matches of a Split.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Immutable; thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual absl::Status Split(const TextPiece& piece, PreTokenizeScratch& scratch,
                             std::vector<TextPiece>* out) const = 0;
  virtual std::int64_t memory_bytes() const { return 64; }
};
using PreTokenizers =
    std::vector<std::unique_ptr<PreTokenizer>>;  // each splits the pieces of the one before

std::unique_ptr<PreTokenizer> MakeSplit(std::shared_ptr<const Regex> pattern,
                                        SplitBehavior behavior, bool invert = false);

// A space before text that does not begin with one.
std::unique_ptr<PreTokenizer> MakePrefixSpace();

// GPT-2's expression, built into the ByteLevel pre-tokenizer.
inline constexpr absl::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The "pre_tokenizer" of tokenizer.json (null: none), sequences flattened. `*byte_level` is set for
// a ByteLevel at the end: its last step, spelling bytes as characters, is left to the model, which
// reads bytes. Unimplemented names a type it does not know.
absl::StatusOr<PreTokenizers> ParsePreTokenizer(const Json& json, bool* byte_level);

}  // namespace nibble
