// The bounded way into one engine.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/request.h"
#include "runtime/engine/token_stream.h"
#include "runtime/metrics.h"

namespace nibble {

// Two clocks: `monotonic` drives everything here, `wall` only reads what deadlines of clients mean.
struct EngineClock {
  std::function<absl::Time()> monotonic;
  std::function<absl::Time()> wall;

  // steady_clock, counted from the wall time at its first use; a jump of the wall clock does not
  // move it.
  static EngineClock System();
};
// EngineClock::System().monotonic().
absl::Time MonotonicNow();

struct Submission {
  Request request;
  std::shared_ptr<TokenStream> stream;
  absl::Time submitted;  // monotonic
  absl::Time deadline;   // monotonic
};

// Any thread submits; one engine thread takes. Counts requests that wait, in here or in the
// scheduler.
class SubmitQueue : public std::enable_shared_from_this<SubmitQueue> {
 public:
  struct Limits {
    std::int32_t max_waiting = 256;
    std::int32_t context = 0;    // tokens a sequence may hold
    std::int64_t kv_tokens = 0;  // tokens the pool holds
    std::int32_t vocab = 0;
  };
  SubmitQueue(std::string model, const Limits& limits, EngineClock clock,
              std::shared_ptr<ModelMetrics> metrics)
      : model_(std::move(model)),
        limits_(limits),
        clock_(std::move(clock)),
        metrics_(std::move(metrics)) {}

  // --- any thread ---
  // As ServedModel::Submit. On error nothing is kept of the request.
  absl::Status Push(Request request, std::shared_ptr<TokenStream> stream);
  // Refuses from now on, with `refusal`; what was taken in is still served. The first call wins.
  void Close(absl::Status refusal);
  bool closed() const;
  // Wakes the engine: a stream was cancelled, or something else outside changed.
  void Notify();

  // --- the engine's thread ---
  struct Taken {
    std::vector<Submission> submissions;
    bool closed = false;
  };
  Taken Take();
  // True once after Notify: some stream may have been cancelled.
  bool TakeNotice();
  // Blocks until there is something to take, a notice, or the time has come.
  void Wait(absl::Time until);
  // One request stopped waiting after `waited`: it started, or ended before.
  void Leave(absl::Duration waited);

  const Limits& limits() const { return limits_; }
  const EngineClock& clock() const { return clock_; }

 private:
  absl::Status CheckNumbers(const Request& request) const;
  absl::Status CheckFits(const Request& request) const;

  const std::string model_;
  const Limits limits_;
  const EngineClock clock_;
  const std::shared_ptr<ModelMetrics> metrics_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::vector<Submission> submissions_;
  std::int32_t waiting_ = 0;
  std::optional<absl::Status> refusal_;  // set: closed
  bool notice_ = false;
  absl::Duration recent_wait_ =
      absl::ZeroDuration();  // of the last request that left: what clients are told
};

}  // namespace nibble
