// `nibble serve`.
#pragma once

namespace nibble {

// `argv` holds the arguments after the subcommand. Returns the exit status.
int RunServe(int argc, char** argv);

}  // namespace nibble
