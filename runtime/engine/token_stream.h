// Carries the events of one request from the engine thread to whoever reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace nibble {

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0.0f;
  std::string bytes;
  struct Top {
    std::int32_t token = 0;
    float logprob = 0.0f;
    std::string bytes;
  };
  std::vector<Top> top;
};

enum class FinishReason : std::uint8_t { kStop, kLength, kContext, kTimeLimit };

struct StartedEvent {
  std::string model, model_revision;
  std::int32_t prompt_tokens = 0, cached_prompt_tokens = 0;
};
struct PromptEvent {
  std::int32_t offset = 0;
  std::vector<std::int32_t> token_ids;
  std::vector<TokenLogprob>
      logprobs;  // the first prompt token has none: logprob NaN-free, token only
};
struct ChunkEvent {
  std::uint32_t output_index = 0;
  std::string text;
  std::vector<std::int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;
};
struct Timing {
  absl::Duration queue, prefill, decode, time_to_first_token;
};
struct FinishedEvent {
  std::uint32_t output_index = 0;
  FinishReason reason = FinishReason::kStop;
  std::optional<std::string> stop_string;
  std::optional<std::int32_t> stop_token_id, eos_token_id;
  std::int32_t completion_tokens = 0, recomputed_tokens = 0;
  Timing timing;
};
using StreamEvent = std::variant<StartedEvent, PromptEvent, ChunkEvent, FinishedEvent>;

// Told, outside any lock and from any thread, that the stream has something new. Must not block.
class StreamWaker {
 public:
  virtual ~StreamWaker() = default;
  virtual void Wake() = 0;
};

// Bounded in bytes; shared by the engine's sequences and one reader. Room for StartedEvent,
// FinishedEvents and the end is reserved, so only chunks and prompt pieces can overflow. Any
// thread.
class TokenStream {
 public:
  explicit TokenStream(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  // --- the engine's side ---
  // False: the reader is too slow and the chunk does not fit; the caller ends the request with
  // ABORTED.
  bool Push(StreamEvent event);
  // For what the engine held whole anyway (prompt ids, a final_only answer): handing it over costs
  // no memory, so the bound does not apply. No event is larger than kMaxEventBytes; the caller
  // cuts.
  void PushHeld(StreamEvent event);
  // The end: OK after every output has finished, else why not. The first call wins; later ones do
  // nothing.
  void Close(absl::Status status);
  bool cancelled() const;

  // --- the reader's side ---
  // Set once, before Submit.
  void SetWaker(std::weak_ptr<StreamWaker> waker);
  // The next event, if any. After the last event of a closed stream: nothing, and `end` holds the
  // status.
  std::optional<StreamEvent> Pop(std::optional<absl::Status>* end);
  // The reader is gone: the engine ends the request within one step. Calls the hook the engine set.
  void Cancel();

  // The engine's hook for Cancel: wakes its thread.
  void SetCancelHook(std::function<void()> hook);

  // About what a response carries on the wire and what an event holds in memory; well under the 1
  // MiB of a message.
  static constexpr std::size_t kMaxEventBytes = 256 << 10;

 private:
  bool Append(StreamEvent event, bool bounded);
  void Wake();

  const std::size_t max_bytes_;
  mutable std::mutex mutex_;  // guards everything below
  std::deque<StreamEvent> events_;
  std::size_t bytes_ = 0;
  std::optional<absl::Status> end_;
  bool cancelled_ = false;
  std::weak_ptr<StreamWaker> waker_;
  std::function<void()> cancel_hook_;
};

// What an event weighs against the bound.
std::size_t EventBytes(const StreamEvent& event);
std::size_t EventBytes(const TokenLogprob& logprob);

}  // namespace nibble
