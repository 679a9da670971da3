#include "runtime/engine/token_stream.h"

#include <utility>

namespace nibble {
namespace {

std::size_t Bytes(const std::vector<TokenLogprob>& logprobs) {
  std::size_t bytes = 0;
  for (const TokenLogprob& logprob : logprobs) bytes += EventBytes(logprob);
  return bytes;
}

}  // namespace

std::size_t EventBytes(const TokenLogprob& logprob) {
  std::size_t bytes = 24 + logprob.bytes.size();
  for (const TokenLogprob::Top& top : logprob.top) bytes += 24 + top.bytes.size();
  return bytes;
}

std::size_t EventBytes(const StreamEvent& event) {
  constexpr std::size_t kOverhead = 64;
  if (const auto* chunk = std::get_if<ChunkEvent>(&event)) {
    return kOverhead + chunk->text.size() + 5 * chunk->token_ids.size() + Bytes(chunk->logprobs);
  }
  if (const auto* prompt = std::get_if<PromptEvent>(&event)) {
    return kOverhead + 5 * prompt->token_ids.size() + Bytes(prompt->logprobs);
  }
  return 0;  // started and finished: few, and room for them is reserved
}

bool TokenStream::Append(StreamEvent event, bool bounded) {
  const std::size_t bytes = EventBytes(event);
  {
    std::lock_guard lock(mutex_);
    if (end_.has_value()) return true;  // late: nobody will read it
    if (bounded && bytes > 0 && bytes_ + bytes > max_bytes_) return false;
    bytes_ += bytes;
    events_.push_back(std::move(event));
  }
  Wake();
  return true;
}

bool TokenStream::Push(StreamEvent event) { return Append(std::move(event), /*bounded=*/true); }

void TokenStream::PushHeld(StreamEvent event) { Append(std::move(event), /*bounded=*/false); }

void TokenStream::Close(absl::Status status) {
  std::function<void()>
      hook;  // destroyed outside the lock: it may own the last reference to a queue
  {
    std::lock_guard lock(mutex_);
    if (end_.has_value()) return;
    end_ = std::move(status);
    hook.swap(cancel_hook_);
  }
  Wake();
}

bool TokenStream::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

void TokenStream::SetWaker(std::weak_ptr<StreamWaker> waker) {
  std::lock_guard lock(mutex_);
  waker_ = std::move(waker);
}

std::optional<StreamEvent> TokenStream::Pop(std::optional<absl::Status>* end) {
  std::lock_guard lock(mutex_);
  if (events_.empty()) {
    *end = end_;
    return std::nullopt;
  }
  StreamEvent event = std::move(events_.front());
  events_.pop_front();
  bytes_ -= EventBytes(event);
  return event;
}

void TokenStream::Cancel() {
  std::function<void()> hook;
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return;
    cancelled_ = true;
    hook = cancel_hook_;
  }
  if (hook) hook();
}

void TokenStream::SetCancelHook(std::function<void()> hook) {
  std::lock_guard lock(mutex_);
  cancel_hook_ = std::move(hook);
}

void TokenStream::Wake() {
  std::shared_ptr<StreamWaker> waker;
  {
    std::lock_guard lock(mutex_);
    waker = waker_.lock();
  }
  if (waker != nullptr) waker->Wake();
}

}  // namespace nibble
