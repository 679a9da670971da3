// Quotients rounded up: how many groups, pages or words hold so many things.
#pragma once

#include <cstdint>

namespace nibble {

// REQUIRES: a >= 0, b > 0, and their sum fits.
constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace nibble
