#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace nibble::cpu {
namespace {

TEST(ThreadPoolTest, EveryItemOnceInRangesNoLargerThanTheGrain) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int count : {0, 1, 7, 100}) {
      for (const int grain : {1, 3, 1000}) {
        std::vector<std::atomic<int>> seen(count);
        pool.For(count, grain, [&](std::int64_t begin, std::int64_t end, int thread) {
          EXPECT_LE(end - begin, grain);
          EXPECT_LT(thread, threads);
          for (std::int64_t i = begin; i < end; ++i) ++seen[i];
        });
        for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
      }
    }
  }
}

TEST(ThreadPoolTest, RegionsSeeWhatEarlierOnesWrote) {
  ThreadPool pool(3);
  std::vector<std::int64_t> values(64, 0);
  for (int round = 0; round < 2000; ++round) {
    pool.For(64, 1, [&](std::int64_t i, std::int64_t, int) { ++values[i]; });
  }
  for (std::int64_t v : values) EXPECT_EQ(v, 2000);
}

TEST(ThreadPoolTest, CallersTakeTurns) {
  ThreadPool pool(2);
  std::atomic<int> inside{0};
  std::atomic<bool> overlapped{false};
  const auto caller = [&] {
    for (int round = 0; round < 500; ++round) {
      pool.For(4, 1, [&](std::int64_t i, std::int64_t, int) {
        if (i == 0 && inside.fetch_add(1) != 0) overlapped = true;
        if (i == 0) inside.fetch_sub(1);
      });
    }
  };
  std::thread other(caller);
  caller();
  other.join();
  EXPECT_FALSE(overlapped);
}

TEST(ThreadPoolTest, SleepsBetweenRegions) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(
        std::chrono::milliseconds(2));  // past the spin: the worker is in the kernel
    std::atomic<int> items{0};
    pool.For(100, 1, [&](std::int64_t, std::int64_t, int) { ++items; });
    EXPECT_EQ(items.load(), 100);
  }
}

TEST(HostTest, LimitsAreSane) {
  EXPECT_GE(AvailableCpus(), 1);
  EXPECT_LE(AvailableCpus(), 100000);
  EXPECT_GT(MemoryLimit(), std::int64_t{1} << 20);
}

}  // namespace
}  // namespace nibble::cpu
