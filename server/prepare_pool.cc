#include "server/prepare_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "runtime/engine/served_model.h"

namespace nibble {

PreparePool::PreparePool(int threads, std::size_t max_queued) : max_queued_(max_queued) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this]() noexcept { Run(); });
}

PreparePool::~PreparePool() { Stop(); }

absl::Status PreparePool::Submit(std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_)
      return WithReason(absl::UnavailableError("the server is shutting down"), "DRAINING");
    if (jobs_.size() >= max_queued_) {
      return WithRetry(WithReason(absl::ResourceExhaustedError(absl::StrCat(
                                      "too many requests wait to be prepared (", max_queued_, ")")),
                                  "QUEUE_FULL"),
                       absl::Milliseconds(500));
    }
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
  return absl::OkStatus();
}

void PreparePool::Run() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

void PreparePool::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

}  // namespace nibble
