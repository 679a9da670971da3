// A few threads that do what gRPC threads must not: tokenize, render templates, read files.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

// Owned by the daemon. Any thread submits; jobs run in order of submission, must not throw.
class PreparePool {
 public:
  PreparePool(int threads, std::size_t max_queued);
  ~PreparePool();  // Stop()

  // ResourceExhausted (QUEUE_FULL, worth a retry) when too many jobs wait; Unavailable after Stop.
  absl::Status Submit(std::function<void()> job);

  // Runs what was submitted, then ends the threads.
  void Stop();

 private:
  void Run();

  const std::size_t max_queued_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace nibble
