// How much of each device the loaded models take, by their plans, without what they share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace nibble {

// Any thread. A lease outlives the memory it stands for: destroy the model first.
class MemoryLedger : public std::enable_shared_from_this<MemoryLedger> {
 public:
  using Lease = std::shared_ptr<void>;

  // Bytes of `device` that are taken.
  std::int64_t Held(const std::string& device) const {
    std::lock_guard lock(mutex_);
    const auto found = held_.find(device);
    return found == held_.end() ? 0 : found->second;
  }

  // Takes `bytes` until the last copy of the lease is gone.
  Lease Take(const std::string& device, std::int64_t bytes) {
    std::lock_guard lock(mutex_);
    held_[device] += bytes;
    return Lease(nullptr, [ledger = shared_from_this(), device, bytes](void*) {
      std::lock_guard release(ledger->mutex_);
      ledger->held_[device] -= bytes;
    });
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::int64_t> held_;
};

}  // namespace nibble
