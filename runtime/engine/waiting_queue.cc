#include "runtime/engine/waiting_queue.h"

#include <algorithm>
#include <limits>

namespace nibble {

void WaitingQueue::Add(RequestState* request) {
  if (request->waiting) return;
  request->waiting = true;
  requests_.push_back(request);
}

void WaitingQueue::Remove(RequestState* request) {
  if (!request->waiting) return;
  request->waiting = false;
  std::erase(requests_, request);
}

bool WaitingQueue::Before(const RequestState& a, const RequestState& b) const {
  if (a.request.priority != b.request.priority) return a.request.priority > b.request.priority;
  if (a.started != b.started) return a.started;
  if (!a.started) {
    const auto served = [&](const RequestState& r) {
      const auto share = shares_.find(r.request.tenant);
      return share == shares_.end() ? std::int64_t{0} : share->second.served;
    };
    const std::int64_t of_a = served(a), of_b = served(b);
    if (of_a != of_b) return of_a < of_b;
  }
  return a.id < b.id;
}

RequestState* WaitingQueue::Next() const {
  if (requests_.empty()) return nullptr;
  if (admissions_ % kTurnOfTheOldest == kTurnOfTheOldest - 1) {
    return *std::min_element(
        requests_.begin(), requests_.end(),
        [](const RequestState* a, const RequestState* b) { return a->id < b->id; });
  }
  return *std::min_element(
      requests_.begin(), requests_.end(),
      [&](const RequestState* a, const RequestState* b) { return Before(*a, *b); });
}

void WaitingQueue::Arrive(const std::string& tenant) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (const auto& [name, share] : shares_) {
    if (share.requests > 0) least = std::min(least, share.served);
  }
  Share& share = shares_[tenant];
  if (share.requests++ == 0 && least != std::numeric_limits<std::int64_t>::max()) {
    share.served = std::max(share.served, least);
  }
}

void WaitingQueue::Leave(const std::string& tenant) {
  --shares_[tenant].requests;
  if (shares_.size() > kMaxIdleTenants) {
    std::erase_if(shares_, [](const auto& entry) { return entry.second.requests == 0; });
  }
}

void WaitingQueue::Charge(const std::string& tenant, std::int64_t tokens) {
  shares_[tenant].served += tokens;
}

}  // namespace nibble
