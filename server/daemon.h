// Everything the daemon owns, in the order it is built; destruction is shutdown in reverse.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine/model_hub.h"
#include "runtime/metrics.h"
#include "server/health_service.h"
#include "server/http.h"
#include "server/options.h"
#include "server/prepare_pool.h"
#include "server/rpc.h"
#include "server/serving_state.h"

namespace nibble {

inline constexpr absl::Duration kHangLimit = absl::Minutes(2);

// Progress of one start-up model. Any thread.
using StartupProgress = std::function<void(const std::string& model, const std::string& stage,
                                           std::int64_t done, std::int64_t total)>;

// Life: Start, LoadModels, (serve), Drain, destruction. One thread calls these; the others are for
// any thread.
class Daemon {
 public:
  explicit Daemon(ServeOptions options);
  ~Daemon();

  // Opens the ports. Requests are refused with UNAVAILABLE until their model has loaded.
  absl::Status Start();

  // Loads the start-up models, in order. Cancelled when Stop came first; else why one cannot be
  // served.
  absl::Status LoadModels(const StartupProgress& progress);

  // --- any thread ---
  // NOT_SERVING, new requests are refused, loads are cancelled, Wait returns.
  void Stop();
  // Until Stop, or a device is lost or an engine hangs: then Internal.
  absl::Status Wait();
  // Whether an engine has not moved for so long that it never will: joining it would hang too.
  bool Hangs() const { return !hub_.Alive(kHangLimit); }

  // Calls Stop, lets streams end for as long as `timeout`, then ends them.
  void Drain(absl::Duration timeout);

  const std::string& grpc_address() const { return rpc_->address(); }
  std::string http_address() const { return http_ == nullptr ? "off" : http_->address(); }
  std::string admin_address() const {
    return admin_rpc_ == nullptr ? "off" : admin_rpc_->address();
  }
  ServingState& state() { return state_; }
  ModelHub& hub() { return hub_; }
  Metrics& metrics() { return metrics_; }

 private:
  absl::StatusOr<std::vector<LoadSpec>> StartupSpecs();
  absl::Status StartAdmin(std::shared_ptr<grpc::ServerCredentials> credentials);
  absl::Status StartHttp();
  void Watch();  // the heartbeat's thread

  const ServeOptions options_;
  const absl::Time started_;
  Metrics metrics_;
  HealthWatchers watchers_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  bool ending_ = false;
  absl::Status lost_;

  ModelHub hub_;
  ServingState state_;
  std::vector<std::shared_ptr<ModelMetrics>>
      loading_metrics_;  // keep what is counted before a model is there
  PreparePool prepare_pool_;
  PreparePool admin_pool_;
  std::unique_ptr<RpcServer> rpc_;
  std::unique_ptr<RpcServer> admin_rpc_;
  std::unique_ptr<HttpServer> http_;
  std::thread heartbeat_;
};

}  // namespace nibble
