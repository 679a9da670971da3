#include "runtime/device/cpu_linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <vector>

#include "runtime/device/cpu_products.h"
#include "tests/device/random_weight.h"
#include "tests/kernels/isa_test.h"
#include "tests/kernels/reference.h"

namespace nibble {
namespace {

std::unique_ptr<CpuLinear> Pack(const LinearWeight& weight, DenseForm form = DenseForm::kExact) {
  absl::StatusOr<std::unique_ptr<CpuLinear>> linear =
      CpuLinear::Pack({&weight, 1}, PackAxis::kN, form);
  EXPECT_TRUE(linear.ok()) << linear.status();
  return std::move(linear).value();
}

// Products over memory of their own.
class Products {
 public:
  explicit Products(const cpu::KernelTable& kernels, int threads = 1,
                    InputRounding rounding = InputRounding::kNone)
      : pool_(threads),
        context_{&pool_, &kernels, rounding},
        products_(context_, {1 << 16, 1024}, layout_) {
    memory_ = HostMemory::Allocate(layout_.total()).value();
    products_.Bind(memory_);
  }

  std::vector<float> Run(const CpuLinear& linear, const std::vector<float>& x, std::int64_t rows) {
    std::vector<float> y(static_cast<std::size_t>(rows * linear.n), 7777.0f);
    std::vector<ProductJob> jobs;
    for (const CpuSegment& segment : linear.segments()) {
      jobs.push_back({&segment, x.data(), linear.k, rows, y.data() + segment.row, linear.n});
    }
    products_.Run(jobs);
    return y;
  }

  // Nothing where they cannot be one job.
  std::optional<std::vector<float>> Glu(const CpuLinear& gate, const CpuLinear& up,
                                        const std::vector<float>& x, std::int64_t rows) {
    const CpuSegment &g = gate.segments()[0], &u = up.segments()[0];
    if (!products_.TakesGlu(g, u, rows)) return std::nullopt;
    std::vector<float> y(static_cast<std::size_t>(rows * gate.n), 7777.0f);
    const ProductJob job{&g, x.data(), gate.k, rows, y.data(), gate.n, &u};
    products_.Run({&job, 1});
    return y;
  }

  float* panel() { return products_.panel(0); }

 private:
  cpu::ThreadPool pool_;
  CpuContext context_;
  MemoryLayout layout_;
  CpuProducts products_;
  HostMemory memory_;
};

// What the format makes of one token's input (kernels/cpu tests check the rounding itself).
std::vector<float> RoundInput(const cpu::KernelTable& kernels, const LinearWeight& weight,
                              std::vector<float> x) {
  const auto* row8 = std::get_if<Row8>(&weight.encoding);
  if (row8 == nullptr) return x;
  const auto linear = Pack(weight);
  const CpuSegment& segment = linear->segments()[0];
  kernels.fake_quant({x.data(), weight.k, segment.activation, segment.activation_scale,
                      segment.activation_zero, segment.outlier_threshold});
  return x;
}

class CpuLinearTest : public IsaTest {};

TEST_P(CpuLinearTest, ProductsMatchTheReferenceDecoder) {
  Products products(kernels());
  for (const auto& [n, k] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 33}, {17, 300}, {40, 576}}) {
    for (const NamedWeight& c : EveryEncoding(n, k, 11)) {
      SCOPED_TRACE(testing::Message() << c.name << " " << n << " by " << k);
      const auto linear = Pack(c.weight);
      const std::vector<float> w = Dequantize(c.weight).value();
      for (const std::int64_t rows : {1, 6}) {
        const auto x = reference::Random(rows * k, 3, 2.0f);
        const auto y = products.Run(*linear, x, rows);
        for (std::int64_t r = 0; r < rows; ++r) {
          const auto input =
              RoundInput(kernels(), c.weight, {x.begin() + r * k, x.begin() + (r + 1) * k});
          for (std::int64_t i = 0; i < n; ++i) {
            double sum = c.weight.bias.empty() ? 0.0 : c.weight.bias[i];
            double magnitude = std::abs(sum);
            for (std::int64_t j = 0; j < k; ++j) {
              sum += double{input[j]} * w[i * k + j];
              magnitude += std::abs(double{input[j]} * w[i * k + j]);
            }
            ASSERT_NEAR(y[r * n + i], sum, 4e-7 * magnitude) << "row " << r << " output " << i;
          }
        }
      }
    }
  }
}

TEST_P(CpuLinearTest, EmbeddedRowsAreTheDecodedWeights) {
  Products products(kernels());
  const bool fused = GetParam() != cpu::Isa::kBaseline;  // the baseline has no fused multiply-add
  for (const NamedWeight& c : EveryEncoding(19, 300, 12)) {
    SCOPED_TRACE(c.name);
    const auto linear = Pack(c.weight);
    const std::vector<float> w = Dequantize(c.weight).value();
    for (const std::int64_t row : {0, 7, 18}) {
      std::vector<float> out(300);
      kernels().embed_row({&linear->segments()[0].matrix, row, 1.0f, out.data(), products.panel()});
      for (std::int64_t j = 0; j < 300; ++j) {
        if (fused) {
          ASSERT_EQ(out[j], w[row * 300 + j]) << row << ", " << j;
        } else {
          ASSERT_NEAR(out[j], w[row * 300 + j], 1e-6) << row << ", " << j;
        }
      }
    }
  }
}

constexpr InputRounding kRoundings[] = {InputRounding::kNone, InputRounding::kInt8,
                                        InputRounding::kInt16};

// The input as integer products see it: codes up to `largest`, a scale for every `span`; or int8
// codes and one scale for the token.
std::vector<float> QuantizeInput(std::vector<float> x, bool whole_token, std::int64_t span,
                                 float largest) {
  const std::size_t step = whole_token ? x.size() : static_cast<std::size_t>(span);
  for (std::size_t k = 0; k < x.size(); k += step) {
    const std::size_t end = std::min(x.size(), k + step);
    float absmax = 0;
    for (std::size_t i = k; i < end; ++i) absmax = std::max(absmax, std::abs(x[i]));
    const float unit = absmax / (whole_token ? 127.5f : largest);
    for (std::size_t i = k; i < end; ++i) {
      x[i] = absmax > 0
                 ? std::min(std::nearbyint(x[i] / unit), whole_token ? 127.0f : largest) * unit
                 : 0.0f;
    }
  }
  return x;
}

// Checks integer products of `rows` rows against sums in double over the rounded inputs.
void CheckIntegerProducts(const cpu::KernelTable& kernels, const NamedWeight& c,
                          InputRounding rounding, std::int64_t rows, Products& products) {
  const std::int64_t n = c.weight.n, k = c.weight.k;
  const auto linear = Pack(c.weight, DenseForm::kRounded);
  const CpuSegment& segment = linear->segments()[0];
  const bool takes_int8 = cpu::TakesInt8(segment.matrix);
  const bool whole = segment.activation == cpu::FakeQuant::kInt8Dynamic;
  const bool own_rounding = segment.activation != cpu::FakeQuant::kNone && !whole;
  const bool narrow = whole || (rounding == InputRounding::kInt8 && takes_int8 && !own_rounding);
  const auto limit = static_cast<float>(narrow ? 127 : cpu::InputLimit(segment.matrix));
  const std::int64_t span = cpu::kBlockK * (narrow ? 1 : cpu::InputSpan(segment.matrix));
  // A wide code that the kernel rounds the other way costs 1 / limit of its span; codes of tables
  // are a 16382th of the largest off, at most, those of dense weights a 4094th.
  const bool dense = segment.matrix.kind == cpu::CodeKind::kI12;
  const double tolerance = narrow ? 3e-6 : takes_int8 ? 4e-5 : dense ? 1e-3 : 3e-4;
  const std::vector<float> w = Dequantize(c.weight).value();
  const auto* affine = std::get_if<Affine>(&c.weight.encoding);
  const bool permuted = affine != nullptr && !affine->permutation.empty();
  const auto x = reference::Random(rows * k, 3, 2.0f);
  const auto y = products.Run(*linear, x, rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<float> input(x.begin() + r * k, x.begin() + (r + 1) * k);
    if (own_rounding) input = RoundInput(kernels, c.weight, input);
    std::vector<float> stored = input;  // blocks are of stored columns
    for (std::int64_t j = 0; permuted && j < k; ++j) stored[j] = input[affine->permutation[j]];
    stored = QuantizeInput(stored, whole, span, limit);
    for (std::int64_t j = 0; j < k; ++j) input[permuted ? affine->permutation[j] : j] = stored[j];
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = c.weight.bias.empty() ? 0.0 : c.weight.bias[i];
      double magnitude = std::abs(sum);
      for (std::int64_t j = 0; j < k; ++j) {
        sum += double{input[j]} * w[i * k + j];
        magnitude += std::abs(double{input[j]} * w[i * k + j]);
      }
      ASSERT_NEAR(y[r * n + i], sum, tolerance * magnitude) << "row " << r << " output " << i;
    }
  }
}

TEST_P(CpuLinearTest, IntegerProductsAreExactForQuantizedInputs) {
  int integer = 0;
  for (const InputRounding rounding : {InputRounding::kInt8, InputRounding::kInt16}) {
    Products products(kernels(), 1, rounding);
    for (const auto& [n, k] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 33}, {17, 300}, {70, 576}}) {
      for (const NamedWeight& c : EveryEncoding(n, k, 15)) {
        if (!Pack(c.weight, DenseForm::kRounded)->segments()[0].integer) continue;
        ++integer;
        SCOPED_TRACE(testing::Message() << c.name << " " << n << " by " << k);
        for (const std::int64_t rows : {1, 3, 13, 17}) {  // around tiles of sixteen
          CheckIntegerProducts(kernels(), c, rounding, rows, products);
        }
      }
    }
  }
  EXPECT_GT(integer, 190);
}

TEST_P(CpuLinearTest, LargestCodesDoNotOverflow) {
  WeightMaker make(9);
  constexpr std::int64_t kN = 16, kK = 64;
  std::vector<NamedWeight> all;
  all.push_back({"f16", make.DenseWeight(kN, kK, DType::kF16)});
  for (auto& element : std::get<Dense>(all[0].weight.encoding).data.As<std::uint16_t>())
    element = F32ToF16(3.0f);
  all.push_back({"codebook", make.CodebookWeight(kN, kK, 32, ScaleKind::kF32)});
  auto& book = std::get<Codebook>(all[1].weight.encoding);
  std::fill(book.table.begin(), book.table.end(), 1.0f);
  for (const std::int64_t group : {32, 64}) {
    all.push_back(
        {"int8", make.AffineWeight(kN, kK, 8, group, ScaleKind::kF32, OffsetKind::kZeroCodes)});
    auto& affine = std::get<Affine>(all.back().weight.encoding);
    for (auto& code : affine.codes.As<std::uint8_t>()) code = 255;
    for (auto& zero : std::get<ZeroCodes>(affine.offset).zeros.As<std::uint8_t>()) zero = 0;
  }
  const std::vector<float> x(16 * kK, 5.0f);
  for (const NamedWeight& c : all) {
    SCOPED_TRACE(c.name);
    const std::vector<float> w = Dequantize(c.weight).value();
    const auto linear = Pack(c.weight, DenseForm::kRounded);
    Products products(kernels(), 1, InputRounding::kInt16);
    for (const std::int64_t rows : {1, 4, 16}) {
      const auto y = products.Run(*linear, {x.begin(), x.begin() + rows * kK}, rows);
      for (std::int64_t i = 0; i < kN; ++i) {
        double sum = 0;
        for (std::int64_t j = 0; j < kK; ++j) sum += 5.0 * w[i * kK + j];
        ASSERT_NEAR(y[(rows - 1) * kN + i], sum, 1e-3 * std::abs(sum)) << i;
      }
    }
  }
}

TEST_P(CpuLinearTest, RoundedDenseWeightsKeepNanAndTheirRows) {
  WeightMaker make(8);
  LinearWeight weight = make.DenseWeight(33, 70, DType::kBF16);
  std::get<Dense>(weight.encoding).data.As<std::uint16_t>()[20 * 70 + 40] = 0x7fc0;  // NaN
  const auto linear = Pack(weight, DenseForm::kRounded);
  const std::vector<float> w = Dequantize(weight).value();
  Products products(kernels(), 1, InputRounding::kInt16);
  const auto x = reference::Random(5 * 70, 3);
  const auto y = products.Run(*linear, x, 5);
  for (int i = 0; i < 33; ++i) EXPECT_EQ(std::isnan(y[2 * 33 + i]), i == 20) << i;
  for (const std::int64_t row : {0, 15, 32}) {
    std::vector<float> out(70);
    kernels().embed_row({&linear->segments()[0].matrix, row, 1.0f, out.data(), products.panel()});
    for (int j = 0; j < 70; ++j) {
      float largest = 0;  // of the group
      for (int i = j / 64 * 64; i < std::min(70, j / 64 * 64 + 64); ++i)
        largest = std::max(largest, std::abs(w[row * 70 + i]));
      EXPECT_NEAR(out[j], w[row * 70 + j], largest / 4000) << row << ", " << j;
    }
  }
}

TEST_P(CpuLinearTest, RowIsTheSameBitsAloneAmongOthersAndOnMoreThreads) {
  constexpr std::int64_t kN = 200, kK = 576, kRows = 33;
  const auto x = reference::Random(kRows * kK, 5, 2.0f);
  for (const InputRounding rounding : kRoundings) {
    Products alone(kernels(), 1, rounding), threads(kernels(), 3, rounding);
    for (const NamedWeight& c : EveryEncoding(kN, kK, 13)) {
      SCOPED_TRACE(testing::Message() << c.name << " rounding " << static_cast<int>(rounding));
      const auto linear = Pack(
          c.weight, rounding == InputRounding::kNone ? DenseForm::kExact : DenseForm::kRounded);
      const auto together = alone.Run(*linear, x, kRows);
      EXPECT_EQ(together, threads.Run(*linear, x, kRows));
      for (const auto& [first, rows] : std::vector<std::pair<std::int64_t, std::int64_t>>{
               {0, 1}, {1, 1}, {14, 2}, {15, 3}, {20, 4}, {30, 1}, {28, 5}, {31, 2}}) {
        const auto some =
            alone.Run(*linear, {x.begin() + first * kK, x.begin() + (first + rows) * kK}, rows);
        EXPECT_EQ(some, std::vector<float>(together.begin() + first * kN,
                                           together.begin() + (first + rows) * kN))
            << first << " " << rows;
      }
    }
  }
}

TEST_P(CpuLinearTest, GluOfTwoProductsHasTheBitsOfItsParts) {
  constexpr std::int64_t kK = 300, kMostRows = 71;
  const auto x = reference::Random(kMostRows * kK, 5, 2.0f);
  int joined = 0;
  for (const InputRounding rounding : kRoundings) {
    const DenseForm form =
        rounding == InputRounding::kNone ? DenseForm::kExact : DenseForm::kRounded;
    Products products(kernels(), 1, rounding), threads(kernels(), 3, rounding);
    for (const std::int64_t n : {64, 57}) {
      const auto gates = EveryEncoding(n, kK, 13), ups = EveryEncoding(n, kK, 14);
      for (std::size_t i = 0; i < gates.size(); ++i) {
        SCOPED_TRACE(testing::Message()
                     << gates[i].name << " " << n << " rounding " << static_cast<int>(rounding));
        const auto gate = Pack(gates[i].weight, form), up = Pack(ups[i].weight, form);
        for (const std::int64_t rows : {33L, 48L, kMostRows}) {
          const auto glu = products.Glu(*gate, *up, x, rows);
          if (!glu.has_value()) continue;
          ++joined;
          EXPECT_EQ(threads.Glu(*gate, *up, x, rows), glu);
          const auto g = products.Run(*gate, x, rows), u = products.Run(*up, x, rows);
          for (std::int64_t r = 0; r < rows; ++r) {
            std::vector<float> pair(g.begin() + r * n, g.begin() + (r + 1) * n), want(n);
            pair.insert(pair.end(), u.begin() + r * n, u.begin() + (r + 1) * n);
            kernels().glu_silu(want.data(), pair.data(), n);
            ASSERT_EQ(std::vector<float>(glu->begin() + r * n, glu->begin() + (r + 1) * n), want)
                << "row " << r << " of " << rows;
          }
        }
      }
    }
  }
  EXPECT_GT(joined, 100);
}

TEST_P(CpuLinearTest, GluIsNotJoinedOfFewRowsOrUnlikeWeights) {
  WeightMaker make(4);
  const auto gate = Pack(make.AffineWeight(32, 96, 4, 32, ScaleKind::kF16, OffsetKind::kBias));
  const auto other = Pack(make.AffineWeight(32, 96, 6, 32, ScaleKind::kF16, OffsetKind::kBias));
  const auto x = reference::Random(33 * 96, 5);
  Products products(kernels(), 1, InputRounding::kInt16);
  EXPECT_TRUE(products.Glu(*gate, *gate, x, 33).has_value());
  EXPECT_FALSE(products.Glu(*gate, *gate, x, 32).has_value());
  EXPECT_FALSE(products.Glu(*gate, *other, x, 33).has_value());
  Products exact(kernels());
  EXPECT_FALSE(exact.Glu(*gate, *gate, x, 33).has_value());
}

TEST_P(CpuLinearTest, NanInputSpoilsItsOwnRowOnly) {
  WeightMaker make(4);
  const LinearWeight weight = make.AffineWeight(40, 96, 4, 32, ScaleKind::kF16, OffsetKind::kBias);
  const auto linear = Pack(weight);
  for (const InputRounding rounding : kRoundings) {
    Products products(kernels(), 1, rounding);
    auto x = reference::Random(5 * 96, 5);
    const auto clean = products.Run(*linear, x, 5);
    x[2 * 96 + 50] = std::nanf("");
    const auto y = products.Run(*linear, x, 5);
    for (int r = 0; r < 5; ++r) {
      for (int i = 0; i < 40; ++i) {
        if (r == 2)
          EXPECT_TRUE(std::isnan(y[r * 40 + i]));
        else
          EXPECT_EQ(y[r * 40 + i], clean[r * 40 + i]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CpuLinearTest, testing::ValuesIn(cpu::kAllIsas), IsaName);

TEST(CpuPackTest, PackedBytesAreWhatPackHolds) {
  for (const NamedWeight& c : EveryEncoding(50, 300, 14)) {
    const LinearSpec spec = SpecOf(c.weight);
    for (const DenseForm form : {DenseForm::kExact, DenseForm::kRounded}) {
      EXPECT_EQ(CpuLinear::PackedBytes({&spec, 1}, PackAxis::kN, form).value(),
                Pack(c.weight, form)->bytes)
          << c.name;
    }
  }
}

TEST(CpuPackTest, FourBitsStayFourBits) {
  WeightMaker make(1);
  const LinearWeight weight =
      make.AffineWeight(1536, 576, 4, 32, ScaleKind::kF16, OffsetKind::kBias);
  EXPECT_LE(Pack(weight)->bytes, HostBytes(SpecOf(weight)) + 4096);
}

TEST(CpuPackTest, UnequalSegmentsStackAlongN) {
  WeightMaker make(2);
  std::vector<LinearWeight> weights;
  weights.push_back(
      make.AffineWeight(20, 64, 4, 32, ScaleKind::kF16, OffsetKind::kZeroCodes, true));
  weights.push_back(make.DenseWeight(3, 64, DType::kBF16));
  weights.push_back(make.Row8Weight(33, 64, DType::kI8, ActivationQuant::kDynamic));
  const auto linear = CpuLinear::Pack(weights, PackAxis::kN).value();
  EXPECT_EQ(linear->n, 56);
  const auto x = reference::Random(3 * 64, 6);
  const auto y = Products(cpu::KernelsOf(cpu::BestIsa())).Run(*linear, x, 3);
  std::int64_t row = 0;
  for (const LinearWeight& weight : weights) {
    const auto part = Products(cpu::KernelsOf(cpu::BestIsa())).Run(*Pack(weight), x, 3);
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t i = 0; i < weight.n; ++i)
        EXPECT_EQ(y[r * 56 + row + i], part[r * weight.n + i]);
    }
    row += weight.n;
  }
}

TEST(CpuPackTest, RefusesWhatItCannotRun) {
  WeightMaker make(3);
  const auto pack = [](std::vector<LinearWeight> weights) {
    return CpuLinear::Pack(weights, PackAxis::kN).status();
  };
  std::vector<LinearWeight> unequal;
  unequal.push_back(make.DenseWeight(4, 32, DType::kF32));
  unequal.push_back(make.DenseWeight(4, 64, DType::kF32));
  EXPECT_EQ(pack(std::move(unequal)).code(), absl::StatusCode::kInvalidArgument);

  std::vector<LinearWeight> shorted;
  shorted.push_back(make.DenseWeight(4, 32, DType::kF32));
  shorted[0].n = 5;
  EXPECT_EQ(pack(std::move(shorted)).code(), absl::StatusCode::kInvalidArgument);

  LinearSpec seven;
  seven.n = seven.k = 32;
  seven.kind = EncodingKind::kAffine;
  seven.bits = 7;
  seven.group = 32;
  seven.scales = ScaleKind::kF16;
  EXPECT_EQ(CpuLinear::PackedBytes({&seven, 1}, PackAxis::kN).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(CpuLinear::PackedBytes({}, PackAxis::kN).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
