#include "runtime/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

absl::Status ErrnoStatus(absl::string_view what, const std::string& path, int error) {
  const std::string message = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  if (error == EMFILE || error == ENFILE) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RandomAccessFile>> RandomAccessFile::Open(const std::string& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer; regular files ignore it.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return ErrnoStatus("cannot open", path, errno);
  struct stat info{};
  if (::fstat(descriptor, &info) != 0) {
    const int error = errno;
    ::close(descriptor);
    return ErrnoStatus("cannot stat", path, error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(descriptor);
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  return std::unique_ptr<RandomAccessFile>(
      new RandomAccessFile(path, descriptor, static_cast<std::uint64_t>(info.st_size)));
}

RandomAccessFile::~RandomAccessFile() { ::close(descriptor_); }

absl::Status RandomAccessFile::Read(std::uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": bytes [", offset, ", ", offset, " + ",
                                              out.size(), ") lie past the end of the file, ", size_,
                                              " bytes"));
  }
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::pread(descriptor_, out.data() + done, out.size() - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus("cannot read", path_, errno);
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(path_, " shrank while it was read: byte ",
                                              offset + done, " is gone, the file had ", size_,
                                              " bytes"));
    }
    done += static_cast<std::size_t>(got);
  }
  return absl::OkStatus();
}

void RandomAccessFile::DropCachedPages() const {
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);  // advice: a refusal changes nothing
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, std::uint64_t max_bytes) {
  ASSIGN_OR_RETURN(const std::unique_ptr<RandomAccessFile> file, RandomAccessFile::Open(path));
  if (file->size() > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        path, " has ", file->size(), " bytes, more than the ", max_bytes, " allowed for it"));
  }
  std::string text(file->size(), '\0');
  RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace nibble
