#include "runtime/device/host_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
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
    constexpr std::int64_t kPart = std::int64_t{8} << 20;  // between two looks at stop_
    // Whoever answers requests goes before. Linux: of this thread; no matter if refused.
    (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 19);
    for (std::int64_t at = 0; at < size && !stop_.load(); at += kPart) {
      const int error = TakePages(data + at, std::min(kPart, size - at));
      if (error == 0) continue;
      if (error == ENOMEM)
        LogError("the system lacks memory that a model was promised; give models less (--memory)",
                 {{"bytes", absl::StrCat(size - at)}});
      return;
    }
  }

  std::atomic<bool> stop_{false};
  std::thread thread_;
};

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
