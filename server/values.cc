#include "server/values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "server/errors.h"

namespace nibble {
namespace {

template <typename T>
using Names = std::vector<std::pair<const char*, T>>;

template <typename T>
absl::StatusOr<T> ByName(absl::string_view text, const Names<T>& names) {
  for (const auto& [name, value] : names) {
    if (text == name) return value;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Quote(text), " is not one of ",
                   absl::StrJoin(names, ", ", [](std::string* out, const auto& entry) {
                     absl::StrAppend(out, entry.first);
                   })));
}

std::size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

absl::StatusOr<std::int64_t> ParseByteSize(absl::string_view text) {
  static const Names<double> kUnits{
      {"", 1},         {"b", 1},        {"kb", 1e3},     {"mb", 1e6},    {"gb", 1e9},
      {"tb", 1e12},    {"k", 0x1p10},   {"m", 0x1p20},   {"g", 0x1p30},  {"t", 0x1p40},
      {"kib", 0x1p10}, {"mib", 0x1p20}, {"gib", 0x1p30}, {"tib", 0x1p40}};
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  const std::size_t unit_at = trimmed.find_first_not_of("0123456789.");
  const absl::string_view number = trimmed.substr(0, unit_at);
  const std::string unit =
      unit_at == absl::string_view::npos
          ? ""
          : absl::AsciiStrToLower(absl::StripAsciiWhitespace(trimmed.substr(unit_at)));
  const auto found = std::find_if(kUnits.begin(), kUnits.end(),
                                  [&](const auto& entry) { return unit == entry.first; });
  double value = 0;
  const bool parsed = absl::SimpleAtod(number, &value) && found != kUnits.end();
  const double bytes = parsed ? value * found->second : 0;
  if (!(bytes >= 1 && bytes < 0x1p62)) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), " is not a size: write bytes, or 2GiB, 500MB, 1.5G"));
  }
  return static_cast<std::int64_t>(bytes);
}

absl::StatusOr<MemorySize> ParseMemorySize(absl::string_view text) {
  if (!absl::EndsWith(text, "%")) {
    ASSIGN_OR_RETURN(const std::int64_t bytes, ParseByteSize(text));
    return MemorySize(bytes);
  }
  double percent = 0;
  if (!absl::SimpleAtod(text.substr(0, text.size() - 1), &percent) ||
      !(percent > 0 && percent <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), " is not a percentage above 0% and up to 100%"));
  }
  return MemorySize(Percent{percent});
}

absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || !(duration >= absl::ZeroDuration()) ||
      duration == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), " is not a duration: write 30s, 50ms, 1h30m"));
  }
  return duration;
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const std::size_t colon = text.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(text.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), " is no HOST:PORT with a port from 0 to 65535"));
  }
  absl::string_view host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  return HostPort{std::string(host), std::string(text.substr(colon + 1))};
}

absl::StatusOr<bool> ParseBool(absl::string_view text) {
  static const Names<bool> kNames{{"true", true}, {"false", false}, {"yes", true}, {"no", false},
                                  {"on", true},   {"off", false},   {"1", true},   {"0", false}};
  return ByName<bool>(absl::AsciiStrToLower(text), kNames);
}

absl::StatusOr<std::int64_t> ParseInteger(absl::string_view text, std::int64_t low,
                                          std::int64_t high) {
  std::int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < low || value > high) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), " is not a whole number from ", low, " to ", high));
  }
  return value;
}

absl::StatusOr<std::optional<DType>> ParseKvDType(absl::string_view text) {
  static const Names<std::optional<DType>> kNames{{"auto", std::nullopt},  {"f32", DType::kF32},
                                                  {"f16", DType::kF16},    {"bf16", DType::kBF16},
                                                  {"fp8", DType::kF8E4M3}, {"int8", DType::kI8}};
  return ByName<std::optional<DType>>(text, kNames);
}

absl::StatusOr<Compute> ParseCompute(absl::string_view text) {
  static const Names<Compute> kNames{{"auto", Compute::kAuto}, {"f32", Compute::kF32},
                                     {"f16", Compute::kF16},   {"bf16", Compute::kBF16},
                                     {"fp8", Compute::kFp8},   {"int8", Compute::kInt8}};
  return ByName<Compute>(text, kNames);
}

absl::StatusOr<PrefillWeights> ParsePrefillWeights(absl::string_view text) {
  static const Names<PrefillWeights> kNames{{"auto", PrefillWeights::kAuto},
                                            {"packed", PrefillWeights::kPacked},
                                            {"expanded", PrefillWeights::kExpanded}};
  return ByName<PrefillWeights>(text, kNames);
}

absl::StatusOr<LoadQuantization> ParseQuantization(absl::string_view text) {
  static const Names<LoadQuantization> kNames{{"none", LoadQuantization::kNone},
                                              {"nf4", LoadQuantization::kNf4},
                                              {"fp4", LoadQuantization::kFp4},
                                              {"int8", LoadQuantization::kInt8},
                                              {"int4", LoadQuantization::kInt4}};
  return ByName<LoadQuantization>(text, kNames);
}

absl::StatusOr<Admission> ParseAdmission(absl::string_view text) {
  static const Names<Admission> kNames{{"optimistic", Admission::kOptimistic},
                                       {"reserved", Admission::kReserved}};
  return ByName<Admission>(text, kNames);
}

std::string Nearest(absl::string_view name, const std::vector<std::string>& names) {
  std::string nearest;
  std::size_t best = std::max<std::size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : names) {
    const std::size_t distance = EditDistance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace nibble
