// Mixtures of experts: routing and sorting, products of the experts' rows, and their sum.
#include <algorithm>

#include "tests/kernels/cuda/packed.h"

namespace nibble::cuda::test {
namespace {

struct Routes {
  DeviceArray<std::int32_t> chosen, offsets, tokens, rows;
  DeviceArray<float> weights;
  Routes(int tokens_, int experts, int top_k)
      : chosen(tokens_ * top_k),
        offsets(experts + 1),
        tokens(tokens_ * top_k),
        rows(tokens_ * top_k),
        weights(tokens_ * top_k) {}
  ExpertRoutes Get() const {
    return {chosen.get(), weights.get(), offsets.get(), tokens.get(), rows.get()};
  }
};

void TestRouting(Counter& counter, int tokens, int experts, int top_k, bool renormalize,
                 std::mt19937& rng) {
  const std::vector<float> logits = RandomFloats(tokens * experts, rng, 2.0f);
  const DeviceArray<float> d_logits(logits);
  const Routes routes(tokens, experts, top_k);
  NIBBLE_CUDA_OK(
      SortByExpert(d_logits.get(), routes.Get(), tokens, experts, top_k, renormalize, {}));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  std::vector<std::vector<std::int32_t>> of_expert(experts);  // pairs
  std::vector<std::int32_t> chosen;
  std::vector<float> weights;
  for (int t = 0; t < tokens; ++t) {
    std::vector<int> order(experts);
    for (int e = 0; e < experts; ++e) order[e] = e;
    const float* row = logits.data() + t * experts;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    double sum = 0, kept = 0;
    for (int e = 0; e < experts; ++e) sum += std::exp(double{row[e]});
    for (int rank = 0; rank < top_k; ++rank) kept += std::exp(double{row[order[rank]]}) / sum;
    for (int rank = 0; rank < top_k; ++rank) {
      of_expert[order[rank]].push_back(static_cast<int>(chosen.size()));
      chosen.push_back(order[rank]);
      weights.push_back(static_cast<float>(std::exp(double{row[order[rank]]}) / sum /
                                           (renormalize ? kept : 1.0)));
    }
  }
  std::vector<std::int32_t> offsets = {0}, sorted_tokens, rows(chosen.size());
  for (const auto& pairs : of_expert) {
    for (std::int32_t pair : pairs) {
      rows[pair] = static_cast<std::int32_t>(sorted_tokens.size());
      sorted_tokens.push_back(pair / top_k);
    }
    offsets.push_back(static_cast<std::int32_t>(sorted_tokens.size()));
  }
  const std::string name = "routes of " + std::to_string(tokens) + " tokens, " +
                           std::to_string(top_k) + " of " + std::to_string(experts);
  counter.True(name + ": chosen", routes.chosen.Host() == chosen);
  counter.True(name + ": offsets", routes.offsets.Host() == offsets);
  counter.True(name + ": tokens", routes.tokens.Host() == sorted_tokens);
  counter.True(name + ": rows", routes.rows.Host() == rows);
  counter.Near(name + ": weights", routes.weights.Host(), weights, 1e-5);
}

// counts[e] rows of expert e.
void TestGrouped(Counter& counter, const Encoding& e, DType dtype, const std::vector<int>& counts,
                 std::mt19937& rng) {
  constexpr int kN = 320, kK = 512;
  const int experts = static_cast<int>(counts.size());
  const PackedShape shape{kN, kK, e.kind, e.bits, e.group, e.offset};
  std::vector<std::int32_t> offsets = {0};
  for (int count : counts) offsets.push_back(offsets.back() + count);
  const int m = offsets.back();
  const std::vector<std::uint16_t> x = RandomHalves(m * kK, dtype, rng);
  const std::vector<float> xf = DecodeAll(x, dtype);
  const DeviceArray<std::uint16_t> d_x(x);
  const DeviceArray<std::int32_t> d_offsets(offsets);
  for (bool glu : {false, true}) {
    DeviceArray<std::uint8_t> blocks(shape.Bytes() * experts);
    GroupedProductArgs args;
    std::vector<float> expected;
    for (int expert = 0; expert < experts; ++expert) {
      const TestMatrix w = RandomMatrix(shape, e.file_group, glu, rng);
      if (expert == 0) args.product.w = w.packed;
      NIBBLE_CUDA_OK(cudaMemcpy(blocks.get() + shape.Bytes() * expert, w.packed.blocks,
                                shape.Bytes(), cudaMemcpyDeviceToDevice));
      const std::vector<float> mine(xf.begin() + std::int64_t{offsets[expert]} * kK,
                                    xf.begin() + std::int64_t{offsets[expert + 1]} * kK);
      const std::vector<float> all = Reference(mine, w.values, counts[expert], kN, kK);
      for (int t = 0; t < counts[expert]; ++t) {
        for (int n = 0; n < (glu ? kN / 2 : kN); ++n) {
          const float v = all[t * kN + n];
          expected.push_back(glu ? v / (1 + std::exp(-v)) * all[t * kN + kN / 2 + n] : v);
        }
      }
    }
    args.product.w.blocks = blocks.get();
    args.product.dtype = dtype;
    args.product.x = d_x.get();
    args.product.ldx = kK;
    args.product.m = m;
    args.product.dependent = false;
    args.experts = experts;
    args.offsets = d_offsets.get();
    const std::string name = std::string("experts ") + e.name +
                             (dtype == DType::kF16 ? " f16" : " bf16") +
                             " rows=" + std::to_string(m) + (glu ? " silu" : "");
    const double limit = dtype == DType::kF16 ? 8e-4 : 6e-3;
    if (glu) {
      DeviceArray<std::uint16_t> out(m * kN / 2);
      args.product.output = Output::kGlu;
      args.product.out = out.get();
      args.product.ldo = kN / 2;
      NIBBLE_CUDA_OK(GroupedProduct(args, nullptr));
      NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      counter.Near(name, DecodeAll(out.Host(), dtype), expected, limit);
    } else {
      DeviceArray<float> out(m * kN);
      args.product.output = Output::kStoreF32;
      args.product.out = out.get();
      args.product.ldo = kN;
      NIBBLE_CUDA_OK(GroupedProduct(args, nullptr));
      NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      counter.Near(name, out.Host(), expected, limit);
    }
  }
}

void TestCombine(Counter& counter, DType dtype, bool add, std::mt19937& rng) {
  constexpr int kTokens = 37, kTopK = 4, kExperts = 11, kDim = 2888;
  const DeviceArray<float> logits(RandomFloats(kTokens * kExperts, rng));
  const Routes routes(kTokens, kExperts, kTopK);
  NIBBLE_CUDA_OK(SortByExpert(logits.get(), routes.Get(), kTokens, kExperts, kTopK, true, {}));
  const std::vector<std::uint16_t> y = RandomHalves(kTokens * kTopK * kDim, dtype, rng);
  const std::vector<float> yf = DecodeAll(y, dtype), start = RandomFloats(kTokens * kDim, rng);
  const DeviceArray<std::uint16_t> d_y(y);
  const DeviceArray<float> sum(start);
  NIBBLE_CUDA_OK(
      CombineExperts(dtype, sum.get(), d_y.get(), routes.Get(), kTopK, add, kTokens, kDim, {}));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<std::int32_t> rows = routes.rows.Host();
  const std::vector<float> weights = routes.weights.Host();
  std::vector<float> expected(kTokens * kDim);
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < kDim; ++i) {
      double v = add ? start[t * kDim + i] : 0.0f;
      for (int rank = 0; rank < kTopK; ++rank) {
        v +=
            double{weights[t * kTopK + rank]} * yf[std::int64_t{rows[t * kTopK + rank]} * kDim + i];
      }
      expected[t * kDim + i] = static_cast<float>(v);
    }
  }
  counter.Near(std::string("combine") + (add ? " and add" : ""), sum.Host(), expected, 1e-5);
}

// The router's product and all that follows in one kernel, several times over.
void TestRouteTokens(Counter& counter, DType dtype, int tokens, int experts, int top_k, int k,
                     std::mt19937& rng) {
  const std::int64_t ldx = k + 16;
  const std::vector<std::uint16_t> x = RandomHalves(tokens * ldx, dtype, rng),
                                   router = RandomHalves(experts * k, dtype, rng, 0.05f);
  std::vector<float> rows;
  for (int t = 0; t < tokens; ++t) {
    for (int i = 0; i < k; ++i) rows.push_back(Decode(x[t * ldx + i], dtype));
  }
  const DeviceArray<std::uint16_t> d_x(x), d_router(router);
  const DeviceArray<float> logits(tokens * experts);
  const DeviceArray<std::uint32_t> counters(std::vector<std::uint32_t>(kRouteCounters, 0));
  const std::string name = "router of " + std::to_string(tokens) + " tokens, " +
                           std::to_string(top_k) + " of " + std::to_string(experts);
  for (bool renormalize : {true, false}) {
    const Routes routes(tokens, experts, top_k), expected(tokens, experts, top_k);
    RouteArgs args;
    args.dtype = dtype;
    args.x = d_x.get();
    args.ldx = ldx;
    args.router = d_router.get();
    args.logits = logits.get();
    args.routes = routes.Get();
    args.tokens = tokens, args.k = k, args.experts = experts, args.top_k = top_k;
    args.renormalize = renormalize;
    args.counters = counters.get();
    NIBBLE_CUDA_OK(RouteTokens(args, {}));
    NIBBLE_CUDA_OK(
        SortByExpert(logits.get(), expected.Get(), tokens, experts, top_k, renormalize, {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    counter.Near(name + ": logits", logits.Host(),
                 Reference(rows, DecodeAll(router, dtype), tokens, experts, k), 1e-5);
    counter.True(name + ": as sorted", routes.chosen.Host() == expected.chosen.Host() &&
                                           routes.weights.Host() == expected.weights.Host() &&
                                           routes.offsets.Host() == expected.offsets.Host() &&
                                           routes.tokens.Host() == expected.tokens.Host() &&
                                           routes.rows.Host() == expected.rows.Host());
  }
  for (std::uint32_t word : counters.Host()) {
    if (word != 0) counter.True(name + ": leaves its counters", false);
  }
}

// Few tokens' products with experts, one of which most tokens want.
void TestFewExperts(Counter& counter, const Encoding& e, DType dtype, int tokens, int k,
                    std::mt19937& rng) {
  constexpr int kExperts = 11, kTopK = 3, kN = 160, kHalf = kN / 2;
  std::vector<float> logits = RandomFloats(tokens * kExperts, rng);
  for (int t = 0; t < tokens; ++t) logits[t * kExperts + 7] += 2.0f;
  const DeviceArray<float> d_logits(logits);
  const Routes routes(tokens, kExperts, kTopK);
  NIBBLE_CUDA_OK(SortByExpert(d_logits.get(), routes.Get(), tokens, kExperts, kTopK, true, {}));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<std::int32_t> chosen = routes.chosen.Host(), rows = routes.rows.Host();
  const std::vector<float> weights = routes.weights.Host();
  // All experts as one matrix: they share a codebook.
  const TestMatrix w =
      RandomMatrix({kExperts * kN, k, e.kind, e.bits, e.group, e.offset}, e.file_group, false, rng);
  const std::string name = std::string("few ") + e.name +
                           (dtype == DType::kF16 ? " f16" : " bf16") + " k=" + std::to_string(k) +
                           " tokens=" + std::to_string(tokens);
  const int pairs = tokens * kTopK;
  const double limit = dtype == DType::kF16 ? 8e-4 : 6e-3;
  for (bool glu : {true, false}) {
    const int x_rows = glu ? tokens : pairs, out_rows = glu ? pairs : tokens;
    const int columns = glu ? kHalf : kN;
    const std::vector<std::uint16_t> x = RandomHalves(x_rows * k, dtype, rng);
    const std::vector<float> xf = DecodeAll(x, dtype);
    std::vector<float> expected(out_rows * columns);
    ParallelFor(pairs, [&](std::int64_t pair) {
      const int token = static_cast<int>(pair) / kTopK;
      const float* input = xf.data() + (glu ? token : rows[pair]) * k;
      const float* matrix = w.values.data() + std::int64_t{chosen[pair]} * kN * k;
      std::vector<double> y(kN);
      for (int n = 0; n < kN; ++n) {
        for (int i = 0; i < k; ++i) y[n] += double{input[i]} * matrix[n * k + i];
      }
      if (!glu) return;
      for (int n = 0; n < kHalf; ++n) {
        expected[rows[pair] * kHalf + n] =
            static_cast<float>(y[n] / (1 + std::exp(-y[n])) * y[n + kHalf]);
      }
    });
    for (int pair = 0; !glu && pair < pairs; ++pair) {
      for (int n = 0; n < kN; ++n) {
        double sum = 0;
        for (int i = 0; i < k; ++i) {
          sum += double{xf[rows[pair] * k + i]} *
                 w.values[(std::int64_t{chosen[pair]} * kN + n) * k + i];
        }
        expected[pair / kTopK * kN + n] += static_cast<float>(weights[pair] * sum);
      }
    }
    const DeviceArray<std::uint16_t> d_x(x), out(out_rows * columns);
    FewExpertsArgs args;
    args.w = w.packed;
    args.w.shape.n = kN;
    args.dtype = dtype;
    args.x = d_x.get();
    args.ldx = k;
    args.out = out.get();
    args.ldo = columns;
    args.routes = routes.Get();
    args.tokens = tokens, args.experts = kExperts, args.top_k = kTopK;
    NIBBLE_CUDA_OK(glu ? FewExpertsGlu(args, {}) : FewExpertsSum(args, {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const std::vector<std::uint16_t> first = out.Host();
    counter.Near(name + (glu ? " silu" : " sum"), DecodeAll(first, dtype), expected, limit);
    for (int i = 0; i < 10; ++i) {
      NIBBLE_CUDA_OK(glu ? FewExpertsGlu(args, {}) : FewExpertsSum(args, {}));
      NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      if (out.Host() != first) counter.True(name + ": the same bits again", false);
    }
  }
}

}  // namespace

void TestMoe(Counter& counter) {
  std::mt19937 rng(3);
  TestRouting(counter, 1, 8, 2, true, rng);
  TestRouting(counter, 77, 128, 8, true, rng);
  TestRouting(counter, 1000, 60, 4, false, rng);
  TestRouting(counter, 2051, 128, 8, true, rng);
  for (const Encoding& e : kEncodings) {
    if (e.kind == CodeKind::kCodebook) continue;  // each test matrix has a table of its own
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      TestGrouped(counter, e, dtype, {1, 0, 3, 1, 0, 2}, rng);
    }
    TestGrouped(counter, e, DType::kF16, {40, 0, 17, 64, 65, 16}, rng);
    TestGrouped(counter, e, DType::kF16, {300, 1, 129}, rng);
  }
  TestGrouped(counter, kEncodings[std::size(kEncodings) - 2], DType::kF16, {130}, rng);
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    TestRouteTokens(counter, dtype, 1, 128, 8, 2048, rng);
    TestRouteTokens(counter, dtype, 6, 9, 2, 96, rng);
    TestRouteTokens(counter, dtype, kFewTokens, 300, 9, 4104, rng);
  }
  for (const Encoding& e : kEncodings) {
    if (!SupportsFewExperts({160, 264, e.kind, e.bits, e.group, e.offset})) continue;
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      TestFewExperts(counter, e, dtype, 1, 264, rng);
      TestFewExperts(counter, e, dtype, 37, 1280, rng);
    }
    TestFewExperts(counter, e, DType::kBF16, kFewTokens, 768, rng);
  }
  for (bool add : {false, true}) {
    TestCombine(counter, DType::kF16, add, rng);
    TestCombine(counter, DType::kBF16, add, rng);
  }
}

}  // namespace nibble::cuda::test
