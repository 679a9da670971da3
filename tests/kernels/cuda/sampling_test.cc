// Device sampling against a full sort in f64 masses.
#include <algorithm>
#include <numeric>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::test {
namespace {

struct Reference {
  int token = -1;
  double gap = 1;  // how near the draw is to another token, as a fraction of the mass
  double logprob = 0;
  std::vector<int> order;
};

Reference Sorted(const std::vector<float>& logits, const SamplingParams& p,
                 std::uint32_t position) {
  const int vocab = static_cast<int>(logits.size());
  Reference r;
  r.order.resize(vocab);
  std::iota(r.order.begin(), r.order.end(), 0);
  std::stable_sort(r.order.begin(), r.order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  const double max = logits[r.order[0]];
  double log_sum = 0;
  for (float v : logits) log_sum += std::exp(v - max);
  log_sum = max + std::log(log_sum);
  if (IsGreedy(p)) {
    r.token = r.order[0];
  } else {
    int kept = p.top_k > 0 ? std::min(p.top_k, vocab) : vocab;
    std::vector<double> mass(kept);
    for (int i = 0; i < kept; ++i) mass[i] = std::exp((logits[r.order[i]] - max) / p.temperature);
    double total = std::accumulate(mass.begin(), mass.end(), 0.0), sum = 0;
    if (p.top_p < 1) {
      int i = 0;
      for (; i < kept; ++i) {
        sum += mass[i];
        if (sum >= p.top_p * total) break;
      }
      r.gap = std::min(r.gap,
                       std::min(sum - p.top_p * total, p.top_p * total - (sum - mass[i])) / total);
      kept = std::min(i + 1, kept);
    }
    while (p.min_p > 0 && kept > 1 && mass[kept - 1] < p.min_p) --kept;
    total = std::accumulate(mass.begin(), mass.begin() + kept, 0.0);
    const double target = UniformAt(p.seed, p.output_index, position) * total;
    sum = 0;
    for (int i = 0; i < kept; ++i) {
      if (sum + mass[i] > target) {
        r.token = r.order[i];
        r.gap = std::min(r.gap, std::min(sum + mass[i] - target, target - sum) / total);
        break;
      }
      sum += mass[i];
    }
  }
  r.logprob = logits[r.token] - log_sum;
  return r;
}

void TestRows(Counter& counter, std::mt19937& rng, int vocab, float sigma) {
  std::vector<SamplingParams> params;
  const auto add = [&](auto&&... set) {
    SamplingParams p;
    p.seed = rng();
    p.output_index = rng() % 4;
    p.top_logprobs = 5;
    (set(p), ...);
    params.push_back(p);
  };
  add([](auto& p) { p.temperature = 0; });
  for (int i = 0; i < 8; ++i) {
    add();
    add([](auto& p) { p.temperature = 0.7f; });
    add([](auto& p) { p.top_k = 40; });
    add([](auto& p) { p.top_p = 0.9f; });
    add([](auto& p) { p.min_p = 0.05f; });
    add([](auto& p) { p.top_k = 100, p.top_p = 0.8f, p.min_p = 0.01f, p.temperature = 1.3f; });
    add([](auto& p) { p.top_k = 1; });
    add([](auto& p) { p.temperature = 2.0f, p.top_p = 0.999f; });
    add([](auto& p) {
      p.repetition_penalty = 1.3f, p.presence_penalty = 0.5f, p.frequency_penalty = 0.2f;
    });
  }
  const int count = static_cast<int>(params.size());
  std::vector<float> logits = RandomFloats(static_cast<std::size_t>(count) * vocab, rng, sigma);
  for (int row = 0; row < count; row += 3) {  // exact ties at the top
    for (int i = 0; i < 5; ++i)
      logits[static_cast<std::size_t>(row) * vocab + rng() % vocab] = 3.0f * sigma;
  }
  std::vector<std::uint16_t> history(static_cast<std::size_t>(count) * vocab, 0);
  for (auto& h : history) {
    if (rng() % 4 == 0) h = (rng() % 2 ? kHistoryInPrompt : 0) | (rng() % 3);
  }
  std::vector<SampleRow> rows(count);
  for (int i = 0; i < count; ++i)
    rows[i].slot = i, rows[i].output_position = static_cast<int>(rng() % 1000);
  std::vector<std::int32_t> bias_ids = {3, 5}, banned = {7, 0};
  std::vector<float> bias_values = {100.0f, -100.0f};
  const DeviceArray<std::int32_t> d_bias_ids(bias_ids), d_banned(banned);
  const DeviceArray<float> d_bias_values(bias_values);
  std::vector<SlotLists> lists(count);
  lists[1] = {d_bias_ids.get(), d_bias_values.get(), nullptr, 2, 0};
  lists[2] = {nullptr, nullptr, d_banned.get(), 0, 2};
  params[2].min_tokens = 5000;

  std::vector<Reference> expected(count);
  ParallelFor(count, [&](std::int64_t i) {
    std::vector<float> row(logits.begin() + i * vocab, logits.begin() + (i + 1) * vocab);
    const SamplingParams& p = params[i];
    for (int j = 0; j < lists[i].bias_count; ++j) row[bias_ids[j]] += bias_values[j];
    if (p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f) {
      for (int id = 0; id < vocab; ++id) {
        const std::uint16_t h = history[i * vocab + id];
        if (h == 0) continue;
        row[id] = row[id] > 0 ? row[id] / p.repetition_penalty : row[id] * p.repetition_penalty;
        if ((h & kHistoryCount) > 0)
          row[id] -= p.frequency_penalty * (h & kHistoryCount) + p.presence_penalty;
      }
    }
    for (int j = 0; j < lists[i].banned_count; ++j) row[banned[j]] = -INFINITY;
    expected[i] = Sorted(row, p, rows[i].output_position);
  });

  const DeviceArray<float> d_logits(logits);
  const DeviceArray<SampleRow> d_rows(rows);
  const DeviceArray<SamplingParams> d_params(params);
  const DeviceArray<SlotLists> d_lists(lists);
  const DeviceArray<std::uint16_t> d_history(history);
  const DeviceArray<std::int32_t> d_last(count);
  const DeviceArray<SampledToken> d_results(count);
  NIBBLE_CUDA_OK(Sample({d_logits.get(), vocab, vocab, count, d_rows.get(), d_params.get(),
                         d_lists.get(), d_history.get(), d_last.get(), d_results.get()},
                        {}));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<SampledToken> results = d_results.Host();
  const std::vector<std::int32_t> last = d_last.Host();
  const std::vector<std::uint16_t> after = d_history.Host();
  int wrong = 0, close = 0, tops = 0;
  double worst = 0;
  std::string detail;
  for (int i = 0; i < count; ++i) {
    const SampledToken& r = results[i];
    if (r.token != expected[i].token) {
      if (expected[i].gap < 1e-5) {
        ++close;
        continue;
      }
      ++wrong;
      detail += " row " + std::to_string(i) + ": " + std::to_string(r.token) + " not " +
                std::to_string(expected[i].token);
      continue;
    }
    worst = std::max(worst, std::abs(r.logprob - expected[i].logprob));
    tops += r.num_top != 5;
    for (int j = 0; j < 5 && j < r.num_top; ++j) tops += r.top_tokens[j] != expected[i].order[j];
    wrong += last[i] != r.token ||
             (after[static_cast<std::size_t>(i) * vocab + r.token] & kHistoryCount) !=
                 (history[static_cast<std::size_t>(i) * vocab + r.token] & kHistoryCount) + 1;
  }
  const std::string name =
      "sampling vocab=" + std::to_string(vocab) + " sigma=" + std::to_string(sigma);
  counter.True(name + " tokens", wrong == 0 && close <= 2,
               std::to_string(count) + " rows, " + std::to_string(wrong) + " wrong, " +
                   std::to_string(close) + " too close" + detail);
  counter.True(
      name + " log-probabilities", worst < 2e-5 && tops == 0,
      "worst " + std::to_string(worst) + ", " + std::to_string(tops) + " of the top wrong");
}

void TestBadRows(Counter& counter) {
  const int vocab = 1000;
  std::vector<float> logits(4 * vocab, 0.0f);
  logits[10] = NAN;
  for (int i = 0; i < vocab; ++i) logits[vocab + i] = -INFINITY;
  logits[2 * vocab + 5] = INFINITY;
  logits[3 * vocab + 42] = 9.0f;
  std::vector<SampleRow> rows(4);
  for (int i = 0; i < 4; ++i) rows[i].slot = i;
  rows[3].sample = false, rows[3].score_token = 42, rows[3].top_logprobs = 2;
  const DeviceArray<float> d_logits(logits);
  const DeviceArray<SampleRow> d_rows(rows);
  const DeviceArray<SamplingParams> d_params(std::vector<SamplingParams>(4));
  const DeviceArray<std::int32_t> d_last(4);
  const DeviceArray<SampledToken> d_results(4);
  NIBBLE_CUDA_OK(Sample({d_logits.get(), vocab, vocab, 4, d_rows.get(), d_params.get(), nullptr,
                         nullptr, d_last.get(), d_results.get()},
                        {}));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<SampledToken> r = d_results.Host();
  counter.True("bad logits are told",
               r[0].bad_logits && r[1].bad_logits && r[2].bad_logits && !r[3].bad_logits);
  const double expected = 9.0 - std::log(std::exp(9.0) + vocab - 1);
  counter.True("score of a token", r[3].token == 42 && std::abs(r[3].logprob - expected) < 1e-5 &&
                                       r[3].num_top == 2 && r[3].top_tokens[0] == 42 &&
                                       r[3].top_tokens[1] == 0);
}

}  // namespace

void TestSampling(Counter& counter) {
  std::mt19937 rng(4);
  for (int vocab : {100, 1024, 32000, 128256}) {
    for (float sigma : {0.01f, 1.0f, 4.0f}) TestRows(counter, rng, vocab, sigma);
  }
  TestBadRows(counter);
}

}  // namespace nibble::cuda::test
