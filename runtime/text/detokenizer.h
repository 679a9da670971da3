// Ids to text as they come, one sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/text/byte_run.h"
#include "runtime/text/tokenizer.h"

namespace nibble {

// The concatenation of all returned pieces equals Tokenizer::Decode of all ids. Never emits half a
// character nor a U+FFFD that a later token would mend; what is held back is at most one incomplete
// character, or one run of byte tokens that cannot be judged yet (bounded: see ByteRun). One
// thread.
class Detokenizer {
 public:
  // `tokenizer` must outlive this. `at_start` false: the ids continue a text (a prompt), so that
  // the first of them is like any other and no leading space is stripped.
  Detokenizer(const Tokenizer& tokenizer, bool keep_special, bool at_start = true)
      : tokenizer_(&tokenizer),
        keep_special_(keep_special),
        first_(at_start),
        at_start_(at_start) {}

  // The text that has become certain with `id`; often empty.
  std::string Push(std::int32_t id);
  // What was held back; an incomplete character becomes one U+FFFD (in a byte run: one a byte).
  std::string Finish();

 private:
  void StripStart(std::string* text);

  const Tokenizer* tokenizer_;
  bool keep_special_;
  bool first_;        // no token has come
  bool at_start_;     // no text has come: a leading space may still be stripped
  std::string held_;  // bytes of an incomplete character
  ByteRun run_;
};

// Finds the first of several stop strings in text that arrives in pieces, never releasing a partial
// match. The match that is complete first wins, of two that end together the longer, however the
// text is cut into pieces. Empty stop strings never match. One thread.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);

  struct Result {
    std::string text;  // safe to show
    int matched = -1;  // index of the stop string that matched; `text` then ends just before it
  };
  // REQUIRES: nothing has matched.
  Result Push(std::string_view piece);
  // The text still held back, when no stop string can match any more.
  std::string Finish();

 private:
  std::size_t ShownBytes() const;

  std::vector<std::string> stops_;
  std::size_t longest_ = 0;
  std::string held_;  // begins a stop string
};

}  // namespace nibble
