// Page-granular host memory of the CPU backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

namespace nibble {

// Owns zeroed anonymous pages, huge ones where the kernel grants them; given back to the system at
// once when destroyed. Move-only; a default one is empty.
//
// Pages are taken at once, not one by one under requests: what was planned is what is resident, and
// a system that has less says so. Those of a large allocation are taken behind by a thread of its
// own, so that nobody waits for a gigabyte of zeros; who is earlier than that thread takes the page
// itself.
class HostMemory {
 public:
  static constexpr std::int64_t kPageBytes = 4096;
  static constexpr std::int64_t kTakenBehindFrom = std::int64_t{256} << 20;
  // What Allocate(bytes) really takes.
  static constexpr std::int64_t Rounded(std::int64_t bytes) {
    return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  }

  // ResourceExhausted names the bytes.
  static absl::StatusOr<HostMemory> Allocate(std::int64_t bytes);

  // While one lives, and shortly after, pages of large allocations are hardly taken behind.
  class Busy {
   public:
    Busy();
    ~Busy();
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;
  };

  HostMemory() = default;
  HostMemory(HostMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        taker_(std::move(other.taker_)) {}
  HostMemory& operator=(HostMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(taker_, other.taker_);
    return *this;
  }
  ~HostMemory();

  std::byte* data() const { return data_; }
  std::int64_t size() const { return size_; }

  template <typename T>
  T* At(std::int64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  class PageTaker;
  struct EndPageTaker {
    void operator()(PageTaker* taker) const;
  };

  HostMemory(std::byte* data, std::int64_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
  std::unique_ptr<PageTaker, EndPageTaker> taker_;  // null: all pages were taken
};

// Hands out 64-byte aligned ranges of one allocation to come, so that its size is known before it
// is made.
class MemoryLayout {
 public:
  // The offset of `bytes` more bytes.
  std::int64_t Take(std::int64_t bytes) {
    const std::int64_t offset = total_;
    total_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  std::int64_t total() const { return total_; }

 private:
  static constexpr std::int64_t kAlignment = 64;
  std::int64_t total_ = 0;
};

}  // namespace nibble
