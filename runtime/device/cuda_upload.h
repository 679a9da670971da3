// What weights pass on their way to the device: device memory to stay in, and lanes to go through.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/device/cuda_raii.h"

namespace nibble {

// Device memory of many weights in few allocations: the driver rounds each up to 2 MiB.
// Thread-safe. A piece keeps its slab alive.
class CudaArena {
 public:
  struct Piece {
    std::byte* data = nullptr;
    std::shared_ptr<CudaMemory> slab;
  };
  // 256-byte aligned.
  absl::StatusOr<Piece> Allocate(std::int64_t bytes);

 private:
  struct Slab {
    std::weak_ptr<CudaMemory> memory;
    std::int64_t used = 0;
  };
  std::mutex mutex_;  // guards slabs_
  std::vector<Slab> slabs_;
};

// Host rows go through page-locked memory to device memory, where a kernel packs them: two halves
// take turns, so that one is filled while the other travels. One thread uses a lane at a time.
class CudaLane {
 public:
  static constexpr std::int64_t kHalfBytes = std::int64_t{12} << 20;

  static absl::StatusOr<std::unique_ptr<CudaLane>> Create();

  // fill(host) writes `bytes` <= kHalfBytes; pack(device, stream) launches what reads them there.
  absl::Status Send(std::int64_t bytes, const std::function<void(std::byte* host)>& fill,
                    const std::function<cudaError_t(std::byte* device, cudaStream_t)>& pack);
  // Until all that was sent is packed.
  absl::Status Finish();

 private:
  struct Half {
    CudaMemory pinned, device;
    CudaEvent free;  // recorded behind the pack
  };
  CudaStream stream_;
  std::array<Half, 2> halves_;
  int next_ = 0;
};

// Lends lanes to loading threads. Thread-safe.
class CudaLanes {
 public:
  static constexpr int kCount = 6;

  // Calls body(lane) with a lane of its own; waits for one where all are lent.
  absl::Status With(const std::function<absl::Status(CudaLane&)>& body);
  // Gives back the memory of lanes that nobody uses.
  void Release();

 private:
  std::mutex mutex_;  // guards what follows
  std::condition_variable returned_;
  std::vector<std::unique_ptr<CudaLane>> idle_;
  int lent_ = 0;
};

}  // namespace nibble
