// Paged decode and prefill attention against plain softmax in f64.
#include <algorithm>
#include <numeric>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::test {
namespace {

struct Case {
  std::string name;
  int heads, kv_heads, head_dim;
  std::vector<int> queries, contexts;  // of each sequence
  int window = 0;
  float softcap = 0.0f;
  bool sinks = false;
  int split_tokens = 0;
};

void Run(Counter& counter, const Case& c, DType dtype, bool decode, std::mt19937& rng) {
  const int sequences = static_cast<int>(c.contexts.size());
  const int max_context = *std::max_element(c.contexts.begin(), c.contexts.end());
  const int ld_pages = (max_context + 63) / 64 + 1;
  KvLayout kv{1, sequences * ld_pages, c.kv_heads, c.head_dim, 64, dtype};
  std::vector<std::int32_t> pages(kv.num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), rng);
  const std::vector<std::uint16_t> cache = RandomHalves(kv.LayerStride(), dtype, rng);
  std::vector<std::int32_t> offsets = {0};
  for (int s = 0; s < sequences; ++s)
    offsets.push_back(offsets.back() + (decode ? 1 : c.queries[s]));
  const int rows = offsets.back(), width = (c.heads + 2 * c.kv_heads) * c.head_dim;  // q inside qkv
  const std::vector<std::uint16_t> q = RandomHalves(rows * width, dtype, rng);
  const std::vector<float> sinks = RandomFloats(c.heads, rng);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  std::vector<float> expected(rows * c.heads * c.head_dim);
  ParallelFor(rows * c.heads, [&](std::int64_t index) {
    const int row = static_cast<int>(index / c.heads), head = static_cast<int>(index % c.heads);
    int s = 0;
    while (offsets[s + 1] <= row) ++s;
    const int position = c.contexts[s] - (offsets[s + 1] - offsets[s]) + row - offsets[s];
    const int kv_head = head / (c.heads / c.kv_heads);
    const auto at = [&](int key, bool value, int i) {
      return Decode(
          cache[pages[s * ld_pages + key / 64] * kv.PageStride() + (value ? kv.ValueOffset() : 0) +
                kv_head * kv.HeadStride() + key % 64 * c.head_dim + i],
          dtype);
    };
    std::vector<double> scores(position + 1, -INFINITY);
    double max = c.sinks ? sinks[head] : -INFINITY;
    for (int key = 0; key <= position; ++key) {
      if (c.window > 0 && position - key >= c.window) continue;
      double dot = 0;
      for (int i = 0; i < c.head_dim; ++i) {
        dot += double{Decode(q[row * width + head * c.head_dim + i], dtype)} * at(key, false, i);
      }
      dot *= scale;
      if (c.softcap > 0) dot = c.softcap * std::tanh(dot / c.softcap);
      scores[key] = dot;
      max = std::max(max, dot);
    }
    double sum = c.sinks ? std::exp(sinks[head] - max) : 0;
    std::vector<double> out(c.head_dim, 0.0);
    for (int key = 0; key <= position; ++key) {
      if (scores[key] == -INFINITY) continue;
      const double p = std::exp(scores[key] - max);
      sum += p;
      for (int i = 0; i < c.head_dim; ++i) out[i] += p * at(key, true, i);
    }
    for (int i = 0; i < c.head_dim; ++i)
      expected[index * c.head_dim + i] = static_cast<float>(out[i] / sum);
  });

  const DeviceArray<std::uint16_t> d_cache(cache), d_q(q);
  const DeviceArray<std::int32_t> d_pages(pages), d_offsets(offsets),
      d_contexts(std::vector<std::int32_t>(c.contexts.begin(), c.contexts.end()));
  const DeviceArray<float> d_sinks(sinks);
  DeviceArray<std::uint16_t> out(expected.size());
  AttentionArgs args;
  args.dtype = dtype;
  args.q = d_q.get();
  args.ld_q = width;
  args.out = out.get();
  args.sequences = sequences, args.heads = c.heads, args.kv_heads = c.kv_heads,
  args.head_dim = c.head_dim;
  args.contexts = d_contexts.get();
  args.max_context = max_context;
  args.pages = d_pages.get();
  args.ld_pages = ld_pages;
  args.kv = kv;
  args.layer_cache = d_cache.get();
  args.scale = scale;
  args.window = c.window;
  args.softcap = c.softcap;
  if (c.sinks) args.sinks = d_sinks.get();
  args.split_tokens = c.split_tokens;
  DeviceArray<std::uint8_t> workspace(DecodeWorkspaceBytes(args));
  args.workspace = workspace.get();
  if (decode) {
    NIBBLE_CUDA_OK(DecodeAttention(args, {}));
  } else {
    args.query_offsets = d_offsets.get();
    args.max_queries = *std::max_element(c.queries.begin(), c.queries.end());
    NIBBLE_CUDA_OK(PrefillAttention(args, {}));
  }
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  counter.Near(
      (decode ? "decode " : "prefill ") + c.name + (dtype == DType::kF16 ? " f16" : " bf16"),
      DecodeAll(out.Host(), dtype), expected, dtype == DType::kF16 ? 1e-3 : 7e-3);
}

}  // namespace

void TestAttention(Counter& counter) {
  std::mt19937 rng(3);
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    const std::vector<int> contexts = {1, 15, 16, 17, 63, 64, 65, 300};
    for (int split : {0, 64, 128, 1024}) {
      const std::string suffix = " split=" + std::to_string(split);
      Run(counter, {"32/8 d128" + suffix, 32, 8, 128, {}, contexts, 0, 0, false, split}, dtype,
          true, rng);
      Run(counter, {"9/3 d64" + suffix, 9, 3, 64, {}, contexts, 0, 0, false, split}, dtype, true,
          rng);
      Run(counter, {"window 40" + suffix, 8, 4, 128, {}, contexts, 40, 0, false, split}, dtype,
          true, rng);
      Run(counter, {"softcap sinks" + suffix, 8, 2, 64, {}, contexts, 0, 20.0f, true, split}, dtype,
          true, rng);
    }
    Run(counter, {"4/4 d80", 4, 4, 80, {}, contexts}, dtype, true, rng);
    Run(counter, {"6/2 d96", 6, 2, 96, {}, contexts}, dtype, true, rng);
    Run(counter, {"8/1 d256", 8, 1, 256, {}, contexts}, dtype, true, rng);
    Run(counter, {"71/1 d64", 71, 1, 64, {}, {130, 7}}, dtype, true, rng);
    Run(counter, {"32/8 d128 4k", 32, 8, 128, {}, {4096, 4000}}, dtype, true, rng);
    const std::vector<int> queries = {1, 5, 64, 65, 130, 16, 100},
                           past = {1, 5, 64, 65, 130, 200, 517};
    Run(counter, {"32/8 d128", 32, 8, 128, queries, past}, dtype, false, rng);
    Run(counter, {"9/3 d64", 9, 3, 64, queries, past}, dtype, false, rng);
    Run(counter, {"window 40", 8, 4, 128, queries, past, 40}, dtype, false, rng);
    Run(counter, {"window 100 softcap sinks", 8, 2, 64, queries, past, 100, 20.0f, true}, dtype,
        false, rng);
    Run(counter, {"4/4 d80", 4, 4, 80, queries, past}, dtype, false, rng);
    Run(counter, {"8/1 d256", 8, 1, 256, queries, past}, dtype, false, rng);
  }
}

}  // namespace nibble::cuda::test
