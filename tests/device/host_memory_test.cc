#include "runtime/device/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

std::int64_t ResidentPages(const HostMemory& memory) {
  std::vector<unsigned char> resident(
      static_cast<std::size_t>(memory.size() / HostMemory::kPageBytes));
  if (mincore(memory.data(), static_cast<std::size_t>(memory.size()), resident.data()) != 0)
    return -1;
  return std::count_if(resident.begin(), resident.end(), [](unsigned char one) { return one & 1; });
}

TEST(HostMemoryTest, SmallOnesAreThereAtOnceAndZero) {
  const auto memory = HostMemory::Allocate(std::int64_t{5} << 20);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(ResidentPages(*memory), memory->size() / HostMemory::kPageBytes);
  const auto* bytes = memory->At<std::uint8_t>(0);
  EXPECT_TRUE(std::all_of(bytes, bytes + memory->size(), [](std::uint8_t b) { return b == 0; }));
}

TEST(HostMemoryTest, PagesOfLargeOnesFollowAndKeepWhatWasWritten) {
  auto allocated = HostMemory::Allocate(HostMemory::kTakenBehindFrom);
  ASSERT_TRUE(allocated.ok()) << allocated.status();
  HostMemory memory = *std::move(allocated);  // the thread follows the pages, not the owner
  *memory.At<int>(memory.size() - 64) = 42;
  const std::int64_t pages = memory.size() / HostMemory::kPageBytes;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (ResidentPages(memory) < pages && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(ResidentPages(memory), pages);
  EXPECT_EQ(*memory.At<int>(memory.size() - 64), 42);
  EXPECT_EQ(*memory.At<int>(0), 0);
}

TEST(HostMemoryTest, StepsGoBeforePages) {
  auto busy = std::make_unique<HostMemory::Busy>();
  const auto memory = HostMemory::Allocate(HostMemory::kTakenBehindFrom);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const std::int64_t pages = memory->size() / HostMemory::kPageBytes;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // free to take pages, it takes all
  EXPECT_LT(ResidentPages(*memory), pages / 4);
  busy.reset();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (ResidentPages(*memory) < pages && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(ResidentPages(*memory), pages);
}

TEST(HostMemoryTest, LargeOnesEndAtAnyTime) {
  for (int round = 0; round < 8; ++round) {
    auto first = HostMemory::Allocate(HostMemory::kTakenBehindFrom * 4);
    ASSERT_TRUE(first.ok()) << first.status();
    HostMemory other = *std::move(first);
    other = HostMemory();
    EXPECT_EQ(other.data(), nullptr);
  }
}

TEST(HostMemoryTest, MoreThanAddressesIsRefused) {
  const auto memory = HostMemory::Allocate(std::int64_t{1} << 62);
  EXPECT_TRUE(absl::IsResourceExhausted(memory.status())) << memory.status();
}

}  // namespace
}  // namespace nibble
