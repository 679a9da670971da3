#include "server/library_logs.h"

#include <cstdlib>
#include <string>

#include "google/protobuf/stubs/common.h"
#include "grpcpp/version_info.h"
#include "runtime/base/log.h"

// Until 2024 each library had its own log; since then both use absl's, which Debian 12 does not
// have.
#define NIBBLE_LIBRARIES_USE_ABSL_LOG (GRPC_CPP_VERSION_MAJOR > 1 || GRPC_CPP_VERSION_MINOR >= 66)
#if NIBBLE_LIBRARIES_USE_ABSL_LOG
#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#else
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#endif

namespace nibble {
namespace {

bool WantsGrpcOutput() {
  return std::getenv("GRPC_VERBOSITY") != nullptr || std::getenv("GRPC_TRACE") != nullptr;
}

#if NIBBLE_LIBRARIES_USE_ABSL_LOG
class ToOurLog final : public absl::LogSink {
 public:
  void Send(const absl::LogEntry& entry) override {
    if (entry.log_severity() < absl::LogSeverity::kError) return;
    LogWarning("library", {{"text", std::string(entry.text_message())}});
  }
};
#endif

}  // namespace

// Whatever is below an error is noise to an operator.
void QuietLibraries() {
#if NIBBLE_LIBRARIES_USE_ABSL_LOG
  absl::InitializeLog();
  if (WantsGrpcOutput()) return;
  absl::SetMinLogLevel(absl::LogSeverityAtLeast::kError);
  absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfinity);
  static ToOurLog* const sink = new ToOurLog;  // logs until the process has ended
  absl::AddLogSink(sink);
#else
  // A request that does not parse is the client's business.
  google::protobuf::SetLogHandler(nullptr);
  if (WantsGrpcOutput()) return;
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function(
      [](gpr_log_func_args* record) { LogWarning("grpc", {{"text", record->message}}); });
#endif
}

}  // namespace nibble
