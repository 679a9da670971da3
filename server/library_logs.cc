#include "server/library_logs.h"

#include <cstdlib>
#include <string>

#include "google/protobuf/stubs/common.h"
#include "grpcpp/version_info.h"
#include "runtime/base/log.h"

// Each library had a log of its own once; protobuf 22 and gRPC 1.66 began to use absl's.
#define NIBBLE_PROTOBUF_LOG (GOOGLE_PROTOBUF_VERSION < 4022000)
#define NIBBLE_GPR_LOG (GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR < 66)
#if NIBBLE_PROTOBUF_LOG
#include "google/protobuf/stubs/logging.h"
#else
#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#endif
#if NIBBLE_GPR_LOG
#include "grpc/support/log.h"
#endif

namespace nibble {
namespace {

bool WantsGrpcOutput() {
  return std::getenv("GRPC_VERBOSITY") != nullptr || std::getenv("GRPC_TRACE") != nullptr;
}

#if !NIBBLE_PROTOBUF_LOG
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
#if NIBBLE_PROTOBUF_LOG
  // A request that does not parse is the client's business.
  google::protobuf::SetLogHandler(nullptr);
#else
  absl::InitializeLog();
  if (!WantsGrpcOutput()) {
    absl::SetMinLogLevel(absl::LogSeverityAtLeast::kError);
    absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfinity);
    static ToOurLog* const sink = new ToOurLog;  // logs until the process has ended
    absl::AddLogSink(sink);
  }
#endif
#if NIBBLE_GPR_LOG
  if (WantsGrpcOutput()) return;
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function(
      [](gpr_log_func_args* record) { LogWarning("grpc", {{"text", record->message}}); });
#endif
}

}  // namespace nibble
