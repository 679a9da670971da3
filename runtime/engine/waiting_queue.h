// Who is admitted next.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/engine/sequence.h"

namespace nibble {

// Requests that have an output waiting for a slot. Order: higher priority; then those that already
// ran (preempted, or with outputs still to come); then the tenant that was served the fewest
// tokens; then arrival. Every eighth admission goes to the oldest request whatever its priority, so
// nobody waits for ever. One thread.
class WaitingQueue {
 public:
  static constexpr int kTurnOfTheOldest = 8;

  void Add(RequestState* request);
  void Remove(RequestState* request);
  bool empty() const { return requests_.empty(); }
  std::size_t size() const { return requests_.size(); }
  const std::vector<RequestState*>& requests() const { return requests_; }

  // The request to be tried; it keeps its turn until Admitted or Remove is called.
  RequestState* Next() const;
  void Admitted() { ++admissions_; }

  // Tenants that come back, or are new, start level with the least served of those that are here:
  // nobody saves up.
  void Arrive(const std::string& tenant);
  void Leave(const std::string& tenant);
  void Charge(const std::string& tenant, std::int64_t tokens);

 private:
  struct Share {
    std::int64_t served = 0;
    std::int32_t requests = 0;  // of this tenant here, waiting or running
  };
  bool Before(const RequestState& a, const RequestState& b) const;

  static constexpr std::size_t kMaxIdleTenants = 4096;

  std::vector<RequestState*> requests_;
  std::map<std::string, Share> shares_;
  std::uint64_t admissions_ = 0;
};

}  // namespace nibble
