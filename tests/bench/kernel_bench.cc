// Times the quantized products beside cuBLAS fp16 in the same run, and the chain of a layer's four
// products.
//
//   kernel_bench products [--encodings int4,...] [--m 1,...] [--keep codes,copy] [--type f16|bf16]
//                                                             a CSV row a (shape, m, encoding, what
//                                                             is kept: codes, or a 16-bit copy too)
//   kernel_bench plans                                        every cut of the streamed product
//   kernel_bench tiles [--encodings int4,...] [--m 32,...] [--type f16|bf16]
//                                                             and of the tile product
//   kernel_bench chain [--encodings int4] [--m 1,...] [--path product|stream|tiles]
//                      [--type f16|bf16]                      Llama-3-8B, 32 layers, one graph
//   kernel_bench once [--encodings int4] [--m 1]              each product twice, for a profiler
//
// Weights are rotated over more memory than the L2 holds; inputs are random.
#include <cublas_v2.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <set>
#include <string>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/product.cuh"
#include "tests/bench/shapes.h"
#include "tests/bench/timing.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::bench {
namespace {

using test::DeviceArray;
using test::RandomFloats;
using test::RandomHalves;

struct Encoding {
  const char* name;
  CodeKind kind;
  int bits, group;
  OffsetMode offset;
};
constexpr Encoding kEncodings[] = {{"int4", CodeKind::kInteger, 4, 128, OffsetMode::kConstant},
                                   {"int4-zeros", CodeKind::kInteger, 4, 128, OffsetMode::kZeros},
                                   {"int4-g32-bias", CodeKind::kInteger, 4, 32, OffsetMode::kBias},
                                   {"int8", CodeKind::kInteger, 8, 128, OffsetMode::kConstant},
                                   {"int8-g32", CodeKind::kInteger, 8, 32, OffsetMode::kConstant},
                                   {"int6-g16", CodeKind::kInteger, 6, 16, OffsetMode::kConstant},
                                   {"int5-g32-bias", CodeKind::kInteger, 5, 32, OffsetMode::kBias},
                                   {"int3", CodeKind::kInteger, 3, 128, OffsetMode::kConstant},
                                   {"int2", CodeKind::kInteger, 2, 128, OffsetMode::kConstant},
                                   {"nf4", CodeKind::kCodebook, 4, 64, OffsetMode::kConstant}};

// Random blocks: codes are random bytes, scales about +-0.07 / 2^bits, so that products stay of
// order one.
class Weights {
 public:
  Weights(const Shape& shape, const Encoding& e, int copies, std::mt19937& rng) {
    matrix_.shape = {shape.n, shape.k, e.kind, e.bits, e.group, e.offset};
    matrix_.zero = 1 << (e.bits - 1);
    for (int i = 0; i < 16; ++i) matrix_.table[i] = i - 7.5f;
    const std::int64_t row_bytes = (static_cast<std::int64_t>(shape.k) * e.bits + 7) / 8;
    const std::int64_t groups = shape.k / e.group;
    std::vector<std::uint8_t> codes(row_bytes * shape.n);
    for (std::size_t i = 0; i + 4 <= codes.size(); i += 4) {
      const auto word = static_cast<std::uint32_t>(rng());
      std::memcpy(codes.data() + i, &word, 4);
    }
    std::vector<float> scales(shape.n * groups), offsets(scales.size());
    const float step = 0.07f / (1 << e.bits);
    for (auto& s : scales) s = step * (0.75f + 0.5f * (rng() & 1023) / 1024) * (rng() & 1 ? 1 : -1);
    for (std::size_t i = 0; i < scales.size(); ++i) {
      offsets[i] = e.offset == OffsetMode::kBias ? -scales[i] * matrix_.zero : matrix_.zero;
    }
    const DeviceArray<std::uint8_t> d_codes(codes);
    const DeviceArray<float> d_scales(scales), d_offsets(offsets);
    const RowSource source{d_codes.get(), row_bytes, d_scales.get(), d_offsets.get(), e.group,
                           groups,        0,         shape.glu};
    blocks_ = DeviceArray<std::uint8_t>(matrix_.shape.Bytes() * copies);
    NIBBLE_CUDA_OK(PackBlocks(matrix_.shape, source, blocks_.get(), nullptr));
    for (int i = 1; i < copies; ++i) {
      NIBBLE_CUDA_OK(cudaMemcpy(blocks_.get() + i * matrix_.shape.Bytes(), blocks_.get(),
                                matrix_.shape.Bytes(), cudaMemcpyDeviceToDevice));
    }
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  }
  PackedMatrix At(int copy) const {
    PackedMatrix matrix = matrix_;
    matrix.blocks = blocks_.get() + copy * matrix_.shape.Bytes();
    return matrix;
  }
  std::int64_t bytes() const { return matrix_.shape.Bytes(); }

 private:
  PackedMatrix matrix_;
  DeviceArray<std::uint8_t> blocks_;
};

// What products are of: activations, dense weights, outputs, in one type.
struct Dense {
  DType dtype;
  std::int64_t size;  // of the weights
  int copies;
  DeviceArray<std::uint16_t> x, w;

  cudaDataType type() const { return dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF; }
};

void MultiplyDense(cublasHandle_t cublas, const Shape& shape, int m, const Dense& dense, int copy,
                   const DeviceArray<std::uint16_t>& out, cudaStream_t stream) {
  const float one = 1.0f, zero = 0.0f;
  cublasSetStream(cublas, stream);
  if (cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, shape.n, m, shape.k, &one,
                   dense.w.get() + copy * dense.size, dense.type(), shape.k, dense.x.get(),
                   dense.type(), shape.k, &zero, out.get(), dense.type(), shape.n,
                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
    std::printf("cublasGemmEx failed\n");
    std::exit(1);
  }
}

ProductArgs Args(const Shape& shape, int m, const DeviceArray<std::uint16_t>& x,
                 const DeviceArray<std::uint16_t>& out) {
  ProductArgs args;
  args.x = x.get();
  args.ldx = shape.k;
  args.m = m;
  args.output = shape.glu ? Output::kGlu : Output::kStore;
  args.out = out.get();
  args.ldo = shape.glu ? shape.n / 2 : shape.n;
  return args;
}

// What products need besides their operands, for weights of `elements` and m tokens.
class Scratch {
 public:
  Scratch(std::int64_t elements, int m)
      : workspace_(64 << 20),
        weights_(elements),
        raw_(28672LL * m),
        flags_(std::vector<std::uint32_t>(kProductFlags, 0)) {
    cublasCreate(&cublas_);
    cublasSetWorkspace(cublas_, workspace_.get(), workspace_.size());
  }
  ~Scratch() { cublasDestroy(cublas_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  cublasHandle_t cublas() const { return cublas_; }
  ProductScratch product() const { return {cublas_, weights_.get(), raw_.get(), flags_.get()}; }
  TileWorkspace tiles() const {
    return {reinterpret_cast<float*>(weights_.get()),
            static_cast<std::int64_t>(2 * weights_.size()), flags_.get()};
  }

 private:
  cublasHandle_t cublas_;
  DeviceArray<std::uint8_t> workspace_;
  DeviceArray<std::uint16_t> weights_, raw_;
  DeviceArray<std::uint32_t> flags_;
};

// Random numbers, `copies` times the same.
DeviceArray<std::uint16_t> RandomCopies(std::int64_t size, int copies, DType dtype, float sigma,
                                        std::mt19937& rng) {
  constexpr std::int64_t kDrawn = 1 << 20;  // the others repeat them
  std::vector<std::uint16_t> one = RandomHalves(kDrawn, dtype, rng, sigma);
  one.resize(std::max(size, kDrawn));
  for (std::int64_t i = kDrawn; i < size; ++i) one[i] = one[i - kDrawn + i / kDrawn];
  DeviceArray<std::uint16_t> w(size * copies);
  for (int i = 0; i < copies; ++i) {
    NIBBLE_CUDA_OK(cudaMemcpy(w.get() + i * size, one.data(), size * 2, cudaMemcpyHostToDevice));
  }
  return w;
}
Dense RandomDense(const Shape& shape, int max_m, DType dtype, std::mt19937& rng) {
  Dense dense;
  dense.dtype = dtype;
  dense.size = static_cast<std::int64_t>(shape.n) * shape.k;
  dense.copies = static_cast<int>(kRotation / (dense.size * 2) + 1);
  dense.x = RandomCopies(static_cast<std::int64_t>(max_m) * shape.k, 1, dtype, 1.0f, rng);
  dense.w = RandomCopies(dense.size, dense.copies, dtype, 0.02f, rng);
  return dense;
}

// Products of one type beside cuBLAS of that type and of fp16, all by turns.
void Products(const std::string& encodings, const std::string& keep, DType dtype,
              const std::vector<int>& tokens) {
  std::mt19937 rng(1);
  const int max_m = *std::max_element(tokens.begin(), tokens.end());
  const Scratch scratch(28672LL * 4096, max_m);
  std::printf("shape,n,k,encoding,kept,type,m,us,cublas_us,cublas_fp16_us,speedup,weight_TBps\n");
  for (const Shape& shape : kLlama8B) {
    const DeviceArray<std::uint16_t> out(static_cast<std::int64_t>(max_m) * shape.n);
    std::vector<Dense> dense;  // fp16, then the type
    dense.push_back(RandomDense(shape, max_m, DType::kF16, rng));
    if (dtype != DType::kF16) dense.push_back(RandomDense(shape, max_m, dtype, rng));
    const Dense& own = dense.back();
    const DeviceArray<std::uint16_t> expanded(own.size * own.copies);
    for (const Encoding& e : kEncodings) {
      bool wanted = false;
      for (const std::string& name : Split(encodings)) wanted |= name == e.name;
      if (!wanted) continue;
      const PackedShape packed{shape.n, shape.k, e.kind, e.bits, e.group, e.offset};
      const int copies = static_cast<int>(kRotation / packed.Bytes() + 1);
      const Weights w(shape, e, copies, rng);
      for (int i = 0; i < own.copies; ++i) {
        NIBBLE_CUDA_OK(DequantizePacked(w.At(0), dtype, expanded.get() + i * own.size, nullptr));
      }
      NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      for (int m : tokens) {
        const int launches = m > 1024 ? 4 : m > 256 ? 8 : std::max(copies, 24);
        std::vector<Enqueue> variants;
        for (const Dense& each : dense) {
          variants.push_back([&](cudaStream_t stream) {
            for (int i = 0; i < launches; ++i) {
              MultiplyDense(scratch.cublas(), shape, m, each, i % each.copies, out, stream);
            }
          });
        }
        const std::vector<std::string> kinds = Split(keep);
        for (const std::string& kept : kinds) {
          variants.push_back([&, copy = kept == "copy"](cudaStream_t stream) {
            for (int i = 0; i < launches; ++i) {
              ProductArgs args = Args(shape, m, own.x, out);
              args.dtype = dtype;
              args.w = w.At(i % copies);
              if (copy) args.expanded = expanded.get() + i % own.copies * own.size;
              args.dependent = i > 0;
              NIBBLE_CUDA_OK(Product(args, scratch.product(), stream));
            }
          });
        }
        const std::vector<double> us = MedianReplays(variants, m > 256 ? 9 : 15);
        for (std::size_t i = 0; i < kinds.size(); ++i) {
          const double each = us[dense.size() + i] / launches, fp16 = us[0] / launches;
          std::printf("%s,%d,%d,%s,%s,%s,%d,%.2f,%.2f,%.2f,%.2f,%.2f\n", shape.name, shape.n,
                      shape.k, e.name, kinds[i].c_str(), dtype == DType::kF16 ? "f16" : "bf16", m,
                      each, us[dense.size() - 1] / launches, fp16, fp16 / each,
                      w.bytes() / each * 1e-6);
        }
        std::fflush(stdout);
      }
    }
  }
}

// Tile products by every cut worth considering, beside expanding to 16 bits and cuBLAS.
void Tiles(const std::string& encodings, DType dtype, const std::vector<int>& tokens) {
  std::mt19937 rng(1);
  const int max_m = *std::max_element(tokens.begin(), tokens.end());
  const Scratch scratch(28672LL * 4096, max_m);
  std::printf("shape,encoding,m,tokens,splits,shared,us,TFLOPs\n");
  for (const Shape& shape : kLlama8B) {
    const DeviceArray<std::uint16_t> x =
        RandomCopies(static_cast<std::int64_t>(max_m) * shape.k, 1, dtype, 1.0f, rng);
    const DeviceArray<std::uint16_t> out(static_cast<std::int64_t>(max_m) * shape.n);
    for (const Encoding& e : kEncodings) {
      bool wanted = false;
      for (const std::string& name : Split(encodings)) wanted |= name == e.name;
      if (!wanted) continue;
      const PackedShape packed{shape.n, shape.k, e.kind, e.bits, e.group, e.offset};
      const int copies = static_cast<int>(kRotation / packed.Bytes() + 1);
      const Weights w(shape, e, copies, rng);
      for (int m : tokens) {
        const int launches = std::max(copies, m > 256 ? 8 : 24);
        const auto time =
            [&](const std::function<cudaError_t(const ProductArgs&, cudaStream_t)>& f) {
              return MedianReplay(
                         [&](cudaStream_t stream) {
                           for (int i = 0; i < launches; ++i) {
                             ProductArgs args = Args(shape, m, x, out);
                             args.dtype = dtype;
                             args.w = w.At(i % copies);
                             args.dependent = i > 0;
                             NIBBLE_CUDA_OK(f(args, stream));
                           }
                         },
                         m > 1000 ? 5 : 11) /
                     launches;
            };
        const auto report = [&](const TilePlan& plan, double us) {
          std::printf("%s,%s,%d,%d,%d,%d,%.2f,%.0f\n", shape.name, e.name, m, plan.tokens,
                      plan.splits, plan.shared, us, 2.0 * m * shape.n * shape.k / us * 1e-6);
          std::fflush(stdout);
        };
        for (int tile : {16, 32, 64, 128}) {
          if (tile >= 2 * m || (tile * 4 < m && tile < 128)) continue;
          const int items = shape.n / 256 * ((m + tile - 1) / tile);
          std::vector<TilePlan> plans = {{tile, 1, true}};
          if (items > 50) plans.push_back({tile, 1, false});
          for (int splits : std::set<int>{2, 4, 132 / items}) {
            if (splits < 2 || splits > 132 / items) continue;
            plans.push_back({tile, splits, false});
            plans.push_back({tile, splits, true});
          }
          for (const TilePlan& plan : plans) {
            report(plan, time([&](const ProductArgs& args, cudaStream_t stream) {
                     return TiledProduct(args, plan, scratch.tiles(), stream);
                   }));
          }
        }
        if (m >= 512) {
          report({0, 0, false}, time([&](const ProductArgs& args, cudaStream_t stream) {
                   const ProductScratch dense = scratch.product();
                   const cudaError_t error =
                       DequantizePacked(args.w, args.dtype, dense.weights, stream);
                   return error != cudaSuccess ? error
                                               : DenseProduct(args, dense.weights, dense, stream);
                 }));
        }
      }
    }
  }
}

void Plans(const std::vector<int>& tokens) {
  std::mt19937 rng(1);
  const DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kProductFlags, 0));
  std::printf("shape,m,parts,us\n");
  for (const Shape& shape : kLlama8B) {
    const DeviceArray<std::uint16_t> x(RandomHalves(64LL * shape.k, DType::kF16, rng));
    const DeviceArray<std::uint16_t> out(64LL * shape.n);
    const Encoding& e = kEncodings[0];
    const PackedShape packed{shape.n, shape.k, e.kind, e.bits, e.group, e.offset};
    const int copies = static_cast<int>(kRotation / packed.Bytes() + 1);
    const Weights w(shape, e, copies, rng);
    for (int m : tokens) {
      {
        for (int parts : {1, 2, 4}) {
          bool fits = true;
          const int launches = std::max(copies, 24);
          const double us =
              MedianReplay([&](cudaStream_t stream) {
                for (int i = 0; i < launches; ++i) {
                  ProductArgs args = Args(shape, m, x, out);
                  args.w = w.At(i % copies);
                  args.dependent = i > 0;
                  fits &= StreamProduct(args, stream, {parts, flags.get()}) == cudaSuccess;
                }
              }) /
              launches;
          cudaGetLastError();
          if (!fits) continue;
          std::printf("%s,%d,%d,%.2f\n", shape.name, m, parts, us);
          std::fflush(stdout);
        }
      }
    }
  }
}

// Each product twice on cold weights, for a profiler.
void Once(const std::string& encoding, const std::vector<int>& tokens) {
  std::mt19937 rng(1);
  const Scratch scratch(28672LL * 4096, *std::max_element(tokens.begin(), tokens.end()));
  for (const Shape& shape : kLlama8B) {
    for (const Encoding& e : kEncodings) {
      if (encoding != e.name) continue;
      const Weights w(shape, e, 2, rng);
      for (int m : tokens) {
        const DeviceArray<std::uint16_t> x(
            RandomHalves(static_cast<std::int64_t>(m) * shape.k, DType::kF16, rng));
        const DeviceArray<std::uint16_t> out(static_cast<std::int64_t>(m) * shape.n);
        ProductArgs args = Args(shape, m, x, out);
        args.dependent = false;
        for (int i = 0; i < 2; ++i) {
          args.w = w.At(i);
          NIBBLE_CUDA_OK(Product(args, scratch.product(), nullptr));
        }
        NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      }
    }
  }
}

// One decode step's products of Llama-3-8B: 32 layers of qkv, o, gate_up, down with norms, residual
// adds and SiLU * mul, every layer its own weights. Checks that every replay gives the same bits,
// and that they are the bits of launches one by one without dependent launch.
void Chain(const std::string& encoding, const std::string& path, DType dtype,
           const std::vector<int>& tokens) {
  constexpr int kLayers = 32, kHidden = 4096, kFfn = 14336, kQkv = 6144;
  std::mt19937 rng(1);
  const Encoding* e = nullptr;
  for (const Encoding& candidate : kEncodings) {
    if (encoding == candidate.name) e = &candidate;
  }
  std::vector<Weights> weights;
  std::int64_t layer_bytes = 0;
  for (const Shape& shape : kLlama8B) {
    weights.emplace_back(shape, *e, kLayers, rng);
    layer_bytes += weights.back().bytes();
  }
  const DeviceArray<float> norm(std::vector<float>(kHidden, 1.0f));
  const DeviceArray<float> partials(32LL << 20);
  const DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kProductFlags, 0));
  const TileWorkspace workspace{partials.get(), 128LL << 20, flags.get()};
  int sms = 0;
  NIBBLE_CUDA_OK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  const ProductScratch scratch{nullptr, partials.get(), nullptr, flags.get()};
  const auto product = [&](const ProductArgs& args, cudaStream_t stream) {
    if (path == "stream") return StreamProduct(args, stream, {0, flags.get()});
    if (path == "product") return Product(args, scratch, stream);
    return TiledProduct(args, ChooseTiles(args, workspace, sms), workspace, stream);
  };
  std::printf("chain,encoding,type,m,us_a_layer,TBps,bits\n");
  for (int m : tokens) {
    std::vector<float> start = RandomFloats(m * kHidden, rng), squares(m * kHidden / 16, 0.0f);
    std::vector<std::uint16_t> start_normed(start.size());
    for (std::size_t i = 0; i < start.size(); ++i) {
      squares[i / 16] += start[i] * start[i];
      start_normed[i] = test::Encode(start[i], dtype);
    }
    const DeviceArray<float> d_start(start), d_start_squares(squares);
    const DeviceArray<std::uint16_t> d_start_normed(start_normed);
    DeviceArray<float> residual(m * kHidden), sums(m * kHidden / 16);
    DeviceArray<std::uint16_t> normed(m * kHidden), qkv(m * kQkv), glu(m * kFfn);
    const auto enqueue = [&](cudaStream_t stream, bool dependent) {
      cudaMemcpyAsync(residual.get(), d_start.get(), start.size() * 4, cudaMemcpyDeviceToDevice,
                      stream);
      cudaMemcpyAsync(sums.get(), d_start_squares.get(), squares.size() * 4,
                      cudaMemcpyDeviceToDevice, stream);
      cudaMemcpyAsync(normed.get(), d_start_normed.get(), start.size() * 2,
                      cudaMemcpyDeviceToDevice, stream);
      for (int layer = 0; layer < kLayers; ++layer) {
        ProductArgs args;
        args.m = m;
        args.dtype = dtype;
        args.x = normed.get();
        args.ldx = kHidden;
        args.norm_in = {sums.get(), kHidden / 16, kHidden, 1e-5f};
        args.w = weights[0].At(layer);
        args.out = qkv.get();
        args.ldo = kQkv;
        args.dependent = dependent && layer > 0;
        NIBBLE_CUDA_OK(product(args, stream));

        args = {};
        args.m = m;
        args.dtype = dtype;
        args.x = qkv.get();
        args.ldx = kQkv;
        args.w = weights[1].At(layer);
        args.output = Output::kResidual;
        args.residual = residual.get();
        args.norm_out = {norm.get(), normed.get(), sums.get()};
        args.dependent = dependent;
        NIBBLE_CUDA_OK(product(args, stream));

        args = {};
        args.m = m;
        args.dtype = dtype;
        args.x = normed.get();
        args.ldx = kHidden;
        args.norm_in = {sums.get(), kHidden / 16, kHidden, 1e-5f};
        args.w = weights[2].At(layer);
        args.output = Output::kGlu;
        args.out = glu.get();
        args.ldo = kFfn;
        args.dependent = dependent;
        NIBBLE_CUDA_OK(product(args, stream));

        args = {};
        args.m = m;
        args.dtype = dtype;
        args.x = glu.get();
        args.ldx = kFfn;
        args.w = weights[3].At(layer);
        args.output = Output::kResidual;
        args.residual = residual.get();
        args.norm_out = {norm.get(), normed.get(), sums.get()};
        args.dependent = dependent;
        NIBBLE_CUDA_OK(product(args, stream));
      }
    };
    enqueue(nullptr, false);
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> expected = residual.Host();
    int wrong = 0, not_finite = 0;
    for (float v : expected) not_finite += !std::isfinite(v);
    const double us = MedianReplay([&](cudaStream_t stream) { enqueue(stream, true); }, 25);
    for (int i = 0; i < 40;
         ++i) {  // replays compared bit by bit; launched, not captured, every other time
      if (i % 2 == 0) {
        MedianReplay([&](cudaStream_t stream) { enqueue(stream, true); }, 3);
      } else {
        enqueue(nullptr, true);
        NIBBLE_CUDA_OK(cudaDeviceSynchronize());
      }
      const std::vector<float> again = residual.Host();
      wrong += std::memcmp(again.data(), expected.data(), again.size() * 4) != 0;
    }
    std::printf("chain,%s,%s,%d,%.2f,%.2f,%s (%d of 40 differ, %d not finite)\n", e->name,
                dtype == DType::kF16 ? "f16" : "bf16", m, us / kLayers,
                layer_bytes / (us / kLayers) * 1e-6,
                wrong == 0 && not_finite == 0 ? "equal" : "WRONG", wrong, not_finite);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace nibble::cuda::bench

int main(int argc, char** argv) {
  using namespace nibble::cuda::bench;
  std::string mode = argc > 1 ? argv[1] : "", encodings = "int4", path = "product", keep = "codes",
              type = "f16", m;
  for (int i = 2; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--encodings") == 0) encodings = argv[i + 1];
    if (std::strcmp(argv[i], "--m") == 0) m = argv[i + 1];
    if (std::strcmp(argv[i], "--path") == 0) path = argv[i + 1];
    if (std::strcmp(argv[i], "--type") == 0) type = argv[i + 1];
    if (std::strcmp(argv[i], "--keep") == 0) keep = argv[i + 1];
  }
  const auto dtype = type == "bf16" ? nibble::DType::kBF16 : nibble::DType::kF16;
  const auto tokens = [&](const char* otherwise) { return Numbers(m.empty() ? otherwise : m); };
  cudaDeviceProp properties;
  NIBBLE_CUDA_OK(cudaGetDeviceProperties(&properties, 0));
  std::printf("# %s, %d SMs\n", properties.name, properties.multiProcessorCount);
  if (mode == "products")
    Products(encodings, keep, dtype, tokens("1,2,4,8,16,32,64,128,256,512,1024,4096"));
  else if (mode == "plans")
    Plans(tokens("1,4,8,16"));
  else if (mode == "tiles")
    Tiles(encodings, dtype, tokens("32,64,128,256,512,1024,4096"));
  else if (mode == "chain")
    Chain(encodings, path, dtype, tokens("1,2,4,8,16,32,64"));
  else if (mode == "once")
    Once(encodings, tokens("1"));
  else {
    std::printf(
        "usage: kernel_bench products|plans|tiles|chain|once [--encodings a,b] [--m 1,2]\n");
    return 64;
  }
  return 0;
}
