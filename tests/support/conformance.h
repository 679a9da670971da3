// Public conformance data that lies outside the project: present on some machines only.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "gtest/gtest.h"

namespace nibble {

// NIBBLE_CONFORMANCE_DIR, else ../shared/conformance beside the source tree; nothing when absent.
inline std::optional<std::filesystem::path> ConformanceDir() {
  std::filesystem::path dir;
  if (const char* named = std::getenv("NIBBLE_CONFORMANCE_DIR")) {
    dir = named;
  } else {
    dir = std::filesystem::path(NIBBLE_SOURCE_DIR).parent_path() / "shared" / "conformance";
  }
  std::error_code ignored;
  if (!std::filesystem::is_directory(dir, ignored)) return std::nullopt;
  return dir;
}

}  // namespace nibble

#define NIBBLE_REQUIRE_CONFORMANCE(dir)                                                 \
  const auto dir##_found = ::nibble::ConformanceDir();                                  \
  if (!dir##_found) {                                                                   \
    GTEST_SKIP() << "no conformance data: set NIBBLE_CONFORMANCE_DIR to run this test"; \
  }                                                                                     \
  const std::filesystem::path dir = *dir##_found
