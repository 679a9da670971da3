// Inputs rounded to 8 bits a token, and products of 8-bit rows with them: every epilogue, sums that
// SMs share, outliers in any number.
#include "kernels/cuda/row8.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::test {
namespace {

constexpr float kThreshold = 6.0f;

// Nearest e4m3, saturating.
float RoundE4m3(float x) {
  const float y = std::clamp(x, -448.0f, 448.0f);
  const float spacing =
      y == 0.0f ? 0x1p-9f : std::max(std::ldexp(1.0f, std::ilogb(y) - 3), 0x1p-9f);
  return std::nearbyint(y / spacing) * spacing;
}

struct Rounded {
  std::vector<float> codes, scales;                // [m, k], [m]
  std::vector<float> values;                       // what they stand for, outliers as they are
  std::vector<std::vector<std::int32_t>> columns;  // a token's with outliers
};

Rounded RoundOnHost(const std::vector<float>& x, int m, int k, const QuantizeArgs& a) {
  Rounded out;
  out.codes.resize(x.size());
  out.values.resize(x.size());
  const bool split = a.rounding == InputRounding::kOutlierSplit;
  const auto outlier = [&](float v) {
    return split && a.threshold > 0 && std::abs(v) >= a.threshold;
  };
  for (int t = 0; t < m; ++t) {
    float absmax = 0;
    for (int i = 0; i < k; ++i) {
      const float v = std::abs(x[t * k + i]);
      if (!outlier(v)) absmax = std::max(absmax, v);
    }
    float scale = a.scale;
    if (a.rounding == InputRounding::kInt8Dynamic) scale = absmax / 127.5f;
    if (a.rounding == InputRounding::kE4m3Dynamic) scale = absmax * (1.0f / 448.0f);
    if (split) scale = absmax * (1.0f / 127.0f);
    out.scales.push_back(scale);
    out.columns.emplace_back();
    for (int i = 0; i < k; ++i) {
      const float v = x[t * k + i];
      float code = 0;
      if (outlier(v)) {
        out.columns.back().push_back(i);
      } else if (split) {
        code = std::nearbyint(v * (127.0f / absmax));
      } else if (a.rounding == InputRounding::kE4m3Dynamic ||
                 a.rounding == InputRounding::kE4m3Static) {
        code = RoundE4m3(v / scale);
      } else {
        code = std::clamp(std::nearbyint(v / scale) + a.zero, -128.0f, 127.0f);
      }
      out.codes[t * k + i] = code;
      out.values[t * k + i] = outlier(v) ? v : (code - a.zero) * scale;
    }
  }
  return out;
}

struct Case {
  const char* name;
  DType code;
  InputRounding rounding;
  int outlier_columns;
};
constexpr Case kCases[] = {{"int8", DType::kI8, InputRounding::kInt8Dynamic, 0},
                           {"int8 static", DType::kI8, InputRounding::kInt8Static, 0},
                           {"e4m3", DType::kF8E4M3, InputRounding::kE4m3Dynamic, 0},
                           {"e4m3 static", DType::kF8E4M3, InputRounding::kE4m3Static, 0},
                           {"int8 no outliers", DType::kI8, InputRounding::kOutlierSplit, 0},
                           {"int8 few outliers", DType::kI8, InputRounding::kOutlierSplit, 5},
                           {"int8 many outliers", DType::kI8, InputRounding::kOutlierSplit, 101}};

class Row8Test {
 public:
  Row8Test(Counter& counter, const Case& c, DType dtype, int n, int k, std::mt19937& rng)
      : counter_(counter), case_(c), dtype_(dtype), n_(n), k_(k), rng_(rng) {
    std::vector<std::uint8_t> codes(n * k);
    for (auto& code : codes) {
      do code = static_cast<std::uint8_t>(rng());
      while (c.code == DType::kF8E4M3 && (code & 0x7f) > 0x70);
    }
    std::vector<float> offsets(n);
    for (int r = 0; r < n; ++r) scales_.push_back(0.0005f * (1.0f + (rng() & 255) / 256.0f));
    for (int r = 0; r < n; ++r) {
      for (int i = 0; i < k; ++i) w_.push_back(scales_[r] * DecodeByte(codes[r * k + i], c.code));
    }
    if (c.rounding == InputRounding::kInt8Static) {  // moves the zero point of the inputs back
      zero_ = 7;
      for (int r = 0; r < n; ++r) {
        double sum = 0;
        for (int i = 0; i < k; ++i) sum += w_[r * k + i];
        offsets[r] = static_cast<float>(-sum * zero_ * kStaticScale);
      }
      d_offsets_ = DeviceArray<float>(offsets);
    }
    d_codes_ = DeviceArray<std::uint8_t>(codes);
    d_scales_ = DeviceArray<float>(scales_);
    d_bias_ = DeviceArray<float>(bias_ = RandomFloats(n, rng));
    flags_ = DeviceArray<std::uint32_t>(std::vector<std::uint32_t>(kProductFlags, 0));
    scratch_ = DeviceArray<float>(4 << 20);
  }

  // Codes, and every epilogue of their product.
  void Run(int m, Row8Plan plan, bool shares) {
    std::vector<std::uint16_t> x = RandomHalves(std::size_t(m) * k_, dtype_, rng_);
    for (float v; std::uint16_t& bits : x) {  // outliers only where they are wanted
      v = Decode(bits, dtype_);
      if (std::abs(v) >= 4.0f) bits = Encode(1.5f, dtype_);
    }
    for (int i = 0; i < case_.outlier_columns; ++i) {
      const int column = rng_() % k_;
      for (int t = i % 3; t < m; t += 1 + i % 3)
        x[t * k_ + column] = Encode((rng_() & 1 ? -1.0f : 1.0f) * (6 + rng_() % 50), dtype_);
    }
    const std::vector<float> xf = DecodeAll(x, dtype_);
    const DeviceArray<std::uint16_t> d_x(x);
    const DeviceArray<std::uint8_t> codes(std::size_t(m) * k_);
    const DeviceArray<float> scales(m);
    outliers_ = DeviceArray<std::uint16_t>(std::size_t(m) * kOutlierList);
    QuantizeArgs q;
    q.dtype = dtype_;
    q.x = d_x.get();
    q.ldx = q.k = k_;
    q.tokens = m;
    q.rounding = case_.rounding;
    q.scale = case_.code == DType::kI8 ? kStaticScale : 0.01f;
    q.zero = zero_;
    q.threshold = kThreshold;
    q.out = {codes.get(), scales.get(),
             case_.rounding == InputRounding::kOutlierSplit ? outliers_.get() : nullptr};
    NIBBLE_CUDA_OK(QuantizeRows(q, {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    name_ = std::string(case_.name) + (dtype_ == DType::kF16 ? " f16" : " bf16") +
            " n=" + std::to_string(n_) + " k=" + std::to_string(k_) + " m=" + std::to_string(m) +
            " tile=" + std::to_string(plan.tokens) + (shares ? " shared" : "");
    Rounded expected = RoundOnHost(xf, m, k_, q);
    CheckRounding(expected, codes.Host(), scales.Host(), q);
    TakeValues(expected, codes.Host(), xf, q);

    if (case_.rounding != InputRounding::kOutlierSplit) CheckNorm(q, xf);
    NIBBLE_CUDA_OK(QuantizeRows(q, {}));

    std::vector<float> product(std::size_t(m) * n_);
    ParallelFor(n_, [&](std::int64_t row) {
      for (int t = 0; t < m; ++t) {
        double sum = bias_[row];
        for (int i = 0; i < k_; ++i) sum += double{expected.values[t * k_ + i]} * w_[row * k_ + i];
        product[t * n_ + row] = static_cast<float>(sum);
      }
    });
    Row8ProductArgs args;
    args.product.w.shape.n = n_;
    args.product.w.shape.k = k_;
    args.product.dtype = dtype_;
    args.product.x = d_x.get();
    args.product.ldx = k_;
    args.product.m = m;
    args.product.bias = d_bias_.get();
    args.product.dependent = false;
    args.w = {case_.code, d_codes_.get(), d_scales_.get(), zero_ != 0 ? d_offsets_.get() : nullptr};
    args.x = q.out;
    args.threshold = kThreshold;
    args.scratch_bytes = shares ? scratch_.size() * 4 : 0;
    Store(args, plan, product);
    Glu(args, plan, product);
    Residual(args, plan, product);
    const std::vector<std::uint32_t> flags = flags_.Host();
    counter_.True(name_ + " leaves its flags",
                  std::count(flags.begin(), flags.end(), 0u) == kProductFlags);
  }

 private:
  static constexpr float kStaticScale = 0.04f;

  void CheckRounding(const Rounded& expected, const std::vector<std::uint8_t>& codes,
                     const std::vector<float>& scales, const QuantizeArgs& q) {
    // Quotients may round the other way where they lie in the middle.
    std::size_t far = 0, off = 0;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const float code = DecodeByte(codes[i], case_.code), want = expected.codes[i];
      const float step = case_.code == DType::kI8 ? 1.0f : std::max(0x1p-9f, std::abs(want) / 8);
      off += code != want;
      far += std::abs(code - want) > step;
    }
    counter_.True(name_ + " codes", far == 0 && off <= codes.size() / 100,
                  std::to_string(off) + " differ, " + std::to_string(far) + " by more than a step");
    counter_.Near(name_ + " scales", scales, expected.scales, 1e-6);
    if (q.out.outliers == nullptr) return;
    const std::vector<std::uint16_t> words = outliers_.Host();
    int wrong = 0;
    for (int t = 0; t < q.tokens; ++t) {
      const std::uint16_t* list = words.data() + t * kOutlierList;
      const std::vector<std::int32_t>& want = expected.columns[t];
      std::vector<std::int32_t> got(list + 1, list + 1 + std::min<int>(list[0], kOutlierList - 1));
      std::sort(got.begin(), got.end());
      wrong += list[0] != want.size() || (got.size() == want.size() && got != want);
    }
    counter_.True(name_ + " columns", wrong == 0, std::to_string(wrong) + " tokens' are wrong");
  }

  // The values behind the device's codes, which may differ from the host's in ties.
  void TakeValues(Rounded& rounded, const std::vector<std::uint8_t>& codes,
                  const std::vector<float>& x, const QuantizeArgs& q) const {
    const bool split = case_.rounding == InputRounding::kOutlierSplit;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      if (split && std::abs(x[i]) >= q.threshold) continue;
      rounded.values[i] = (DecodeByte(codes[i], case_.code) - q.zero) * rounded.scales[i / k_];
    }
  }

  // Inputs that are yet to be divided by their norm.
  void CheckNorm(QuantizeArgs q, std::vector<float> x) {
    constexpr int kCount = 37;
    std::vector<float> squares(q.tokens * kCount);
    for (int t = 0; t < q.tokens; ++t) {
      double sum = 0;
      for (int i = 0; i < kCount; ++i) sum += squares[t * kCount + i] = 1.0f + (t + i) % 5;
      const auto rstd = static_cast<float>(1.0 / std::sqrt(sum / 64 + 0.5));
      for (int i = 0; i < k_; ++i) x[t * k_ + i] *= rstd;
    }
    const DeviceArray<float> d_squares(squares);
    q.norm_in = {d_squares.get(), kCount, 64, 0.5f};
    NIBBLE_CUDA_OK(QuantizeRows(q, {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    std::vector<std::uint8_t> codes(x.size());
    std::vector<float> scales(q.tokens);
    NIBBLE_CUDA_OK(cudaMemcpy(codes.data(), q.out.codes, codes.size(), cudaMemcpyDeviceToHost));
    NIBBLE_CUDA_OK(
        cudaMemcpy(scales.data(), q.out.scales, scales.size() * 4, cudaMemcpyDeviceToHost));
    const std::string name = name_;
    name_ += " of a norm";
    Rounded expected = RoundOnHost(x, q.tokens, k_, q);
    CheckRounding(expected, codes, scales, q);
    name_ = name;
  }

  void Launch(const Row8ProductArgs& args, Row8Plan plan) {
    const ProductScratch scratch{nullptr, args.scratch_bytes > 0 ? scratch_.get() : nullptr,
                                 nullptr, flags_.get()};
    NIBBLE_CUDA_OK(Row8Product(args, scratch, nullptr, plan));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  }

  double Limit() const { return dtype_ == DType::kF16 ? 5e-4 : 4e-3; }

  void Store(Row8ProductArgs args, Row8Plan plan, const std::vector<float>& product) {
    const std::size_t m = args.product.m;
    const DeviceArray<float> f32(m * n_);
    args.product.output = Output::kStoreF32;
    args.product.out = f32.get();
    args.product.ldo = n_;
    Launch(args, plan);
    // A sum of e4m3 products is exact to about 13 bits.
    counter_.Near(name_ + " f32", f32.Host(), product, case_.code == DType::kI8 ? 3e-5 : 4e-4);
    const std::int64_t ldo = n_ + 24;
    const DeviceArray<std::uint16_t> out(m * ldo);
    args.product.output = Output::kStore;
    args.product.out = out.get();
    args.product.ldo = ldo;
    Launch(args, plan);
    const std::vector<float> got = DecodeAll(out.Host(), dtype_);
    std::vector<float> rows;
    bool untouched = true;
    for (std::size_t t = 0; t < m; ++t) {
      rows.insert(rows.end(), got.begin() + t * ldo, got.begin() + t * ldo + n_);
      for (int i = n_; i < ldo; ++i) untouched &= std::isnan(got[t * ldo + i]);
    }
    counter_.Near(name_ + " stored", rows, product, Limit());
    counter_.True(name_ + " gaps", untouched);
  }

  void Glu(Row8ProductArgs args, Row8Plan plan, const std::vector<float>& product) {
    if (n_ % 32 != 0) return;
    const std::size_t m = args.product.m;
    const DeviceArray<std::uint16_t> out(m * n_ / 2);
    args.product.output = Output::kGlu;
    args.product.out = out.get();
    args.product.ldo = n_ / 2;
    Launch(args, plan);
    std::vector<float> expected;
    for (std::size_t t = 0; t < m; ++t) {
      for (int i = 0; i < n_ / 2; ++i) {
        const float* row = product.data() + t * n_ + i / 16 * 32 + i % 16;
        expected.push_back(row[0] / (1 + std::exp(-row[0])) * row[16]);
      }
    }
    counter_.Near(name_ + " silu", DecodeAll(out.Host(), dtype_), expected, 2 * Limit());
  }

  void Residual(Row8ProductArgs args, Row8Plan plan, const std::vector<float>& product) {
    const std::size_t m = args.product.m;
    std::vector<float> start = RandomFloats(m * n_, rng_), weight = RandomFloats(n_, rng_);
    const DeviceArray<float> residual(start), d_weight(weight), squares(m * n_ / 16);
    const DeviceArray<std::uint16_t> normed(m * n_);
    args.product.output = Output::kResidual;
    args.product.residual = residual.get();
    args.product.norm_out = {d_weight.get(), normed.get(), squares.get()};
    Launch(args, plan);
    std::vector<float> sums(m * n_ / 16), weighted(m * n_);
    for (std::size_t i = 0; i < m * n_; ++i) {
      start[i] += product[i];
      weighted[i] = start[i] * weight[i % n_];
      sums[i / 16] += start[i] * start[i];
    }
    counter_.Near(name_ + " residual", residual.Host(), start,
                  case_.code == DType::kI8 ? 3e-5 : 4e-4);
    counter_.Near(name_ + " normed", DecodeAll(normed.Host(), dtype_), weighted, Limit());
    counter_.Near(name_ + " squares", squares.Host(), sums, 1e-3);
  }

  Counter& counter_;
  const Case& case_;
  const DType dtype_;
  const int n_, k_;
  std::mt19937& rng_;
  std::string name_;
  float zero_ = 0;
  std::vector<float> scales_, w_, bias_;
  DeviceArray<std::uint8_t> d_codes_;
  DeviceArray<float> d_scales_, d_offsets_, d_bias_, scratch_;
  DeviceArray<std::uint16_t> outliers_;
  DeviceArray<std::uint32_t> flags_;
};

// What is not a number must show.
void TestNotFinite(Counter& counter) {
  constexpr int kK = 64;
  std::vector<std::uint16_t> x(2 * kK, F32ToF16(1.0f));
  x[kK + 5] = F32ToF16(NAN);
  const DeviceArray<std::uint16_t> d_x(x);
  const DeviceArray<std::uint8_t> codes(2 * kK);
  const DeviceArray<float> scales(2);
  for (InputRounding rounding : {InputRounding::kInt8Dynamic, InputRounding::kInt8Static,
                                 InputRounding::kE4m3Dynamic, InputRounding::kE4m3Static}) {
    QuantizeArgs q;
    q.x = d_x.get();
    q.ldx = q.k = kK;
    q.tokens = 2;
    q.rounding = rounding;
    q.out = {codes.get(), scales.get(), nullptr};
    NIBBLE_CUDA_OK(QuantizeRows(q, {}));
    NIBBLE_CUDA_OK(cudaDeviceSynchronize());
    const std::vector<float> got = scales.Host();
    counter.True("NaN shows in its token's scale alone",
                 std::isfinite(got[0]) && std::isnan(got[1]));
  }
}

}  // namespace

void TestRow8(Counter& counter) {
  std::mt19937 rng(11);
  for (const Case& c : kCases) {
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      Row8Test test(counter, c, dtype, 320, 1072, rng);
      for (int m : {1, 7, 16, 17, 33, 65, 130}) test.Run(m, {}, true);
      test.Run(40, {16, 3}, false);
      test.Run(40, {16, 3}, true);
      test.Run(300, {64, 2}, true);
    }
    Row8Test wide(counter, c, DType::kF16, 144, 4096, rng);
    for (int m : {1, 129}) wide.Run(m, {}, true);
  }
  // More tiles than SMs, whole rounds and a rest.
  Row8Test tall(counter, kCases[0], DType::kF16, 128 * 135 + 16, 256, rng);
  for (int m : {3, 20}) tall.Run(m, {16}, true);
  TestNotFinite(counter);
}

}  // namespace nibble::cuda::test
