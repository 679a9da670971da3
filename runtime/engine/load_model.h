// From a path to a model that is ready to be served.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/device/backend.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/memory_ledger.h"
#include "runtime/engine/model_hub.h"
#include "runtime/engine/served_model.h"
#include "runtime/model/config.h"
#include "runtime/model/plan.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/format.h"

namespace nibble {

// The backends that are open: one a device and setting, shared by its models. Any thread.
class OpenDevices {
 public:
  absl::StatusOr<std::shared_ptr<Backend>> Get(const BackendOptions& options);

 private:
  std::mutex mutex_;  // guards backends_, also while one opens
  std::map<std::string, std::shared_ptr<Backend>> backends_;
};

// What headers tell of a path: no weight was read.
struct OpenedModel {
  absl::Time began = absl::Now();  // where load_seconds counts from
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<WeightFormat> format;
  ModelConfig config;
  std::shared_ptr<Backend> backend;

  // PlanMemory beside what the ledger holds of the device.
  absl::StatusOr<MemoryPlan> Plan(const PlanOptions& options, std::int64_t held_bytes) const;
};
// As ModelHub::ShareKvMemory.
absl::Status ShareKv(std::vector<LoadSpec>* specs, OpenDevices& devices,
                     const MemoryLedger& ledger);

// Why a model cannot be served, where the part that failed did not say it for clients.
absl::Status WithLoadReason(const absl::Status& status);

// Paths "synthetic:SHAPE:FORMAT" are models without files; see SyntheticSpec.
inline constexpr char kSyntheticPrefix[] = "synthetic:";

absl::StatusOr<OpenedModel> OpenModel(const LoadSpec& spec, OpenDevices& devices);

// A model with its engine, not started. Members are destroyed from the last to the first.
struct LoadedModel {
  std::shared_ptr<Backend> backend;
  MemoryLedger::Lease memory;
  std::shared_ptr<ServedModel> model;
  std::unique_ptr<Engine> engine;
  RunnerMemory memory_in_use;
};

// What the hub adds to an engine.
struct EngineHooks {
  std::function<void(const absl::Status&)> on_device_lost;
  std::function<void()> on_done;
  EngineClock clock = EngineClock::System();
};

// Reads and compiles what was opened and planned. `memory` is the lease of plan.own_bytes().
absl::StatusOr<LoadedModel> LoadModel(const LoadSpec& spec, OpenedModel opened,
                                      const MemoryPlan& plan, MemoryLedger::Lease memory,
                                      std::shared_ptr<ModelMetrics> metrics, EngineHooks hooks,
                                      const HubProgress& progress);

// generation_config.json folded into the defaults, and the ids that end an answer: its
// eos_token_id, else the model's, with those of the tokenizer.
struct GenerationConfig {
  GenerationDefaults defaults;
  std::vector<std::int32_t> eos_ids;
};
absl::StatusOr<GenerationConfig> ReadGenerationConfig(const Checkpoint& checkpoint,
                                                      const ModelConfig& config,
                                                      const Tokenizer& tokenizer);

}  // namespace nibble
