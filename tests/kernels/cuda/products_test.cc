// Packing and the quantized products against plain loops over the exact weights.
#include <cublas_v2.h>

#include "tests/kernels/cuda/packed.h"

namespace nibble::cuda::test {
namespace {

void TestEncoding(Counter& counter, const Encoding& e, std::mt19937& rng) {
  struct Size {
    int n, k;
    std::vector<int> tokens;
  };
  const Size sizes[] = {{40, 136, {1, 9}},
                        {576, 1536, {1, 3, 8, 17}},
                        {1040, 4096, {1, 2, 7, 16, 32, 33}},
                        {272, 14336, {1, 8, 16, 31}}};
  for (const Size& size : sizes) {
    const PackedShape shape{size.n, size.k, e.kind, e.bits, e.group, e.offset};
    const TestMatrix w = RandomMatrix(shape, e.file_group, false, rng);
    // Unpacking proves the packing; dense values are rounded to f16.
    DeviceArray<std::uint16_t> dense(shape.n * shape.k);
    NIBBLE_CUDA_OK(DequantizePacked(w.packed, DType::kF16, dense.get(), nullptr));
    counter.Near(std::string("unpack ") + Name(e, DType::kF16, size.n, size.k, 0),
                 DecodeAll(dense.Host(), DType::kF16), w.values, 3e-4);
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      for (int m : size.tokens) {
        const std::vector<std::uint16_t> x = RandomHalves(m * size.k, dtype, rng);
        const DeviceArray<std::uint16_t> d_x(x);
        DeviceArray<float> out(m * size.n);
        ProductArgs args;
        args.w = w.packed;
        args.dtype = dtype;
        args.x = d_x.get();
        args.ldx = size.k;
        args.m = m;
        args.output = Output::kStoreF32;
        args.out = out.get();
        args.ldo = size.n;
        args.dependent = false;
        NIBBLE_CUDA_OK(StreamProduct(args, nullptr));
        NIBBLE_CUDA_OK(cudaDeviceSynchronize());
        counter.Near(Name(e, dtype, size.n, size.k, m), out.Host(),
                     Reference(DecodeAll(x, dtype), w.values, m, size.n, size.k), 5e-5);
      }
    }
  }
}

// Every way to cut the same product gives the same answer and leaves the flags zero. Enough rows
// for blocks with several pairs of tiles, an odd tile, and sums in several rounds.
void TestPlans(Counter& counter, std::mt19937& rng) {
  const DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kProductFlags, 0));
  for (const auto& [n, k] : {std::pair{2064, 4096}, {15000, 1024}, {80016, 256}}) {
    const PackedShape shape{n, k, CodeKind::kInteger, 4, 128, OffsetMode::kConstant};
    const TestMatrix w = RandomMatrix(shape, 128, false, rng);
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      for (int m : {1, 8, 13, 27}) {
        const std::vector<std::uint16_t> x = RandomHalves(m * k, dtype, rng);
        const DeviceArray<std::uint16_t> d_x(x);
        const std::vector<float> expected = Reference(DecodeAll(x, dtype), w.values, m, n, k);
        for (int parts : {0, 1, 2, 4}) {
          DeviceArray<float> out(m * n);
          ProductArgs args;
          args.w = w.packed;
          args.dtype = dtype;
          args.x = d_x.get();
          args.ldx = k;
          args.m = m;
          args.output = Output::kStoreF32;
          args.out = out.get();
          args.ldo = n;
          args.dependent = false;
          const cudaError_t error = StreamProduct(args, nullptr, {parts, flags.get()});
          if (error == cudaErrorInvalidValue && parts * 128 > k) continue;
          NIBBLE_CUDA_OK(error);
          NIBBLE_CUDA_OK(cudaDeviceSynchronize());
          counter.Near("plan n=" + std::to_string(n) + " m=" + std::to_string(m) +
                           (dtype == DType::kF16 ? " f16" : " bf16") +
                           " parts=" + std::to_string(parts),
                       out.Host(), expected, 5e-5);
        }
      }
    }
  }
  int not_zero = 0;
  for (std::uint32_t flag : flags.Host()) not_zero += flag != 0;
  counter.True("flags are zero", not_zero == 0);
}

// bf16 activations of any magnitude, and those that are no numbers, which stay with their token.
void TestRange(Counter& counter, int bits, std::mt19937& rng) {
  const int n = 256, k = 1024, m = 5;
  const PackedShape shape{n, k, CodeKind::kInteger, bits, 128, OffsetMode::kConstant};
  const TestMatrix w = RandomMatrix(shape, 128, false, rng);
  std::vector<float> values = RandomFloats(m * k, rng);
  const float magnitudes[m] = {1e-30f, 1.0f, 3e30f, 1.0f, 1e-4f};
  for (int i = 0; i < m * k; ++i) values[i] *= magnitudes[i / k] * std::exp2(i % 128 / 16 * -2.0f);
  std::vector<std::uint16_t> x(m * k);
  for (int i = 0; i < m * k; ++i) x[i] = F32ToBf16(values[i]);
  const std::vector<float> expected = Reference(DecodeAll(x, DType::kBF16), w.values, m, n, k);
  x[3 * k + 77] = 0x7fc0;  // NaN
  const DeviceArray<std::uint16_t> d_x(x);
  DeviceArray<float> out(m * n);
  ProductArgs args;
  args.w = w.packed;
  args.dtype = DType::kBF16;
  args.x = d_x.get();
  args.ldx = k;
  args.m = m;
  args.output = Output::kStoreF32;
  args.out = out.get();
  args.ldo = n;
  args.dependent = false;
  NIBBLE_CUDA_OK(StreamProduct(args, nullptr));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<float> all = out.Host();
  for (int token = 0; token < m; ++token) {
    const auto row = [&](const std::vector<float>& from) {
      return std::vector<float>(from.begin() + token * n, from.begin() + (token + 1) * n);
    };
    if (token == 3) {
      int numbers = 0;
      for (float v : row(all)) numbers += !std::isnan(v);
      counter.True("NaN stays with its token", numbers == 0);
    } else {
      std::vector<float> got = row(all), want = row(expected);
      for (auto* side : {&got, &want}) {
        for (float& v : *side) v /= magnitudes[token];
      }
      counter.Near("bf16 times " + std::to_string(magnitudes[token]), got, want, 5e-5);
    }
  }
}

void TestEpilogues(Counter& counter, std::mt19937& rng) {
  cublasHandle_t cublas;
  counter.True("cuBLAS opens", cublasCreate(&cublas) == CUBLAS_STATUS_SUCCESS);
  const DeviceArray<std::uint16_t> expanded(4160 * 1024), raw(200 * 4160);
  const DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kProductFlags, 0));
  const ProductScratch scratch{cublas, expanded.get(), raw.get(), flags.get()};
  const float eps = 1e-5f;
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    const double limit = dtype == DType::kF16 ? 6e-4 : 5e-3;
    for (int m : {1, 5, 8, 20, 32, 65, 200, -5, -65}) {
      const bool dense = m < 0;  // by a 16-bit copy
      m = std::abs(m);
      const std::string suffix = std::string(dtype == DType::kF16 ? " f16" : " bf16") +
                                 " m=" + std::to_string(m) + (dense ? " dense" : "");
      const auto run = [&](const ProductArgs& a) {
        if (!dense) return Product(a, scratch, nullptr);
        NIBBLE_CUDA_OK(DequantizePacked(a.w, dtype, expanded.get(), nullptr));
        return DenseProduct(a, expanded.get(), scratch, nullptr);
      };
      const int k = 1024, n = 4160;
      const PackedShape shape{n, k, CodeKind::kInteger, 4, 128, OffsetMode::kConstant};
      const std::vector<std::uint16_t> x = RandomHalves(m * k, dtype, rng);
      const std::vector<float> xf = DecodeAll(x, dtype);
      const DeviceArray<std::uint16_t> d_x(x);
      // Sums of squares as if the activations were normed by them.
      const int count = k / 16;
      std::vector<float> squares(m * count);
      std::vector<float> rstd(m);
      for (int token = 0; token < m; ++token) {
        double sum = 0;
        for (int i = 0; i < count; ++i) {
          squares[token * count + i] = std::uniform_real_distribution<float>(1, 20)(rng);
          sum += squares[token * count + i];
        }
        rstd[token] = static_cast<float>(1 / std::sqrt(sum / k + eps));
      }
      const DeviceArray<float> d_squares(squares);
      const std::vector<float> bias = RandomFloats(n, rng);
      const DeviceArray<float> d_bias(bias);
      ProductArgs args;
      args.dtype = dtype;
      args.x = d_x.get();
      args.ldx = k;
      args.m = m;
      args.dependent = false;
      {  // norm, bias, store
        const TestMatrix w = RandomMatrix(shape, 128, false, rng);
        std::vector<float> expected = Reference(xf, w.values, m, n, k);
        for (int i = 0; i < m * n; ++i) expected[i] = expected[i] * rstd[i / n] + bias[i % n];
        DeviceArray<std::uint16_t> out(m * n);
        args.w = w.packed;
        args.norm_in = {d_squares.get(), count, k, eps};
        args.bias = d_bias.get();
        args.out = out.get();
        args.ldo = n;
        NIBBLE_CUDA_OK(run(args));
        NIBBLE_CUDA_OK(cudaDeviceSynchronize());
        counter.Near("norm + bias" + suffix, DecodeAll(out.Host(), dtype), expected, limit);
      }
      args.bias = nullptr;
      {  // gate and up
        const TestMatrix w = RandomMatrix(shape, 128, true, rng);
        const std::vector<float> both = Reference(xf, w.values, m, n, k);
        for (Gate gate : {Gate::kSilu, Gate::kGeluTanh}) {
          std::vector<float> expected(m * n / 2);
          for (int i = 0; i < m * n / 2; ++i) {
            const int token = i / (n / 2), column = i % (n / 2);
            const float v = both[token * n + column] * rstd[token],
                        up = both[token * n + n / 2 + column] * rstd[token];
            const float act =
                gate == Gate::kSilu
                    ? v / (1 + std::exp(-v))
                    : 0.5f * v * (1 + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v)));
            expected[i] = act * up;
          }
          DeviceArray<std::uint16_t> out(m * n / 2);
          args.w = w.packed;
          args.output = Output::kGlu;
          args.gate = gate;
          args.out = out.get();
          args.ldo = n / 2;
          NIBBLE_CUDA_OK(run(args));
          NIBBLE_CUDA_OK(cudaDeviceSynchronize());
          counter.Near(std::string(gate == Gate::kSilu ? "silu" : "gelu") + suffix,
                       DecodeAll(out.Host(), dtype), expected, limit);
        }
      }
      args.norm_in = {};
      {  // residual and the next norm
        const TestMatrix w = RandomMatrix(shape, 128, false, rng);
        std::vector<float> residual = RandomFloats(m * n, rng);
        const std::vector<float> weight = RandomFloats(n, rng);
        DeviceArray<float> d_residual(residual), d_sums(m * n / 16);
        const DeviceArray<float> d_weight(weight);
        DeviceArray<std::uint16_t> normed(m * n);
        const std::vector<float> product = Reference(xf, w.values, m, n, k);
        std::vector<float> expected(m * n), sums(m * n / 16, 0.0f);
        for (int i = 0; i < m * n; ++i) {
          residual[i] += product[i];
          expected[i] = residual[i] * weight[i % n];
          sums[i / 16] += residual[i] * residual[i];
        }
        args.w = w.packed;
        args.output = Output::kResidual;
        args.residual = d_residual.get();
        args.norm_out = {d_weight.get(), normed.get(), d_sums.get()};
        NIBBLE_CUDA_OK(run(args));
        NIBBLE_CUDA_OK(cudaDeviceSynchronize());
        // Past the streamed sizes weights are rounded to 16 bits.
        const double sum_limit = m <= 16 && !dense ? 1e-5 : limit;
        counter.Near("residual" + suffix, d_residual.Host(), residual, sum_limit);
        counter.Near("next norm" + suffix, DecodeAll(normed.Host(), dtype), expected, limit);
        counter.Near("sums of squares" + suffix, d_sums.Host(), sums, sum_limit);
        // Once more, with the whole norm.
        args.norm_out = {d_weight.get(), normed.get(), nullptr, eps};
        NIBBLE_CUDA_OK(run(args));
        NIBBLE_CUDA_OK(cudaDeviceSynchronize());
        for (int token = 0; token < m; ++token) {
          double sum = 0;
          for (int i = token * n; i < (token + 1) * n; ++i) {
            residual[i] += product[i];
            sum += double{residual[i]} * residual[i];
          }
          const auto factor = static_cast<float>(1 / std::sqrt(sum / n + eps));
          for (int i = token * n; i < (token + 1) * n; ++i)
            expected[i] = residual[i] * factor * weight[i % n];
        }
        counter.Near("residual twice" + suffix, d_residual.Host(), residual, sum_limit);
        counter.Near("whole norm" + suffix, DecodeAll(normed.Host(), dtype), expected, limit);
      }
    }
  }
}

// More tokens than dense products finish at once, and rows that no 16-byte access fits.
void TestDense(Counter& counter, std::mt19937& rng) {
  cublasHandle_t cublas;
  counter.True("cuBLAS opens", cublasCreate(&cublas) == CUBLAS_STATUS_SUCCESS);
  struct Size {
    int m, n, k;
  };
  for (const Size& size : {Size{600, 28672, 64}, Size{7, 1003, 256}}) {
    const auto [m, n, k] = size;
    const PackedShape shape{n, k, CodeKind::kInteger, 4, 128, OffsetMode::kConstant};
    const TestMatrix w = RandomMatrix(shape, 128, false, rng);
    const DeviceArray<std::uint16_t> dense(static_cast<std::int64_t>(n) * k),
        raw(RawBytes(m, n) / 2), normed(m * n);
    NIBBLE_CUDA_OK(DequantizePacked(w.packed, DType::kF16, dense.get(), nullptr));
    const std::vector<std::uint16_t> x = RandomHalves(m * k, DType::kF16, rng);
    std::vector<float> residual = RandomFloats(m * n, rng);
    const std::vector<float> weight = RandomFloats(n, rng);
    const DeviceArray<std::uint16_t> d_x(x);
    const DeviceArray<float> d_residual(residual), d_weight(weight);
    ProductArgs args;
    args.w = w.packed;
    args.x = d_x.get();
    args.ldx = k;
    args.m = m;
    args.output = Output::kResidual;
    args.residual = d_residual.get();
    args.norm_out = {d_weight.get(), normed.get(), nullptr, 1e-5f};
    NIBBLE_CUDA_OK(DenseProduct(args, dense.get(), {cublas, nullptr, raw.get()}, nullptr));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> product = Reference(DecodeAll(x, DType::kF16), w.values, m, n, k);
    std::vector<float> expected(m * n);
    for (int token = 0; token < m; ++token) {
      double sum = 0;
      for (int i = token * n; i < (token + 1) * n; ++i) {
        residual[i] += product[i];
        sum += double{residual[i]} * residual[i];
      }
      const auto factor = static_cast<float>(1 / std::sqrt(sum / n + 1e-5));
      for (int i = token * n; i < (token + 1) * n; ++i)
        expected[i] = residual[i] * factor * weight[i % n];
    }
    const std::string name = "dense m=" + std::to_string(m) + " n=" + std::to_string(n);
    counter.Near(name + " residual", d_residual.Host(), residual, 6e-4);
    counter.Near(name + " whole norm", DecodeAll(normed.Host(), DType::kF16), expected, 6e-4);
  }
  cublasDestroy(cublas);
}

}  // namespace

void TestProducts(Counter& counter) {
  std::mt19937 rng(1);
  TestEpilogues(counter, rng);
  TestDense(counter, rng);
  TestPlans(counter, rng);
  for (int bits : {4, 8}) TestRange(counter, bits, rng);
  for (const Encoding& encoding : kEncodings) TestEncoding(counter, encoding, rng);
}

}  // namespace nibble::cuda::test
