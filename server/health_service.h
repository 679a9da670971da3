// grpc.health.v1.Health, Check and Watch: "", `live`, every service and every model.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "server/rpc.h"
#include "server/serving_state.h"

namespace nibble {

// Whom to tell that some status may have changed. Any thread.
class HealthWatchers {
 public:
  void Add(std::weak_ptr<StreamWaker> watcher);
  void Notify();
  // The server is about to stop: every watch ends.
  void End();
  bool ended() const { return ended_.load(); }

 private:
  std::atomic<bool> ended_{false};
  std::mutex mutex_;  // guards watchers_
  std::vector<std::weak_ptr<StreamWaker>> watchers_;
};

// `state` and `watchers` outlive the server.
RpcService MakeHealthService(const ServingState* state, HealthWatchers* watchers);

}  // namespace nibble
