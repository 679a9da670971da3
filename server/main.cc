// nibble: one binary, a subcommand each for the daemon and for what people use around it.
#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "server/cli/commands.h"
#include "server/serve.h"
#include "server/values.h"
#include "server/version.h"

namespace nibble {
namespace {

struct Command {
  const char* name;
  int (*run)(int argc, char** argv);  // the arguments after the name
  const char* help;
};

constexpr std::array kCommands{
    Command{"serve", RunServe, "the daemon: serves models over gRPC"},
    Command{"plan", RunPlan, "the memory plan of a model on this machine"},
    Command{"inspect", RunInspect, "what is in a checkpoint, and what would be refused"},
    Command{"generate", RunGenerate, "an answer on the terminal, from a server or in this process"},
    Command{"bench", RunBench, "prefill and decode speed on this machine"},
    Command{"health", RunHealth, "exit status 0 when a daemon is ready"},
};

void PrintUsage(std::FILE* out) {
  std::fputs("usage: nibble COMMAND ...\n\n", out);
  for (const Command& command : kCommands)
    std::fprintf(out, "  %-10s %s\n", command.name, command.help);
  std::fputs("\n`nibble COMMAND --help` says more; `nibble --version` which build this is.\n", out);
}

int Main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(argc - 2, argv + 2);
  }
  if (name == "--help" || name == "-h" || name == "help") {
    PrintUsage(stdout);
    return 0;
  }
  if (name == "--version") {
    const BuildInfo build = ThisBuild();
    std::printf("nibble %s (%s; %s)\n", build.version.c_str(), build.revision.c_str(),
                build.backends.c_str());
    return 0;
  }
  if (!name.empty()) {
    std::vector<std::string> names;
    for (const Command& command : kCommands) names.emplace_back(command.name);
    const std::string nearest = Nearest(name, names);
    std::fprintf(stderr, "nibble: there is no command %s%s%s\n\n", name.c_str(),
                 nearest.empty() ? "" : "; did you mean ", nearest.c_str());
  }
  PrintUsage(stderr);
  return 2;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
