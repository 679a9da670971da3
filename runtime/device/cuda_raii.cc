#include "runtime/device/cuda_raii.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {

absl::Status CudaError(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the next call must not report it again
    return absl::ResourceExhaustedError(message);
  }
  return absl::InternalError(message);
}

bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorNotReady:
    case cudaErrorNotSupported: return false;
    default: return true;
  }
}

absl::StatusOr<CudaStream> MakeCudaStream() {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(CudaError(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream"));
  return CudaStream(stream);
}

absl::StatusOr<CudaEvent> MakeCudaEvent(bool timed) {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(
      CudaError(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming),
                "an event"));
  return CudaEvent(event);
}

absl::StatusOr<CudaMemory> CudaMemory::Allocate(Kind kind, std::int64_t bytes,
                                                absl::string_view what) {
  if (bytes <= 0) return CudaMemory();
  void* data = nullptr;
  const auto size = static_cast<std::size_t>(bytes);
  const cudaError_t error =
      kind == Kind::kDevice ? cudaMalloc(&data, size) : cudaMallocHost(&data, size);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(
        kind == Kind::kDevice
            ? absl::StrCat(what, " needs ", bytes, " bytes of the device, ", free, " of ", total,
                           " are free; lower --memory or --kv-memory, or free the device")
            : absl::StrCat(what, " needs ", bytes, " bytes of page-locked host memory"));
  }
  RETURN_IF_ERROR(CudaError(error, what));
  return CudaMemory(static_cast<std::byte*>(data), bytes, kind);
}

CudaMemory::~CudaMemory() {
  if (data_ == nullptr) return;
  if (kind_ == Kind::kDevice) {
    cudaFree(data_);
  } else {
    cudaFreeHost(data_);
  }
}

}  // namespace nibble
