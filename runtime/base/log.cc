#include "runtime/base/log.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/json.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace nibble {
namespace {

struct LogState {
  LogFormat format = LogFormat::kText;
  std::shared_ptr<spdlog::logger> logger;
};

LogState& State() {
  static LogState* state = [] {
    auto* created = new LogState;
    created->logger = std::make_shared<spdlog::logger>(
        "nibble", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    created->logger->set_pattern("%v");
    created->logger->flush_on(spdlog::level::info);
    return created;
  }();
  return *state;
}

constexpr spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

constexpr const char* NameOf(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return "debug";
    case LogLevel::kInfo: return "info";
    case LogLevel::kWarning: return "warning";
    case LogLevel::kError: return "error";
  }
  return "info";
}

}  // namespace

void ConfigureLog(LogFormat format, LogLevel level) {
  State().format = format;
  State().logger->set_level(ToSpdlog(level));
}

void Log(LogLevel level, absl::string_view message, LogFields fields) {
  LogState& state = State();
  if (!state.logger->should_log(ToSpdlog(level))) return;
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  std::string line;
  if (state.format == LogFormat::kJson) {
    Json record;
    record.Set("time", time);
    record.Set("level", NameOf(level));
    record.Set("message", message);
    for (const auto& [name, value] : fields) record.Set(name, value);
    line = DumpJson(record);
  } else {
    line = absl::StrCat(time, " ", NameOf(level), ": ", message);
    for (const auto& [name, value] : fields) absl::StrAppend(&line, " ", name, "=", value);
  }
  state.logger->log(ToSpdlog(level), "{}", line);
}

}  // namespace nibble
