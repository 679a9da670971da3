// The spellings of values that people write: sizes, durations, names of types. One parser for
// flags, environment, configuration files and LoadOptions. Errors are InvalidArgument and list what
// is accepted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/engine/model_hub.h"

namespace nibble {

// "2GiB", "500MB", "1.5G" (a bare G is 2^30), "1048576". Above zero.
absl::StatusOr<std::int64_t> ParseByteSize(absl::string_view text);

struct Percent {
  double value = 0;  // above 0, at most 100
  bool operator==(const Percent&) const = default;
};
using MemorySize = std::variant<std::int64_t, Percent>;
absl::StatusOr<MemorySize> ParseMemorySize(absl::string_view text);  // also "40%"

// "30s", "50ms", "1h30m". Not negative.
absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text);

// "127.0.0.1:8080", "[::]:0", ":80": the port from 0 to 65535, the host without its brackets.
struct HostPort {
  std::string host, port;
};
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

absl::StatusOr<bool> ParseBool(absl::string_view text);  // true|false|yes|no|on|off|1|0
absl::StatusOr<std::int64_t> ParseInteger(absl::string_view text, std::int64_t low,
                                          std::int64_t high);

absl::StatusOr<std::optional<DType>> ParseKvDType(absl::string_view text);  // "auto": unset
absl::StatusOr<Compute> ParseCompute(absl::string_view text);
absl::StatusOr<PrefillWeights> ParsePrefillWeights(absl::string_view text);
absl::StatusOr<LoadQuantization> ParseQuantization(absl::string_view text);
absl::StatusOr<Admission> ParseAdmission(absl::string_view text);

// The entry of `names` that a mistyped `name` most likely means; "" when none is near.
std::string Nearest(absl::string_view name, const std::vector<std::string>& names);

}  // namespace nibble
