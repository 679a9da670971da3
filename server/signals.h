// SIGTERM and SIGINT, taken by one thread.
#pragma once

#include <functional>
#include <thread>

namespace nibble {

// Blocks both signals in the calling thread, and so in every thread it starts later. Call before
// the first one.
void BlockStopSignals();

// Waits for the signals on a thread of its own: the first calls `on_stop`, the second ends the
// process at once with exit status 1.
class SignalThread {
 public:
  explicit SignalThread(std::function<void()> on_stop);
  ~SignalThread();

 private:
  std::thread thread_;
};

// Tells the service manager, where $NOTIFY_SOCKET names one: "READY=1", "STOPPING=1", "STATUS=...".
void NotifyServiceManager(const char* state);

}  // namespace nibble
