// A run of byte-fallback tokens: valid UTF-8 as a whole, or one U+FFFD a byte.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "runtime/text/unicode.h"

namespace nibble {

// Judges a run as its bytes come. A run that turns invalid is invalid whatever follows, so only a
// valid beginning is held back, and of that at most kMaxHeld bytes: a longer run is judged in
// parts.
class ByteRun {
 public:
  static constexpr std::size_t kMaxHeld = 256;

  // Appends to `out` what has become certain.
  void Push(absl::string_view bytes, std::string* out) {
    held_.append(bytes.data(), bytes.size());
    const std::size_t tail = IncompleteTail(held_);
    if (broken_ || !IsValidUtf8(absl::string_view(held_).substr(0, held_.size() - tail))) {
      broken_ = true;
      Break(out);
    } else if (held_.size() >= kMaxHeld) {
      out->append(held_, 0, held_.size() - tail);
      held_.erase(0, held_.size() - tail);
    }
  }

  // No more bytes in this run.
  void End(std::string* out) {
    if (IncompleteTail(held_) > 0) {
      Break(out);
    } else {
      *out += held_;
      held_.clear();
    }
    broken_ = false;
  }

 private:
  void Break(std::string* out) {
    for (std::size_t i = 0; i < held_.size(); ++i) out->append(kReplacementCharacter.data(), 3);
    held_.clear();
  }

  std::string held_;
  bool broken_ = false;
};

}  // namespace nibble
