#include "kernels/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// About 20 microseconds: longer than the gap between two regions of a step, shorter than a time
// slice.
constexpr int kSpins = 2000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` differs from `old`: a short spin, then sleep.
std::uint32_t WaitForChange(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    const std::uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    Pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { Work(t); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  region_.fetch_add(1, std::memory_order_release);
  region_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::TakeRanges(int thread) {
  for (;;) {
    const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    call_(body_, begin, begin + grain_ < count_ ? begin + grain_ : count_, thread);
  }
}

void ThreadPool::Run(std::int64_t count, std::int64_t grain, void* body, Call call) {
  const std::lock_guard lock(region_mutex_);
  count_ = count;
  grain_ = grain;
  body_ = body;
  call_ = call;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
  region_.fetch_add(1, std::memory_order_release);
  region_.notify_all();
  TakeRanges(0);
  for (std::uint32_t left = running_.load(std::memory_order_acquire); left != 0;) {
    left = WaitForChange(running_, left);
  }
}

void ThreadPool::Work(int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    seen = WaitForChange(region_, seen);
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeRanges(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace nibble::cpu
