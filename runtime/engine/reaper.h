// Takes engines to their end: waits until they are drained, joins, destroys.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/load_model.h"

namespace nibble {

// One thread of its own, so that no request, callback or lock ever joins an engine or frees a
// device. Any thread calls. An engine that does not end within its time, on the monotonic clock,
// has its streams ended.
class Reaper {
 public:
  Reaper();
  // Ends what is left.
  ~Reaper();

  // Takes over a model whose queue is closed. `on_gone` is called on the reaper's thread when its
  // memory is free.
  void Retire(LoadedModel model, absl::Time deadline, std::function<void()> on_gone = nullptr);
  // An engine is done. Never blocks for long.
  void Wake();
  // No engine has longer than until `deadline` from now on.
  void Hasten(absl::Time deadline);
  void WaitUntilEmpty();
  // As Engine::Alive, of all that are still here.
  bool Alive(absl::Duration limit) const;

 private:
  struct Retired {
    LoadedModel model;
    absl::Time deadline;
    std::function<void()> on_gone;
    bool aborted = false;
  };
  void Run() noexcept;

  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::vector<Retired> retired_;
  int ending_ = 0;  // taken out of retired_, not destroyed yet
  bool woken_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace nibble
