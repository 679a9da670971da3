// The subcommands besides `serve`, one file each. `argv` holds the arguments after the subcommand's
// name; what comes back is the exit status of the process.
#pragma once

namespace nibble {

int RunPlan(int argc, char** argv);
int RunInspect(int argc, char** argv);
int RunGenerate(int argc, char** argv);
int RunBench(int argc, char** argv);
int RunHealth(int argc, char** argv);

}  // namespace nibble
