// When the tokens of one request came, for measurements.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine/token_stream.h"

namespace nibble {

// When tokens of one sequence arrived, and how many at once.
using Timeline = std::vector<std::pair<absl::Time, std::int32_t>>;

// Takes events on the thread that makes them, at the moment they are made: a reader's thread may
// come late. That is the engine's, which so spends a microsecond a token on being measured. Wake
// from any thread, the others from one.
class Recorder final : public StreamWaker {
 public:
  explicit Recorder(std::shared_ptr<TokenStream> stream) : stream_(std::move(stream)) {}

  void Wake() override;

  // Until so many tokens came, or why the stream ended before.
  absl::Status WaitFor(std::int32_t tokens);
  // Until another token came, or the stream ended: why, if not as asked.
  absl::Status WaitForNext();
  // The timeline once the stream has ended, or why it ended early.
  absl::StatusOr<Timeline> Wait();
  bool ended() const;
  // Cancels the stream and waits for its end; what came until then.
  Timeline Stop();

 private:
  // Waits until so many tokens came or the stream ended; whether they came.
  bool Reach(std::int32_t tokens, std::unique_lock<std::mutex>& lock);

  const std::shared_ptr<TokenStream> stream_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::optional<absl::Status> end_;
  Timeline timeline_;
  std::int32_t tokens_ = 0;
  std::int32_t wanted_ = 0;  // at so many somebody is to be woken
};

}  // namespace nibble
