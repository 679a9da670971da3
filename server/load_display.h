// How a person at a terminal sees models load: a bar while one is read.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "absl/time/time.h"

namespace nibble {

// Writes to standard error, on a terminal only. Any thread.
class LoadDisplay {
 public:
  explicit LoadDisplay(bool enabled) : enabled_(enabled) {}
  void Show(const std::string& model, const std::string& stage, std::int64_t done,
            std::int64_t total);
  void Clear();

 private:
  const bool enabled_;
  std::mutex mutex_;  // guards what follows
  absl::Time last_ = absl::InfinitePast();
  std::size_t shown_ = 0;  // characters on the line
};

}  // namespace nibble
