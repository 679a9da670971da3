// What `nibble serve` is told, and by whom: flags, then environment, then configuration file, then
// defaults.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/log.h"
#include "runtime/engine/model_hub.h"
#include "server/values.h"

namespace nibble {

// PATH or NAME=PATH[,device=NAME][,kv-memory=SIZE][,max-context=TOKENS].
struct ModelOption {
  std::string name, path;
  std::optional<std::string> device;
  std::optional<MemorySize> kv_memory;
  std::optional<std::int32_t> max_context;
};
absl::StatusOr<ModelOption> ParseModelOption(absl::string_view text);

struct ServeOptions {
  std::vector<ModelOption> models;
  std::string listen, http, admin_listen, model_root;
  bool http_prompt = false;                    // POST /prompt
  std::vector<std::string> http_prompt_hosts;  // names under which browsers may send it
  std::string device;
  int threads = 0;  // 0: the cgroup's quota
  std::optional<MemorySize> memory, kv_memory;
  std::optional<DType> kv_dtype;
  Compute compute = Compute::kAuto;
  PrefillWeights prefill_weights = PrefillWeights::kAuto;
  std::optional<std::int32_t> max_context, max_batch;
  int max_queue = 0;
  absl::Duration max_itl;
  std::optional<std::uint32_t> default_max_tokens;
  LoadQuantization quantize = LoadQuantization::kNone;
  Admission admission = Admission::kOptimistic;
  bool deterministic = false;
  std::string tls_cert, tls_key, tls_client_ca;
  std::string tenant_metadata;  // what names a call's tenant; empty: the request
  std::optional<absl::Duration> max_connection_age;
  absl::Duration drain_timeout;
  std::optional<LogFormat> log_format;  // unset: text on a terminal, else JSON

  bool help = false;
  bool print_config = false;
  std::string config_text;            // what --print-config prints
  std::vector<std::string> warnings;  // to be logged once the log is configured
};

// `arguments` are those after `serve`; `environment` holds NAME=VALUE strings. InvalidArgument
// names the source, the value and what is accepted, and the nearest name for one that is unknown.
absl::StatusOr<ServeOptions> ParseServeOptions(const std::vector<std::string>& arguments,
                                               const std::vector<std::string>& environment);

// The text of `nibble serve --help`.
std::string ServeHelp();

// The daemon's settings as they go into the load of one model; `device_bytes` is what percentages
// are of.
LoadSpec MakeLoadSpec(const ServeOptions& options, std::int64_t device_bytes);
// With a model's own settings.
LoadSpec MakeLoadSpec(const ServeOptions& options, const ModelOption& model,
                      std::int64_t device_bytes);
bool NeedsDeviceBytes(const ServeOptions& options);  // whether anything is a percentage

}  // namespace nibble
