#include "runtime/device/cpu_sampler.h"

#include <algorithm>

namespace nibble {
namespace {

void Count(std::uint16_t& history) {
  if ((history & cpu::kCountMask) < cpu::kCountMask) ++history;
}

}  // namespace

CpuSampler::CpuSampler(const CpuContext& context, std::int32_t vocab, const StepLimits& limits,
                       MemoryLayout& layout)
    : context_(context),
      vocab_(vocab),
      history_at_(layout.Take(std::int64_t{limits.max_slots} * vocab * 2)),
      candidates_at_(layout.Take(std::int64_t{context.pool->threads()} * vocab *
                                 static_cast<std::int64_t>(sizeof(cpu::Candidate)))),
      probabilities_at_(layout.Take(std::int64_t{context.pool->threads()} * vocab * 4)),
      slots_(static_cast<std::size_t>(limits.max_slots)) {}

void CpuSampler::Bind(const HostMemory& memory) {
  history_ = memory.At<std::uint16_t>(history_at_);
  candidates_ = memory.At<cpu::Candidate>(candidates_at_);
  probabilities_ = memory.At<float>(probabilities_at_);
}

void CpuSampler::Begin(const SlotInit& init) {
  Slot& slot = slots_[static_cast<std::size_t>(init.slot)];
  slot.params = init.sampling;
  slot.logit_bias.assign(init.logit_bias.begin(), init.logit_bias.end());
  slot.banned.assign(init.banned_until_min_tokens.begin(), init.banned_until_min_tokens.end());
  if (!init.outputs.empty()) slot.last_token = init.outputs.back();
  if (!cpu::HasPenalties(slot.params)) return;
  std::uint16_t* counts = history(init.slot);
  std::fill_n(counts, vocab_, std::uint16_t{0});
  for (const std::int32_t id : init.prompt) counts[id] |= cpu::kInPrompt;
  for (const std::int32_t id : init.outputs) Count(counts[id]);
}

RowResult CpuSampler::RunRow(const LogitRow& row, float* logits, int thread) const {
  const Slot& slot = slots_[static_cast<std::size_t>(row.slot)];
  cpu::Candidate* scratch = candidates_ + std::int64_t{thread} * vocab_;
  cpu::SampledRow sampled;
  if (row.sample) {
    const bool penalties = cpu::HasPenalties(slot.params);
    sampled = cpu::SampleRow(
        *context_.kernels,
        {logits, vocab_, &slot.params, row.output_position, penalties ? history(row.slot) : nullptr,
         slot.logit_bias, slot.banned, scratch, probabilities_ + std::int64_t{thread} * vocab_});
  } else {
    sampled = cpu::ScoreRow(*context_.kernels,
                            {logits, vocab_, row.score_token, row.top_logprobs, scratch});
  }
  RowResult result;
  result.token = sampled.token;
  result.logprob = sampled.logprob;
  result.bad_logits = sampled.bad_logits;
  result.top.reserve(static_cast<std::size_t>(sampled.num_top));
  for (std::int32_t i = 0; i < sampled.num_top; ++i) {
    result.top.push_back({sampled.top[i].id, sampled.top[i].logprob});
  }
  return result;
}

void CpuSampler::Record(const LogitRow& row, const RowResult& result) {
  if (!row.sample) return;
  Slot& slot = slots_[static_cast<std::size_t>(row.slot)];
  if (result.bad_logits) {
    slot.last_token =
        0;  // the sequence ends; a step already launched for it must still name a token
    return;
  }
  slot.last_token = result.token;
  if (cpu::HasPenalties(slot.params)) Count(history(row.slot)[result.token]);
}

}  // namespace nibble
