// Decides what each step computes. Pure logic: no device, no threads, time is an argument.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/cache/block_pool.h"
#include "runtime/device/backend.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/batch.h"
#include "runtime/engine/cost_model.h"
#include "runtime/engine/sequence.h"
#include "runtime/engine/waiting_queue.h"

namespace nibble {

struct SchedulerOptions {
  StepLimits limits;
  absl::Duration max_itl = absl::Milliseconds(50);
  Admission admission = Admission::kOptimistic;
  std::int32_t max_preemptions =
      2;  // of one output; then it waits until all it can need is free, and keeps that
  std::int32_t fixed_chunk =
      0;  // > 0: prefill always in chunks that end at its multiples (--deterministic)
};

// What a collected step means for one sequence that is still wanted. Spans and pointers are into
// the StepResult.
struct Outcome {
  Sequence* sequence = nullptr;
  std::int32_t first_scored = 0;
  std::span<const RowResult> scored;   // of the prompt tokens first_scored + 1, ...
  const RowResult* sampled = nullptr;  // the next token of the output
  bool prompt_done = false;            // the last prompt token was computed
  bool bad_logits = false;             // nothing else is of use; the sequence must be ended
};

// With the engine, at depth 1:   Next -> Launch | Next -> Launch, Commit of the first | ...
// Next may schedule a sequence whose last token Commit has not brought yet. One thread. Requests
// are the caller's and must outlive their idle().
class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, BlockPool* pool);

  void Add(RequestState* request);
  // Ends an output: it leaves every queue; blocks and slot go back when no launched step uses them,
  // at once if so.
  void End(Sequence* sequence);
  // Ends what is left of a request. Call once for every Add.
  void Remove(RequestState* request);

  // The next step, or nothing when there is nothing that could run before some launched step is
  // collected or some request arrives.
  std::optional<Batch> Next(absl::Time now);
  // Requests whose first output got its slot since the last call, and those whose deadline leaves
  // no time for their prompt (not started; the caller ends them).
  std::vector<RequestState*> TakeStarted() { return std::exchange(started_, {}); }
  std::vector<RequestState*> TakeRefused() { return std::exchange(refused_, {}); }

  // Records the oldest launched step.
  std::vector<Outcome> Commit(const Batch& batch, const StepResult& result);

  // Step ids up to `id` were used for something else.
  void SkipSteps(std::uint64_t id) { last_step_ = std::max(last_step_, id); }

  CostModel& cost() { return cost_; }
  std::int32_t running_requests() const { return running_requests_; }
  std::size_t running() const { return running_.size(); }
  std::size_t waiting() const { return waiting_.size(); }
  std::int64_t preemptions() const { return preemptions_; }
  std::int64_t recomputed_tokens() const { return recomputed_tokens_; }
  std::int64_t prefix_queries() const { return prefix_queries_; }
  std::int64_t prefix_hits() const { return prefix_hits_; }

  // The pool's integrity, and that slots and states agree. For tests.
  absl::Status CheckIntegrity() const;

 private:
  enum class Admit : std::uint8_t { kDone, kBlocked, kRefused };

  void AdmitWaiting(absl::Time now);
  Admit TryAdmit(Sequence* sequence, absl::Time now);
  BlockList MatchPrefix(const Sequence& sequence, std::span<const std::int32_t> tokens) const;
  bool LikelyFits(const Sequence& sequence, std::int32_t blocks_needed) const;
  std::int64_t LikelyKvTokens(const Sequence& sequence) const;
  double PrefillSeconds(std::int32_t begin, std::int32_t end) const;

  bool GrowDecode(Batch& batch);
  bool EnsureBlock(Sequence* sequence);
  Sequence* Victim() const;
  void Preempt(Sequence* sequence);
  void GiveBack(Sequence* sequence);

  bool GrowPrefill(Batch& batch);
  double PrefillBudget() const;

  bool CanDecode(const Sequence& sequence) const;

  const SchedulerOptions options_;
  const std::int32_t num_slots_;  // every running sequence fits one decode step
  BlockPool* const pool_;
  CostModel cost_;
  WaitingQueue waiting_;
  std::vector<Sequence*> running_;  // the most senior first: priority, then arrival, then output
  std::int32_t leaving_ = 0;  // sequences that give blocks back when their last step is collected
  std::vector<std::int32_t> free_slots_;
  std::vector<RequestState*> started_, refused_;
  std::uint64_t last_step_ = 0;
  // Of the last step if it was prefill, and of all that those who decode have waited for; else 0.
  double last_prefill_seconds_ = 0.0, gap_seconds_ = 0.0;
  double mean_outputs_ = 128.0;  // tokens of outputs that ended, decaying mean

  // The head of the queue did not fit while this many blocks were to be had: not tried again before
  // there are more.
  const Sequence* blocked_ = nullptr;
  std::int32_t blocked_available_ = 0;
  std::size_t blocked_running_ = 0;

  std::int32_t running_requests_ = 0;
  std::int64_t preemptions_ = 0, recomputed_tokens_ = 0, prefix_queries_ = 0, prefix_hits_ = 0;
};

}  // namespace nibble
