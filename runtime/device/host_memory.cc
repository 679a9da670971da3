#include "runtime/device/host_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older headers lack the name
#endif

namespace nibble {
namespace {
constexpr std::int64_t kHugeFrom = std::int64_t{4}
                                   << 20;  // below, a huge page would be mostly padding

absl::Status NoMemory(std::int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      "the system has no ", bytes, " bytes of memory left; give the model less (--memory)"));
}

// Of all HostMemory::Busy: how many live, and when the last ended.
std::atomic<int> busy{0};
std::atomic<std::chrono::steady_clock::rep> last_busy{0};

// 0, or why not. Kernels before 5.14 do not know the advice (EINVAL) and fault pages in later.
int TakePages(std::byte* data, std::int64_t size) {
  if (madvise(data, static_cast<std::size_t>(size), MADV_POPULATE_WRITE) == 0) return 0;
  return errno;
}

}  // namespace

// Takes the pages of one allocation, from the first to the last, beside whatever else runs.
class HostMemory::PageTaker {
 public:
  // Throws std::system_error where the system refuses a thread.
  PageTaker(std::byte* data, std::int64_t size)
      : thread_([this, data, size]() noexcept { Run(data, size); }) {}
  ~PageTaker() {
    stop_.store(true);
    thread_.join();
  }

 private:
  void Run(std::byte* data, std::int64_t size) {
    constexpr std::int64_t kPart = std::int64_t{2} << 20;  // a huge page
    // Whoever answers requests goes before. Linux: of this thread; no matter if refused.
    (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 19);
    for (std::int64_t at = 0; at < size && AwaitQuiet(); at += kPart) {
      const int error = TakePages(data + at, std::min(kPart, size - at));
      if (error == 0) continue;
      if (error == ENOMEM)
        LogError("the system lacks memory that a model was promised; give models less (--memory)",
                 {{"bytes", absl::StrCat(size - at)}});
      return;
    }
  }

  // Waits, though not forever, until nobody has been Busy for a while: where pages of the machine
  // are made only when touched, as in some virtual ones, one may cost milliseconds of a core, and
  // the other threads of a step wait for the one that lost it. False: stop.
  bool AwaitQuiet() {
    constexpr auto kQuiet = std::chrono::milliseconds(10),
                   kLongest = std::chrono::milliseconds(200);
    const auto begin = std::chrono::steady_clock::now();
    while (!stop_.load()) {
      const auto now = std::chrono::steady_clock::now();
      const std::chrono::steady_clock::duration last(last_busy.load());
      const bool quiet = busy.load() == 0 && now.time_since_epoch() - last > kQuiet;
      if (quiet || now - begin > kLongest) return true;
      std::this_thread::sleep_for(kQuiet / 2);
    }
    return false;
  }

  std::atomic<bool> stop_{false};
  std::thread thread_;
};

HostMemory::Busy::Busy() { busy.fetch_add(1); }

HostMemory::Busy::~Busy() {
  last_busy.store(std::chrono::steady_clock::now().time_since_epoch().count());
  busy.fetch_sub(1);
}

void HostMemory::EndPageTaker::operator()(PageTaker* taker) const { delete taker; }

absl::StatusOr<HostMemory> HostMemory::Allocate(std::int64_t bytes) {
  if (bytes == 0) return HostMemory();
  const std::int64_t size = Rounded(bytes);
  void* data = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return NoMemory(size);
  }
  HostMemory memory(static_cast<std::byte*>(data), size);
  if (size >= kHugeFrom) madvise(data, static_cast<std::size_t>(size), MADV_HUGEPAGE);  // a wish
  if (size >= kTakenBehindFrom) {
    try {
      memory.taker_.reset(new PageTaker(memory.data_, size));
      return memory;
    } catch (const std::system_error& error) {
      LogWarning("memory is taken at once, without a thread", {{"reason", error.what()}});
    }
  }
  if (TakePages(memory.data_, size) == ENOMEM) return NoMemory(size);
  return memory;
}

HostMemory::~HostMemory() {
  taker_.reset();
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(size_));
}

}  // namespace nibble
