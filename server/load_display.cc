#include "server/load_display.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace nibble {
namespace {

constexpr int kBarWidth = 30;
constexpr absl::Duration kRefresh = absl::Milliseconds(100);

}  // namespace

void LoadDisplay::Show(const std::string& model, const std::string& stage, std::int64_t done,
                       std::int64_t total) {
  if (!enabled_) return;
  const std::lock_guard lock(mutex_);
  const absl::Time now = absl::Now();
  if (now - last_ < kRefresh && done < total) return;
  last_ = now;
  std::string line = absl::StrCat(model, ": ", stage);
  if (total > 0) {
    const double part =
        std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
    const int filled = static_cast<int>(part * kBarWidth);
    absl::StrAppend(&line, " [", std::string(static_cast<std::size_t>(filled), '#'),
                    std::string(static_cast<std::size_t>(kBarWidth - filled), '.'), "] ",
                    absl::StrFormat("%.2f of %.2f GB", static_cast<double>(done) / 1e9,
                                    static_cast<double>(total) / 1e9));
  }
  const std::size_t width = std::max(shown_, line.size());
  shown_ = line.size();
  line.resize(width, ' ');
  std::fprintf(stderr, "\r%s", line.c_str());
  std::fflush(stderr);
}

void LoadDisplay::Clear() {
  if (!enabled_) return;
  const std::lock_guard lock(mutex_);
  if (shown_ > 0) std::fprintf(stderr, "\r%s\r", std::string(shown_, ' ').c_str());
  shown_ = 0;
}

}  // namespace nibble
