// What the daemon serves at this moment: the models that must be there, whether it drains, what
// health says.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine/model_hub.h"
#include "runtime/metrics.h"

namespace nibble {

inline constexpr char kGenerationService[] = "nibble.v1.GenerationService";
inline constexpr char kModelService[] = "nibble.v1.ModelService";
inline constexpr char kAdminService[] = "nibble.v1.AdminService";
inline constexpr char kHealthService[] = "grpc.health.v1.Health";
inline constexpr char kLiveService[] = "live";  // health's name for the engines' heartbeat

// An engine that has not beaten for that long hangs.
inline constexpr absl::Duration kHeartbeatLimit = absl::Seconds(20);

// Owned by the daemon, shared by its services. Any thread.
class ServingState {
 public:
  // `startup_models`: the names the daemon was started with, in order. `administered`: whether
  // AdminService is served.
  ServingState(ModelHub* hub, Metrics* metrics, std::vector<std::string> startup_models,
               bool administered);

  ModelHub& hub() const { return *hub_; }

  // Unavailable (DRAINING) once Drain was called.
  absl::Status CheckAccepting() const;
  void Drain() { draining_.store(true); }

  // The model of a request. Unavailable while it loads, NotFound names those there are.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Find(const std::string& name) const;
  std::vector<ModelStatus> List() const;  // start-up models that have not begun to load included
  // The name that a request means: an empty one is the first start-up model.
  std::string Resolve(const std::string& name) const;
  // An administrator took the model away: its absence is no fault.
  void Forget(const std::string& name);

  // A request that was refused before the engine counted it.
  void CountRefused(const std::string& name, const absl::Status& status) const;

  bool Live() const { return hub_->Alive(kHeartbeatLimit); }
  bool Ready() const;
  // Whether a health service name serves; nothing when there is no such name.
  std::optional<bool> Serves(const std::string& service) const;

 private:
  ModelHub* const hub_;
  Metrics* const metrics_;
  const std::vector<std::string> startup_models_;
  const bool administered_;
  std::atomic<bool> draining_{false};
  mutable std::mutex mutex_;           // guards required_
  std::vector<std::string> required_;  // start-up models that nobody has taken away
};

}  // namespace nibble
