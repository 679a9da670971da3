#include "runtime/engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/engine/prefill_batch.h"

namespace nibble {
namespace {

// Of max_itl, what a chunk and the decode step behind it are planned to fill: their estimates are
// off by some percent.
constexpr double kPlannedGap = 0.95;

// Nor does one take much longer than this when nobody decodes: a cancel, a new request and the
// heartbeat wait for the end of a step, which for a large model on a slow host could be half a
// minute.
constexpr double kLongestPrefillSeconds = 2.0;

bool Senior(const Sequence* a, const Sequence* b) {
  const RequestState& x = *a->request;
  const RequestState& y = *b->request;
  if (x.request.priority != y.request.priority) return x.request.priority > y.request.priority;
  if (x.id != y.id) return x.id < y.id;
  return a->index < b->index;
}

Sequence* NextWaiting(const RequestState& request) {
  for (const auto& sequence : request.sequences) {
    if (sequence->state == Sequence::State::kWaiting) return sequence.get();
  }
  return nullptr;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, BlockPool* pool)
    : options_(options),
      num_slots_(std::min({options.limits.max_slots, options.limits.max_sequences,
                           options.limits.max_tokens, options.limits.max_logit_rows})),
      pool_(pool) {
  for (std::int32_t slot = num_slots_ - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void Scheduler::Add(RequestState* request) {
  waiting_.Arrive(request->request.tenant);
  request->sequences.front()->state = Sequence::State::kWaiting;
  waiting_.Add(request);
}

// --- admission ---

void Scheduler::AdmitWaiting(absl::Time now) {
  while (!free_slots_.empty()) {
    RequestState* request = waiting_.Next();
    if (request == nullptr) return;
    Sequence* sequence = NextWaiting(*request);
    if (sequence == nullptr) {
      waiting_.Remove(request);
      continue;
    }
    if (sequence == blocked_ && pool_->available() <= blocked_available_ &&
        running_.size() >= blocked_running_) {
      return;
    }
    blocked_ = nullptr;
    switch (TryAdmit(sequence, now)) {
      case Admit::kDone:
        waiting_.Admitted();
        if (NextWaiting(*request) == nullptr) waiting_.Remove(request);
        break;
      case Admit::kRefused:
        waiting_.Remove(request);
        refused_.push_back(request);
        break;
      case Admit::kBlocked:
        blocked_ = sequence;
        blocked_available_ = pool_->available();
        blocked_running_ = running_.size();
        return;
    }
  }
}

std::int64_t Scheduler::LikelyKvTokens(const Sequence& sequence) const {
  const RequestState& request = *sequence.request;
  const auto seen = static_cast<std::int64_t>(sequence.outputs.size()) + sequence.pending;
  const std::int64_t likely = std::max<std::int64_t>(std::llround(mean_outputs_), seen + 1);
  return request.prompt_size() + std::min<std::int64_t>(likely, request.max_outputs);
}

// Whether what is running, and this sequence, would likely grow to their ends without a preemption.
bool Scheduler::LikelyFits(const Sequence& sequence, std::int32_t blocks_needed) const {
  std::int64_t growth = 0;
  for (const Sequence* other : running_) {
    growth += std::max(pool_->BlocksFor(LikelyKvTokens(*other)) - other->blocks.size(), 0);
  }
  const std::int64_t own_growth = std::max(
      pool_->BlocksFor(LikelyKvTokens(sequence)) - sequence.blocks.size() - blocks_needed, 0);
  return blocks_needed + growth + own_growth <= pool_->available();
}

double Scheduler::PrefillSeconds(std::int32_t begin, std::int32_t end) const {
  double seconds = 0;
  for (std::int32_t at = begin; at < end;) {
    const std::int32_t count = std::min(end - at, options_.limits.max_tokens);
    StepShape shape{.phase = Phase::kPrefill};
    shape.Add(at, count);
    seconds += cost_.Estimate(shape);
    at += count;
  }
  return seconds;
}

// The blocks of `tokens` that need not be computed.
BlockList Scheduler::MatchPrefix(const Sequence& sequence,
                                 std::span<const std::int32_t> tokens) const {
  const RequestState& request = *sequence.request;
  // At least one token is computed, for its logits; and all whose own log-probabilities are still
  // to come.
  std::size_t most = tokens.size() - 1;
  if (request.scores_prompt() && sequence.index == 0) {
    most = std::min(most, static_cast<std::size_t>(sequence.scored));
  }
  BlockList found = pool_->Match(request.request.cache_salt, tokens.first(most));
  if (options_.fixed_chunk > 0) {
    const std::int32_t matched = found.size() * pool_->block_tokens();
    const std::int32_t whole = matched - matched % options_.fixed_chunk;
    if (whole < matched) found = pool_->Match(request.request.cache_salt, tokens.first(whole));
  }
  return found;
}

Scheduler::Admit Scheduler::TryAdmit(Sequence* sequence, absl::Time now) {
  RequestState& request = *sequence->request;
  std::vector<std::int32_t> tokens = request.request.prompt;
  tokens.insert(tokens.end(), sequence->outputs.begin(), sequence->outputs.end());
  const auto target = static_cast<std::int32_t>(tokens.size());

  sequence->blocks = MatchPrefix(*sequence, tokens);
  const std::int32_t cached = sequence->blocks.size() * pool_->block_tokens();

  if (!request.started && cost_.IsSettled(Phase::kPrefill) &&
      now + absl::Seconds(PrefillSeconds(cached, target)) > request.deadline) {
    sequence->blocks.Clear();
    return Admit::kRefused;
  }
  const bool reserve = options_.admission == Admission::kReserved ||
                       sequence->preemptions >= options_.max_preemptions;
  const std::int64_t kv_tokens =
      reserve ? std::max<std::int64_t>(request.MostKvTokens(), target) : target;
  const std::int32_t needed = pool_->BlocksFor(kv_tokens) - sequence->blocks.size();
  const bool fits = reserve || running_.empty() || LikelyFits(*sequence, needed);
  if (!fits || !pool_->Extend(sequence->blocks, needed)) {
    sequence->blocks.Clear();
    return Admit::kBlocked;
  }

  sequence->tokens = std::move(tokens);
  sequence->prefill_target = target;
  sequence->kv_launched = cached;
  sequence->reserved = reserve;
  sequence->slot = free_slots_.back();
  free_slots_.pop_back();
  sequence->slot_written = false;
  sequence->state = Sequence::State::kRunning;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, Senior), sequence);
  if (request.slots_held++ == 0) ++running_requests_;

  const std::int32_t again = std::max(sequence->computed_before - cached, 0);
  sequence->recomputed_tokens += again;
  recomputed_tokens_ += again;
  prefix_queries_ += target;
  prefix_hits_ += cached;
  waiting_.Charge(request.request.tenant, target - cached);
  if (!request.started) {
    request.started = true;
    request.started_at = now;
    request.cached_prompt_tokens = cached;
    started_.push_back(&request);
  }
  return Admit::kDone;
}

// --- steps ---

bool Scheduler::CanDecode(const Sequence& sequence) const {
  return !sequence.prefilling() &&
         static_cast<std::int32_t>(sequence.outputs.size()) + sequence.pending <
             sequence.request->max_outputs;
}

std::optional<Batch> Scheduler::Next(absl::Time now) {
  AdmitWaiting(now);
  const bool decodes = std::any_of(running_.begin(), running_.end(),
                                   [&](const Sequence* s) { return CanDecode(*s); });
  Batch batch;
  batch.id = last_step_ + 1;
  // While both wait, they take turns: chunks of prompts for as long as max_itl allows, mostly one,
  // then a token for everyone.
  const bool decode_first =
      decodes && last_prefill_seconds_ > 0 && PrefillBudget() < last_prefill_seconds_;
  const bool found = decode_first ? GrowDecode(batch) || GrowPrefill(batch)
                                  : GrowPrefill(batch) || GrowDecode(batch);
  if (!found) return std::nullopt;
  const bool prefills = batch.phase == Phase::kPrefill;
  // Before any cost is known, a chunk takes all the time there is.
  const double seconds =
      cost_.Knows(Phase::kPrefill) ? cost_.Bound(batch.shape) : kLongestPrefillSeconds;
  last_prefill_seconds_ = prefills ? seconds : 0.0;
  gap_seconds_ = prefills && decodes ? gap_seconds_ + seconds : 0.0;
  ++last_step_;
  return batch;
}

bool Scheduler::GrowDecode(Batch& batch) {
  batch.phase = batch.shape.phase = Phase::kDecode;
  // EnsureBlock takes away from the junior end only, at or behind the sequence it is asked for.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    if (!CanDecode(*sequence)) continue;
    if (!EnsureBlock(sequence)) {
      if (sequence->state != Sequence::State::kRunning) --i;  // it left its place to the next
      continue;
    }
    batch.entries.push_back({.sequence = sequence,
                             .begin = sequence->kv_launched,
                             .count = 1,
                             .writes_slot = false,
                             .samples = true});
    batch.shape.Add(sequence->kv_launched, 1);
    ++batch.rows;
    ++sequence->kv_launched;
    ++sequence->pending;
    ++sequence->in_flight;
  }
  return !batch.entries.empty();
}

// Room for one more token; false when it must sit this step out, or was itself preempted.
bool Scheduler::EnsureBlock(Sequence* sequence) {
  if (pool_->BlocksFor(sequence->kv_launched + 1) <= sequence->blocks.size()) return true;
  while (!pool_->Extend(sequence->blocks, 1)) {
    if (leaving_ > 0) return false;  // blocks come back when the launched steps are collected
    Sequence* victim = Victim();
    Preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

// The most junior sequence that is not protected. There is one: whoever asks for a block is not.
Sequence* Scheduler::Victim() const {
  for (auto sequence = running_.rbegin(); sequence != running_.rend(); ++sequence) {
    if (!(*sequence)->reserved) return *sequence;
  }
  return nullptr;
}

void Scheduler::Preempt(Sequence* sequence) {
  ++preemptions_;
  ++sequence->preemptions;
  sequence->computed_before = sequence->kv_launched;
  std::erase(running_, sequence);
  sequence->state = Sequence::State::kLeaving;
  ++leaving_;
  if (sequence->in_flight == 0) GiveBack(sequence);
}

// No launched step uses the sequence any more, and it is leaving.
void Scheduler::GiveBack(Sequence* sequence) {
  --leaving_;
  sequence->blocks.Clear();
  sequence->tokens = {};
  free_slots_.push_back(sequence->slot);
  sequence->slot = -1;
  if (--sequence->request->slots_held == 0) --running_requests_;
  if (sequence->state != Sequence::State::kLeaving) return;
  sequence->state = Sequence::State::kWaiting;
  waiting_.Add(sequence->request);
}

// Seconds a prefill step may take, so that those who decode see no gap longer than max_itl.
double Scheduler::PrefillBudget() const {
  StepShape decode{.phase = Phase::kDecode};
  for (const Sequence* sequence : running_) {
    if (CanDecode(*sequence)) decode.Add(sequence->kv_launched, 1);
  }
  if (decode.tokens == 0) return kLongestPrefillSeconds;
  const double left =
      kPlannedGap * absl::ToDoubleSeconds(options_.max_itl) - gap_seconds_ - cost_.Bound(decode);
  return std::clamp(left, 0.0, kLongestPrefillSeconds);
}

bool Scheduler::GrowPrefill(Batch& batch) {
  if (std::none_of(running_.begin(), running_.end(),
                   [](const Sequence* s) { return s->prefilling(); })) {
    return false;  // most steps: the budget looks at every running sequence
  }
  return FillPrefill({options_.limits, options_.fixed_chunk, PrefillBudget()}, cost_, running_,
                     &batch);
}

// --- results ---

std::vector<Outcome> Scheduler::Commit(const Batch& batch, const StepResult& result) {
  cost_.Observe(batch.shape, result.seconds);
  std::vector<Outcome> outcomes;
  std::size_t row = 0;
  for (const ScheduledSequence& entry : batch.entries) {
    Sequence& sequence = *entry.sequence;
    const std::span<const RowResult> rows(result.rows.data() + row,
                                          static_cast<std::size_t>(entry.rows()));
    row += rows.size();
    --sequence.in_flight;
    if (entry.samples) --sequence.pending;

    if (sequence.state == Sequence::State::kRunning ||
        sequence.state == Sequence::State::kLeaving) {
      Outcome outcome{.sequence = &sequence, .first_scored = entry.first_scored};
      outcome.bad_logits =
          std::any_of(rows.begin(), rows.end(), [](const RowResult& r) { return r.bad_logits; });
      sequence.bad_logits |= outcome.bad_logits;
      if (!sequence.bad_logits) {
        outcome.scored = rows.first(static_cast<std::size_t>(entry.scored_rows));
        outcome.prompt_done = entry.checks || entry.samples;
        // Only good logits vouch for the keys and values they were computed from.
        if (!rows.empty()) {
          std::int32_t known = entry.begin + entry.count;
          // What an answer's tokens left may differ in its last bits from what they would leave in
          // a prompt: a device may compute decode in another order.
          if (options_.fixed_chunk > 0) known = std::min(known, sequence.request->prompt_size());
          pool_->Commit(sequence.blocks, sequence.request->request.cache_salt,
                        std::span(sequence.tokens).first(static_cast<std::size_t>(known)));
        }
        if (entry.samples) {
          outcome.sampled = &rows.back();
          sequence.tokens.push_back(rows.back().token);
          sequence.outputs.push_back(rows.back().token);
          waiting_.Charge(sequence.request->request.tenant, 1);
        }
      }
      outcomes.push_back(outcome);
      // The prompt's blocks can be found now: the other outputs take them over.
      if (outcome.prompt_done && sequence.index == 0 && batch.phase == Phase::kPrefill) {
        for (const auto& other : sequence.request->sequences) {
          if (other->state != Sequence::State::kHeld) continue;
          other->state = Sequence::State::kWaiting;
          waiting_.Add(sequence.request);
        }
      }
    }
    const bool leaves =
        sequence.state == Sequence::State::kLeaving || sequence.state == Sequence::State::kEnded;
    if (leaves && sequence.in_flight == 0 && sequence.slot >= 0) GiveBack(&sequence);
  }
  return outcomes;
}

void Scheduler::End(Sequence* sequence) {
  const Sequence::State before = sequence->state;
  if (before == Sequence::State::kEnded) return;
  sequence->state = Sequence::State::kEnded;
  if (blocked_ == sequence) blocked_ = nullptr;
  if (!sequence->outputs.empty()) {
    mean_outputs_ += (static_cast<double>(sequence->outputs.size()) - mean_outputs_) / 16.0;
  }
  if (before == Sequence::State::kRunning) {
    std::erase(running_, sequence);
    ++leaving_;
    if (sequence->in_flight == 0) GiveBack(sequence);
  }
  RequestState* request = sequence->request;
  if (NextWaiting(*request) == nullptr) waiting_.Remove(request);
  // An output that ends before its prompt was computed leaves the others to compute it themselves.
  if (sequence->index == 0) {
    for (const auto& other : request->sequences) {
      if (other->state != Sequence::State::kHeld) continue;
      other->state = Sequence::State::kWaiting;
      waiting_.Add(request);
    }
  }
}

void Scheduler::Remove(RequestState* request) {
  for (auto sequence = request->sequences.rbegin(); sequence != request->sequences.rend();
       ++sequence) {
    End(sequence->get());
  }
  waiting_.Leave(request->request.tenant);
  std::erase(started_, request);
  std::erase(refused_, request);
}

absl::Status Scheduler::CheckIntegrity() const {
  if (absl::Status pool = pool_->CheckIntegrity(); !pool.ok()) return pool;
  const std::size_t held = running_.size() + static_cast<std::size_t>(leaving_);
  if (held + free_slots_.size() != static_cast<std::size_t>(num_slots_)) {
    return absl::InternalError(
        absl::StrCat(held, " slots held and ", free_slots_.size(), " free of ", num_slots_));
  }
  for (const Sequence* sequence : running_) {
    if (sequence->state != Sequence::State::kRunning || sequence->slot < 0) {
      return absl::InternalError("a running sequence has no slot");
    }
    if (pool_->BlocksFor(sequence->kv_launched) > sequence->blocks.size()) {
      return absl::InternalError("a running sequence has fewer blocks than tokens");
    }
  }
  if (!std::is_sorted(running_.begin(), running_.end(), Senior))
    return absl::InternalError("seniority is broken");
  for (const RequestState* request : waiting_.requests()) {
    if (NextWaiting(*request) == nullptr)
      return absl::InternalError("a request waits with no output that does");
  }
  return absl::OkStatus();
}

}  // namespace nibble
