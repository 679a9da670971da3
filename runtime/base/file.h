// Random access to a file that is only ever read, by pread: a file truncated underneath us is a
// status, never a SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

// Thread-safe: every call carries its own offset.
class RandomAccessFile {
 public:
  static absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& path);
  ~RandomAccessFile();
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }  // when it was opened

  // Fills all of `out`, or names the file, the range and the size. OutOfRange past the end.
  absl::Status Read(std::uint64_t offset, std::span<std::byte> out) const;

  // Tells the kernel that what it cached of the file will not be read again soon.
  void DropCachedPages() const;

 private:
  RandomAccessFile(std::string path, int descriptor, std::uint64_t size)
      : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

  std::string path_;
  int descriptor_;
  std::uint64_t size_;
};

// The whole of a small text file; ResourceExhausted when it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, std::uint64_t max_bytes);

}  // namespace nibble
