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
};

// Random keys and values of a layer as its bytes. What lies past a context is nobody's: NaN.
class Cache {
 public:
  Cache(const KvLayout& kv, std::mt19937& rng) : kv_(kv) {
    if (!kv.Scaled()) {
      halves_ = RandomHalves(kv.LayerStride(), kv.dtype, rng);
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
  float At(int page, bool value, int head, int key, int i) const {
    const std::int64_t at = page * kv_.PageStride() + (value ? kv_.ValueOffset() : 0) +
                            head * kv_.HeadStride() + key * kv_.head_dim + i;
    if (!kv_.Scaled()) return Decode(halves_[at], kv_.dtype);
    return DecodeByte(bytes_[at], kv_.dtype) *
           *const_cast<Cache*>(this)->Scale(page,
                                            ((value ? kv_.num_kv_heads : 0) + head) * 64 + key);
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

  std::vector<float> expected(rows * c.heads * c.head_dim);
  ParallelFor(rows * c.heads, [&](std::int64_t index) {
    const int row = static_cast<int>(index / c.heads), head = static_cast<int>(index % c.heads);
    int s = 0;
    while (offsets[s + 1] <= row) ++s;
    const int position = c.contexts[s] - (offsets[s + 1] - offsets[s]) + row - offsets[s];
    const int kv_head = head / (c.heads / c.kv_heads);
    const auto at = [&](int key, bool value, int i) {
      return cache.At(pages[s * ld_pages + key / 64], value, kv_head, key % 64, i);
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
  if (tiles.Host() != std::vector<std::int32_t>{0, 0}) counter.True("tile counter", false);
  counter.Near((decode ? "decode " : "prefill ") + c.name +
                   (kv.Scaled() ? std::string(" ") + NameOf(kv.dtype) : "") +
                   (dtype == DType::kF16 ? " f16" : " bf16"),
               DecodeAll(out.Host(), dtype), expected, dtype == DType::kF16 ? 1e-3 : 7e-3);
}

// Decode behind the kernel that writes the newest keys, both launched dependent, `early` or not:
// the bits of launches one by one.
void RunEarly(Counter& counter, DType kv_dtype, std::mt19937& rng) {
  constexpr int kHeads = 16, kKvHeads = 4, kDim = 128, kWidth = (kHeads + 2 * kKvHeads) * kDim;
  const std::vector<std::int32_t> contexts = {1, 64, 65, 500, 1024};
  const int sequences = static_cast<int>(contexts.size()), ld_pages = 16;
  const KvLayout kv{1, sequences * ld_pages, kKvHeads, kDim, 64, kv_dtype};
  std::vector<std::int32_t> pages(kv.num_pages), slots, positions(contexts.size(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), rng);
  for (int s = 0; s < sequences; ++s)
    slots.push_back(pages[s * ld_pages + (contexts[s] - 1) / 64] * 64 + (contexts[s] - 1) % 64);
  const DeviceArray<std::uint8_t> cache = Cache(kv, rng).Upload();
  const DeviceArray<std::int32_t> d_pages(pages), d_slots(slots), d_positions(positions),
      d_contexts(contexts);
  const DeviceArray<std::uint16_t> qkv[2] = {
      DeviceArray<std::uint16_t>(RandomHalves(sequences * kWidth, DType::kF16, rng)),
      DeviceArray<std::uint16_t>(RandomHalves(sequences * kWidth, DType::kF16, rng, 2.0f))};
  const DeviceArray<std::uint16_t> out(sequences * kHeads * kDim);
  const auto launch = [&](int i, bool early, bool dependent, cudaStream_t stream) {
    RopeAppendArgs append;
    append.qkv = qkv[i].get();
    append.ld_qkv = kWidth;
    append.tokens = sequences, append.heads = kHeads, append.kv_heads = kKvHeads,
    append.head_dim = kDim;
    append.positions = d_positions.get();
    append.slots = d_slots.get();
    append.kv = kv;
    append.layer_cache = cache.get();
    NIBBLE_CUDA_OK(RopeAppend(append, {stream, dependent}));
    AttentionArgs args;
    args.q = qkv[i].get();
    args.ld_q = kWidth;
    args.out = out.get();
    args.sequences = sequences, args.heads = kHeads, args.kv_heads = kKvHeads, args.head_dim = kDim;
    args.contexts = d_contexts.get();
    args.max_context = 1024;
    args.pages = d_pages.get();
    args.ld_pages = ld_pages;
    args.kv = kv;
    args.layer_cache = cache.get();
    args.scale = 0.0883883476f;
    args.early = early;
    NIBBLE_CUDA_OK(DecodeAttention(args, {stream, dependent}));
  };
  std::vector<std::uint16_t> expected[2];
  for (int i = 0; i < 2; ++i) {
    launch(i, false, false, nullptr);
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    expected[i] = out.Host();
  }
  for (const bool early : {false, true}) {
    int wrong = 0;
    for (int round = 0; round < 100; ++round) {
      launch(0, early, false, nullptr);
      for (int i = 1; i < 10 + round % 2; ++i) launch(i % 2, early, true, nullptr);
      NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      wrong += out.Host() != expected[(9 + round) % 2];
    }
    counter.True(std::string("decode behind append ") + NameOf(kv_dtype) + (early ? " early" : ""),
                 wrong == 0 && expected[0] != expected[1],
                 std::to_string(wrong) + " of 100 differ");
  }
}

}  // namespace

void TestAttention(Counter& counter) {
  std::mt19937 rng(3);
  for (DType kv : {DType::kF16, DType::kF8E4M3, DType::kI8}) RunEarly(counter, kv, rng);
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
      prefill({"4/4 d128 1000 of 2000", 4, 4, 128, {1000, 1}, {2000, 129}});
    }
  }
}

}  // namespace nibble::cuda::test
