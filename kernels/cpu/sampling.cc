#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::cpu {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr double kOne = 0x1p40;  // the mass of the best token
constexpr std::uint64_t kHead = std::uint64_t{1}
                                << 26;  // 2^-14 of the best: what nearly every draw hits

bool Before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The `k` best of the row, sorted, to the front of `out`; how many there are. -inf is never among
// them.
std::int32_t SelectTop(const float* logits, std::int32_t vocab, std::int32_t k, Candidate* out) {
  if (k <= 0) return 0;
  float threshold = kHidden;
  const std::int64_t full = std::max<std::int64_t>(std::int64_t{2} * k, 64);
  std::int64_t size = 0;
  for (std::int32_t id = 0; id < vocab; ++id) {
    if (!(logits[id] > threshold)) continue;  // an equal one of a larger id loses
    out[size++] = {0, logits[id], id};
    if (size == full) {
      std::nth_element(out, out + (k - 1), out + size, Before);
      threshold = out[k - 1].logit;
      size = k;
    }
  }
  const std::int64_t kept = std::min<std::int64_t>(size, k);
  std::partial_sort(out, out + kept, out + size, Before);
  return static_cast<std::int32_t>(kept);
}

std::uint64_t SumMass(const Candidate* begin, const Candidate* end) {
  std::uint64_t sum = 0;
  for (; begin != end; ++begin) sum += begin->mass;
  return sum;
}

// Reorders [0, n) so that the smallest prefix of the descending order with mass >= target comes
// first, its last candidate last; its length. REQUIRES: the whole mass reaches the target.
std::int64_t CrossingPrefix(Candidate* c, std::int64_t n, std::uint64_t target) {
  std::int64_t low = 0, high = n;
  std::uint64_t mass = 0;  // of [0, low)
  while (high - low > 32) {
    const std::int64_t middle = (low + high) / 2;
    std::nth_element(c + low, c + middle, c + high, Before);
    const std::uint64_t upper = SumMass(c + low, c + middle);
    if (mass + upper >= target) {
      high = middle;
    } else {
      mass += upper;
      low = middle;
    }
  }
  std::sort(c + low, c + high, Before);
  while (low < high - 1 && (mass += c[low].mass) < target) ++low;
  return low + 1;
}

struct Candidates {
  std::int64_t size = 0;
  std::uint64_t mass = 0;  // of all, also of those left out
  std::uint64_t held = 0;  // of those in the array
};

// Every token with mass of at least `floor`, in scratch. Those left out come after them in the
// order.
Candidates Collect(const KernelTable& kernels, const RowToSample& row, float max,
                   std::uint64_t floor) {
  kernels.exp_shifted(row.probabilities, row.logits, row.vocab, max,
                      1.0f / row.params->temperature);
  Candidates all;
  for (std::int32_t id = 0; id < row.vocab; ++id) {
    const auto mass = static_cast<std::uint64_t>(static_cast<double>(row.probabilities[id]) * kOne);
    all.mass += mass;
    if (mass < floor) continue;
    all.held += mass;
    row.scratch[all.size++] = {mass, row.logits[id], id};
  }
  return all;
}

Candidates CollectTopK(const KernelTable& kernels, const RowToSample& row, float max) {
  Candidates top;
  top.size = SelectTop(row.logits, row.vocab, row.params->top_k, row.scratch);
  for (std::int64_t i = 0; i < top.size; ++i) row.probabilities[i] = row.scratch[i].logit;
  kernels.exp_shifted(row.probabilities, row.probabilities, top.size, max,
                      1.0f / row.params->temperature);
  for (std::int64_t i = 0; i < top.size; ++i) {
    row.scratch[i].mass =
        static_cast<std::uint64_t>(static_cast<double>(row.probabilities[i]) * kOne);
    top.mass += row.scratch[i].mass;
  }
  top.held = top.mass;
  return top;
}

std::uint64_t TopPTarget(float top_p, std::uint64_t mass) {
  if (!(top_p < 1.0f)) return mass;
  const double target = std::ceil(static_cast<double>(top_p) * static_cast<double>(mass));
  return std::clamp<std::uint64_t>(static_cast<std::uint64_t>(target), 1, mass);
}

// The drawn token, or -1 when the answer lies among tokens that were left out.
std::int32_t Draw(const RowToSample& row, Candidates all) {
  const SamplingParams& p = *row.params;
  Candidate* c = row.scratch;
  std::uint64_t mass = all.mass;
  if (p.top_p < 1.0f) {
    const std::uint64_t target = TopPTarget(p.top_p, all.mass);
    if (target > all.held) return -1;
    all.size = CrossingPrefix(c, all.size, target);
    mass = SumMass(c, c + all.size);
  }
  if (p.min_p > 0.0f) {
    const auto least = static_cast<std::uint64_t>(std::ceil(static_cast<double>(p.min_p) * kOne));
    if (p.top_p >= 1.0f && all.held < all.mass && least < kHead) return -1;
    all.size =
        std::partition(c, c + all.size, [&](const Candidate& x) { return x.mass >= least; }) - c;
    mass = SumMass(c, c + all.size);
  }
  const float uniform =
      UniformAt(p.seed, p.output_index, static_cast<std::uint32_t>(row.output_position));
  __extension__ using Wide = unsigned __int128;
  const auto drawn = static_cast<std::uint64_t>(
      (Wide{mass} * static_cast<std::uint64_t>(uniform * 0x1p24f)) >> 24);
  if (drawn >= SumMass(c, c + all.size)) return -1;
  return c[CrossingPrefix(c, all.size, drawn + 1) - 1].id;
}

std::int32_t DrawToken(const KernelTable& kernels, const RowToSample& row, float max) {
  const SamplingParams& p = *row.params;
  if (p.top_k > 0 && p.top_k < row.vocab) return Draw(row, CollectTopK(kernels, row, max));
  const std::int32_t token = Draw(row, Collect(kernels, row, max, kHead));
  return token >= 0 ? token : Draw(row, Collect(kernels, row, max, 1));
}

void ApplyPenalties(const RowToSample& row) {
  const SamplingParams& p = *row.params;
  for (std::int32_t id = 0; id < row.vocab; ++id) {
    const std::uint16_t history = row.history[id];
    if (history == 0) continue;
    float& logit = row.logits[id];
    logit = logit > 0.0f ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    const int count = history & kCountMask;
    if (count > 0) logit -= p.frequency_penalty * static_cast<float>(count) + p.presence_penalty;
  }
}

std::int32_t FirstOf(const float* logits, std::int32_t vocab, float value) {
  return static_cast<std::int32_t>(std::find(logits, logits + vocab, value) - logits);
}

void ReportTop(const float* logits, std::int32_t vocab, std::int32_t count, double log_sum,
               Candidate* scratch, SampledRow& out) {
  out.num_top = SelectTop(logits, vocab, std::min(count, kMaxTopLogprobs), scratch);
  for (std::int32_t i = 0; i < out.num_top; ++i) {
    out.top[i] = {scratch[i].id, static_cast<float>(scratch[i].logit - log_sum)};
  }
}

}  // namespace

SampledRow SampleRow(const KernelTable& kernels, const RowToSample& row) {
  const SamplingParams& p = *row.params;
  SampledRow out;
  MaxResult max = kernels.max_of(row.logits, row.vocab);
  if (max.has_nan || !std::isfinite(max.max)) {
    out.bad_logits = true;
    return out;
  }
  const bool ban = row.output_position < p.min_tokens && !row.banned.empty();
  const bool penalties = row.history != nullptr && HasPenalties(p);
  for (const auto& [id, bias] : row.logit_bias) row.logits[id] += bias;
  if (penalties) ApplyPenalties(row);
  if (ban) {
    for (std::int32_t id : row.banned) row.logits[id] = kHidden;
  }
  if (ban || penalties || !row.logit_bias.empty()) {
    max = kernels.max_of(row.logits, row.vocab);
    if (max.has_nan || !std::isfinite(max.max)) {
      out.bad_logits = true;
      return out;
    }
  }
  const float best = max.max;
  out.token = IsGreedy(p) ? FirstOf(row.logits, row.vocab, best) : DrawToken(kernels, row, best);
  if (p.top_logprobs >= 0) {
    const double log_sum = best + std::log(kernels.sum_exp(row.logits, row.vocab, best));
    out.logprob = static_cast<float>(row.logits[out.token] - log_sum);
    ReportTop(row.logits, row.vocab, p.top_logprobs, log_sum, row.scratch, out);
  }
  return out;
}

SampledRow ScoreRow(const KernelTable& kernels, const RowToScore& row) {
  SampledRow out;
  const MaxResult max = kernels.max_of(row.logits, row.vocab);
  if (max.has_nan || !std::isfinite(max.max)) {
    out.bad_logits = true;
    return out;
  }
  const double log_sum = max.max + std::log(kernels.sum_exp(row.logits, row.vocab, max.max));
  out.token = row.token;
  if (row.token >= 0) out.logprob = static_cast<float>(row.logits[row.token] - log_sum);
  ReportTop(row.logits, row.vocab, row.top_logprobs, log_sum, row.scratch, out);
  return out;
}

}  // namespace nibble::cpu
