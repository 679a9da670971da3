// Regular expressions of tokenizer files, in time that hostile text cannot stretch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

// Working memory of one thread's matching.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

// Immutable; thread-safe.
class Regex {
 public:
  // `pattern` is in the dialect of tokenizer.json (Oniguruma's: \s and \w are Unicode's, ^ and $
  // match at lines), of which everything that would mean something else here is refused by name.
  static absl::StatusOr<std::shared_ptr<const Regex>> Compile(absl::string_view pattern);
  // Matches `text` itself.
  static absl::StatusOr<std::shared_ptr<const Regex>> Literal(absl::string_view text);
  ~Regex();

  // Calls `found(begin, end)` for each match from left to right; they do not overlap and may be
  // empty. ResourceExhausted when the pattern would need time that grows faster than the text.
  // REQUIRES: `subject` is valid UTF-8.
  absl::Status ForEachMatch(absl::string_view subject, RegexScratch& scratch,
                            absl::FunctionRef<void(std::size_t, std::size_t)> found) const;

  const std::string& pattern() const { return pattern_; }
  std::int64_t memory_bytes() const;

 private:
  struct Code;
  Regex(std::string pattern, std::unique_ptr<Code> code);
  absl::Status GaveUp(absl::string_view subject, std::size_t position, int result) const;

  std::string pattern_;
  std::unique_ptr<Code> code_;  // null: a literal
};

}  // namespace nibble
