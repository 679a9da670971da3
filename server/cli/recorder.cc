#include "server/cli/recorder.h"

#include <variant>

#include "runtime/base/status.h"
#include "runtime/engine/submit_queue.h"

namespace nibble {

void Recorder::Wake() {
  const absl::Time now = MonotonicNow();
  const std::lock_guard lock(mutex_);
  while (const std::optional<StreamEvent> event = stream_->Pop(&end_)) {
    const auto* chunk = std::get_if<ChunkEvent>(&*event);
    if (chunk == nullptr || chunk->token_ids.empty()) continue;
    const auto count = static_cast<std::int32_t>(chunk->token_ids.size());
    timeline_.emplace_back(now, count);
    tokens_ += count;
  }
  if (end_.has_value() || (wanted_ > 0 && tokens_ >= wanted_)) changed_.notify_one();
}

bool Recorder::Reach(std::int32_t tokens, std::unique_lock<std::mutex>& lock) {
  wanted_ = tokens;
  changed_.wait(lock, [&] { return end_.has_value() || tokens_ >= tokens; });
  wanted_ = 0;
  return tokens_ >= tokens;
}

absl::Status Recorder::WaitFor(std::int32_t tokens) {
  std::unique_lock lock(mutex_);
  if (Reach(tokens, lock)) return absl::OkStatus();
  RETURN_IF_ERROR(*end_);
  return absl::InternalError("an answer ended before its length");
}

absl::Status Recorder::WaitForNext() {
  std::unique_lock lock(mutex_);
  return Reach(tokens_ + 1, lock) ? absl::OkStatus() : *end_;
}

absl::StatusOr<Timeline> Recorder::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return end_.has_value(); });
  RETURN_IF_ERROR(*end_);
  return timeline_;
}

bool Recorder::ended() const {
  const std::lock_guard lock(mutex_);
  return end_.has_value();
}

Timeline Recorder::Stop() {
  stream_->Cancel();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return end_.has_value(); });
  return timeline_;
}

}  // namespace nibble
