// One model, one thread: launches steps, collects them, and answers.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/cache/block_pool.h"
#include "runtime/device/backend.h"
#include "runtime/engine/answer.h"
#include "runtime/engine/scheduler.h"
#include "runtime/engine/step_builder.h"
#include "runtime/engine/submit_queue.h"
#include "runtime/metrics.h"

namespace nibble {

struct EngineOptions {
  StepLimits limits;
  std::int32_t num_pages = 0;
  std::int32_t page_tokens = 64;
  std::int32_t vocab = 0;
  std::int32_t max_queue = 256;
  absl::Duration max_itl = absl::Milliseconds(50);
  Admission admission = Admission::kOptimistic;
  bool deterministic = false;
  // What a token's attention to one key costs, in costs of one token's products: a guess for as
  // long as no long context was seen.
  double attended_cost = 0.0;
  EngineClock clock = EngineClock::System();
  // Called on the engine's thread, the first after the streams of a lost device were ended, the
  // second when the engine is closed and has nothing left to do. Must not block.
  std::function<void(const absl::Status&)> on_device_lost;
  std::function<void()> on_done;
};

// Owned by the hub. Only its thread touches the scheduler, the pool and the sequences; the methods
// say who calls.
class Engine {
 public:
  Engine(EngineOptions options, AnswerContext context, std::unique_ptr<Runner> runner);
  // Joins: Stop or Abort first, or it waits for every request to end.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // --- the owner's thread ---
  // Runs steps of growing size, then of those that max_itl will cut prompts to, for as long as they
  // fit the time, at least one, so that the cost model knows the device; guesses the rest. Before
  // Start.
  absl::Status WarmUp(absl::Duration at_most,
                      const std::function<bool(int done, int total)>& progress);
  void Start();
  void Join();

  // --- any thread ---
  const std::shared_ptr<SubmitQueue>& queue() const { return queue_; }
  // Refuses new requests with `refusal`; the others are finished.
  void Close(absl::Status refusal) { queue_->Close(std::move(refusal)); }
  // Ends every stream with `status`, within one step. Closes too.
  void Abort(absl::Status status);
  bool done() const { return done_.load(); }
  // Whether the loop turned within `limit`, or has nothing to do.
  bool Alive(absl::Duration limit) const;

  // --- the engine's thread; tests that have not called Start ---
  // One turn of the loop. False: nothing to do until the queue or the clock brings something.
  bool Turn();
  bool finished() const { return finishing_ && active_.empty() && in_flight_.empty(); }
  absl::Time next_expiry() const { return next_expiry_; }
  Scheduler& scheduler() { return scheduler_; }
  BlockPool& pool() { return pool_; }

 private:
  struct Active {
    Active(const AnswerContext* context, std::shared_ptr<TokenStream> stream, std::uint64_t id,
           Submission&& from, std::int32_t max_context, std::int64_t kv_tokens)
        : state(id, std::move(from.request), from.submitted, from.deadline, max_context, kv_tokens,
                context->eos_ids),
          answer(context, &state, std::move(stream)) {}
    RequestState state;
    Answer answer;
    bool left_queue = false;
  };

  void Run() noexcept;
  void Beat();
  absl::Time Now() const { return queue_->clock().monotonic(); }

  void TakeSubmissions();
  void EndCancelled();
  void EndExpired(absl::Time now);
  void ExpireTime(Active& active, absl::Time now);
  void StartAdmitted(absl::Time now);
  void LeaveQueue(Active& active, absl::Time now);
  void EndRequest(Active& active, absl::Status status, absl::Time now);
  void EndAll(const absl::Status& status);
  void Fail(const absl::Status& error);

  // Its seconds.
  absl::StatusOr<double> WarmUpStep(std::uint64_t id, Phase phase, std::int32_t rows,
                                    std::int32_t count);
  std::vector<std::int32_t> SizesCutByTime(std::int32_t most_tokens);
  void PresumeLongContexts(std::int32_t tokens);
  absl::Status LaunchStep(Batch batch);
  absl::Status CollectStep();
  void Handle(const Outcome& outcome, absl::Time now);
  void PublishGauges();
  Active& ActiveOf(const Sequence& sequence) { return *active_.at(sequence.request->id); }

  const EngineOptions options_;
  const AnswerContext context_;
  const std::unique_ptr<Runner> runner_;
  const std::shared_ptr<SubmitQueue> queue_;
  BlockPool pool_;  // outlives the requests, whose lists return to it
  Scheduler scheduler_;
  StepBuilder builder_;

  std::map<std::uint64_t, std::unique_ptr<Active>>
      active_;                                    // by RequestState::id, so in order of arrival
  std::vector<std::unique_ptr<Active>> leaving_;  // ended; launched steps may still use them
  std::deque<Batch> in_flight_;
  std::uint64_t last_id_ = 0;
  absl::Time next_expiry_ = absl::InfiniteFuture();
  bool finishing_ = false;  // the queue is closed, and was empty when it was
  bool failed_ = false;

  // What the gauges hold of this engine.
  std::int64_t shown_waiting_ = 0, shown_running_ = 0, shown_used_ = 0, shown_cached_ = 0,
               shown_free_ = 0;
  std::int64_t shown_preemptions_ = 0, shown_recomputed_ = 0, shown_queries_ = 0, shown_hits_ = 0;

  std::mutex abort_mutex_;  // guards abort_
  std::optional<absl::Status> abort_;
  std::atomic<bool> abort_asked_{false};
  std::atomic<bool> done_{false};
  std::atomic<bool> idle_{true};
  std::atomic<std::int64_t> last_beat_ns_{0};  // of the monotonic clock
  std::thread thread_;
};

}  // namespace nibble
