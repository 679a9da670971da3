// Times products of 8-bit rows beside cuBLAS fp16 in the same run, and mixtures of experts.
//
//   rows_bench row8 [--codes int8,e4m3,outliers] [--m 1,...]  a CSV row a (shape, m, code); the
//                                                             inputs' rounding is timed apart
//   rows_bench plans [--m 1,...]                              products by tile, stages, and whether
//                                                             SMs share tiles
//   rows_bench chain [--codes int8,...] [--m 1,...]           rounding and product of the four of a
//                                                             layer, 32 layers, one graph
//   rows_bench moe [--m 1,...]                                the mixture of Qwen3-30B-A3B's layers
//                                                             (128 experts of 768, 8 a token),
//                                                             int4; tokens choose at random, or all
//                                                             alike
//
// Weights are rotated over more memory than the L2 holds; inputs are random.
#include <cublas_v2.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>

#include "kernels/cuda/model_ops.h"
#include "kernels/cuda/row8.h"
#include "tests/bench/shapes.h"
#include "tests/bench/timing.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::bench {
namespace {

using test::DeviceArray;
using test::RandomFloats;
using test::RandomHalves;

struct Code {
  const char* name;
  DType type;
  InputRounding rounding;
};
constexpr Code kCodes[] = {{"int8", DType::kI8, InputRounding::kInt8Dynamic},
                           {"e4m3", DType::kF8E4M3, InputRounding::kE4m3Dynamic},
                           {"outliers", DType::kI8, InputRounding::kOutlierSplit}};

// Random bytes that are codes of either type.
DeviceArray<std::uint8_t> RandomCodes(std::int64_t size, int copies, std::mt19937& rng) {
  std::vector<std::uint8_t> block(1 << 20);
  for (auto& byte : block) byte = static_cast<std::uint8_t>(rng()) & 0xef;
  DeviceArray<std::uint8_t> codes(size * copies);
  for (std::int64_t at = 0; at < size * copies; at += 1 << 20) {
    NIBBLE_CUDA_OK(cudaMemcpy(codes.get() + at, block.data(),
                              std::min<std::int64_t>(1 << 20, size * copies - at),
                              cudaMemcpyHostToDevice));
  }
  return codes;
}

// Weights, inputs with outliers in six columns, and what products of one shape need.
class Products {
 public:
  Products(const Shape& shape, const Code& code, int copies, int max_m, std::mt19937& rng)
      : shape_(shape),
        code_(code),
        copies_(copies),
        w_(RandomCodes(std::int64_t{shape.n} * shape.k, copies, rng)),
        scales_(std::vector<float>(shape.n, 1e-4f)),
        x_codes_(std::int64_t{max_m} * shape.k),
        x_scales_(max_m),
        outliers_(max_m * kOutlierList),
        flags_(std::vector<std::uint32_t>(kProductFlags, 0)),
        partials_(4 << 20),
        out_(std::int64_t{max_m} * shape.n) {
    std::vector<std::uint16_t> x = RandomHalves(std::int64_t{max_m} * shape.k, DType::kF16, rng);
    for (int i = 0; i < 6; ++i) {
      for (int t = 0; t < max_m; ++t) x[std::int64_t{t} * shape.k + i * 97] = F32ToF16(20.0f);
    }
    x_ = DeviceArray<std::uint16_t>(x);
  }

  void Quantize(int m, bool dependent, cudaStream_t stream) const {
    QuantizeArgs q;
    q.x = x_.get();
    q.ldx = q.k = shape_.k;
    q.tokens = m;
    q.rounding = code_.rounding;
    q.threshold = 6.0f;
    q.out = Inputs();
    NIBBLE_CUDA_OK(QuantizeRows(q, {stream, dependent}));
  }
  void Multiply(int m, int copy, bool dependent, Row8Plan plan, cudaStream_t stream) const {
    Row8ProductArgs args;
    args.product.w.shape.n = shape_.n;
    args.product.w.shape.k = shape_.k;
    args.product.x = x_.get();
    args.product.ldx = shape_.k;
    args.product.m = m;
    args.product.output = shape_.glu ? Output::kGlu : Output::kStore;
    args.product.out = out_.get();
    args.product.ldo = shape_.glu ? shape_.n / 2 : shape_.n;
    args.product.dependent = dependent;
    args.w = {code_.type, w_.get() + copy % copies_ * std::int64_t{shape_.n} * shape_.k,
              scales_.get(), nullptr};
    args.x = Inputs();
    args.threshold = 6.0f;
    args.scratch_bytes = partials_.size() * 4;
    NIBBLE_CUDA_OK(
        Row8Product(args, {nullptr, partials_.get(), nullptr, flags_.get()}, stream, plan));
  }

  double TimeProduct(int m, Row8Plan plan) const {
    const int launches = Launches(m);
    Quantize(m, false, nullptr);
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    return MedianReplay([&](cudaStream_t stream) {
             for (int i = 0; i < launches; ++i) Multiply(m, i, i > 0, plan, stream);
           }) /
           launches;
  }
  double TimeQuantize(int m) const {
    constexpr int kLaunches = 24;
    return MedianReplay([&](cudaStream_t stream) {
             for (int i = 0; i < kLaunches; ++i) Quantize(m, i > 0, stream);
           }) /
           kLaunches;
  }
  double TimeCublas(cublasHandle_t cublas, int m) const {
    const float one = 1.0f, zero = 0.0f;
    const int copies = std::max(1, copies_ / 2), launches = Launches(m);
    return MedianReplay([&](cudaStream_t stream) {
             cublasSetStream(cublas, stream);
             for (int i = 0; i < launches; ++i) {
               const auto* w = reinterpret_cast<const std::uint16_t*>(w_.get()) +
                               i % copies * std::int64_t{shape_.n} * shape_.k;
               if (cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, shape_.n, m, shape_.k, &one, w,
                                CUDA_R_16F, shape_.k, x_.get(), CUDA_R_16F, shape_.k, &zero,
                                out_.get(), CUDA_R_16F, shape_.n, CUBLAS_COMPUTE_32F,
                                CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
                 std::printf("cublasGemmEx failed\n");
                 std::exit(1);
               }
             }
           }) /
           launches;
  }

 private:
  int Launches(int m) const { return std::max(copies_, m > 256 ? 8 : 24); }
  Row8Inputs Inputs() const {
    return {x_codes_.get(), x_scales_.get(),
            code_.rounding == InputRounding::kOutlierSplit ? outliers_.get() : nullptr};
  }

  const Shape& shape_;
  const Code& code_;
  const int copies_;
  DeviceArray<std::uint8_t> w_;
  DeviceArray<float> scales_;
  DeviceArray<std::uint16_t> x_;
  DeviceArray<std::uint8_t> x_codes_;
  DeviceArray<float> x_scales_;
  DeviceArray<std::uint16_t> outliers_;
  DeviceArray<std::uint32_t> flags_;
  DeviceArray<float> partials_;
  DeviceArray<std::uint16_t> out_;
};

// Even, so that half as many matrices of 16 bits fill the same memory.
int Copies(const Shape& shape) {
  return static_cast<int>(kRotation / (std::int64_t{shape.n} * shape.k) + 2) / 2 * 2;
}

void Row8(const std::vector<std::string>& codes, const std::vector<int>& tokens) {
  cublasHandle_t cublas;
  cublasCreate(&cublas);
  const DeviceArray<std::uint8_t> workspace(64 << 20);
  cublasSetWorkspace(cublas, workspace.get(), workspace.size());
  std::mt19937 rng(1);
  const int max_m = *std::max_element(tokens.begin(), tokens.end());
  std::printf("shape,n,k,code,m,us,rounding_us,cublas_fp16_us,speedup,weight_TBps,TOPS\n");
  for (const Shape& shape : kLlama8B) {
    std::vector<double> dense;
    for (const Code& code : kCodes) {
      if (std::find(codes.begin(), codes.end(), code.name) == codes.end()) continue;
      const Products products(shape, code, Copies(shape), max_m, rng);
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const int m = tokens[i];
        if (dense.size() == i) dense.push_back(products.TimeCublas(cublas, m));
        const double us = products.TimeProduct(m, {}), rounding = products.TimeQuantize(m);
        const double size = double{1} * shape.n * shape.k;
        std::printf("%s,%d,%d,%s,%d,%.2f,%.2f,%.2f,%.2f,%.2f,%.0f\n", shape.name, shape.n, shape.k,
                    code.name, m, us, rounding, dense[i], dense[i] / (us + rounding),
                    size / us * 1e-6, 2 * size * m / us * 1e-6);
        std::fflush(stdout);
      }
    }
  }
  cublasDestroy(cublas);
}

void Plans(const std::vector<std::string>& codes, const std::vector<int>& tokens) {
  std::mt19937 rng(1);
  const int max_m = *std::max_element(tokens.begin(), tokens.end());
  std::printf("shape,code,m,tile,stages,shared,us\n");
  for (const Shape& shape : kLlama8B) {
    for (const Code& code : kCodes) {
      if (std::find(codes.begin(), codes.end(), code.name) == codes.end()) continue;
      const Products products(shape, code, Copies(shape), max_m, rng);
      for (int m : tokens) {
        for (int tile : {16, 32, 64, 128}) {
          if (tile >= 2 * std::max(m, 16) || tile * 4 < std::min(m, 256)) continue;
          for (int stages : {5, 12}) {
            for (bool share : {false, true}) {
              std::printf("%s,%s,%d,%d,%d,%d,%.2f\n", shape.name, code.name, m, tile, stages, share,
                          products.TimeProduct(m, {tile, stages, share ? 1 : -1}));
              std::fflush(stdout);
            }
          }
        }
      }
    }
  }
}

void Chain(const std::vector<std::string>& codes, const std::vector<int>& tokens) {
  constexpr int kLayers = 32;
  std::mt19937 rng(1);
  const int max_m = *std::max_element(tokens.begin(), tokens.end());
  std::printf("chain,code,m,us_a_layer,TBps\n");
  for (const Code& code : kCodes) {
    if (std::find(codes.begin(), codes.end(), code.name) == codes.end()) continue;
    std::vector<Products> products;
    double bytes = 0;
    for (const Shape& shape : kLlama8B) {
      products.emplace_back(shape, code, kLayers, max_m, rng);
      bytes += double{1} * shape.n * shape.k;
    }
    for (int m : tokens) {
      const double us = MedianReplay([&](cudaStream_t stream) {
                          for (int layer = 0; layer < kLayers; ++layer) {
                            for (const Products& product : products) {
                              product.Quantize(m, layer > 0, stream);
                              product.Multiply(m, layer, true, {}, stream);
                            }
                          }
                        }) /
                        kLayers;
      std::printf("chain,%s,%d,%.2f,%.2f\n", code.name, m, us, bytes / us * 1e-6);
      std::fflush(stdout);
    }
  }
}

// The experts of two layers, and inputs that each ask for others.
class Mixture {
 public:
  static constexpr int kExperts = 128, kTopK = 8, kHidden = 2048, kFfn = 768, kLayers = 2;
  static constexpr DType kType = DType::kBF16;

  // alike: all tokens of an input choose the same experts.
  Mixture(int max_m, bool alike, std::mt19937& rng)
      : router_(RandomHalves(kExperts * kHidden, kType, rng, 0.05f)),
        x_(RandomInputs(max_m, alike, rng)),
        logits_(max_m * kExperts),
        sum_(std::int64_t{max_m} * kHidden),
        weights_(max_m * kTopK),
        chosen_(max_m * kTopK),
        offsets_(kExperts + 1),
        tokens_(max_m * kTopK),
        rows_(max_m * kTopK),
        gathered_(std::int64_t{max_m} * kTopK * kHidden),
        gate_up_(std::int64_t{max_m} * kTopK * 2 * kFfn),
        activated_(std::int64_t{max_m} * kTopK * kFfn),
        out_(std::int64_t{max_m} * kTopK * kHidden),
        result_(std::int64_t{max_m} * kHidden),
        flags_(std::vector<std::uint32_t>(kProductFlags, 0)),
        cublas_workspace_(64 << 20),
        max_m_(max_m) {
    wide_.shape = {2 * kFfn, kHidden, CodeKind::kInteger, 4, 128, OffsetMode::kConstant};
    narrow_.shape = {kHidden, kFfn, CodeKind::kInteger, 4, 128, OffsetMode::kConstant};
    wide_blocks_ = RandomBlocks(wide_.shape, rng);
    narrow_blocks_ = RandomBlocks(narrow_.shape, rng);
    cublasCreate(&cublas_);
    cublasSetWorkspace(cublas_, cublas_workspace_.get(), cublas_workspace_.size());
  }
  ~Mixture() { cublasDestroy(cublas_); }

  // What a step does of a part, as `few` tokens or as many.
  void Route(int m, int turn, bool few, bool dependent, cudaStream_t stream) const {
    if (few) {
      RouteArgs a;
      a.dtype = kType;
      a.x = Input(turn);
      a.ldx = a.k = kHidden;
      a.router = router_.get();
      a.logits = logits_.get();
      a.routes = Routes();
      a.tokens = m, a.experts = kExperts, a.top_k = kTopK;
      a.renormalize = true;
      a.counters = flags_.get();
      NIBBLE_CUDA_OK(RouteTokens(a, {stream, dependent}));
      return;
    }
    Gemm(Input(turn), router_.get(), logits_.get(), m, kExperts, kHidden, CUDA_R_32F, stream);
    NIBBLE_CUDA_OK(
        SortByExpert(logits_.get(), Routes(), m, kExperts, kTopK, true, {stream, false}));
  }
  void Wide(int m, int turn, bool few, bool dependent, cudaStream_t stream) const {
    if (few) {
      NIBBLE_CUDA_OK(FewExpertsGlu(Few(wide_, wide_blocks_, m, turn, Input(turn), activated_.get()),
                                   {stream, dependent}));
      return;
    }
    const int rows = m * kTopK;
    NIBBLE_CUDA_OK(GatherRows(gathered_.get(), Input(turn), tokens_.get(), rows, kHidden * 2,
                              {stream, dependent}));
    Grouped(wide_, wide_blocks_, rows, turn, gathered_.get(), gate_up_.get(), stream);
    NIBBLE_CUDA_OK(Glu(kType, activated_.get(), gate_up_.get(), rows, kFfn, Gate::kSilu, false,
                       {stream, true}));
  }
  void Narrow(int m, int turn, bool few, bool dependent, cudaStream_t stream) const {
    if (few) {
      NIBBLE_CUDA_OK(
          FewExpertsSum(Few(narrow_, narrow_blocks_, m, turn, activated_.get(), result_.get()),
                        {stream, dependent}));
      return;
    }
    Grouped(narrow_, narrow_blocks_, m * kTopK, turn, activated_.get(), out_.get(), stream);
    NIBBLE_CUDA_OK(CombineExperts(kType, sum_.get(), out_.get(), Routes(), kTopK, false, m, kHidden,
                                  {stream, true}));
    NIBBLE_CUDA_OK(Convert(kType, result_.get(), DType::kF32, sum_.get(), std::int64_t{m} * kHidden,
                           {stream, true}));
  }
  void Grouped(const PackedMatrix& w, const DeviceArray<std::uint8_t>& blocks, int rows, int turn,
               const void* x, void* out, cudaStream_t stream) const {
    GroupedProductArgs a;
    a.product.w = At(w, blocks, turn);
    a.product.dtype = kType;
    a.product.x = x;
    a.product.ldx = w.shape.k;
    a.product.m = rows;
    a.product.out = out;
    a.product.ldo = w.shape.n;
    a.experts = kExperts;
    a.offsets = offsets_.get();
    NIBBLE_CUDA_OK(GroupedProduct(a, stream));
  }
  // One dense product of as many rows: the same work without experts.
  void Dense(bool wide, int rows, cudaStream_t stream) const {
    if (wide) {
      Gemm(gathered_.get(), wide_blocks_.get(), gate_up_.get(), rows, 2 * kFfn, kHidden,
           CUDA_R_16BF, stream);
    } else {
      Gemm(activated_.get(), wide_blocks_.get(), out_.get(), rows, kHidden, kFfn, CUDA_R_16BF,
           stream);
    }
  }

  template <typename Body>
  double Time(const Body& body) const {
    return MedianReplay([&](cudaStream_t stream) {
             for (int turn = 0; turn < kInputs; ++turn) body(turn, turn > 0, stream);
           }) /
           kInputs;
  }

  const PackedMatrix& wide() const { return wide_; }
  const PackedMatrix& narrow() const { return narrow_; }
  const DeviceArray<std::uint8_t>& wide_blocks() const { return wide_blocks_; }
  const DeviceArray<std::uint8_t>& narrow_blocks() const { return narrow_blocks_; }
  const void* gathered() const { return gathered_.get(); }
  const void* activated() const { return activated_.get(); }
  void* gate_up() const { return gate_up_.get(); }
  void* out() const { return out_.get(); }

 private:
  static constexpr int kInputs = 16;

  static std::vector<std::uint16_t> RandomInputs(int max_m, bool alike, std::mt19937& rng) {
    std::vector<std::uint16_t> x =
        RandomHalves(std::int64_t{kInputs} * max_m * kHidden, kType, rng);
    for (std::int64_t i = 0; alike && i < kInputs * max_m; ++i) {
      const auto first = x.begin() + i / max_m * max_m * kHidden;
      std::copy(first, first + kHidden, x.begin() + i * kHidden);
    }
    return x;
  }
  static DeviceArray<std::uint8_t> RandomBlocks(const PackedShape& shape, std::mt19937& rng) {
    const PackedShape all{shape.n * kExperts, shape.k,     shape.kind,
                          shape.bits,         shape.group, shape.offset};
    std::vector<std::uint8_t> codes(all.n * all.k / 2);
    for (std::size_t i = 0; i + 4 <= codes.size(); i += 4) {
      const auto word = static_cast<std::uint32_t>(rng());
      std::memcpy(codes.data() + i, &word, 4);
    }
    const DeviceArray<std::uint8_t> d_codes(codes);
    const DeviceArray<float> scales(std::vector<float>(all.n * all.k / 128, 0.004f));
    RowSource source;
    source.codes = d_codes.get();
    source.row_bytes = all.k / 2;
    source.scales = scales.get();
    source.groups = all.k / 128;
    DeviceArray<std::uint8_t> blocks(all.Bytes() * kLayers);
    for (int layer = 0; layer < kLayers; ++layer)
      NIBBLE_CUDA_OK(PackBlocks(all, source, blocks.get() + layer * all.Bytes(), nullptr));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    return blocks;
  }
  static PackedMatrix At(PackedMatrix w, const DeviceArray<std::uint8_t>& blocks, int turn) {
    w.zero = 8;
    w.blocks = blocks.get() + turn % kLayers * kExperts * w.shape.Bytes();
    return w;
  }
  const std::uint16_t* Input(int turn) const {
    return x_.get() + std::int64_t{turn} * max_m_ * kHidden;
  }
  ExpertRoutes Routes() const {
    return {chosen_.get(), weights_.get(), offsets_.get(), tokens_.get(), rows_.get()};
  }
  FewExpertsArgs Few(const PackedMatrix& w, const DeviceArray<std::uint8_t>& blocks, int m,
                     int turn, const void* x, void* out) const {
    FewExpertsArgs a;
    a.w = At(w, blocks, turn);
    a.dtype = kType;
    a.x = x;
    a.ldx = w.shape.k;
    a.out = out;
    a.ldo = &w == &wide_ ? kFfn : kHidden;
    a.routes = Routes();
    a.tokens = m, a.experts = kExperts, a.top_k = kTopK;
    return a;
  }
  void Gemm(const void* x, const void* w, void* out, int m, int n, int k, cudaDataType_t type,
            cudaStream_t stream) const {
    const float one = 1.0f, zero = 0.0f;
    cublasSetStream(cublas_, stream);
    if (cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, w, CUDA_R_16BF, k, x,
                     CUDA_R_16BF, k, &zero, out, type, n, CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
      std::printf("cublasGemmEx failed\n");
      std::exit(1);
    }
  }

  PackedMatrix wide_, narrow_;
  DeviceArray<std::uint8_t> wide_blocks_, narrow_blocks_;
  DeviceArray<std::uint16_t> router_, x_;
  DeviceArray<float> logits_, sum_, weights_;
  DeviceArray<std::int32_t> chosen_, offsets_, tokens_, rows_;
  DeviceArray<std::uint16_t> gathered_, gate_up_, activated_, out_, result_;
  DeviceArray<std::uint32_t> flags_;
  DeviceArray<std::uint8_t> cublas_workspace_;
  cublasHandle_t cublas_ = nullptr;
  const int max_m_;
};

void Moe(const std::vector<int>& tokens, bool alike) {
  std::mt19937 rng(1);
  const Mixture mixture(*std::max_element(tokens.begin(), tokens.end()), alike, rng);
  const auto all = [&](int m, bool few) {
    return mixture.Time([&](int turn, bool dependent, cudaStream_t stream) {
      mixture.Route(m, turn, few, dependent, stream);
      mixture.Wide(m, turn, few, true, stream);
      mixture.Narrow(m, turn, few, true, stream);
    });
  };
  const char* choice = alike ? "alike" : "random";
  for (int m : tokens) {
    for (bool few : {true, false}) {
      if (few && m > kFewTokens) continue;
      const double route = mixture.Time([&](int turn, bool dependent, cudaStream_t stream) {
        mixture.Route(m, turn, few, dependent, stream);
      });
      // With one choice of experts for all turns: of few tokens their weights stay in the L2.
      const double wide = mixture.Time([&](int turn, bool dependent, cudaStream_t stream) {
        mixture.Wide(m, turn, few, dependent, stream);
      });
      const double narrow = mixture.Time([&](int turn, bool dependent, cudaStream_t stream) {
        mixture.Narrow(m, turn, few, dependent, stream);
      });
      std::printf("%s,%d,%s,%.2f,%.2f,%.2f,%.2f\n", choice, m, few ? "few" : "grouped", route, wide,
                  narrow, all(m, few));
      std::fflush(stdout);
    }
    if (m < 128) continue;
    const int rows = m * Mixture::kTopK;
    const double grouped_wide = mixture.Time([&](int turn, bool, cudaStream_t stream) {
      mixture.Grouped(mixture.wide(), mixture.wide_blocks(), rows, turn, mixture.gathered(),
                      mixture.gate_up(), stream);
    });
    const double grouped_narrow = mixture.Time([&](int turn, bool, cudaStream_t stream) {
      mixture.Grouped(mixture.narrow(), mixture.narrow_blocks(), rows, turn, mixture.activated(),
                      mixture.out(), stream);
    });
    const double dense_wide =
        mixture.Time([&](int, bool, cudaStream_t stream) { mixture.Dense(true, rows, stream); });
    const double dense_narrow =
        mixture.Time([&](int, bool, cudaStream_t stream) { mixture.Dense(false, rows, stream); });
    std::printf(
        "# %s, %d tokens: products alone, grouped %.1f and %.1f us, dense bf16 %.1f and %.1f\n",
        choice, m, grouped_wide, grouped_narrow, dense_wide, dense_narrow);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace nibble::cuda::bench

int main(int argc, char** argv) {
  using namespace nibble::cuda::bench;
  std::string mode = argc > 1 ? argv[1] : "", codes = "int8,e4m3,outliers", m;
  for (int i = 2; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--codes") == 0) codes = argv[i + 1];
    if (std::strcmp(argv[i], "--m") == 0) m = argv[i + 1];
  }
  const auto tokens = [&](const char* otherwise) { return Numbers(m.empty() ? otherwise : m); };
  cudaDeviceProp properties;
  NIBBLE_CUDA_OK(cudaGetDeviceProperties(&properties, 0));
  std::printf("# %s, %d SMs\n", properties.name, properties.multiProcessorCount);
  if (mode == "row8") {
    Row8(Split(codes), tokens("1,4,8,16,32,64,128,256,1024,4096"));
  } else if (mode == "plans") {
    Plans(Split(codes), tokens("1,16,64,256"));
  } else if (mode == "chain") {
    Chain(Split(codes), tokens("1,8,16,64"));
  } else if (mode == "moe") {
    std::printf("choice,tokens,kernels,route_us,gate_up_us,down_us,all_us\n");
    for (bool alike : {false, true}) Moe(tokens("1,2,4,8,16,32,64,512,2048"), alike);
  } else {
    std::printf("usage: rows_bench row8|plans|chain|moe [--codes int8,e4m3] [--m 1,2]\n");
    return 64;
  }
  return 0;
}
