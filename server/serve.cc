#include "server/serve.h"

#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/log.h"
#include "server/daemon.h"
#include "server/library_logs.h"
#include "server/load_display.h"
#include "server/options.h"
#include "server/signals.h"

extern char** environ;

namespace nibble {
namespace {

constexpr absl::Duration kLostDrainTimeout =
    absl::Seconds(1);  // a supervisor waits to start us again

enum ExitStatus { kDone = 0, kFailed = 1, kUsage = 2, kModelUnusable = 3, kDeviceLost = 4 };

std::vector<std::string> Environment() {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
  return variables;
}

int Fail(int status, const absl::Status& why) {
  std::fprintf(stderr, "nibble serve: %s\n", std::string(why.message()).c_str());
  return status;
}

std::string ReadyLine(const Daemon& daemon, const ServeOptions& options, absl::Duration load_time) {
  const std::string models =
      absl::StrJoin(options.models, ",",
                    [](std::string* out, const ModelOption& model) { out->append(model.name); });
  std::string line =
      absl::StrCat("ready grpc=", daemon.grpc_address(), " http=", daemon.http_address());
  if (!options.admin_listen.empty()) absl::StrAppend(&line, " admin=", daemon.admin_address());
  return absl::StrCat(line, " models=", models,
                      " load_seconds=", absl::StrFormat("%.2f", absl::ToDoubleSeconds(load_time)));
}

int Serve(const ServeOptions& options, bool on_terminal) {
  Daemon daemon(options);
  SignalThread signals([&daemon] {
    NotifyServiceManager("STOPPING=1");
    daemon.Stop();
  });
  const absl::Time begin = absl::Now();
  if (const absl::Status status = daemon.Start(); !status.ok()) {
    return Fail(absl::IsInvalidArgument(status) ? kUsage : kFailed, status);
  }
  LoadDisplay display(on_terminal);
  const absl::Status loaded = daemon.LoadModels(
      [&display](const std::string& model, const std::string& stage, std::int64_t done,
                 std::int64_t total) { display.Show(model, stage, done, total); });
  display.Clear();
  if (!daemon.state().CheckAccepting().ok()) {  // told to stop while loading
    daemon.Drain(options.drain_timeout);
    return kDone;
  }
  if (!loaded.ok()) return Fail(kModelUnusable, loaded);

  std::printf("%s\n", ReadyLine(daemon, options, absl::Now() - begin).c_str());
  std::fflush(stdout);
  NotifyServiceManager("READY=1");

  const absl::Status lost = daemon.Wait();
  if (daemon.Hangs()) _exit(kDeviceLost);  // health has said so; nothing here can be ended in order
  NotifyServiceManager("STOPPING=1");
  daemon.Drain(lost.ok() ? options.drain_timeout : kLostDrainTimeout);
  return lost.ok() ? kDone : kDeviceLost;
}

}  // namespace

int RunServe(int argc, char** argv) {
  BlockStopSignals();
  const absl::StatusOr<ServeOptions> options =
      ParseServeOptions(std::vector<std::string>(argv, argv + argc), Environment());
  if (!options.ok()) {
    Fail(kUsage, options.status());
    std::fprintf(stderr, "`nibble serve --help` lists the flags\n");
    return kUsage;
  }
  if (options->help || options->print_config) {
    std::fputs((options->help ? ServeHelp() : options->config_text).c_str(), stdout);
    return kDone;
  }
  const bool on_terminal = isatty(STDERR_FILENO) != 0;
  const LogFormat format =
      options->log_format.value_or(on_terminal ? LogFormat::kText : LogFormat::kJson);
  ConfigureLog(format, LogLevel::kInfo);
  QuietLibraries();
  for (const std::string& warning : options->warnings) LogWarning(warning);
  return Serve(*options, on_terminal && format == LogFormat::kText);
}

}  // namespace nibble
