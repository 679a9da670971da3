// nibble generate: an answer on the terminal, from a daemon or from a model in this process.
#include <unistd.h>

#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "server/cli/answer_printer.h"
#include "server/cli/answer_source.h"
#include "server/cli/client.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/cli/generate_flags.h"
#include "server/cli/model_flags.h"
#include "server/load_display.h"
#include "server/signals.h"
#include "server/values.h"
#include "server/version.h"

namespace nibble {
namespace {

struct Flags {
  ClientFlags server;
  ModelFlags load;
  GenerateFlags ask;
  std::string model;
  std::string timeout;
  bool json = false;
  bool quiet = false;
};

// What ctrl-C means at the moment. Any thread.
class Interrupt {
 public:
  bool asked() const {
    const std::lock_guard lock(mutex_);
    return asked_;
  }
  void Ask() {
    const std::lock_guard lock(mutex_);
    asked_ = true;
    if (answer_ != nullptr) answer_->Cancel();
  }
  // From now on it cancels this answer; null: none.
  void SetAnswer(AnswerSource* answer) {
    const std::lock_guard lock(mutex_);
    answer_ = answer;
    if (asked_ && answer_ != nullptr) answer_->Cancel();
  }

 private:
  mutable std::mutex mutex_;  // guards what follows
  bool asked_ = false;
  AnswerSource* answer_ = nullptr;
};

int Print(const CLI::App& app, const Flags& flags, Interrupt& interrupt, AnswerSource& answer) {
  const bool on_terminal = isatty(STDOUT_FILENO) != 0;
  const PrintStyle style{.json = flags.json,
                         .statistics = !flags.quiet && !flags.json && isatty(STDERR_FILENO) != 0,
                         .headings = flags.ask.num_outputs.value_or(1) > 1,
                         .end_of_line = on_terminal || flags.ask.num_outputs.value_or(1) > 1};
  interrupt.SetAnswer(&answer);
  const absl::Status status = PrintAnswer(answer, style, stdout, stderr);
  interrupt.SetAnswer(nullptr);
  if (status.ok()) return kDone;
  if (interrupt.asked()) return kFailed;  // whoever pressed the keys knows
  return Fail(app, ExitOf(status, absl::IsInvalidArgument(status) ? kUsage : kFailed), status);
}

int GenerateHere(const CLI::App& app, const Flags& flags, const v1::GenerateRequest& request,
                 absl::Duration timeout, Interrupt& interrupt) {
  OpenDevices devices;
  absl::StatusOr<LoadSpec> spec = flags.load.ToLoadSpec(flags.model, devices);
  if (!spec.ok()) return Fail(app, kUsage, spec.status());
  if (!flags.load.max_batch)
    spec->plan.max_batch = static_cast<std::int32_t>(flags.ask.num_outputs.value_or(1));
  Metrics metrics(ThisBuild());
  ModelHub hub({}, &metrics);
  LoadDisplay display(!flags.quiet && isatty(STDERR_FILENO) != 0);
  const auto model =
      hub.Load(*spec, [&](const std::string& stage, std::int64_t done, std::int64_t total) {
        display.Show(spec->name, stage, done, total);
        return !interrupt.asked();
      });
  display.Clear();
  if (!model.ok()) {
    return interrupt.asked() ? kFailed
                             : Fail(app, ExitOf(model.status(), kModelUnusable), model.status());
  }
  const std::unique_ptr<AnswerSource> answer = AskModel(*model, request, timeout);
  const int exit = Print(app, flags, interrupt, *answer);
  hub.Drain(absl::Now());
  return exit;
}

absl::Status CheckFlags(const Flags& flags) {
  if (flags.server.server.empty() && flags.model.empty()) {
    return absl::InvalidArgumentError(
        "--server HOST:PORT asks a daemon, --model PATH loads a model here; one is needed");
  }
  // A terminal that waits for input without saying so looks as if it hung.
  if (flags.ask.prompt.empty() && flags.ask.messages_file.empty() && isatty(STDIN_FILENO) != 0) {
    return absl::InvalidArgumentError(
        "there is no prompt: give it as an argument, by --messages, or on standard input");
  }
  return absl::OkStatus();
}

}  // namespace

int RunGenerate(int argc, char** argv) {
  CLI::App app(
      "Prints what a model answers. With --server a daemon is asked, and --model is the name of "
      "one of its "
      "models; else --model is a path, and the model is loaded here.",
      "nibble generate");
  Flags flags;
  flags.ask.AddTo(app);
  app.add_option("--model", flags.model,
                 "a path; with --server a name (unset: the daemon's first model)");
  app.add_option("--timeout", flags.timeout, "give up after this time, e.g. 30s (never)");
  app.add_flag("--json", flags.json, "print one event a line, as JSON");
  app.add_flag("--quiet", flags.quiet, "print the answer alone");
  flags.server.AddTo(app, "HOST:PORT or unix:PATH of a daemon");
  flags.load.AddTo(app);
  if (const auto exit = ParseArguments(app, argc, argv)) return *exit;

  if (const absl::Status wrong = CheckFlags(flags); !wrong.ok()) return Fail(app, kUsage, wrong);
  absl::StatusOr<absl::Duration> timeout = absl::InfiniteDuration();
  if (!flags.timeout.empty()) timeout = ParseDuration(flags.timeout);
  if (!timeout.ok()) return Fail(app, kUsage, timeout.status());
  absl::StatusOr<v1::GenerateRequest> request = flags.ask.ToRequest(std::cin);
  if (!request.ok()) return Fail(app, kUsage, request.status());

  BlockStopSignals();
  ConfigureLog(LogFormat::kText, LogLevel::kWarning);
  Interrupt interrupt;
  const SignalThread signals([&interrupt] { interrupt.Ask(); });
  if (flags.server.server.empty()) return GenerateHere(app, flags, *request, *timeout, interrupt);

  request->set_model(flags.model);
  const absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = flags.server.Connect();
  if (!channel.ok()) return Fail(app, kUsage, channel.status());
  const std::unique_ptr<AnswerSource> answer = AskServer(*channel, *request, *timeout);
  return Print(app, flags, interrupt, *answer);
}

}  // namespace nibble
