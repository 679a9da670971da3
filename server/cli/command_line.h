// What every subcommand does with its arguments and its end.
#pragma once

#include <optional>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace nibble {

enum ExitStatus : int {
  kDone = 0,
  kFailed = 1,         // at work
  kUsage = 2,          // or configuration
  kModelUnusable = 3,  // its format, its memory or its file
  kDeviceLost = 4,
};

// Parses the arguments after the subcommand's name into what `app` was given. A number means that
// the process ends with it: help was printed, or the usage was wrong and said so, with the nearest
// name for an unknown flag.
std::optional<int> ParseArguments(CLI::App& app, int argc, char** argv);

// Says on standard error why `app` fails; returns `exit`.
int Fail(const CLI::App& app, ExitStatus exit, const absl::Status& why);

// The exit status of an answer or a load that failed: a lost device tells itself.
ExitStatus ExitOf(const absl::Status& status, ExitStatus otherwise);

}  // namespace nibble
