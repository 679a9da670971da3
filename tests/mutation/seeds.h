// Valid small checkpoints to start from: every family unquantized, every format, and the public
// conformance checkpoints where the machine has them.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace nibble {

struct SeedCheckpoint {
  std::string name;
  std::map<std::string, std::string> files;  // content by name
  bool gguf = false;

  // The file of a GGUF checkpoint, or "" for the directory itself.
  std::string entry() const { return gguf ? files.begin()->first : ""; }
};

std::vector<SeedCheckpoint> AllSeeds();

}  // namespace nibble
