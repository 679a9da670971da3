// Numbers as people read them on a terminal.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace nibble {

std::string ShowBytes(std::int64_t bytes);      // "512 B", "88.5 MiB", "3.13 GiB"
std::string ShowCount(std::int64_t count);      // "49,152"
std::string ShowMagnitude(std::int64_t count);  // "134.5 M", "7.24 B"
std::string ShowRate(double per_second);        // "0.83", "34.1", "1,234"
std::string ShowTime(absl::Duration duration);  // "0.42 ms", "56 ms", "1.24 s", "2 min 5 s"

}  // namespace nibble
