#include "server/cli/command_line.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/engine/served_model.h"
#include "server/values.h"

namespace nibble {
namespace {

int UsageError(const CLI::App& app, const std::string& reason) {
  std::fprintf(stderr, "%s: %s\n`%s --help` lists the flags\n", app.get_name().c_str(),
               reason.c_str(), app.get_name().c_str());
  return kUsage;
}

std::string Unexpected(const CLI::App& app, const std::string& argument) {
  if (argument.empty() || argument[0] != '-')
    return absl::StrCat("one argument too many: ", argument);
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back(absl::StrCat("--", name));
  }
  const std::string nearest = Nearest(argument.substr(0, argument.find('=')), flags);
  return absl::StrCat("there is no flag ", argument,
                      nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"));
}

}  // namespace

std::optional<int> ParseArguments(CLI::App& app, int argc, char** argv) {
  app.allow_extras();
  std::vector<std::string> reversed(argv, argv + argc);
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return kDone;
  } catch (const CLI::ParseError& error) {
    // A required argument is also missing when its flag was misspelt, and that is the better thing
    // to say.
    const std::vector<std::string> extras = app.remaining();
    return UsageError(app, extras.empty() ? error.what() : Unexpected(app, extras.front()));
  }
  const std::vector<std::string> extras = app.remaining();
  if (!extras.empty()) return UsageError(app, Unexpected(app, extras.front()));
  return std::nullopt;
}

int Fail(const CLI::App& app, ExitStatus exit, const absl::Status& why) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), std::string(why.message()).c_str());
  return exit;
}

ExitStatus ExitOf(const absl::Status& status, ExitStatus otherwise) {
  if (status.ok()) return kDone;
  return ReasonOf(status) == "DEVICE_FAULT" ? kDeviceLost : otherwise;
}

}  // namespace nibble
