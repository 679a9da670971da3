// Where settings come from: the command line, the environment and a YAML file, each as text by flag
// name.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

struct FlagName {
  std::string name;        // "kv-memory": --kv-memory, NIBBLE_KV_MEMORY, kv-memory: in a file
  bool is_switch = false;  // --name alone means true
};

// One layer. What a setting says and who says so, for errors and --print-config.
struct RawOptions {
  struct Value {
    std::string text, source;
  };
  std::map<std::string, Value> values;
  std::optional<std::vector<std::string>> models;
  std::string models_source;
};

absl::StatusOr<RawOptions> ReadCommandLine(const std::vector<std::string>& arguments,
                                           const std::vector<FlagName>& flags);

// Unknown NIBBLE_* variables add a warning; NIBBLE_PORT* and NIBBLE_SERVICE_*, which Kubernetes
// injects for a service of the name nibble, are ignored. NIBBLE_MODELS holds MODELs separated by
// spaces.
absl::StatusOr<RawOptions> ReadEnvironment(const std::vector<std::string>& environment,
                                           const std::vector<FlagName>& flags,
                                           std::vector<std::string>* warnings);

// A mapping from flag names to scalars; `models` is a list of MODELs, or of mappings with path,
// name, kv-memory and max-context.
absl::StatusOr<RawOptions> ReadConfigFile(const std::string& path,
                                          const std::vector<FlagName>& flags);

std::string EnvironmentName(const std::string& flag);

}  // namespace nibble
