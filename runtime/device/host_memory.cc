#include "runtime/device/host_memory.h"

#include <sys/mman.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

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

}  // namespace

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
  // Taken now, not page by page under requests: what was planned is what is resident, and a system
  // that has less says so here. Kernels before 5.14 do not know the advice and fault pages in
  // later.
  if (madvise(data, static_cast<std::size_t>(size), MADV_POPULATE_WRITE) != 0 && errno == ENOMEM) {
    return NoMemory(size);
  }
  return memory;
}

HostMemory::~HostMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(size_));
}

}  // namespace nibble
