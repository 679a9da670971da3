#include "server/cli/units.h"

#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble {
namespace {

// Three significant digits, as far as they are behind the point.
std::string ThreeDigits(double value) {
  const double magnitude = std::fabs(value);
  if (magnitude >= 99.95) return ShowCount(static_cast<std::int64_t>(std::llround(value)));
  return absl::StrFormat(magnitude >= 9.995 ? "%.1f" : "%.2f", value);
}

std::string Scaled(double value, double step, const char* const* units, std::size_t count) {
  std::size_t unit = 0;
  while (unit + 1 < count && std::fabs(value) >= step * 0.9995) {
    value /= step;
    ++unit;
  }
  const std::string number = unit == 0 ? absl::StrFormat("%.0f", value) : ThreeDigits(value);
  return *units[unit] == '\0' ? number : absl::StrCat(number, " ", units[unit]);
}

}  // namespace

std::string ShowBytes(std::int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  return Scaled(static_cast<double>(bytes), 1024, kUnits, std::size(kUnits));
}

std::string ShowMagnitude(std::int64_t count) {
  static constexpr const char* kUnits[] = {"", "k", "M", "B", "T"};
  return Scaled(static_cast<double>(count), 1000, kUnits, std::size(kUnits));
}

std::string ShowCount(std::int64_t count) {
  std::string digits = absl::StrCat(count);
  const std::ptrdiff_t first = count < 0 ? 2 : 1;
  for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at >= first; at -= 3) {
    digits.insert(static_cast<std::size_t>(at), ",");
  }
  return digits;
}

std::string ShowRate(double per_second) {
  return std::isfinite(per_second) ? ThreeDigits(per_second) : "-";
}

std::string ShowTime(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (!std::isfinite(seconds)) return "-";
  if (seconds < 0.9995) return absl::StrCat(ThreeDigits(seconds * 1e3), " ms");
  if (seconds < 99.95) return absl::StrCat(ThreeDigits(seconds), " s");
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  return absl::StrCat(ShowCount(whole / 60), " min ", whole % 60, " s");
}

}  // namespace nibble
