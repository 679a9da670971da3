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
    const std::uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
    const std::uint64_t ranges = ticket >> 32, range = ticket & 0xffffffffu;
    if (range >= ranges) return;
    const std::int64_t begin = static_cast<std::int64_t>(range) * grain_;
    call_(body_, begin, begin + grain_ < count_ ? begin + grain_ : count_, thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == ranges && thread != 0)
      done_.notify_one();
  }
}

void ThreadPool::Run(std::int64_t count, std::int64_t grain, void* body, Call call) {
  const std::lock_guard lock(region_mutex_);
  count_ = count;
  grain_ = grain;
  body_ = body;
  call_ = call;
  const auto ranges = static_cast<std::uint32_t>((count + grain - 1) / grain);
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(std::uint64_t{ranges} << 32, std::memory_order_release);
  region_.fetch_add(1, std::memory_order_release);
  region_.notify_all();
  TakeRanges(0);
  for (std::uint32_t done = done_.load(std::memory_order_acquire); done != ranges;) {
    done = WaitForChange(done_, done);
  }
}

void ThreadPool::Work(int thread) {
  for (;;) {
    const std::uint32_t seen = region_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeRanges(thread);
    WaitForChange(region_, seen);
  }
}

}  // namespace nibble::cpu
