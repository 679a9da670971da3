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
  bool portable = false;
  DType kv_dtype = DType::kF16;  // or of 8 bits; kF16: as the queries
  bool even = false;             // with workspace and flags
};

// Random keys and values of a layer as its bytes. What lies past a context is nobody's: NaN.
class Cache {
 public:
  Cache(const KvLayout& kv, std::mt19937& rng) : kv_(kv) {
    if (!kv.Scaled()) {
      const std::vector<std::uint16_t> normal = RandomHalves(1 << 14, kv.dtype, rng);
      halves_.resize(kv.LayerStride());
      for (auto& h : halves_) h = normal[rng() % normal.size()];
      return;
    }
    bytes_.resize(kv.LayerStride());
    for (auto& b : bytes_) {
      b = static_cast<std::uint8_t>(rng());
      if (kv.dtype == DType::kF8E4M3 && (b & 0x7f) == 0x7f) b = 0x80;
    }
    const float unit = kv.dtype == DType::kI8 ? 0.016f : 0.008f;
    for (std::int64_t page = 0; page < kv.num_pages; ++page) {
      for (int i = 0; i < 2 * kv.num_kv_heads * 64; ++i)
        *Scale(page, i) = unit * (0.5f + static_cast<float>(rng() % 1024) / 1024);
    }
  }
  // Every element as a number, in their order in memory; scales are left out.
  std::vector<float> Numbers() const {
    std::vector<float> numbers(kv_.LayerStride(), NAN);
    for (std::int64_t page = 0; page < kv_.num_pages; ++page) {
      for (std::int64_t i = 0; i < kv_.ScaleOffset(); ++i) {
        const std::int64_t at = page * kv_.PageStride() + i;
        numbers[at] = kv_.Scaled() ? DecodeByte(bytes_[at], kv_.dtype) *
                                         *const_cast<Cache*>(this)->Scale(page, i / kv_.head_dim)
                                   : Decode(halves_[at], kv_.dtype);
      }
    }
    return numbers;
  }
  void Poison(int page, int key) {
    for (int h = 0; h < 2 * kv_.num_kv_heads; ++h) {
      const std::int64_t at = page * kv_.PageStride() + h * kv_.HeadStride() + key * kv_.head_dim;
      if (kv_.Scaled()) {
        std::fill_n(bytes_.begin() + at, kv_.head_dim, std::uint8_t{0xff});
        *Scale(page, h * 64 + key) = NAN;
      } else {
        std::fill_n(halves_.begin() + at, kv_.head_dim, std::uint16_t{0xffff});
      }
    }
  }
  DeviceArray<std::uint8_t> Upload() const {
    const auto* from =
        kv_.Scaled() ? bytes_.data() : reinterpret_cast<const std::uint8_t*>(halves_.data());
    return DeviceArray<std::uint8_t>(
        std::vector<std::uint8_t>(from, from + kv_.LayerStride() * BitsOf(kv_.dtype) / 8));
  }

 private:
  float* Scale(std::int64_t page, int index) {
    return reinterpret_cast<float*>(bytes_.data() + page * kv_.PageStride() + kv_.ScaleOffset()) +
           index;
  }
  KvLayout kv_;
  std::vector<std::uint16_t> halves_;
  std::vector<std::uint8_t> bytes_;
};

void Run(Counter& counter, const Case& c, DType dtype, bool decode, std::mt19937& rng) {
  const int sequences = static_cast<int>(c.contexts.size());
  const int max_context = *std::max_element(c.contexts.begin(), c.contexts.end());
  const int ld_pages = (max_context + 63) / 64 + 1;
  KvLayout kv{1,          sequences * ld_pages,
              c.kv_heads, c.head_dim,
              64,         c.kv_dtype == DType::kF16 ? dtype : c.kv_dtype};
  std::vector<std::int32_t> pages(kv.num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), rng);
  Cache cache(kv, rng);
  for (int s = 0; s < sequences; ++s) {
    for (int key = c.contexts[s]; key < ld_pages * 64; ++key)
      cache.Poison(pages[s * ld_pages + key / 64], key % 64);
  }
  std::vector<std::int32_t> offsets = {0};
  for (int s = 0; s < sequences; ++s)
    offsets.push_back(offsets.back() + (decode ? 1 : c.queries[s]));
  const int rows = offsets.back(), width = (c.heads + 2 * c.kv_heads) * c.head_dim;  // q inside qkv
  const std::vector<std::uint16_t> q = RandomHalves(rows * width, dtype, rng);
  const std::vector<float> sinks = RandomFloats(c.heads, rng);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  const std::vector<float> numbers = cache.Numbers(), q_numbers = DecodeAll(q, dtype);
  std::vector<float> expected(rows * c.heads * c.head_dim);
  ParallelFor(rows * c.heads, [&](std::int64_t index) {
    const int row = static_cast<int>(index / c.heads), head = static_cast<int>(index % c.heads);
    int s = 0;
    while (offsets[s + 1] <= row) ++s;
    const int position = c.contexts[s] - (offsets[s + 1] - offsets[s]) + row - offsets[s];
    const int kv_head = head / (c.heads / c.kv_heads);
    const auto at = [&](int key, bool value) {
      return numbers.data() + pages[s * ld_pages + key / 64] * kv.PageStride() +
             (value ? kv.ValueOffset() : 0) + kv_head * kv.HeadStride() + key % 64 * c.head_dim;
    };
    const float* own = q_numbers.data() + row * width + head * c.head_dim;
    std::vector<double> scores(position + 1, -INFINITY);
    double max = c.sinks ? sinks[head] : -INFINITY;
    for (int key = 0; key <= position; ++key) {
      if (c.window > 0 && position - key >= c.window) continue;
      double dot = 0;
      for (int i = 0; i < c.head_dim; ++i) dot += double{own[i]} * at(key, false)[i];
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
      for (int i = 0; i < c.head_dim; ++i) out[i] += p * at(key, true)[i];
    }
    for (int i = 0; i < c.head_dim; ++i)
      expected[index * c.head_dim + i] = static_cast<float>(out[i] / sum);
  });

  const DeviceArray<std::uint8_t> d_cache = cache.Upload();
  const DeviceArray<std::uint16_t> d_q(q);
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
  args.early = rng() % 2 == 0;
  args.portable = c.portable;
  const DeviceArray<std::int32_t> tiles(std::vector<std::int32_t>{0, 0});
  if (!c.portable && rng() % 2 == 0) args.counter = tiles.get();
  DeviceArray<std::uint8_t> workspace(AttentionWorkspaceBytes(args));
  const DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kAttentionFlags, 0));
  if (c.even) args.workspace = workspace.get(), args.flags = flags.get();
  if (c.even && decode) args.split_tokens = kSplitEvenly;
  if (decode) {
    NIBBLE_CUDA_OK(DecodeAttention(args, {}));
  } else {
    args.query_offsets = d_offsets.get();
    args.max_queries = *std::max_element(c.queries.begin(), c.queries.end());
    NIBBLE_CUDA_OK(PrefillAttention(args, {}));
  }
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  if (tiles.Host() != std::vector<std::int32_t>{0, 0}) counter.True("tile counter", false);
  if (flags.Host() != std::vector<std::uint32_t>(kAttentionFlags, 0)) counter.True("flags", false);
  // Where there are no warpgroup products, the bias of i8's bytes goes through sums of f32: of
  // thousands of random values it leaves three digits.
  const double limit = (dtype == DType::kF16 ? 1e-3 : 7e-3) *
                       (c.kv_dtype == DType::kI8 && max_context > 2000 ? 4 : 1);
  counter.Near((decode ? "decode " : "prefill ") + c.name +
                   (kv.Scaled() ? std::string(" ") + NameOf(kv.dtype) : "") +
                   (dtype == DType::kF16 ? " f16" : " bf16"),
               DecodeAll(out.Host(), dtype), expected, limit);
}

struct AppendCase {
  std::string name;
  int heads, kv_heads, head_dim, rope_dim;
  bool norm = false;
  int window = 0;
};

// Decode that appends within its launch, or behind the kernel that does, both launched dependent,
// `early` or not: the bits of launches one by one, in the output and the cache. `even`: blocks
// share all pages.
void RunAppend(Counter& counter, const AppendCase& c, DType dtype, DType kv_dtype, bool even,
               std::mt19937& rng) {
  const int width = (c.heads + 2 * c.kv_heads) * c.head_dim;
  const std::vector<std::int32_t> contexts = {1, 64, 65, 500, 0, 448, 16, 17, 130};
  const int sequences = static_cast<int>(contexts.size()), ld_pages = 8;
  const KvLayout kv{1, sequences * ld_pages, c.kv_heads, c.head_dim, 64, kv_dtype};
  std::vector<std::int32_t> pages(kv.num_pages), slots, positions;
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), rng);
  for (int s = 0; s < sequences; ++s) {
    const int newest = contexts[s] - 1;
    slots.push_back(newest < 0 ? -1 : pages[s * ld_pages + newest / 64] * 64 + newest % 64);
    positions.push_back(std::max(newest, 0));
  }
  const DeviceArray<std::uint8_t> fresh = Cache(kv, rng).Upload(), cache(fresh.size());
  const DeviceArray<std::int32_t> d_pages(pages), d_slots(slots), d_positions(positions),
      d_contexts(contexts);
  const DeviceArray<float> inv_freq([&] {
    std::vector<float> v(std::max(1, c.rope_dim / 2));
    for (std::size_t j = 0; j < v.size(); ++j) v[j] = std::pow(1e4f, -2.0f * j / c.rope_dim);
    return v;
  }());
  const DeviceArray<float> norms[2] = {DeviceArray<float>(RandomFloats(c.head_dim, rng)),
                                       DeviceArray<float>(RandomFloats(c.head_dim, rng))};
  // RopeAppend writes q back: each launch has a fresh copy.
  const std::vector<std::uint16_t> rows[2] = {RandomHalves(sequences * width, dtype, rng),
                                              RandomHalves(sequences * width, dtype, rng, 2.0f)};
  const DeviceArray<std::uint16_t> from[2] = {DeviceArray<std::uint16_t>(rows[0]),
                                              DeviceArray<std::uint16_t>(rows[1])};
  constexpr int kMost = 12;
  const DeviceArray<std::uint16_t> qkv(static_cast<std::size_t>(kMost) * sequences * width),
      out(static_cast<std::size_t>(sequences) * c.heads * c.head_dim);
  DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kAttentionFlags, 0));
  DeviceArray<std::uint8_t> workspace;
  // The output after `count` steps, the last of them of rows[1].
  const auto run = [&](int count, bool fused, bool early, bool dependent) {
    NIBBLE_CUDA_OK(
        cudaMemcpyAsync(cache.get(), fresh.get(), fresh.size(), cudaMemcpyDeviceToDevice, nullptr));
    for (int i = 0; i < count; ++i) {
      NIBBLE_CUDA_OK(cudaMemcpyAsync(qkv.get() + static_cast<std::size_t>(i) * sequences * width,
                                     from[(count + i) % 2].get(), from[0].size() * 2,
                                     cudaMemcpyDeviceToDevice, nullptr));
    }
    for (int i = 0; i < count; ++i) {
      RopeAppendArgs append;
      append.dtype = dtype;
      append.qkv = qkv.get() + static_cast<std::size_t>(i) * sequences * width;
      append.ld_qkv = width;
      append.tokens = sequences, append.heads = c.heads, append.kv_heads = c.kv_heads;
      append.head_dim = c.head_dim, append.rope_dim = c.rope_dim;
      append.inv_freq = inv_freq.get();
      append.attention_factor = 1.25f;
      if (c.norm) append.q_norm = norms[0].get(), append.k_norm = norms[1].get();
      append.norm_eps = 1e-5f;
      append.positions = d_positions.get();
      append.slots = d_slots.get();
      append.kv = kv;
      append.layer_cache = cache.get();
      AttentionArgs args;
      args.dtype = dtype;
      args.q = append.qkv;
      args.ld_q = width;
      args.out = out.get();
      args.sequences = sequences, args.heads = c.heads, args.kv_heads = c.kv_heads;
      args.head_dim = c.head_dim;
      args.contexts = d_contexts.get();
      args.max_context = 512;
      args.pages = d_pages.get();
      args.ld_pages = ld_pages;
      args.kv = kv;
      args.layer_cache = cache.get();
      args.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
      args.window = c.window;
      args.early = early;
      if (workspace.size() == 0)
        workspace = DeviceArray<std::uint8_t>(AttentionWorkspaceBytes(args));
      if (even) {
        args.workspace = workspace.get(), args.flags = flags.get();
        args.split_tokens = kSplitEvenly;
      }
      const LaunchOptions options{nullptr, dependent && i > 0};
      if (fused) {
        args.append = &append;
      } else {
        NIBBLE_CUDA_OK(RopeAppend(append, options));
      }
      NIBBLE_CUDA_OK(DecodeAttention(args, {nullptr, dependent && (i > 0 || !fused)}));
    }
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    return out.Host();
  };
  const std::vector<std::uint16_t> expected = run(1, false, false, false);
  const std::vector<std::uint8_t> expected_cache = cache.Host();
  const std::string name = std::string("decode ") + c.name + (even ? " even " : " ") +
                           NameOf(dtype) + " over " + NameOf(kv_dtype);
  const bool alone = run(1, true, false, false) == expected;
  counter.True(name + " alone", alone && cache.Host() == expected_cache);
  for (const bool fused : {false, true}) {
    for (const bool early : {false, true}) {
      int wrong = 0;
      constexpr int kRounds = 8;
      for (int round = 0; round < kRounds; ++round)
        wrong += run(kMost - round % 2, fused, early, true) != expected;
      counter.True(name + (fused ? " appending" : " behind append") + (early ? " early" : ""),
                   wrong == 0 && cache.Host() == expected_cache,
                   std::to_string(wrong) + " of 8 differ");
    }
  }
  if (flags.Host() != std::vector<std::uint32_t>(kAttentionFlags, 0))
    counter.True(name + " flags", false);
}

}  // namespace

void TestAttention(Counter& counter) {
  std::mt19937 rng(3);
  for (const bool even : {false, true}) {
    for (DType kv : {DType::kF16, DType::kF8E4M3, DType::kI8}) {
      RunAppend(counter, {"16/4 d128", 16, 4, 128, 128}, DType::kF16, kv, even, rng);
      RunAppend(counter, {"32/4 d128 norm", 32, 4, 128, 128, true}, DType::kF16, kv, even, rng);
      RunAppend(counter, {"4/4 d80 rope 32", 4, 4, 80, 32, false, 70}, DType::kF16, kv, even, rng);
      RunAppend(counter, {"40/2 d64", 40, 2, 64, 64, true}, DType::kF16, kv, even, rng);
      RunAppend(counter, {"6/2 d256", 6, 2, 256, 256}, DType::kF16, kv, even, rng);
    }
    for (DType kv : {DType::kBF16, DType::kF8E4M3})
      RunAppend(counter, {"16/4 d128 norm", 16, 4, 128, 64, true}, DType::kBF16, kv, even, rng);
  }
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
    std::vector<int> many;
    for (int i = 0; i < 70; ++i) many.push_back(i * i * 7 % 500 + 1);
    for (const DType kv : {DType::kF16, DType::kF8E4M3, DType::kI8}) {
      const auto even = [&](Case c) {
        c.kv_dtype = kv, c.even = true, c.name += " even";
        Run(counter, c, dtype, true, rng);
      };
      even({"8/2 d128", 8, 2, 128, {}, many});
      even({"9/3 d64 softcap sinks", 9, 3, 64, {}, contexts, 0, 20.0f, true});
      even({"4/2 d128 window 100", 4, 2, 128, {}, many, 100});
      even({"71/1 d64", 71, 1, 64, {}, {130, 7, 3000}});
      even({"8/1 d256", 8, 1, 256, {}, {1, 15, 300, 2000, 64, 65, 66, 67, 1000}});
      even({"8/2 d128 of 5000", 8, 2, 128, {}, {5000, 5, 70, 64, 700}});
    }
    Run(counter, {"4/4 d80", 4, 4, 80, {}, contexts}, dtype, true, rng);
    Run(counter, {"6/2 d96", 6, 2, 96, {}, contexts}, dtype, true, rng);
    Run(counter, {"8/1 d256", 8, 1, 256, {}, contexts}, dtype, true, rng);
    Run(counter, {"71/1 d64", 71, 1, 64, {}, {130, 7}}, dtype, true, rng);
    Run(counter, {"32/8 d128 4k", 32, 8, 128, {}, {4096, 4000}}, dtype, true, rng);
    const std::vector<int> queries = {1, 5, 64, 65, 130, 16, 100},
                           past = {1, 5, 64, 65, 130, 200, 517};
    for (const DType kv : {DType::kF8E4M3, DType::kI8}) {
      const auto both = [&](Case c) {
        c.kv_dtype = kv;
        Run(counter, c, dtype, true, rng);
        Run(counter, c, dtype, false, rng);
        c.portable = true;
        c.name += " portable";
        Run(counter, c, dtype, false, rng);
      };
      for (int split : {0, 128}) {
        both({"32/8 d128", 32, 8, 128, queries, past, 0, 0, false, split});
        both({"9/3 d64 softcap sinks", 9, 3, 64, queries, past, 0, 20.0f, true, split});
      }
      Run(counter, {"8/2 d128 split", 8, 2, 128, {40}, {2900}, 0, 0, false, 0, false, kv, true},
          dtype, false, rng);
      both({"8/1 d256 window 40", 8, 1, 256, queries, past, 40});
      both({"4/4 d80", 4, 4, 80, queries, past});
      both({"6/2 d96", 6, 2, 96, queries, past});
    }
    for (const bool portable : {false, true}) {
      const auto prefill = [&](Case c) {
        c.portable = portable;
        if (portable) c.name += " portable";
        Run(counter, c, dtype, false, rng);
      };
      prefill({"32/8 d128", 32, 8, 128, queries, past});
      prefill({"9/3 d64", 9, 3, 64, queries, past});
      prefill({"window 40", 8, 4, 128, queries, past, 40});
      prefill({"window 100 softcap sinks", 8, 2, 64, queries, past, 100, 20.0f, true});
      prefill({"4/4 d80", 4, 4, 80, queries, past});
      prefill({"6/2 d96 sinks", 6, 2, 96, queries, past, 0, 0, true});
      prefill({"8/1 d256", 8, 1, 256, queries, past});
      prefill({"14/2 d128", 14, 2, 128, queries, past});
      prefill({"71/1 d64", 71, 1, 64, {130, 7}, {130, 300}});
      const auto split = [&](Case c) {
        c.even = true, c.name += " split";
        prefill(c);
      };
      split({"8/2 d128", 8, 2, 128, {33, 7}, {3000, 600}});
      split({"9/3 d64 softcap sinks", 9, 3, 64, {200}, {2100}, 0, 20.0f, true});
      split({"6/2 d96 window 900", 6, 2, 96, {70}, {2100}, 900});
      split({"8/1 d256 sinks", 8, 1, 256, {9, 100, 1}, {1500, 100, 513}, 0, 0, true});
      prefill({"4/4 d128 1000 of 2000", 4, 4, 128, {1000, 1}, {2000, 129}});
    }
  }
}

}  // namespace nibble::cuda::test
