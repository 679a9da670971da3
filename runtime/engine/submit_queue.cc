#include "runtime/engine/submit_queue.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "runtime/engine/served_model.h"

namespace nibble {

absl::Time MonotonicNow() {
  static const absl::Time wall_start = absl::Now();
  static const auto steady_start = std::chrono::steady_clock::now();
  return wall_start + absl::FromChrono(std::chrono::steady_clock::now() - steady_start);
}

EngineClock EngineClock::System() {
  return {.monotonic = MonotonicNow, .wall = [] { return absl::Now(); }};
}

// The last door before the device: what it would refuse must not get that far, whoever asks.
absl::Status SubmitQueue::CheckNumbers(const Request& request) const {
  const auto invalid = [](absl::string_view what) {
    return WithReason(absl::InvalidArgumentError(what), "INVALID_FIELD");
  };
  const SamplingParams& sampling = request.sampling;
  const auto check = [&](const char* name, float value, float low, float high) {
    // Written so that NaN fails.
    if (value >= low && value <= high) return absl::OkStatus();
    return invalid(absl::StrCat(name, " ", value, " is not in [", low, ", ", high, "]"));
  };
  RETURN_IF_ERROR(check("temperature", sampling.temperature, 0.0f, 100.0f));
  RETURN_IF_ERROR(check("top_p", sampling.top_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(check("min_p", sampling.min_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(check("repetition_penalty", sampling.repetition_penalty, 1e-3f, 1e3f));
  RETURN_IF_ERROR(check("presence_penalty", sampling.presence_penalty, -1e3f, 1e3f));
  RETURN_IF_ERROR(check("frequency_penalty", sampling.frequency_penalty, -1e3f, 1e3f));
  if (sampling.top_k < 0) return invalid(absl::StrCat("top_k ", sampling.top_k, " is negative"));
  const auto is_token = [&](std::int32_t id) { return id >= 0 && id < limits_.vocab; };
  for (const auto& [id, bias] : request.logit_bias) {
    if (!is_token(id)) {
      return invalid(absl::StrCat("logit_bias names token ", id, ", which is not in [0, ",
                                  limits_.vocab, ")"));
    }
    // -inf bans a token.
    if (std::isnan(bias) || bias == INFINITY)
      return invalid(absl::StrCat("logit_bias of token ", id, " is ", bias));
  }
  for (std::int32_t id : request.stopping.stop_token_ids) {
    if (!is_token(id)) {
      return invalid(
          absl::StrCat("stop_token_ids has ", id, ", which is not in [0, ", limits_.vocab, ")"));
    }
  }
  for (const std::string& stop : request.stopping.stop_strings) {
    if (stop.empty()) return invalid("stop_strings has an empty string");
  }
  for (const auto& top : {request.output.top_logprobs, request.output.prompt_top_logprobs}) {
    if (top.value_or(0) > kMaxTopLogprobs) {
      return invalid(absl::StrCat("top_logprobs ", *top, " is more than ", kMaxTopLogprobs));
    }
  }
  return absl::OkStatus();
}

// What cannot run even on an idle engine.
absl::Status SubmitQueue::CheckFits(const Request& request) const {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  const bool generates = request.stopping.max_tokens.value_or(1) > 0;
  if (prompt == 0) {
    return WithReason(absl::InvalidArgumentError("the prompt has no tokens"), "INVALID_FIELD");
  }
  if (prompt + (generates ? 1 : 0) > limits_.context) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat(
            "the prompt has ", prompt, " tokens, which ", generates ? "with one to generate " : "",
            "do not fit the context of ", limits_.context, " tokens of model '", model_,
            "'; shorten it or set truncate_prompt_tokens")),
        "CONTEXT_EXCEEDED");
  }
  RETURN_IF_ERROR(CheckNumbers(request));
  for (std::int32_t token : request.prompt) {
    if (token < 0 || token >= limits_.vocab) {
      return WithReason(absl::InvalidArgumentError(absl::StrCat(
                            "prompt token id ", token, " is not in [0, ", limits_.vocab,
                            "), the vocabulary of model '", model_, "'")),
                        "INVALID_FIELD");
    }
  }
  if (request.output.num_outputs < 1 || request.output.num_outputs > 128) {
    return WithReason(absl::InvalidArgumentError(absl::StrCat(
                          "num_outputs ", request.output.num_outputs, " is not in [1, 128]")),
                      "INVALID_FIELD");
  }
  // The last token of an answer is never fed back, so it needs no place. Without max_tokens the
  // answer may end where the pool does (CONTEXT); one that was asked for must fit.
  const std::int64_t asked =
      std::min<std::int64_t>(request.stopping.max_tokens.value_or(1), limits_.context - prompt);
  const std::int64_t needed = prompt + std::max<std::int64_t>(asked - 1, 0);
  if (needed > limits_.kv_tokens) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "the prompt of ", prompt, " tokens and ", asked, " to generate need ", needed,
            " tokens of KV memory; the whole pool of model '", model_, "' holds ",
            limits_.kv_tokens, ". Lower max_tokens, or give the server more --kv-memory")),
        "EXCEEDS_KV_POOL");
  }
  return absl::OkStatus();
}

absl::Status SubmitQueue::Push(Request request, std::shared_ptr<TokenStream> stream) {
  RETURN_IF_ERROR(CheckFits(request));
  const absl::Time now = clock_.monotonic();
  absl::Time deadline = request.deadline;
  if (deadline != absl::InfiniteFuture()) deadline = now + (deadline - clock_.wall());
  {
    std::lock_guard lock(mutex_);
    if (refusal_.has_value()) return *refusal_;
    if (waiting_ >= limits_.max_waiting) {
      return WithRetry(WithReason(absl::ResourceExhaustedError(absl::StrCat(
                                      "the queue of model '", model_, "' is full: ", waiting_,
                                      " requests wait, --max-queue is ", limits_.max_waiting)),
                                  "QUEUE_FULL"),
                       std::clamp(recent_wait_, absl::Milliseconds(100), absl::Seconds(30)));
    }
    ++waiting_;
    metrics_->ChangeWaiting(1);
    stream->SetCancelHook([queue = weak_from_this()] {
      if (std::shared_ptr<SubmitQueue> alive = queue.lock()) alive->Notify();
    });
    submissions_.push_back({std::move(request), std::move(stream), now, deadline});
  }
  changed_.notify_one();
  return absl::OkStatus();
}

void SubmitQueue::Close(absl::Status refusal) {
  {
    std::lock_guard lock(mutex_);
    if (!refusal_.has_value()) refusal_ = std::move(refusal);
    notice_ = true;
  }
  changed_.notify_one();
}

bool SubmitQueue::closed() const {
  std::lock_guard lock(mutex_);
  return refusal_.has_value();
}

void SubmitQueue::Notify() {
  {
    std::lock_guard lock(mutex_);
    notice_ = true;
  }
  changed_.notify_one();
}

SubmitQueue::Taken SubmitQueue::Take() {
  std::lock_guard lock(mutex_);
  return {std::exchange(submissions_, {}), refusal_.has_value()};
}

bool SubmitQueue::TakeNotice() {
  std::lock_guard lock(mutex_);
  return std::exchange(notice_, false);
}

void SubmitQueue::Wait(absl::Time until) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return notice_ || !submissions_.empty(); };
  if (until == absl::InfiniteFuture()) {
    changed_.wait(lock, ready);
    return;
  }
  const absl::Duration left = until - clock_.monotonic();
  if (left > absl::ZeroDuration()) {
    changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(left, absl::Hours(1))), ready);
  }
}

void SubmitQueue::Leave(absl::Duration waited) {
  std::lock_guard lock(mutex_);
  --waiting_;
  recent_wait_ = waited;
}

}  // namespace nibble
