// The daemon's log: one line a record on standard error, as text or as one JSON object a line.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace nibble {

enum class LogFormat { kText, kJson };
enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Call once, before the second thread; the default is text at level info.
void ConfigureLog(LogFormat format, LogLevel level);

// `fields` are (name, value) pairs that a JSON record carries as members and a text record as
// name=value. Thread-safe. Never log prompts, answers or credentials.
using LogFields = std::initializer_list<std::pair<absl::string_view, std::string>>;
void Log(LogLevel level, absl::string_view message, LogFields fields = {});

inline void LogInfo(absl::string_view message, LogFields fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(absl::string_view message, LogFields fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(absl::string_view message, LogFields fields = {}) {
  Log(LogLevel::kError, message, fields);
}

}  // namespace nibble
