#include "runtime/engine/prefill_batch.h"

#include <algorithm>
#include <vector>

namespace nibble {
namespace {

// A prefill chunk is never smaller, however little time max_itl leaves: prompts go on too. A step
// that streams all weights for one token costs about as much for a few.
constexpr std::int32_t kLeastChunk = 16;

// A step that time cuts short ends on a whole tile of tokens where it has at least so many.
constexpr std::int32_t kLeastTiles = 4;

std::int32_t LeftOf(const Sequence& sequence) {
  return sequence.prefill_target - sequence.kv_launched;
}

// The most senior first: it always advances. Then the shortest, so that a short prompt does not
// wait behind a book.
std::vector<Sequence*> PrefillOrder(std::span<Sequence* const> running) {
  std::vector<Sequence*> order;
  for (Sequence* sequence : running) {
    if (sequence->prefilling()) order.push_back(sequence);
  }
  if (order.size() > 2) {
    std::stable_sort(order.begin() + 1, order.end(), [](const Sequence* a, const Sequence* b) {
      const std::int32_t x = a->request->request.priority, y = b->request->request.priority;
      return x != y ? x > y : LeftOf(*a) < LeftOf(*b);
    });
  }
  return order;
}

// Adds chunks to one batch.
class PrefillFiller {
 public:
  PrefillFiller(const PrefillBounds& bounds, const CostModel& cost, Batch& batch)
      : bounds_(bounds), cost_(cost), batch_(batch) {}

  // As much of the sequence's prompt as fits into `most` tokens, the rows of logits and the time.
  // False: the step is full.
  bool AddChunk(Sequence* sequence, std::int32_t most);

 private:
  // Rows of logits of a chunk: those that score the prompt, and one to sample after its end.
  struct Rows {
    std::int32_t scored = 0, last = 0;
  };
  static Rows RowsOf(const Sequence& sequence, std::int32_t count);
  std::int32_t CutToRows(const Sequence& sequence, std::int32_t count) const;
  bool FitsTime(const Sequence& sequence, std::int32_t count) const;
  std::int32_t CutToTime(const Sequence& sequence, std::int32_t count) const;
  void Take(Sequence* sequence, std::int32_t count);

  const PrefillBounds& bounds_;
  const CostModel& cost_;
  Batch& batch_;
};

PrefillFiller::Rows PrefillFiller::RowsOf(const Sequence& sequence, std::int32_t count) {
  const RequestState& request = *sequence.request;
  const std::int32_t begin = sequence.kv_launched;
  const bool scores = request.scores_prompt() && sequence.index == 0;
  const std::int32_t last_scored = scores ? request.prompt_size() - 1 : 0;  // exclusive
  return {std::max(std::min(begin + count, last_scored) - std::max(begin, sequence.scored), 0),
          begin + count == sequence.prefill_target ? 1 : 0};
}

std::int32_t PrefillFiller::CutToRows(const Sequence& sequence, std::int32_t count) const {
  while (count > 0) {
    const Rows rows = RowsOf(sequence, count);
    const std::int32_t over = batch_.rows + rows.scored + rows.last - bounds_.limits.max_logit_rows;
    if (over <= 0) break;
    count -= std::max(std::min(over, rows.scored), 1);
  }
  return std::max(count, 0);
}

bool PrefillFiller::FitsTime(const Sequence& sequence, std::int32_t count) const {
  StepShape shape = batch_.shape;
  shape.Add(sequence.kv_launched, count);
  return cost_.Bound(shape) <= bounds_.seconds;
}

// The most tokens that fit. REQUIRES: `count` do not.
std::int32_t PrefillFiller::CutToTime(const Sequence& sequence, std::int32_t count) const {
  std::int32_t low = 0, high = count;  // low fit, high do not
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    (FitsTime(sequence, middle) ? low : high) = middle;
  }
  const auto tokens = static_cast<std::int32_t>(batch_.shape.tokens) + low;
  const std::int32_t tile = bounds_.limits.tile_tokens;
  if (tokens >= kLeastTiles * tile && low >= tokens % tile) low -= tokens % tile;
  return batch_.entries.empty() ? std::max(low, std::min(kLeastChunk, count)) : low;
}

bool PrefillFiller::AddChunk(Sequence* sequence, std::int32_t most) {
  const std::int32_t chunk = bounds_.fixed_chunk;
  std::int32_t count = LeftOf(*sequence);
  if (chunk > 0) {
    count = std::min(count, chunk - sequence->kv_launched % chunk);
    if (count > most) return false;
  }
  count = CutToRows(*sequence, std::min(count, most));
  if (count == 0) return false;
  const bool cut = chunk == 0 && !FitsTime(*sequence, count);
  if (cut) count = CutToTime(*sequence, count);
  if (count == 0) return false;
  Take(sequence, count);
  return !cut;
}

void PrefillFiller::Take(Sequence* sequence, std::int32_t count) {
  const Rows rows = RowsOf(*sequence, count);
  const bool final_chunk = rows.last == 1;
  const bool samples = final_chunk && sequence->request->max_outputs > 0;
  const std::int32_t first_scored = std::max(sequence->kv_launched, sequence->scored);
  batch_.entries.push_back({.sequence = sequence,
                            .begin = sequence->kv_launched,
                            .count = count,
                            .writes_slot = !sequence->slot_written,
                            .first_scored = first_scored,
                            .scored_rows = rows.scored,
                            .samples = samples,
                            .checks = final_chunk && !samples});
  batch_.rows += rows.scored + rows.last;
  batch_.shape.Add(sequence->kv_launched, count);
  if (rows.scored > 0) sequence->scored = first_scored + rows.scored;
  sequence->slot_written = true;
  sequence->kv_launched += count;
  sequence->pending += samples ? 1 : 0;
  ++sequence->in_flight;
}

}  // namespace

bool FillPrefill(const PrefillBounds& bounds, const CostModel& cost,
                 std::span<Sequence* const> running, Batch* batch) {
  batch->phase = batch->shape.phase = Phase::kPrefill;
  const std::vector<Sequence*> order = PrefillOrder(running);
  PrefillFiller filler(bounds, cost, *batch);
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (static_cast<std::int32_t>(batch->entries.size()) == bounds.limits.max_sequences) break;
    std::int32_t most = bounds.limits.max_tokens - static_cast<std::int32_t>(batch->shape.tokens);
    // The senior leaves half to the others, as far as they have use for it.
    if (i == 0 && bounds.fixed_chunk == 0) {
      std::int64_t others = 0;
      for (std::size_t j = 1; j < order.size(); ++j) others += LeftOf(*order[j]);
      most -= static_cast<std::int32_t>(std::min<std::int64_t>(others, most / 2));
    }
    if (most <= 0 || !filler.AddChunk(order[i], most)) break;
  }
  return !batch->entries.empty();
}

}  // namespace nibble
