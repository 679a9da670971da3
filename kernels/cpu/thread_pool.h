// The threads of the CPU's hot path: fork-join regions of a few microseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble::cpu {

// Runs loops over [0, count) on the caller and `threads - 1` workers. Workers spin briefly for the
// next region, then sleep in the kernel, so that a busy host is not kept from its work. Nothing is
// allocated in a region. Thread-safe: regions of different callers run one after the other.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) for consecutive ranges that cover [0, count), each of at most
  // `grain` items, handed out in order to whichever thread is free; `thread` is in [0, threads()).
  // Returns when all are done. With one thread, one item or one range it runs on the caller alone.
  // REQUIRES: body does not throw or nest.
  template <typename Body>
  void For(std::int64_t count, std::int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (workers_.empty() || count <= grain) {
      // One range after the other, as the workers would: a body may size its scratch by `grain`.
      for (std::int64_t begin = 0; begin < count; begin += grain) {
        body(begin, begin + grain < count ? begin + grain : count, 0);
      }
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    Run(count, grain, const_cast<void*>(static_cast<const void*>(&body)),
        [](void* b, std::int64_t begin, std::int64_t end, int thread) {
          (*static_cast<Plain*>(b))(begin, end, thread);
        });
  }

 private:
  using Call = void (*)(void* body, std::int64_t begin, std::int64_t end, int thread);

  void Run(std::int64_t count, std::int64_t grain, void* body, Call call);
  void Work(int thread);
  void TakeRanges(int thread);

  std::mutex region_mutex_;  // one region at a time

  // Of the region: written before its ticket is issued, read only by who holds an unfinished range
  // of it.
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  void* body_ = nullptr;
  Call call_ = nullptr;

  // Ranges of the region in the high half, ranges taken in the low half: one addition takes a range
  // and tells whether there was one. A thread that comes late finds none and is not waited for.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<std::uint32_t> done_{0};  // ranges finished
  alignas(64) std::atomic<std::uint32_t> region_{
      0};  // bumped to start a region: what idle workers watch
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Threads worth starting: the cgroup's CPU quota (rounded up), no more than the affinity mask
// allows; at least 1.
int AvailableCpus();

// The smaller of the machine's memory and the cgroup's limit, in bytes.
std::int64_t MemoryLimit();

}  // namespace nibble::cpu
