// Sampling and scoring on the device: one block a row of logits, in the order kernels/sampling.h
// documents.
//
// Probabilities are integers, floor(2^40 e^((logit - max) / temperature)): their sums do not depend
// on the order of addition, so a draw is a function of its row alone, and agrees with the CPU's.
// Every cut (top_k, top_p, the draw) is a prefix of the descending order (logit, then ascending
// id), found digit by digit: a histogram of key distances from the best, then of the bin in which
// the cut lies.
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr int kListSize =
    6144;  // candidates kept in shared memory; more are found in the row each time
constexpr float kOne = 0x1p40f;
constexpr unsigned long long kHead = 1ull << 26;  // 2^-14 of the best: what nearly every draw hits

struct Shared {
  unsigned long long bins[kBins];
  std::uint32_t distance[kListSize];
  std::int32_t id[kListSize];
  unsigned long long warp_sums[32];
  unsigned long long total;
  float floats[32];
  int ints[32];
  int count;
  std::uint32_t found_bin;
  unsigned long long before;
  float top_logit[32];
  std::int32_t top_id[32];
};

// Order-preserving map of floats to integers.
__device__ std::uint32_t OrderedKey(float v) {
  const std::uint32_t bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float FromOrderedKey(std::uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

template <typename V>
__device__ V BlockSumOf(V v, V* scratch) {  // integer sums; every thread gets it
  for (int delta = 16; delta > 0; delta /= 2) v += __shfl_xor_sync(~0u, v, delta);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[threadIdx.x % 32];
  for (int delta = 16; delta > 0; delta /= 2) v += __shfl_xor_sync(~0u, v, delta);
  return v;
}

__device__ int BlockMaxOf(int v, int* scratch) {
  for (int delta = 16; delta > 0; delta /= 2) v = max(v, __shfl_xor_sync(~0u, v, delta));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[threadIdx.x % 32];
  for (int delta = 16; delta > 0; delta /= 2) v = max(v, __shfl_xor_sync(~0u, v, delta));
  return v;
}

// body(logit, id) for a thread's part of a row, ids rising. 16 bytes at a time where every row of
// the launch allows it, so that the order never depends on the row.
template <typename Body>
__device__ __forceinline__ void ForEachLogit(const float* logits, int vocab, bool vector,
                                             const Body& body) {
  int rest = threadIdx.x;
  if (vector) {
    const auto* fours = reinterpret_cast<const float4*>(logits);
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab / 4; i += kThreads) {
      const float4 v = fours[i];
      body(v.x, 4 * i), body(v.y, 4 * i + 1), body(v.z, 4 * i + 2), body(v.w, 4 * i + 3);
    }
    rest += vocab / 4 * 4;
  }
#pragma unroll 8
  for (int i = rest; i < vocab; i += kThreads) body(logits[i], i);
}

// A 64-bit sum in two 32-bit words, which shared memory adds without a loop.
__device__ __forceinline__ void AddTo(unsigned long long* sum, unsigned long long v) {
  auto* words = reinterpret_cast<unsigned*>(sum);  // low, high
  const auto low = static_cast<unsigned>(v);
  unsigned high = static_cast<unsigned>(v >> 32);
  if (low != 0) high += atomicAdd(words, low) > ~low;  // the carry
  if (high != 0) atomicAdd(words + 1, high);
}

// The candidates of a row: their distance (in ordered keys) from the best, and id.
class Row {
 public:
  __device__ Row(Shared& s, const float* logits, int vocab, bool vector, float max,
                 float inverse_temperature)
      : s_(s),
        logits_(logits),
        vocab_(vocab),
        vector_(vector),
        max_(max),
        inverse_(inverse_temperature),
        max_key_(OrderedKey(max)) {}

  __device__ unsigned long long Mass(float logit) const {
    return static_cast<unsigned long long>(__expf((logit - max_) * inverse_) * kOne);
  }
  __device__ unsigned long long MassAt(std::uint32_t distance) const {
    return Mass(FromOrderedKey(max_key_ - distance));
  }

  // Keeps the tokens of mass >= kHead in shared memory when they fit; returns the mass of all
  // tokens, and of the kept in `held`. When they do not fit the row itself is the list, and
  // everything is held.
  __device__ unsigned long long Collect(unsigned long long* held, bool whole) {
    if (threadIdx.x == 0) s_.count = 0;
    __syncthreads();
    unsigned long long all = 0, kept = 0;
    ForEachLogit(logits_, vocab_, vector_, [&](float logit, int id) {
      const unsigned long long mass = Mass(logit);
      all += mass;
      if (whole || mass < kHead) return;
      kept += mass;
      if (*static_cast<volatile int*>(&s_.count) > kListSize) return;  // too many already
      const int at = atomicAdd(&s_.count, 1);  // the order in the list does not matter
      if (at < kListSize) s_.distance[at] = max_key_ - OrderedKey(logit), s_.id[at] = id;
    });
    all = BlockSumOf(all, s_.warp_sums);
    kept = BlockSumOf(kept, s_.warp_sums);
    listed_ = !whole && s_.count <= kListSize;
    size_ = listed_ ? s_.count : vocab_;
    *held = listed_ ? kept : all;
    return all;
  }

  template <typename Body>
  __device__ void ForEach(const Body& body) const {  // body(distance, id)
    if (listed_) {
      for (int i = threadIdx.x; i < size_; i += kThreads) body(s_.distance[i], s_.id[i]);
      return;
    }
    ForEachLogit(logits_, vocab_, vector_,
                 [&](float logit, int id) { body(max_key_ - OrderedKey(logit), id); });
  }

  // (distance, id) of the last token of the smallest prefix, among tokens with order <= bound,
  // whose weight reaches `target` >= 1: mass, or count; and the weight of that prefix. REQUIRES:
  // their weight reaches it.
  __device__ unsigned long long Cut(unsigned long long target, bool by_count,
                                    unsigned long long bound, unsigned long long* weight_up_to) {
    *weight_up_to = target;
    int left = 32;  // bits of the distance not decided yet
    if (listed_) {
      unsigned widest = 0;
      ForEach([&](std::uint32_t distance, int id) {
        if (Order(distance, id) <= bound) widest = max(widest, distance);
      });
      left = BlockMaxOf(widest == 0 ? 0 : 32 - __clz(static_cast<int>(widest)), s_.ints);
    }
    std::uint32_t prefix = 0;
    int narrowed = -1;  // >= 0: so many tokens of this prefix have become the list
    const auto for_each = [&](const auto& body) {
      if (narrowed < 0) return ForEach(body);
      for (int i = threadIdx.x; i < narrowed; i += kThreads) body(s_.distance[i], s_.id[i]);
    };
    do {
      const int shift = max(0, left - kDigitBits);
      for (int i = threadIdx.x; i < kBins; i += kThreads) s_.bins[i] = 0;
      __syncthreads();
      for_each([&](std::uint32_t distance, int id) {
        if (Order(distance, id) > bound || (left < 32 && distance >> left != prefix >> left))
          return;
        const unsigned long long weight = by_count ? 1 : MassAt(distance);
        if (weight > 0) AddTo(&s_.bins[distance >> shift & (kBins - 1)], weight);
      });
      FindBin(target);
      prefix |= s_.found_bin << shift;
      target -= s_.before;
      left = shift;
      if (!listed_ && narrowed < 0 && left > 0) narrowed = Narrow(prefix, left, bound);
    } while (left > 0);
    // Ties: the smallest ids first, each of the same weight.
    const unsigned long long weight = by_count ? 1 : max(1ull, MassAt(prefix));
    const unsigned long long need = (target + weight - 1) / weight;
    *weight_up_to += need * weight - target;
    int low = vocab_, high = -1;  // ids of the tied; usually one
    for_each([&](std::uint32_t distance, int id) {
      if (distance == prefix) low = min(low, id), high = max(high, id);
    });
    low = -BlockMaxOf(-low, s_.ints);
    high = BlockMaxOf(high, s_.ints);
    if (need <= 1) return Order(prefix, low);
    while (low < high) {  // the smallest id with `need` tied tokens at or below it
      const int middle = (low + high) / 2;
      int count = 0;
      for_each(
          [&](std::uint32_t distance, int id) { count += distance == prefix && id <= middle; });
      if (static_cast<unsigned long long>(BlockSumOf(count, s_.ints)) >= need)
        high = middle;
      else
        low = middle + 1;
    }
    return Order(prefix, low);
  }

  static __device__ unsigned long long Order(std::uint32_t distance, int id) {
    return static_cast<unsigned long long>(distance) << 32 | static_cast<std::uint32_t>(id);
  }

  __device__ unsigned long long MassUpTo(unsigned long long bound, unsigned long long least) const {
    unsigned long long mass = 0;
    ForEach([&](std::uint32_t distance, int id) {
      const unsigned long long m = MassAt(distance);
      if (Order(distance, id) <= bound && m >= least) mass += m;
    });
    return BlockSumOf(mass, s_.warp_sums);
  }

 private:
  // Lists the tokens of a row that has no list whose distance begins with `prefix`, but for `left`
  // bits; returns their number, or -1 where they do not fit.
  __device__ int Narrow(std::uint32_t prefix, int left, unsigned long long bound) {
    if (threadIdx.x == 0) s_.count = 0;
    __syncthreads();
    ForEach([&](std::uint32_t distance, int id) {
      if (distance >> left != prefix >> left || Order(distance, id) > bound) return;
      if (*static_cast<volatile int*>(&s_.count) > kListSize) return;  // too many already
      const int at = atomicAdd(&s_.count, 1);
      if (at < kListSize) s_.distance[at] = distance, s_.id[at] = id;
    });
    __syncthreads();
    return s_.count <= kListSize ? s_.count : -1;
  }

  // The first bin at which the running sum reaches target, and the sum before it.
  __device__ void FindBin(unsigned long long target) {
    __syncthreads();
    constexpr int kEach = kBins / 32;
    if (threadIdx.x < 32) {
      unsigned long long mine = 0;
      for (int i = 0; i < kEach; ++i) mine += s_.bins[threadIdx.x * kEach + i];
      unsigned long long running = mine;  // inclusive over lanes
      for (int delta = 1; delta < 32; delta *= 2) {
        const unsigned long long other = __shfl_up_sync(~0u, running, delta);
        if (threadIdx.x >= delta) running += other;
      }
      const unsigned reached = __ballot_sync(~0u, running >= target);
      const int lane = reached == 0 ? 31 : __ffs(reached) - 1;
      if (threadIdx.x == lane) {
        unsigned long long before = running - mine;
        int bin = lane * kEach;
        while (bin < lane * kEach + kEach - 1 && before + s_.bins[bin] < target)
          before += s_.bins[bin++];
        s_.found_bin = bin;
        s_.before = before;
      }
    }
    __syncthreads();
  }

  Shared& s_;
  const float* logits_;
  int vocab_, size_ = 0;
  bool vector_;
  float max_, inverse_;
  std::uint32_t max_key_;
  bool listed_ = false;
};

// Largest logit, the first id that has it, and whether any is NaN or +inf.
struct Best {
  float logit;
  int id;
  bool bad;
};
__device__ Best BlockMax(Shared& s, const float* logits, int vocab, bool vector) {
  float max = -INFINITY;
  int id = vocab, wrong = 0;
  ForEachLogit(logits, vocab, vector, [&](float v, int i) {
    wrong |= isnan(v) || v == INFINITY;
    if (v > max) max = v, id = i;
  });
  const auto merge = [&] {
    for (int delta = 16; delta > 0; delta /= 2) {
      const float other = __shfl_xor_sync(~0u, max, delta);
      const int other_id = __shfl_xor_sync(~0u, id, delta);
      if (other > max || (other == max && other_id < id)) max = other, id = other_id;
    }
  };
  merge();
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.floats[threadIdx.x / 32] = max, s.ints[threadIdx.x / 32] = id;
  wrong = __syncthreads_or(wrong);
  max = s.floats[threadIdx.x % 32], id = s.ints[threadIdx.x % 32];
  merge();
  return {max, id, wrong || max == -INFINITY};
}

// log(sum of e^logit), summed in fixed order.
__device__ float LogSum(Shared& s, const float* logits, int vocab, bool vector, float max) {
  float sum = 0.0f;
  ForEachLogit(logits, vocab, vector, [&](float v, int) { sum += __expf(v - max); });
  __syncthreads();
  return max + logf(BlockSum<kThreads>(sum, s.floats));
}

__device__ int Draw(Row& row, const SamplingParams& p, int vocab, std::uint32_t position) {
  unsigned long long bound = ~0ull;
  for (const bool whole : {false, true}) {
    unsigned long long held, mass = row.Collect(&held, whole);
    const bool complete = held == mass;
    bound = ~0ull;
    if (p.top_k > 0 && p.top_k < vocab) {
      if (!complete) {  // fewer than k may be listed: then the row must be searched
        int listed = 0;
        row.ForEach([&](std::uint32_t, int) { ++listed; });
        __shared__ int scratch[32];
        if (BlockSumOf(listed, scratch) < p.top_k) continue;
      }
      unsigned long long count;
      bound = row.Cut(p.top_k, true, bound, &count);
      mass = held = row.MassUpTo(bound, 0);
    }
    if (p.top_p < 1.0f) {
      const double wanted = ceil(static_cast<double>(p.top_p) * static_cast<double>(mass));
      const unsigned long long target =
          max(1ull, min(mass, static_cast<unsigned long long>(wanted)));
      if (target > held) continue;
      bound = row.Cut(target, false, bound, &mass);
      held = mass;
    }
    if (p.min_p > 0.0f) {
      const auto least =
          static_cast<unsigned long long>(ceil(static_cast<double>(p.min_p) * 0x1p40));
      if (held < mass && least < kHead) continue;
      mass = held = row.MassUpTo(bound, least);
    }
    const auto uniform =
        static_cast<unsigned long long>(UniformAt(p.seed, p.output_index, position) * 0x1p24f);
    const unsigned long long drawn = __umul64hi(mass, uniform << 40);  // mass * uniform / 2^24
    if (drawn >= held) continue;
    // min_p removes a suffix of the order, so it does not move the cut.
    unsigned long long reached;
    return static_cast<int>(row.Cut(drawn + 1, false, bound, &reached) & 0xffffffffu);
  }
  return -1;
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleArgs a) {
  extern __shared__ __align__(16) char raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw);
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const SampleRow info = a.rows[blockIdx.x];
  float* logits = a.logits + blockIdx.x * a.ld_logits;
  SampledToken& out = a.results[blockIdx.x];
  const SamplingParams params = info.sample ? a.params[info.slot] : SamplingParams{};
  const int wanted_top = info.sample ? params.top_logprobs : info.top_logprobs;
  const bool vector = a.ld_logits % 4 == 0 && reinterpret_cast<std::uintptr_t>(a.logits) % 16 == 0;
  Best best = BlockMax(s, logits, a.vocab, vector);
  bool bad = best.bad;
  std::uint16_t* history = a.history == nullptr || !info.sample
                               ? nullptr
                               : a.history + std::int64_t{info.slot} * a.vocab;

  // ---- Bias, penalties, bans ----
  bool changed = false;
  if (info.sample && !bad) {
    const SlotLists lists = a.lists == nullptr ? SlotLists{} : a.lists[info.slot];
    for (int i = threadIdx.x; i < lists.bias_count; i += kThreads)
      logits[lists.bias_ids[i]] += lists.bias_values[i];
    __syncthreads();
    const bool penalties =
        history != nullptr && (params.repetition_penalty != 1.0f ||
                               params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f);
    for (int i = threadIdx.x; penalties && i < a.vocab; i += kThreads) {
      const std::uint16_t seen = history[i];
      if (seen == 0) continue;
      float v = logits[i];
      v = v > 0.0f ? v / params.repetition_penalty : v * params.repetition_penalty;
      const int count = seen & kHistoryCount;
      if (count > 0) v -= params.frequency_penalty * count + params.presence_penalty;
      logits[i] = v;
    }
    __syncthreads();
    const bool ban = info.output_position < params.min_tokens && lists.banned_count > 0;
    for (int i = threadIdx.x; ban && i < lists.banned_count; i += kThreads)
      logits[lists.banned[i]] = -INFINITY;
    __syncthreads();
    changed = penalties || ban || lists.bias_count > 0;
    if (changed) {
      best = BlockMax(s, logits, a.vocab, vector);
      bad = best.bad;
    }
  }

  // ---- Choose ----
  int token = info.sample ? -1 : info.score_token;
  if (info.sample && !bad) {
    if (IsGreedy(params)) {
      token = best.id;
    } else {
      Row row(s, logits, a.vocab, vector, best.logit, 1.0f / params.temperature);
      token = Draw(row, params, a.vocab, info.output_position);
      bad |= token < 0;
    }
  }

  // ---- Log-probabilities ----
  int tops = 0;
  float log_sum = 0.0f;
  if (!bad && (wanted_top >= 0 || info.score_token >= 0)) {
    log_sum = LogSum(s, logits, a.vocab, vector, best.logit);
    tops = min(min(wanted_top, kMaxTopLogprobs), a.vocab);
    if (tops > 0) {
      Row row(s, logits, a.vocab, vector, best.logit, 1.0f);
      unsigned long long held;
      row.Collect(&held, true);
      unsigned long long count;
      const unsigned long long bound = row.Cut(tops, true, ~0ull, &count);
      if (threadIdx.x == 0) s.count = 0;
      __syncthreads();
      row.ForEach([&](std::uint32_t distance, int id) {
        if (Row::Order(distance, id) > bound) return;
        const int at = atomicAdd(&s.count, 1);
        if (at < 32) s.top_logit[at] = logits[id], s.top_id[at] = id;
      });
      __syncthreads();
    }
  }
  if (threadIdx.x != 0) return;
  out.token = bad ? -1 : token;
  out.bad_logits = bad;
  out.logprob = !bad && token >= 0 && (wanted_top >= 0 || info.score_token >= 0)
                    ? logits[token] - log_sum
                    : 0.0f;
  out.num_top = tops > 0 ? tops : 0;
  for (int i = 0; i < tops; ++i) {  // selection sort of at most 20
    int top = i;
    for (int j = i + 1; j < tops; ++j) {
      if (s.top_logit[j] > s.top_logit[top] ||
          (s.top_logit[j] == s.top_logit[top] && s.top_id[j] < s.top_id[top]))
        top = j;
    }
    const float logit = s.top_logit[top];
    const std::int32_t id = s.top_id[top];
    s.top_logit[top] = s.top_logit[i], s.top_id[top] = s.top_id[i];
    s.top_logit[i] = logit, s.top_id[i] = id;
    out.top_tokens[i] = id;
    out.top_logprobs[i] = logit - log_sum;
  }
  if (info.sample && !bad) {
    a.last_tokens[info.slot] = token;
    if (history != nullptr && (history[token] & kHistoryCount) < kHistoryCount) ++history[token];
  }
}

}  // namespace

cudaError_t Sample(const SampleArgs& args, LaunchOptions options) {
  if (args.count == 0) return cudaSuccess;
  if (args.vocab <= 0 || args.ld_logits < args.vocab) return cudaErrorInvalidValue;
  return Launch(SampleKernel, args.count, kThreads, sizeof(Shared), options, args);
}

}  // namespace nibble::cuda
