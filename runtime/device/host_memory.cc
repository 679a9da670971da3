#include "runtime/device/host_memory.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {
constexpr std::int64_t kHugeFrom = std::int64_t{4}
                                   << 20;  // below, a huge page would be mostly padding
}  // namespace

absl::StatusOr<HostMemory> HostMemory::Allocate(std::int64_t bytes) {
  if (bytes == 0) return HostMemory();
  const std::int64_t size = Rounded(bytes);
  void* data = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the system has no ", size, " bytes of memory left; give the model less (--memory)"));
  }
  if (size >= kHugeFrom) madvise(data, static_cast<std::size_t>(size), MADV_HUGEPAGE);  // a wish
  return HostMemory(static_cast<std::byte*>(data), size);
}

HostMemory::~HostMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(size_));
}

}  // namespace nibble
