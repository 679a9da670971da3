#include "runtime/engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/engine/served_model.h"

namespace nibble {
namespace {

SchedulerOptions SchedulerOptionsOf(const EngineOptions& options) {
  SchedulerOptions scheduler{
      .limits = options.limits, .max_itl = options.max_itl, .admission = options.admission};
  if (options.deterministic) {
    // Chunks that end at fixed places and no recompute: what a token is computed with depends on
    // its prompt alone.
    const std::int32_t pages =
        std::max(std::min(options.limits.max_tokens, 256) / options.page_tokens, 1);
    scheduler.fixed_chunk = std::min(pages * options.page_tokens, options.limits.max_tokens);
    scheduler.admission = Admission::kReserved;
  }
  return scheduler;
}

absl::Status DeadlineStatus(absl::string_view what) {
  return WithReason(absl::DeadlineExceededError(what), "DEADLINE");
}

// What a client neither asked for nor sees coming.
void LogUnlessExpected(const std::string& model, const std::string& request,
                       const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) return;
  LogWarning("an answer was cut short", {{"model", model},
                                         {"request", request},
                                         {"reason", ReasonOf(status)},
                                         {"why", std::string(status.message())}});
}

}  // namespace

Engine::Engine(EngineOptions options, AnswerContext context, std::unique_ptr<Runner> runner)
    : options_(std::move(options)),
      context_(std::move(context)),
      runner_(std::move(runner)),
      queue_(std::make_shared<SubmitQueue>(
          context_.model,
          SubmitQueue::Limits{.max_waiting = options_.max_queue,
                              .context = options_.limits.max_context,
                              .kv_tokens = std::int64_t{options_.num_pages} * options_.page_tokens,
                              .vocab = options_.vocab},
          options_.clock, context_.metrics)),
      pool_(options_.num_pages, options_.page_tokens),
      scheduler_(SchedulerOptionsOf(options_), &pool_),
      builder_(options_.page_tokens) {
  context_.metrics->SetKvShape(options_.page_tokens);
  context_.metrics->SetLimits(options_.max_queue, options_.limits.max_slots);
  PublishGauges();
  Beat();
}

Engine::~Engine() {
  if (thread_.joinable()) {
    Close(absl::UnavailableError("the engine is gone"));
    thread_.join();
  }
  active_.clear();
  leaving_.clear();
  context_.metrics->ChangeWaiting(static_cast<int>(-shown_waiting_));
  context_.metrics->ChangeRunning(static_cast<int>(-shown_running_));
  context_.metrics->ChangeKvBlocks(-shown_used_, -shown_cached_, -shown_free_);
}

void Engine::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Engine::Join() {
  if (thread_.joinable()) thread_.join();
}

void Engine::Abort(absl::Status status) {
  {
    std::lock_guard lock(abort_mutex_);
    if (!abort_.has_value()) abort_ = status;
  }
  abort_asked_.store(true);
  queue_->Close(std::move(status));
  queue_->Notify();
}

void Engine::Beat() { last_beat_ns_.store(absl::ToUnixNanos(Now())); }

bool Engine::Alive(absl::Duration limit) const {
  if (idle_.load() || done_.load()) return true;
  return Now() - absl::FromUnixNanos(last_beat_ns_.load()) <= limit;
}

void Engine::Run() noexcept {
  pthread_setname_np(pthread_self(), "nibble-engine");  // as top -H and gdb show it
  idle_.store(false);
  while (!finished()) {
    Beat();
    if (Turn() || finished()) continue;
    idle_.store(true);
    queue_->Wait(next_expiry_);
    Beat();
    idle_.store(false);
  }
  done_.store(true);
  if (options_.on_done) options_.on_done();
}

bool Engine::Turn() {
  std::erase_if(leaving_, [](const auto& active) { return active->state.idle(); });
  const bool noticed = queue_->TakeNotice();
  TakeSubmissions();
  if (abort_asked_.load()) {
    absl::Status status;
    {
      std::lock_guard lock(abort_mutex_);
      status = *abort_;
    }
    EndAll(status);
  }
  if (noticed) EndCancelled();
  const absl::Time now = Now();
  if (now >= next_expiry_) EndExpired(now);
  if (failed_) return false;

  std::optional<Batch> batch = scheduler_.Next(now);
  StartAdmitted(now);
  const bool launched = batch.has_value();
  absl::Status status;
  if (launched) status = LaunchStep(*std::move(batch));
  bool collected = false;
  while (status.ok() && !in_flight_.empty() &&
         (static_cast<int>(in_flight_.size()) > runner_->depth() || (!launched && !collected))) {
    status = CollectStep();
    collected = true;
  }
  if (!status.ok()) Fail(status);
  PublishGauges();
  if (!launched && !collected && !failed_ && scheduler_.running() == 0 &&
      scheduler_.waiting() > 0) {
    // Impossible: with nothing running the first in the queue fits. Better an error than a stream
    // that hangs.
    LogError("the scheduler is stuck", {{"model", context_.model}});
    EndAll(WithReason(absl::InternalError("the scheduler is stuck"), "INTERNAL"));
  }
  return launched || collected;
}

// --- the life of a request ---

void Engine::TakeSubmissions() {
  SubmitQueue::Taken taken = queue_->Take();
  finishing_ = taken.closed;
  const std::int64_t kv_tokens = std::int64_t{options_.num_pages} * options_.page_tokens;
  for (Submission& submission : taken.submissions) {
    ++shown_waiting_;  // Push counted it
    const std::uint64_t id = ++last_id_;
    std::shared_ptr<TokenStream> stream = std::move(submission.stream);
    auto made = std::make_unique<Active>(&context_, std::move(stream), id, std::move(submission),
                                         options_.limits.max_context, kv_tokens);
    Active& active = *active_.emplace(id, std::move(made)).first->second;
    scheduler_.Add(&active.state);
    next_expiry_ = std::min({next_expiry_, active.state.deadline, active.state.time_limit});
    if (failed_) {
      EndRequest(
          active,
          WithRetry(WithReason(absl::UnavailableError("the device was lost"), "DEVICE_FAULT"),
                    absl::Seconds(5)),
          Now());
    } else if (active.answer.cancelled()) {
      EndRequest(active, WithReason(absl::CancelledError("the client cancelled"), "CANCELLED"),
                 Now());
    }
  }
}

void Engine::EndCancelled() {
  const absl::Time now = Now();
  for (auto at = active_.begin(); at != active_.end();) {
    Active& active = *(at++)->second;
    if (!active.answer.cancelled()) continue;
    // A client whose deadline passes cancels too, and sees the deadline.
    EndRequest(active,
               now >= active.state.deadline
                   ? DeadlineStatus("the deadline passed")
                   : WithReason(absl::CancelledError("the client cancelled"), "CANCELLED"),
               now);
  }
}

void Engine::EndExpired(absl::Time now) {
  next_expiry_ = absl::InfiniteFuture();
  for (auto at = active_.begin(); at != active_.end();) {
    Active& active = *(at++)->second;
    if (now >= active.state.deadline) {
      EndRequest(
          active,
          DeadlineStatus(active.state.started ? "the deadline passed while the answer was generated"
                                              : "the deadline passed in the queue"),
          now);
    } else if (now >= active.state.time_limit) {
      ExpireTime(active, now);
    } else {
      next_expiry_ = std::min({next_expiry_, active.state.deadline, active.state.time_limit});
    }
  }
}

// max_duration is over: an orderly end of what there is.
void Engine::ExpireTime(Active& active, absl::Time now) {
  if (!active.state.started) {
    active.state.started = true;
    active.state.started_at = now;
    LeaveQueue(active, now);
    active.answer.Start();
  }
  for (const auto& sequence : active.state.sequences) {
    if (active.answer.EndOutput(*sequence, FinishReason::kTimeLimit, now) ==
        Answer::Progress::kSlow) {
      EndRequest(active,
                 WithReason(absl::AbortedError("the client reads too slowly"), "SLOW_CONSUMER"),
                 now);
      return;
    }
  }
  EndRequest(active, absl::OkStatus(), now);
}

void Engine::StartAdmitted(absl::Time now) {
  for (RequestState* state : scheduler_.TakeStarted()) {
    Active& active = *active_.at(state->id);
    LeaveQueue(active, now);
    active.answer.Start();
  }
  for (RequestState* state : scheduler_.TakeRefused()) {
    Active& active = *active_.at(state->id);
    EndRequest(active,
               DeadlineStatus(absl::StrCat(
                   "the deadline is ", absl::FormatDuration(state->deadline - now),
                   " away, less than the prompt of ", state->prompt_size(), " tokens takes")),
               now);
  }
}

void Engine::LeaveQueue(Active& active, absl::Time now) {
  if (std::exchange(active.left_queue, true)) return;
  queue_->Leave(now - active.state.submitted);
}

// Gives everything back, then tells the client: who sees the end finds gauges and counters settled.
void Engine::EndRequest(Active& active, absl::Status status, absl::Time now) {
  LogUnlessExpected(context_.model, active.state.request.id, status);
  LeaveQueue(active, now);
  scheduler_.Remove(&active.state);
  leaving_.push_back(std::move(active_.extract(active.state.id).mapped()));
  PublishGauges();
  active.answer.Close(status, now);
}

void Engine::EndAll(const absl::Status& status) {
  const absl::Time now = Now();
  while (!active_.empty()) {
    Active& active = *active_.begin()->second;
    absl::Status end = status;
    if (ReasonOf(status) == "DEVICE_FAULT" && active.answer.has_output()) {
      end = WithReason(absl::InternalError(status.message()), "DEVICE_FAULT");
    }
    EndRequest(active, std::move(end), now);
  }
}

// The device is lost: nothing that was launched will be collected.
void Engine::Fail(const absl::Status& error) {
  failed_ = true;
  LogError("the device failed",
           {{"model", context_.model}, {"error", std::string(error.message())}});
  const absl::Status refusal = WithRetry(
      WithReason(absl::UnavailableError("the device failed"), "DEVICE_FAULT"), absl::Seconds(5));
  queue_->Close(refusal);
  in_flight_.clear();
  EndAll(refusal);
  leaving_.clear();
  PublishGauges();
  if (options_.on_device_lost) options_.on_device_lost(error);
}

// --- steps ---

absl::Status Engine::LaunchStep(Batch batch) {
  RETURN_IF_ERROR(runner_->Launch(builder_.Build(batch)));
  context_.metrics->StepEnded(batch.phase == Phase::kPrefill, batch.shape.tokens);
  in_flight_.push_back(std::move(batch));
  return absl::OkStatus();
}

absl::Status Engine::CollectStep() {
  ASSIGN_OR_RETURN(const StepResult result, runner_->Collect());
  const Batch batch = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (result.id != batch.id || static_cast<std::int32_t>(result.rows.size()) != batch.rows) {
    return absl::InternalError(absl::StrCat("step ", batch.id, " with ", batch.rows,
                                            " rows came back as step ", result.id, " with ",
                                            result.rows.size()));
  }
  context_.metrics->StepTook(batch.phase == Phase::kPrefill, result.seconds);
  const absl::Time now = Now();
  for (const Outcome& outcome : scheduler_.Commit(batch, result)) {
    // An earlier outcome may have ended the whole request.
    if (outcome.sequence->state != Sequence::State::kEnded) Handle(outcome, now);
  }
  return absl::OkStatus();
}

void Engine::Handle(const Outcome& outcome, absl::Time now) {
  Sequence& sequence = *outcome.sequence;
  Active& active = ActiveOf(sequence);
  if (outcome.bad_logits) {
    context_.metrics->BadLogits();
    EndRequest(active,
               WithReason(absl::InternalError(
                              "the model computed no number for this request (NaN logits)"),
                          "NAN_LOGITS"),
               now);
    return;
  }
  Answer::Progress progress = Answer::Progress::kGoesOn;
  if (!outcome.scored.empty())
    progress = active.answer.AddPrompt(outcome.first_scored, outcome.scored);
  if (progress == Answer::Progress::kGoesOn) {
    if (outcome.sampled != nullptr) {
      progress = active.answer.AddToken(sequence, *outcome.sampled, now);
    } else if (outcome.prompt_done) {
      progress = active.answer.EndOutput(sequence, FinishReason::kLength, now);
    }
  }
  if (progress == Answer::Progress::kSlow) {
    EndRequest(active,
               WithReason(absl::AbortedError("the client reads too slowly"), "SLOW_CONSUMER"), now);
  } else if (progress == Answer::Progress::kEnded) {
    if (active.answer.all_ended()) {
      EndRequest(active, absl::OkStatus(), now);
    } else {
      scheduler_.End(&sequence);
    }
  }
}

// Differences only: two revisions of a model share the series.
void Engine::PublishGauges() {
  const auto change = [](std::int64_t now, std::int64_t& shown) {
    return now - std::exchange(shown, now);
  };
  const std::int64_t running = scheduler_.running_requests();
  const auto held = static_cast<std::int64_t>(active_.size());
  ModelMetrics& metrics = *context_.metrics;
  // Requests that ended but wait for a launched step hold slots and are no longer running.
  std::int64_t gone = 0;
  for (const auto& active : leaving_) gone += active->state.slots_held > 0 ? 1 : 0;
  const std::int64_t shown = std::max<std::int64_t>(std::min(running - gone, held), 0);
  if (const std::int64_t by = change(shown, shown_running_))
    metrics.ChangeRunning(static_cast<int>(by));
  if (const std::int64_t by = change(held - shown, shown_waiting_))
    metrics.ChangeWaiting(static_cast<int>(by));
  const std::int64_t used = change(pool_.used(), shown_used_);
  const std::int64_t cached = change(pool_.cached(), shown_cached_);
  const std::int64_t free = change(pool_.free(), shown_free_);
  if (used != 0 || cached != 0 || free != 0) metrics.ChangeKvBlocks(used, cached, free);
  for (std::int64_t by = change(scheduler_.preemptions(), shown_preemptions_); by > 0; --by)
    metrics.Preempted();
  if (const std::int64_t by = change(scheduler_.recomputed_tokens(), shown_recomputed_))
    metrics.Recomputed(by);
  const std::int64_t queries = change(scheduler_.prefix_queries(), shown_queries_);
  const std::int64_t hits = change(scheduler_.prefix_hits(), shown_hits_);
  if (queries != 0 || hits != 0) metrics.PrefixCacheQueried(queries, hits);
}

// A step of `rows` sequences of `count` tokens that belong to nobody; nothing of them is committed.
absl::StatusOr<double> Engine::WarmUpStep(std::uint64_t id, Phase phase, std::int32_t rows,
                                          std::int32_t count) {
  Request nobody;
  nobody.sampling.temperature = 0;
  nobody.prompt.assign(static_cast<std::size_t>(count), 0);
  nobody.output.num_outputs = static_cast<std::uint32_t>(rows);
  RequestState state(0, std::move(nobody), Now(), absl::InfiniteFuture(), count + 1, count + 1, {});
  Batch batch{.phase = phase, .id = id, .rows = rows};
  batch.shape.phase = phase;
  for (std::int32_t row = 0; row < rows; ++row) {
    Sequence& sequence = *state.sequences[static_cast<std::size_t>(row)];
    sequence.slot = row;
    sequence.tokens = state.request.prompt;
    sequence.pending = 1;
    if (!pool_.Extend(sequence.blocks, pool_.BlocksFor(count)))
      return absl::InternalError("no blocks to warm up");
    batch.entries.push_back(
        {.sequence = &sequence, .begin = 0, .count = count, .writes_slot = true, .samples = true});
    batch.shape.Add(0, count);
  }
  RETURN_IF_ERROR(runner_->Launch(builder_.Build(batch)));
  ASSIGN_OR_RETURN(const StepResult result, runner_->Collect());
  return result.seconds;
}

// Of prefill steps beside those who decode, where they end on whole tiles: somebody will wait for
// each of these.
std::vector<std::int32_t> Engine::SizesCutByTime(std::int32_t most_tokens) {
  constexpr double kLeastPart = 0.6;  // of max_itl; decode steps take the rest
  const double itl = absl::ToDoubleSeconds(options_.max_itl);
  const std::int32_t tile = options_.limits.tile_tokens;
  std::vector<std::int32_t> sizes;
  for (std::int32_t size = tile; tile > 1 && size <= most_tokens; size += tile) {
    StepShape shape{.phase = Phase::kPrefill};
    shape.Add(0, size);
    const double seconds = scheduler_.cost().Estimate(shape);
    if (seconds >= kLeastPart * itl && seconds <= itl) sizes.push_back(size);
  }
  return sizes;
}

absl::Status Engine::WarmUp(absl::Duration at_most, const std::function<bool(int, int)>& progress) {
  const absl::Time end = Now() + at_most;
  const StepLimits& limits = options_.limits;
  const std::int32_t most_prefill =
      std::min({limits.max_tokens, limits.max_context, options_.num_pages * options_.page_tokens});
  const std::int32_t most_decode =
      std::min({limits.max_slots, limits.max_sequences, limits.max_tokens, limits.max_logit_rows,
                options_.num_pages});
  std::vector<std::pair<Phase, std::int32_t>> steps = {{Phase::kDecode, 1}};
  for (std::int32_t size = 4; size / 4 < std::max(most_prefill, most_decode); size *= 4) {
    if (size / 4 < most_prefill) steps.emplace_back(Phase::kPrefill, std::min(size, most_prefill));
    if (size / 4 < most_decode) steps.emplace_back(Phase::kDecode, std::min(size, most_decode));
  }

  CostModel& cost = scheduler_.cost();
  double alone = 0;  // what one token takes; of a prompt it takes no more and mostly much less
  std::uint64_t id = 0;
  int done = 0;
  const auto run = [&](Phase phase, std::int32_t size) -> absl::Status {
    const int total = static_cast<int>(steps.size()), before = std::min(done++, total);
    if (progress && !progress(before, total)) return absl::CancelledError("the load was cancelled");
    const std::int32_t rows = phase == Phase::kDecode ? size : 1;
    StepShape shape{.phase = phase};
    for (std::int32_t row = 0; row < rows; ++row) shape.Add(0, size / rows);
    const auto left = [&] { return absl::ToDoubleSeconds(end - Now()); };
    const double expected = cost.Knows(phase) ? cost.Estimate(shape) : alone * size;
    if (id > 0 && expected > left()) return absl::OkStatus();
    ASSIGN_OR_RETURN(double seconds, WarmUpStep(++id, phase, rows, size / rows));
    if (limits.tile_tokens > 1 && seconds < left()) {  // a card loads kernels at their first use
      ASSIGN_OR_RETURN(seconds, WarmUpStep(++id, phase, rows, size / rows));
    }
    cost.Observe(shape, seconds);
    if (alone == 0) alone = cost.Estimate(shape);
    return absl::OkStatus();
  };
  for (const auto& [phase, size] : steps) RETURN_IF_ERROR(run(phase, size));
  for (const std::int32_t size : SizesCutByTime(most_prefill))
    RETURN_IF_ERROR(run(Phase::kPrefill, size));
  scheduler_.SkipSteps(id);
  if (!cost.Knows(Phase::kPrefill)) {
    StepShape one{.phase = Phase::kPrefill};
    one.Add(0, 1);
    cost.Presume(one, alone);
  }
  PresumeLongContexts(most_prefill);
  return absl::OkStatus();
}

// Steps on nearly no context tell nothing of what attention to a long one will take.
void Engine::PresumeLongContexts(std::int32_t tokens) {
  CostModel& cost = scheduler_.cost();
  StepShape near{.phase = Phase::kPrefill};
  near.Add(0, tokens);
  StepShape far{.phase = Phase::kPrefill};
  far.Add(std::max(options_.limits.max_context - tokens, 0), tokens);
  const double token = cost.Estimate(near) / tokens;
  const auto farther = static_cast<double>(far.attended - near.attended);
  cost.Presume(far, cost.Estimate(near) + options_.attended_cost * token * farther);
}

}  // namespace nibble
