// Times attention over the paged cache: CSV on stdout, to be read beside sdpa_reference.py.
//
//   attention_bench prefill|decode|mixed|rope|splits [--heads 32/8] [--dim 128] [--kv f16|f8|i8]
//
// Pages lie in random order and inputs are random; decode rotates over more layers than the L2
// holds. prefill also compares the fast kernel with the portable one (error, of the whole output).
#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "kernels/cuda/ops.h"
#include "tests/bench/timing.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::bench {
namespace {

using test::DeviceArray;
using test::RandomHalves;

constexpr std::int64_t kRotation = 400LL << 20;

struct Heads {
  int heads = 32, kv_heads = 8, dim = 128;
  DType kv = DType::kF16;
};

// The cache and queries of one step of `contexts.size()` sequences with `queries` rows each.
class Step {
 public:
  Step(const Heads& h, const std::vector<int>& contexts, int queries, bool rotate)
      : heads_(h), contexts_(contexts), queries_(queries) {
    std::mt19937 rng(1);
    const int sequences = static_cast<int>(contexts.size());
    const int longest = *std::max_element(contexts.begin(), contexts.end());
    const int ld_pages = (longest + 63) / 64;
    kv_ = {1, 0, h.kv_heads, h.dim, 64, h.kv};
    std::vector<std::int32_t> pages(static_cast<std::size_t>(sequences) * ld_pages, 0);
    for (int s = 0; s < sequences; ++s) kv_.num_pages += (contexts[s] + 63) / 64;
    std::vector<std::int32_t> order(kv_.num_pages);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng);
    for (int s = 0, next = 0; s < sequences; ++s) {
      for (int i = 0; i < (contexts[s] + 63) / 64; ++i) pages[s * ld_pages + i] = order[next++];
    }
    layers_ =
        rotate ? static_cast<int>(std::min<std::int64_t>(32, kRotation / kv_.TotalBytes() + 1)) : 2;
    FillCache(rng);
    const int width = (h.heads + 2 * h.kv_heads) * h.dim;
    q_ = DeviceArray<std::uint16_t>(
        RandomHalves(static_cast<std::int64_t>(sequences) * queries * width, DType::kF16, rng));
    out_ =
        DeviceArray<std::uint16_t>(static_cast<std::size_t>(sequences) * queries * h.heads * h.dim);
    std::vector<std::int32_t> offsets(sequences + 1);
    for (int i = 0; i <= sequences; ++i) offsets[i] = i * queries;
    offsets_ = DeviceArray<std::int32_t>(offsets);
    pages_ = DeviceArray<std::int32_t>(pages);
    d_contexts_ =
        DeviceArray<std::int32_t>(std::vector<std::int32_t>(contexts.begin(), contexts.end()));
    args_.q = q_.get();
    args_.ld_q = width;
    args_.out = out_.get();
    args_.sequences = sequences, args_.heads = h.heads, args_.kv_heads = h.kv_heads,
    args_.head_dim = h.dim;
    args_.query_offsets = offsets_.get();
    args_.max_queries = queries;
    args_.contexts = d_contexts_.get();
    args_.max_context = longest;
    args_.pages = pages_.get();
    args_.ld_pages = ld_pages;
    args_.kv = kv_;
    args_.scale = 1.0f / std::sqrt(static_cast<float>(h.dim));
    workspace_ = DeviceArray<std::uint8_t>(AttentionWorkspaceBytes(args_));
    args_.workspace = workspace_.get();
    flags_ = DeviceArray<std::uint32_t>(std::vector<std::uint32_t>(kAttentionFlags, 0));
    args_.flags = flags_.get();
    args_.layer_cache = cache_.get();
    if (queries == 1) MakeAppend(pages, ld_pages);
  }

  AttentionArgs& args() { return args_; }
  std::vector<float> Output() const { return test::DecodeAll(out_.Host(), DType::kF16); }
  double Bytes() const {  // keys and values
    double tokens = 0;
    for (int context : contexts_) tokens += context;
    return tokens * 2 * heads_.kv_heads *
           (heads_.dim * BitsOf(kv_.dtype) / 8 + (kv_.Scaled() ? 4 : 0));
  }
  double Flops() const {
    double pairs = 0;
    for (int context : contexts_)
      pairs += double(queries_) * context - double(queries_) * (queries_ - 1) / 2;
    return 4.0 * heads_.heads * heads_.dim * pairs;
  }

  // How decode gets its newest keys: they are there, by a launch before, by its own.
  enum class Append { kNone, kBefore, kWithin };

  double Time(cudaError_t (*attention)(const AttentionArgs&, LaunchOptions), int launches,
              Append how = Append::kNone) {
    return MedianReplay([&](cudaStream_t stream) {
             for (int i = 0; i < launches; ++i) Launch(attention, {stream, i > 0}, i, how);
           }) /
           launches;
  }
  int layers() const { return layers_; }

 private:
  void Launch(cudaError_t (*attention)(const AttentionArgs&, LaunchOptions), LaunchOptions options,
              int layer, Append how) {
    AttentionArgs args = args_;
    RopeAppendArgs append = append_;
    args.layer_cache = append.layer_cache = cache_.get() + layer % layers_ * LayerBytes();
    if (how == Append::kBefore) {
      NIBBLE_CUDA_OK(RopeAppend(append, options));
      options.dependent = true;
    }
    if (how == Append::kWithin) args.append = &append;
    NIBBLE_CUDA_OK(attention(args, options));
  }
  std::int64_t LayerBytes() const { return kv_.LayerStride() * BitsOf(kv_.dtype) / 8; }

  void MakeAppend(const std::vector<std::int32_t>& pages, int ld_pages) {
    std::vector<std::int32_t> slots, positions;
    for (std::size_t s = 0; s < contexts_.size(); ++s) {
      const int newest = contexts_[s] - 1;
      positions.push_back(newest);
      slots.push_back(pages[s * ld_pages + newest / 64] * 64 + newest % 64);
    }
    slots_ = DeviceArray<std::int32_t>(slots);
    positions_ = DeviceArray<std::int32_t>(positions);
    std::vector<float> inv_freq(heads_.dim / 2);
    for (int j = 0; j < heads_.dim / 2; ++j) inv_freq[j] = std::pow(5e5f, -2.0f * j / heads_.dim);
    inv_freq_ = DeviceArray<float>(inv_freq);
    append_.qkv = q_.get();
    append_.ld_qkv = args_.ld_q;
    append_.tokens = args_.sequences, append_.heads = heads_.heads;
    append_.kv_heads = heads_.kv_heads, append_.head_dim = append_.rope_dim = heads_.dim;
    append_.inv_freq = inv_freq_.get();
    append_.positions = positions_.get();
    append_.slots = slots_.get();
    append_.kv = kv_;
  }

  // A million random elements over and over; scales all alike.
  void FillCache(std::mt19937& rng) {
    std::vector<std::uint8_t> chunk(2 << 20);
    const std::vector<std::uint16_t> halves = RandomHalves(1 << 20, DType::kF16, rng);
    std::memcpy(chunk.data(), halves.data(), chunk.size());
    for (std::size_t i = 0; kv_.Scaled() && i < chunk.size(); ++i)
      chunk[i] = static_cast<std::uint8_t>(rng() % 127 | (rng() & 0x80));  // no NaN of e4m3
    const auto total = static_cast<std::size_t>(LayerBytes() * layers_);
    cache_ = DeviceArray<std::uint8_t>(total);
    for (std::size_t at = 0; at < total; at += chunk.size()) {
      NIBBLE_CUDA_OK(cudaMemcpy(cache_.get() + at, chunk.data(), std::min(chunk.size(), total - at),
                                cudaMemcpyHostToDevice));
    }
    if (!kv_.Scaled()) return;
    const std::size_t pages = static_cast<std::size_t>(kv_.num_pages) * layers_;
    const std::vector<float> scales(pages * kv_.ScaleBytes() / 4, 0.01f);
    NIBBLE_CUDA_OK(cudaMemcpy2D(cache_.get() + kv_.ScaleOffset(), kv_.PageStride(), scales.data(),
                                kv_.ScaleBytes(), kv_.ScaleBytes(), pages, cudaMemcpyHostToDevice));
  }

  Heads heads_;
  std::vector<int> contexts_;
  int queries_, layers_ = 1;
  KvLayout kv_;
  DeviceArray<std::uint8_t> cache_;
  DeviceArray<std::uint16_t> q_, out_;
  DeviceArray<std::int32_t> offsets_, pages_, d_contexts_;
  DeviceArray<std::int32_t> slots_, positions_;
  DeviceArray<float> inv_freq_;
  DeviceArray<std::uint8_t> workspace_;
  DeviceArray<std::uint32_t> flags_;
  AttentionArgs args_;
  RopeAppendArgs append_;
};

double Error(const std::vector<float>& out, const std::vector<float>& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!std::isfinite(out[i])) return INFINITY;
    difference += (double{out[i]} - expected[i]) * (double{out[i]} - expected[i]);
    norm += double{expected[i]} * expected[i];
  }
  return std::sqrt(difference / norm);
}

int Prefill(const Heads& h) {
  int wrong = 0;
  std::printf(
      "phase,heads,dim,kv,sequences,queries,context,us,TFLOPs,block_a_tile_us,"
      "portable_us,error\n");
  const DeviceArray<std::int32_t> counter(std::vector<std::int32_t>{0, 0});
  const struct {
    int sequences, queries, context;
  } kSteps[] = {{4, 512, 512},  {1, 2048, 2048}, {4, 2048, 2048}, {1, 8192, 8192},
                {1, 512, 8192}, {1, 128, 8192},  {16, 100, 1000}};
  for (const auto& each : kSteps) {
    Step step(h, std::vector<int>(each.sequences, each.context), each.queries, false);
    const double once = step.Time(PrefillAttention, 6);
    step.args().counter = counter.get();
    const double us = step.Time(PrefillAttention, 6);
    NIBBLE_CUDA_OK(PrefillAttention(step.args(), {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> out = step.Output();
    step.args().portable = true;
    const double portable = step.Time(PrefillAttention, 2);
    NIBBLE_CUDA_OK(PrefillAttention(step.args(), {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const double error = Error(out, step.Output());
    wrong += !(error < 2e-3);
    std::printf("prefill,%d/%d,%d,%s,%d,%d,%d,%.2f,%.1f,%.2f,%.2f,%.1e%s\n", h.heads, h.kv_heads,
                h.dim, NameOf(h.kv), each.sequences, each.queries, each.context, us,
                step.Flops() / us * 1e-6, once, portable, error, error < 2e-3 ? "" : " WRONG");
    std::fflush(stdout);
  }
  return wrong;
}

void TimeDecode(const Heads& h, const char* name, const std::vector<int>& contexts, int bound,
                int split_tokens = 0) {
  Step step(h, contexts, 1, true);
  step.args().query_offsets = nullptr;
  step.args().max_context = std::max(bound, step.args().max_context);
  step.args().split_tokens = split_tokens;
  const int launches = std::max(step.layers(), 8);
  const double us = step.Time(DecodeAttention, launches);
  step.args().early = true;
  const double early = step.Time(DecodeAttention, launches);
  const double before = step.Time(DecodeAttention, launches, Step::Append::kBefore);
  const double within = step.Time(DecodeAttention, launches, Step::Append::kWithin);
  step.args().split_tokens = kSplitEvenly;
  const double even = step.Time(DecodeAttention, launches, Step::Append::kWithin);
  step.args().split_tokens = 0, step.args().flags = nullptr;
  const double clusters = step.Time(DecodeAttention, launches, Step::Append::kWithin);
  std::printf("decode,%d/%d,%d,%s,%s,%zu,%d,%d,%.2f,%.2f,%.2f,%.2f,%.2f,%.2f,%.2f\n", h.heads,
              h.kv_heads, h.dim, NameOf(h.kv), name, contexts.size(), step.args().max_context,
              split_tokens, us, step.Bytes() / us * 1e-6, early, before, within, even, clusters);
  std::fflush(stdout);
}

void PrintDecodeHeader() {
  std::printf(
      "phase,heads,dim,kv,contexts,sequences,bound,split_tokens,us,kv_TBps,early_us,"
      "append_before_us,append_within_us,even_us,clusters_us\n");
}

void Decode(const Heads& h) {
  PrintDecodeHeader();
  for (const auto& [sequences, context] : std::initializer_list<std::pair<int, int>>{{1, 128},
                                                                                     {1, 1024},
                                                                                     {1, 8192},
                                                                                     {1, 32768},
                                                                                     {4, 1024},
                                                                                     {8, 1024},
                                                                                     {16, 1024},
                                                                                     {32, 1024},
                                                                                     {64, 1024},
                                                                                     {64, 8192}}) {
    TimeDecode(h, std::to_string(context).c_str(), std::vector<int>(sequences, context), 0);
  }
}

// Contexts of different lengths, and bounds far above them, as captured steps have.
void Mixed(const Heads& h) {
  PrintDecodeHeader();
  std::mt19937 rng(7);
  std::vector<int> contexts(64);
  for (int& c : contexts) c = 100 + static_cast<int>(rng() % 3901);
  TimeDecode(h, "100..4000", contexts, 0);
  std::sort(contexts.begin(), contexts.end());
  TimeDecode(h, "100..4000 rising", contexts, 0);
  std::vector<int> skewed(16, 300);
  skewed[15] = 16000;
  TimeDecode(h, "15 x 300 + 16000", skewed, 0);
  TimeDecode(h, "1024", {1024}, 8192);
  TimeDecode(h, "1024", {1024}, 131072);
  TimeDecode(h, "8 x 1024", std::vector<int>(8, 1024), 32768);
}

// Rope and append as a launch of its own.
void Rope(const Heads& h) {
  std::printf("phase,heads,dim,kv,tokens,us,TBps\n");
  for (int tokens : {1, 64, 512, 2048, 8192}) {
    Step step(h, std::vector<int>(tokens, 64), 1, false);
    const double us = step.Time([](const AttentionArgs&, LaunchOptions) { return cudaSuccess; }, 8,
                                Step::Append::kBefore);
    const double bytes = 2.0 * tokens * h.dim * (2 * h.heads + 2 * h.kv_heads) +
                         2.0 * tokens * h.dim * h.kv_heads * BitsOf(h.kv) / 8;
    std::printf("rope,%d/%d,%d,%s,%d,%.2f,%.2f\n", h.heads, h.kv_heads, h.dim, NameOf(h.kv), tokens,
                us, bytes / us * 1e-6);
    std::fflush(stdout);
  }
}

// What more or fewer blocks a sequence would cost.
void Splits(const Heads& h) {
  PrintDecodeHeader();
  for (const auto& [sequences, context] : std::initializer_list<std::pair<int, int>>{
           {1, 1024}, {1, 8192}, {4, 1024}, {16, 1024}, {64, 1024}, {64, 8192}}) {
    for (int splits : {1, 2, 4, 8, 16}) {
      if (sequences * splits > 256 || sequences * splits < 4) continue;
      TimeDecode(h, std::to_string(context).c_str(), std::vector<int>(sequences, context), 0,
                 context / splits);
    }
  }
}

}  // namespace
}  // namespace nibble::cuda::bench

int main(int argc, char** argv) {
  using namespace nibble::cuda::bench;
  Heads heads;
  const std::string mode = argc > 1 ? argv[1] : "";
  for (int i = 2; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--heads") == 0)
      std::sscanf(argv[i + 1], "%d/%d", &heads.heads, &heads.kv_heads);
    if (std::strcmp(argv[i], "--kv") == 0) {
      heads.kv = argv[i + 1][0] == 'i'                 ? nibble::DType::kI8
                 : std::strcmp(argv[i + 1], "f8") == 0 ? nibble::DType::kF8E4M3
                                                       : nibble::DType::kF16;
    }
    if (std::strcmp(argv[i], "--dim") == 0) heads.dim = std::atoi(argv[i + 1]);
  }
  cudaDeviceProp properties;
  NIBBLE_CUDA_OK(cudaGetDeviceProperties(&properties, 0));
  std::printf("# %s, %d SMs\n", properties.name, properties.multiProcessorCount);
  if (mode == "prefill") return Prefill(heads) == 0 ? 0 : 1;
  if (mode == "decode") {
    Decode(heads);
  } else if (mode == "mixed") {
    Mixed(heads);
  } else if (mode == "rope") {
    Rope(heads);
  } else if (mode == "splits") {
    Splits(heads);
  } else {
    std::printf(
        "usage: attention_bench prefill|decode|mixed|rope|splits [--heads 32/8] [--dim 128] [--kv "
        "f8]\n");
    return 64;
  }
  return 0;
}
