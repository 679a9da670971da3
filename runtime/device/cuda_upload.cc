#include "runtime/device/cuda_upload.h"

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"

namespace nibble {
namespace {

constexpr std::int64_t kSlabBytes = std::int64_t{64} << 20;

}  // namespace

absl::StatusOr<CudaArena::Piece> CudaArena::Allocate(std::int64_t bytes) {
  bytes = CudaLayout::Rounded(std::max<std::int64_t>(bytes, 1));
  const std::lock_guard lock(mutex_);
  std::erase_if(slabs_, [](const Slab& slab) { return slab.memory.expired(); });
  Slab* best = nullptr;  // the fullest that has room
  for (Slab& slab : slabs_) {
    const std::shared_ptr<CudaMemory> memory = slab.memory.lock();
    if (memory == nullptr || slab.used + bytes > memory->size()) continue;
    if (best == nullptr || slab.used > best->used) best = &slab;
  }
  if (best != nullptr) {
    if (std::shared_ptr<CudaMemory> memory = best->memory.lock()) {
      std::byte* data = memory->data() + best->used;
      best->used += bytes;
      return Piece{data, std::move(memory)};
    }
  }
  const std::int64_t size = bytes > kSlabBytes / 2 ? bytes : kSlabBytes;
  ASSIGN_OR_RETURN(CudaMemory made,
                   CudaMemory::Allocate(CudaMemory::Kind::kDevice, size, "weights"));
  auto memory = std::make_shared<CudaMemory>(std::move(made));
  slabs_.push_back({memory, bytes});
  return Piece{memory->data(), memory};
}

absl::StatusOr<std::unique_ptr<CudaLane>> CudaLane::Create() {
  auto lane = std::make_unique<CudaLane>();
  ASSIGN_OR_RETURN(lane->stream_, MakeCudaStream());
  for (Half& half : lane->halves_) {
    ASSIGN_OR_RETURN(half.pinned, CudaMemory::Allocate(CudaMemory::Kind::kPinned, kHalfBytes,
                                                       "loading weights"));
    ASSIGN_OR_RETURN(half.device, CudaMemory::Allocate(CudaMemory::Kind::kDevice, kHalfBytes,
                                                       "loading weights"));
    ASSIGN_OR_RETURN(half.free, MakeCudaEvent(/*timed=*/false));
  }
  return lane;
}

absl::Status CudaLane::Send(std::int64_t bytes, const std::function<void(std::byte*)>& fill,
                            const std::function<cudaError_t(std::byte*, cudaStream_t)>& pack) {
  if (bytes > kHalfBytes) return absl::InternalError("a piece of a weight is larger than a lane");
  Half& half = halves_[static_cast<std::size_t>(next_)];
  next_ ^= 1;
  // An event that was never recorded is complete.
  RETURN_IF_ERROR(CudaError(cudaEventSynchronize(half.free.get()), "loading weights"));
  fill(half.pinned.data());
  RETURN_IF_ERROR(CudaError(
      cudaMemcpyAsync(half.device.data(), half.pinned.data(), static_cast<std::size_t>(bytes),
                      cudaMemcpyHostToDevice, stream_.get()),
      "loading weights"));
  RETURN_IF_ERROR(CudaError(pack(half.device.data(), stream_.get()), "packing weights"));
  return CudaError(cudaEventRecord(half.free.get(), stream_.get()), "loading weights");
}

absl::Status CudaLane::Finish() {
  return CudaError(cudaStreamSynchronize(stream_.get()), "packing weights");
}

absl::Status CudaLanes::With(const std::function<absl::Status(CudaLane&)>& body) {
  std::unique_ptr<CudaLane> lane;
  {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [this] { return lent_ < kCount; });
    ++lent_;
    if (!idle_.empty()) {
      lane = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  absl::Status status;
  if (lane == nullptr) {
    absl::StatusOr<std::unique_ptr<CudaLane>> made = CudaLane::Create();
    status = made.status();
    if (made.ok()) lane = *std::move(made);
  }
  if (status.ok()) status = body(*lane);
  {
    const std::lock_guard lock(mutex_);
    --lent_;
    if (status.ok()) idle_.push_back(std::move(lane));  // of a lane that failed work may be left
  }
  returned_.notify_one();
  return status;
}

void CudaLanes::Release() {
  const std::lock_guard lock(mutex_);
  idle_.clear();
}

}  // namespace nibble
