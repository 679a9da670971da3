// CUDA handles that give themselves back. Move-only; a default one is empty.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

// Ok, ResourceExhausted (out of memory) or Internal; names what failed and CUDA's own words.
absl::Status CudaError(cudaError_t error, absl::string_view what);

// Whether the error outlives the call that met it: nothing of this process works on the device any
// more.
bool IsSticky(cudaError_t error);

// `handle` and what ends it.
template <typename Handle, auto kDestroy>
class CudaHandle {
 public:
  CudaHandle() = default;
  explicit CudaHandle(Handle handle) : handle_(handle) {}
  CudaHandle(CudaHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    if (handle_ != nullptr) kDestroy(handle_);
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using CudaStream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using CudaEvent = CudaHandle<cudaEvent_t, cudaEventDestroy>;
using CudaGraph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;
using CublasHandle = CudaHandle<cublasHandle_t, cublasDestroy>;

absl::StatusOr<CudaStream> MakeCudaStream();
// `timed`: cudaEventElapsedTime may be asked of it.
absl::StatusOr<CudaEvent> MakeCudaEvent(bool timed);

// Device memory, or page-locked host memory that the device reads and writes.
class CudaMemory {
 public:
  enum class Kind : std::uint8_t { kDevice, kPinned };
  // ResourceExhausted names the bytes, and for device memory what is free.
  static absl::StatusOr<CudaMemory> Allocate(Kind kind, std::int64_t bytes, absl::string_view what);

  CudaMemory() = default;
  CudaMemory(CudaMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        kind_(other.kind_) {}
  CudaMemory& operator=(CudaMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(kind_, other.kind_);
    return *this;
  }
  ~CudaMemory();

  std::byte* data() const { return data_; }
  std::int64_t size() const { return size_; }
  template <typename T>
  T* At(std::int64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  CudaMemory(std::byte* data, std::int64_t size, Kind kind)
      : data_(data), size_(size), kind_(kind) {}

  std::byte* data_ = nullptr;
  std::int64_t size_ = 0;
  Kind kind_ = Kind::kDevice;
};

// Hands out 256-byte aligned ranges of one device allocation to come.
class CudaLayout {
 public:
  static constexpr std::int64_t kAlignment = 256;
  static constexpr std::int64_t Rounded(std::int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::int64_t Take(std::int64_t bytes) {
    const std::int64_t offset = total_;
    total_ += Rounded(bytes);
    return offset;
  }
  std::int64_t total() const { return total_; }

 private:
  std::int64_t total_ = 0;
};

}  // namespace nibble
