// Names to models: loads, swaps and unloads; alone owns the engines.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/served_model.h"
#include "runtime/metrics.h"
#include "runtime/model/plan.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

enum class ReplacePolicy : std::uint8_t { kRefuse, kLoadThenDrain, kDrainThenLoad };
// kUnloaded is only ever told to on_change: such a model is no longer listed.
enum class ModelState : std::uint8_t { kLoading, kServing, kDraining, kFailed, kUnloaded };

struct LoadSpec {
  std::string name;
  std::string path;
  PathCheck check_path;  // asked for every file of the checkpoint; null: all may be read
  PlanOptions plan;
  LoadQuantization quantize = LoadQuantization::kNone;
  Admission admission = Admission::kOptimistic;
  int max_queue = 256;
  absl::Duration max_itl = absl::Milliseconds(50);
  std::optional<std::uint32_t> default_max_tokens;
  ReplacePolicy replace = ReplacePolicy::kRefuse;
  BackendOptions backend;
};

// Stage: "read", "plan", "weights", "compile", "warm up". Return false to cancel.
using HubProgress =
    std::function<bool(const std::string& stage, std::int64_t done, std::int64_t total)>;

struct LoadStage {
  std::string stage;
  std::int64_t done = 0, total = 0;
};

struct ModelStatus {
  std::string name;
  ModelState state = ModelState::kLoading;
  std::shared_ptr<const ServedModel> model;          // null while loading the first time
  std::string error;                                 // kFailed
  std::optional<LoadStage> progress = std::nullopt;  // of a load under way
};

// Thread-safe. Destruction drains nothing: call Drain first.
class ModelHub {
 public:
  struct Options {
    absl::Duration drain_timeout = absl::Seconds(30);
    // Called on any change of a model's state, outside locks, from any thread (health).
    std::function<void(const ModelStatus&)> on_change;
    // Called once when a device is lost, after the streams of the model have ended, from its
    // engine's thread: the daemon should stop with exit code 4. Must not block and must not call
    // the hub.
    std::function<void(const std::string& model, const absl::Status&)> on_device_lost;
  };
  ModelHub(Options options, Metrics* metrics);
  ~ModelHub();

  // The plan of a path, nothing allocated.
  absl::StatusOr<MemoryPlan> Plan(const LoadSpec& spec) const;

  // For models that will be loaded together: sets plan.kv_bytes, where unset, to an equal share of
  // what the device has left beside all of them and beside what is loaded. Reads headers only. The
  // status names the model.
  absl::Status ShareKvMemory(std::vector<LoadSpec>* specs) const;

  // Blocks for the time of the load. AlreadyExists, Unavailable (the name is being drained, or
  // loaded where a replace policy is given), ResourceExhausted (the plan beside what is loaded),
  // Cancelled, or why the model cannot be served. With a replace policy requests move to the new
  // revision without one being lost: each ends on the model it started on.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Load(const LoadSpec& spec,
                                                          const HubProgress& progress);

  // Stops new work, drains, frees. NotFound names the models there are; Unavailable while the model
  // is being loaded or unloaded.
  absl::Status Unload(const std::string& name, absl::Duration drain_timeout);

  // Empty name: the first model listed at start. NotFound (MODEL_NOT_FOUND) with the names (at most
  // 10); Unavailable (MODEL_LOADING, DRAINING, MODEL_FAILED, DEVICE_FAULT) for one that is listed
  // but does not serve.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Find(absl::string_view name) const;
  std::vector<ModelStatus> List() const;

  // Refuses new work, lets running streams end until the deadline, then ends them with Unavailable.
  void Drain(absl::Time deadline);

  // True while every engine's heartbeat is younger than `limit`.
  bool Alive(absl::Duration limit) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// [A-Za-z0-9][A-Za-z0-9._/-]{0,127} and never the name of a service, which health answers for.
// InvalidArgument.
absl::Status ValidateModelName(absl::string_view name);

}  // namespace nibble
