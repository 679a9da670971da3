// Norms, gates, embedding, gathers and rotary append against plain loops.
#include <cstring>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::test {
namespace {

constexpr float kEps = 1e-5f;

void TestNorms(Counter& counter, DType dtype, const std::string& suffix, double limit,
               std::mt19937& rng) {
  for (int dim : {64, 576, 4096, 4100}) {
    const int tokens = 5;
    const std::string name = suffix + " dim=" + std::to_string(dim);
    const std::vector<float> weight = RandomFloats(dim, rng);
    const DeviceArray<float> d_weight(weight);
    const std::vector<std::uint16_t> x = RandomHalves(tokens * dim, dtype, rng, 3.0f);
    const std::vector<float> xf = DecodeAll(x, dtype);
    std::vector<float> residual = RandomFloats(tokens * dim, rng);
    DeviceArray<float> d_residual(residual);
    const DeviceArray<std::uint16_t> d_x(x);
    DeviceArray<std::uint16_t> out(tokens * dim);
    const auto norm = [&](const std::vector<float>& in) {
      std::vector<float> expected(in.size());
      for (int t = 0; t < tokens; ++t) {
        double squares = 0;
        for (int i = 0; i < dim; ++i) squares += double{in[t * dim + i]} * in[t * dim + i];
        for (int i = 0; i < dim; ++i) {
          expected[t * dim + i] =
              static_cast<float>(in[t * dim + i] / std::sqrt(squares / dim + kEps) * weight[i]);
        }
      }
      return expected;
    };
    NIBBLE_CUDA_OK(RmsNorm(dtype, out.get(), d_x.get(), d_weight.get(), tokens, dim, kEps, {}));
    counter.Near("rms norm" + name, DecodeAll(out.Host(), dtype), norm(xf), limit);
    for (int i = 0; i < tokens * dim; ++i) residual[i] += xf[i];
    NIBBLE_CUDA_OK(AddRmsNorm(dtype, d_residual.get(), d_x.get(), d_weight.get(), out.get(), tokens,
                              dim, kEps, {}));
    counter.Near("add + rms norm" + name, DecodeAll(out.Host(), dtype), norm(residual), limit);
    counter.Near("add + rms norm, residual" + name, d_residual.Host(), residual, 1e-6);
    DeviceArray<float> sums(tokens * ((dim + 15) / 16));
    NIBBLE_CUDA_OK(PrepareNorm(dtype, d_residual.get(), {d_weight.get(), out.get(), sums.get()},
                               tokens, dim, {}));
    std::vector<float> expected(tokens * dim), expected_sums(sums.size(), 0.0f);
    for (int i = 0; i < tokens * dim; ++i) {
      expected[i] = residual[i] * weight[i % dim];
      expected_sums[i / dim * ((dim + 15) / 16) + i % dim / 16] += residual[i] * residual[i];
    }
    counter.Near("prepare norm" + name, DecodeAll(out.Host(), dtype), expected, limit);
    counter.Near("prepare norm, sums" + name, sums.Host(), expected_sums, 1e-5);
    NIBBLE_CUDA_OK(AddResidual(dtype, d_residual.get(), d_x.get(), tokens * dim, {}));
    for (int i = 0; i < tokens * dim; ++i) residual[i] += xf[i];
    counter.Near("add" + name, d_residual.Host(), residual, 1e-6);
  }
}

void TestPointwise(Counter& counter, DType dtype, const std::string& suffix, double limit,
                   std::mt19937& rng) {
  const int tokens = 3, most_dim = 1040;
  const std::vector<std::uint16_t> in = RandomHalves(tokens * 2 * most_dim, dtype, rng, 2.0f);
  const std::vector<float> inf = DecodeAll(in, dtype);
  const DeviceArray<std::uint16_t> d_in(in);
  for (auto [dim, alternate] :
       {std::pair(1040, false), {1040, true}, {1032, false}, {1037, false}}) {
    for (Gate gate : {Gate::kSilu, Gate::kGeluTanh}) {
      std::vector<float> expected(tokens * dim);
      for (int i = 0; i < tokens * dim; ++i) {
        const int c = i % dim, at = i / dim * 2 * dim + (alternate ? c / 16 * 32 + c % 16 : c);
        const float v = inf[at], up = inf[at + (alternate ? 16 : dim)];
        expected[i] =
            up * (gate == Gate::kSilu
                      ? v / (1 + std::exp(-v))
                      : 0.5f * v * (1 + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v))));
      }
      DeviceArray<std::uint16_t> out(tokens * dim);
      NIBBLE_CUDA_OK(Glu(dtype, out.get(), d_in.get(), tokens, dim, gate, alternate, {}));
      counter.Near(std::string(gate == Gate::kSilu ? "silu gate" : "gelu gate") +
                       (alternate ? " alternate " : " ") + std::to_string(dim) + suffix,
                   DecodeAll(out.Host(), dtype), expected, limit);
    }
  }
  const std::vector<std::int32_t> tokens_in = {3, -1, 0, 6}, slots = {0, 1, 2, 3},
                                  last = {9, 5, 9, 9};
  const DeviceArray<std::int32_t> d_tokens(tokens_in), d_slots(slots), d_last(last);
  const int width = 288, vocab = 7;
  const std::vector<std::uint16_t> table = RandomHalves(vocab * width, dtype, rng);
  const DeviceArray<std::uint16_t> d_table(table);
  DeviceArray<float> embedded(4 * width);
  NIBBLE_CUDA_OK(Embed(dtype, embedded.get(), d_table.get(), d_tokens.get(), d_last.get(),
                       d_slots.get(), 4, width, vocab, 2.0f, {}));
  std::vector<float> expected(4 * width);
  for (int i = 0; i < 4 * width; ++i) {
    const int token = i / width == 1 ? 5 : tokens_in[i / width];
    expected[i] = 2.0f * Decode(table[token * width + i % width], dtype);
  }
  counter.Near("embed" + suffix, embedded.Host(), expected, 1e-7);
  const std::vector<std::int32_t> rows = {6, 0, 3};
  const DeviceArray<std::int32_t> d_rows(rows);
  DeviceArray<std::uint16_t> gathered(3 * width);
  std::vector<float> expected_rows;
  for (int columns : {width - 2, width}) {  // 4 and 16 bytes at a time
    NIBBLE_CUDA_OK(GatherRows(gathered.get(), d_table.get(), d_rows.get(), 3, columns * 2, {}));
    expected_rows.clear();
    for (int i = 0; i < 3 * columns; ++i)
      expected_rows.push_back(Decode(table[rows[i / columns] * columns + i % columns], dtype));
    std::vector<float> got = DecodeAll(gathered.Host(), dtype);
    got.resize(expected_rows.size());
    counter.Near("gather rows" + suffix, got, expected_rows, 0);
  }
  const std::vector<float> bias = RandomFloats(width, rng);
  const DeviceArray<float> d_bias(bias);
  for (int i = 0; i < 3 * width; ++i) expected_rows[i] += bias[i % width];
  NIBBLE_CUDA_OK(AddBias(dtype, gathered.get(), d_bias.get(), 3, width, {}));
  counter.Near("add bias" + suffix, DecodeAll(gathered.Host(), dtype), expected_rows, limit);
  std::vector<float> logits = RandomFloats(1000, rng, 30.0f);
  const DeviceArray<float> d_logits(logits);
  NIBBLE_CUDA_OK(Softcap(d_logits.get(), 1000, 30.0f, {}));
  for (float& v : logits) v = 30.0f * std::tanh(v / 30.0f);
  counter.Near("softcap" + suffix, d_logits.Host(), logits, 1e-6);
}

void TestRope(Counter& counter, DType dtype, const std::string& suffix, double limit,
              std::mt19937& rng) {
  struct Case {
    int heads, kv_heads, head_dim, rope_dim;
    bool norm;
    DType kv_dtype = DType::kF16;  // or of 8 bits; kF16: as the queries
  };
  for (const Case& c :
       {Case{8, 2, 128, 128, false}, Case{9, 3, 64, 64, false}, Case{4, 4, 80, 32, false},
        Case{4, 2, 128, 128, true}, Case{2, 1, 256, 128, true}, Case{4, 2, 64, 0, false},
        Case{8, 2, 128, 128, false, DType::kF8E4M3}, Case{4, 4, 80, 32, true, DType::kF8E4M3},
        Case{8, 2, 128, 128, false, DType::kI8}, Case{2, 1, 256, 128, true, DType::kI8}}) {
    const int tokens = 7, heads = c.heads + 2 * c.kv_heads, width = heads * c.head_dim;
    KvLayout kv{1, 5, c.kv_heads, c.head_dim, 64, c.kv_dtype == DType::kF16 ? dtype : c.kv_dtype};
    const std::vector<std::uint16_t> qkv = RandomHalves(tokens * width, dtype, rng);
    std::vector<float> values = DecodeAll(qkv, dtype);
    const std::vector<std::int32_t> positions = {0, 1, 63, 64, 1000, 131071, 5},
                                    slots = {0, 65, 130, 319, 256, 17, -1};
    std::vector<float> inv_freq(std::max(c.rope_dim / 2, 1));
    for (std::size_t j = 0; j < inv_freq.size(); ++j)
      inv_freq[j] = std::pow(1e4f, -2.0f * j / std::max(c.rope_dim, 1));
    const std::vector<float> q_norm = RandomFloats(c.head_dim, rng),
                             k_norm = RandomFloats(c.head_dim, rng);
    std::vector<float> cache(kv.LayerStride(), 0.0f);
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        float* v = values.data() + (t * heads + h) * c.head_dim;
        const bool is_v = h >= c.heads + c.kv_heads, is_q = h < c.heads;
        if (!is_v && c.norm) {
          double squares = 0;
          for (int i = 0; i < c.head_dim; ++i) squares += double{v[i]} * v[i];
          for (int i = 0; i < c.head_dim; ++i) {
            v[i] *= static_cast<float>(1 / std::sqrt(squares / c.head_dim + kEps)) *
                    (is_q ? q_norm : k_norm)[i];
          }
        }
        for (int j = 0; j < c.rope_dim / 2 && !is_v; ++j) {
          const float angle = static_cast<float>(positions[t]) * inv_freq[j];
          const float cosine = std::cos(angle) * 1.5f, sine = std::sin(angle) * 1.5f;
          const float first = v[j], second = v[j + c.rope_dim / 2];
          v[j] = first * cosine - second * sine;
          v[j + c.rope_dim / 2] = second * cosine + first * sine;
        }
        if (!is_q && slots[t] >= 0) {
          float* to = cache.data() + slots[t] / 64 * kv.PageStride() +
                      (is_v ? kv.ValueOffset() : 0) +
                      (is_v ? h - c.heads - c.kv_heads : h - c.heads) * kv.HeadStride() +
                      slots[t] % 64 * c.head_dim;
          std::copy(v, v + c.head_dim, to);
        }
      }
    }
    DeviceArray<std::uint16_t> d_qkv(qkv);
    const DeviceArray<std::uint8_t> d_cache(
        std::vector<std::uint8_t>(kv.LayerStride() * BitsOf(kv.dtype) / 8, 0));
    const DeviceArray<float> d_freq(inv_freq), d_q_norm(q_norm), d_k_norm(k_norm);
    const DeviceArray<std::int32_t> d_positions(positions), d_slots(slots);
    RopeAppendArgs args;
    args.dtype = dtype;
    args.qkv = d_qkv.get();
    args.ld_qkv = width;
    args.tokens = tokens, args.heads = c.heads, args.kv_heads = c.kv_heads,
    args.head_dim = c.head_dim;
    args.rope_dim = c.rope_dim;
    args.inv_freq = d_freq.get();
    args.attention_factor = 1.5f;
    if (c.norm) args.q_norm = d_q_norm.get(), args.k_norm = d_k_norm.get();
    args.norm_eps = kEps;
    args.positions = d_positions.get();
    args.slots = d_slots.get();
    args.kv = kv;
    args.layer_cache = d_cache.get();
    NIBBLE_CUDA_OK(RopeAppend(args, {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const std::string name = suffix + " heads=" + std::to_string(c.heads) +
                             " dim=" + std::to_string(c.head_dim) +
                             " rope=" + std::to_string(c.rope_dim) + (c.norm ? " norm" : "");
    std::vector<float> q, expected_q;
    const std::vector<float> out = DecodeAll(d_qkv.Host(), dtype);
    for (int i = 0; i < tokens * width; ++i) {
      if (i % width < c.heads * c.head_dim) q.push_back(out[i]), expected_q.push_back(values[i]);
    }
    counter.Near("rope q" + name, q, expected_q, limit);
    const std::vector<std::uint8_t> bytes = d_cache.Host();
    if (!kv.Scaled()) {
      std::vector<std::uint16_t> halves(bytes.size() / 2);
      std::memcpy(halves.data(), bytes.data(), bytes.size());
      counter.Near("rope cache" + name, DecodeAll(halves, dtype), cache, limit);
      continue;
    }
    std::vector<float> numbers(cache.size(), 0.0f);
    for (std::int64_t at = 0; at < kv.LayerStride(); ++at) {
      const std::int64_t in_page = at % kv.PageStride();
      if (in_page >= kv.ScaleOffset()) continue;
      float scale;  // of this element's token and head
      std::memcpy(&scale, bytes.data() + at - in_page + kv.ScaleOffset() + in_page / c.head_dim * 4,
                  4);
      numbers[at] = DecodeByte(bytes[at], kv.dtype) * scale;
    }
    counter.Near("rope cache" + name + " " + NameOf(kv.dtype), numbers, cache,
                 kv.dtype == DType::kI8 ? 0.012 : 0.03);
  }
}

}  // namespace

void TestElementwise(Counter& counter) {
  std::mt19937 rng(2);
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    const std::string suffix = dtype == DType::kF16 ? " f16" : " bf16";
    const double limit = dtype == DType::kF16 ? 5e-4 : 4e-3;
    TestNorms(counter, dtype, suffix, limit, rng);
    TestPointwise(counter, dtype, suffix, limit, rng);
    TestRope(counter, dtype, suffix, limit, rng);
  }
}

}  // namespace nibble::cuda::test
