// The flags of subcommands that open a model in this process, as `serve` has them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "runtime/engine/load_model.h"
#include "runtime/engine/model_hub.h"

namespace nibble {

struct ModelFlags {
  std::string device = "auto";
  int threads = 0;
  std::string memory, kv_memory;
  std::string kv_dtype = "auto", compute = "auto", prefill_weights = "auto", quantize = "none";
  std::optional<std::int32_t> max_context, max_batch;
  bool deterministic = false;

  void AddTo(CLI::App& app);
  // How the model at `path` is loaded. Opens the device where a size is a share of its memory.
  // InvalidArgument names the flag.
  absl::StatusOr<LoadSpec> ToLoadSpec(const std::string& path, OpenDevices& devices) const;
};

}  // namespace nibble
