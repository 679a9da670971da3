#include "runtime/engine/reaper.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nibble {

Reaper::Reaper() : thread_([this] { Run(); }) {}

Reaper::~Reaper() {
  Hasten(absl::InfinitePast());
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Reaper::Retire(LoadedModel model, absl::Time deadline, std::function<void()> on_gone) {
  {
    std::lock_guard lock(mutex_);
    retired_.push_back({std::move(model), deadline, std::move(on_gone), false});
    woken_ = true;
  }
  changed_.notify_all();
}

void Reaper::Wake() {
  {
    std::lock_guard lock(mutex_);
    woken_ = true;
  }
  changed_.notify_all();
}

void Reaper::Hasten(absl::Time deadline) {
  {
    std::lock_guard lock(mutex_);
    for (Retired& each : retired_) each.deadline = std::min(each.deadline, deadline);
    woken_ = true;
  }
  changed_.notify_all();
}

void Reaper::WaitUntilEmpty() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return retired_.empty() && ending_ == 0; });
}

bool Reaper::Alive(absl::Duration limit) const {
  std::lock_guard lock(mutex_);
  return std::all_of(retired_.begin(), retired_.end(),
                     [&](const Retired& each) { return each.model.engine->Alive(limit); });
}

void Reaper::Run() noexcept {
  std::unique_lock lock(mutex_);
  while (!stop_ || !retired_.empty()) {
    woken_ = false;
    const absl::Time now = MonotonicNow();
    absl::Time next = absl::InfiniteFuture();
    std::vector<Retired> done;
    for (auto each = retired_.begin(); each != retired_.end();) {
      Engine& engine = *each->model.engine;
      if (engine.done()) {
        done.push_back(std::move(*each));
        each = retired_.erase(each);
        continue;
      }
      if (!each->aborted && now >= each->deadline) {
        each->aborted = true;
        engine.Abort(WithRetry(
            WithReason(absl::UnavailableError("the model was unloaded before the answer ended"),
                       "DRAINING"),
            absl::Seconds(1)));
      }
      if (!each->aborted) next = std::min(next, each->deadline);
      ++each;
    }
    if (!done.empty()) {
      ending_ += static_cast<int>(done.size());
      const int ended = static_cast<int>(done.size());
      lock.unlock();
      for (Retired& each : done) {
        each.model.engine->Join();
        {
          const LoadedModel gone = std::move(each.model);
        }  // the engine first, its device last
        if (each.on_gone) each.on_gone();
      }
      done.clear();
      lock.lock();
      ending_ -= ended;
      changed_.notify_all();
      continue;
    }
    const auto woken = [&] { return woken_ || (stop_ && retired_.empty()); };
    if (next == absl::InfiniteFuture()) {
      changed_.wait(lock, woken);
    } else {
      changed_.wait_for(
          lock,
          absl::ToChronoNanoseconds(std::clamp(next - now, absl::ZeroDuration(), absl::Hours(1))),
          woken);
    }
  }
}

}  // namespace nibble
