// Ids to text as they come, one sequence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/text/tokenizer.h"

namespace nibble {

// The concatenation of all returned pieces equals Tokenizer::Decode of all ids. Never emits half a character nor
// a U+FFFD that a later token would mend; what is held back is at most one incomplete character (or one run of
// byte tokens that cannot be judged yet, bounded). One thread.
class Detokenizer {
 public:
  // `tokenizer` must outlive this.
  Detokenizer(const Tokenizer& tokenizer, bool keep_special) : tokenizer_(&tokenizer), keep_special_(keep_special) {}

  // The text that has become certain with `id`; often empty.
  std::string Push(std::int32_t id);
  // What was held back; an incomplete character becomes one U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool keep_special_;
  bool at_start_ = true;      // a leading space may still be stripped
  std::string held_;          // bytes of an incomplete character or undecided byte run
  bool held_is_byte_run_ = false;
};

// Finds the first of several stop strings in text that arrives in pieces, never releasing a partial match.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  struct Result {
    std::string text;        // safe to show
    int matched = -1;        // index of the stop string that matched; `text` then ends just before it
  };
  Result Push(std::string_view piece);
  // The text still held back, when no stop string can match any more.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace nibble
