#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/dtype.h"
#include "tests/kernels/isa_test.h"
#include "tests/kernels/reference.h"

namespace nibble {
namespace {

using testing::FloatNear;
using testing::Pointwise;

constexpr float kInf = std::numeric_limits<float>::infinity();

class PointwiseTest : public IsaTest {};

TEST_P(PointwiseTest, RmsNorm) {
  for (const int dim : {1, 8, 15, 16, 17, 576, 4096}) {
    const auto x = reference::Random(dim, 1, 3.0f), weight = reference::Random(dim, 2);
    std::vector<float> out(dim);
    kernels().rms_norm(out.data(), x.data(), weight.data(), dim, 1e-5f);
    EXPECT_THAT(out, Pointwise(FloatNear(1e-5f), reference::RmsNorm(x, weight, 1e-5f))) << dim;
  }
}

TEST_P(PointwiseTest, GatedUnits) {
  for (const int dim : {1, 16, 33}) {
    auto in = reference::Random(2 * dim, 3, 4.0f);
    in[0] = -90.0f;  // e^90 overflows
    std::vector<float> silu(dim), gelu(dim), expected_silu, expected_gelu;
    kernels().glu_silu(silu.data(), in.data(), dim);
    kernels().glu_gelu_tanh(gelu.data(), in.data(), dim);
    for (int i = 0; i < dim; ++i) {
      expected_silu.push_back(static_cast<float>(reference::Silu(in[i]) * in[dim + i]));
      expected_gelu.push_back(static_cast<float>(reference::GeluTanh(in[i]) * in[dim + i]));
    }
    EXPECT_THAT(silu, Pointwise(FloatNear(1e-5f), expected_silu));
    EXPECT_THAT(gelu, Pointwise(FloatNear(1e-5f), expected_gelu));
  }
}

TEST_P(PointwiseTest, SoftcapIsAccurateNearZeroToo) {
  std::vector<float> x = {0.0f, 1e-4f, -1e-3f, 0.5f, 5.0f, -29.0f, 100.0f, -1e6f, kInf};
  std::vector<float> y = x;
  kernels().softcap(y.data(), static_cast<std::int64_t>(y.size()), 30.0f);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = 30.0 * std::tanh(double{x[i]} / 30.0);
    EXPECT_NEAR(y[i], expected, 2e-6 * std::abs(expected)) << x[i];
  }
}

TEST_P(PointwiseTest, RopeRotatesHalfSplitPairs) {
  for (const int half : {1, 4, 16, 24, 32}) {
    const auto x = reference::Random(2 * half, 5), angles = reference::Random(half, 6, 3.0f);
    std::vector<float> c, s, y = x;
    for (float a : angles) {
      c.push_back(std::cos(a));
      s.push_back(std::sin(a));
    }
    kernels().rope({y.data(), c.data(), s.data(), half});
    for (int j = 0; j < half; ++j) {
      EXPECT_NEAR(y[j], x[j] * c[j] - x[j + half] * s[j], 1e-6);
      EXPECT_NEAR(y[j + half], x[j + half] * c[j] + x[j] * s[j], 1e-6);
    }
  }
}

TEST_P(PointwiseTest, ConvertsExactlyAsTheScalarFormulas) {
  std::vector<float> x = reference::Random(100, 7, 1000.0f);
  for (float v : {0.0f, -0.0f, 65504.0f, 65520.0f, 1e30f, -1e30f, 6e-8f, 2.98e-8f, 1e-7f, 3e-5f,
                  6.1e-5f, kInf}) {
    x.push_back(v);
  }
  const auto n = static_cast<std::int64_t>(x.size());
  std::vector<std::uint16_t> half(x.size()), bf16(x.size());
  kernels().convert(half.data(), x.data(), n, DType::kF16);
  kernels().convert(bf16.data(), x.data(), n, DType::kBF16);
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(half[i], F32ToF16(x[i])) << x[i];
    EXPECT_EQ(bf16[i], F32ToBf16(x[i])) << x[i];
  }
}

TEST_P(PointwiseTest, MaxOfSeesEveryLaneAndNan) {
  for (const int n : {1, 15, 16, 17, 1000, 49152}) {
    for (const int at : {0, n / 2, n - 1}) {
      auto x = reference::Random(n, 8);
      x[at] = 99.0f;
      EXPECT_EQ(kernels().max_of(x.data(), n).max, 99.0f);
      EXPECT_FALSE(kernels().max_of(x.data(), n).has_nan);
      x[at] = std::nanf("");
      EXPECT_TRUE(kernels().max_of(x.data(), n).has_nan);
    }
  }
}

TEST_P(PointwiseTest, SumExp) {
  for (const int n : {1, 17, 1024, 50000}) {
    auto x = reference::Random(n, 9, 5.0f);
    if (n > 1) x[1] = -kInf;
    const float max = *std::max_element(x.begin(), x.end());
    double expected = 0;
    for (float v : x) expected += std::exp(double{v} - max);
    EXPECT_NEAR(kernels().sum_exp(x.data(), n, max), expected, 1e-6 * expected);
  }
}

TEST_P(PointwiseTest, ExponentialIsWithinTwoUlp) {
  for (float x = -87.0f; x < 88.5f; x += 0.0371f) {
    float y;
    kernels().exp_shifted(&y, &x, 1, 0.0f, 1.0f);
    const auto expected = static_cast<float>(std::exp(double{x}));
    EXPECT_LE(std::abs(y - expected), 2 * (std::nextafter(expected, kInf) - expected)) << x;
  }
  float edge[] = {-kInf, -200.0f, 0.0f, 90.0f};
  kernels().exp_shifted(edge, edge, 4, 0.0f, 1.0f);
  EXPECT_THAT(edge, testing::ElementsAre(0.0f, 0.0f, 1.0f, kInf));
}

TEST_P(PointwiseTest, Int8DynamicRoundsToCodesOfTheTokensAbsmax) {
  auto x = reference::Random(50, 11);
  x[9] = 20.0f;  // code 127.5 is clamped
  x[10] = -20.0f;
  auto y = x;
  kernels().fake_quant({y.data(), 50, cpu::FakeQuant::kInt8Dynamic, 0, 0, 0});
  const float step = 20.0f / 127.5f;
  for (int i = 0; i < 50; ++i) {
    EXPECT_NEAR(y[i], std::min(std::nearbyint(x[i] / step), 127.0f) * step, 1e-6f);
  }
  std::vector<float> zero(20);
  kernels().fake_quant({zero.data(), 20, cpu::FakeQuant::kInt8Dynamic, 0, 0, 0});
  EXPECT_THAT(zero, testing::Each(0.0f));
  x[3] = std::nanf("");
  kernels().fake_quant({x.data(), 50, cpu::FakeQuant::kInt8Dynamic, 0, 0, 0});
  EXPECT_TRUE(std::isnan(x[3]));
  EXPECT_EQ(x[4], y[4]);
}

TEST_P(PointwiseTest, Int8StaticClampsAndShifts) {
  std::vector<float> x = {0.0f, 0.26f, -0.3f, 100.0f, -100.0f};
  kernels().fake_quant({x.data(), 5, cpu::FakeQuant::kInt8Static, 0.5f, 3.0f, 0});
  EXPECT_THAT(x, testing::ElementsAre(0.0f, 0.5f, -0.5f, 62.0f, -65.5f));
}

TEST_P(PointwiseTest, E4m3RoundsToTheNearestCode) {
  std::vector<float> codes;  // the non-negative ones
  for (int bits = 0; bits < 0x7f; ++bits) {
    const int e = bits >> 3, f = bits & 7;
    codes.push_back(e == 0 ? std::ldexp(f, -9) : std::ldexp(8 + f, e - 10));
  }
  std::vector<float> x = reference::Random(300, 12, 50.0f);
  for (float v : {0.0f, 0.001f, 0.0009f, 448.0f, 470.0f, -1e9f, 0.0146f, 17.0f}) x.push_back(v);
  auto y = x;
  kernels().fake_quant(
      {y.data(), static_cast<std::int64_t>(y.size()), cpu::FakeQuant::kE4M3Static, 1.0f, 0, 0});
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float magnitude = std::min(std::abs(x[i]), 448.0f);
    const auto nearest = *std::min_element(codes.begin(), codes.end(), [&](float a, float b) {
      return std::abs(a - magnitude) < std::abs(b - magnitude);
    });
    EXPECT_EQ(std::abs(std::abs(y[i]) - magnitude), std::abs(nearest - magnitude)) << x[i];
    EXPECT_EQ(std::signbit(y[i]), std::signbit(x[i]));
  }
}

TEST_P(PointwiseTest, OutlierSplitKeepsLargeInputsInHalfPrecision) {
  std::vector<float> x = reference::Random(40, 13);
  x[3] = 6.0f;
  x[7] = -60.123f;
  auto y = x;
  kernels().fake_quant({y.data(), 40, cpu::FakeQuant::kOutlierSplit, 0, 0, 6.0f});
  EXPECT_EQ(y[3], 6.0f);
  EXPECT_EQ(y[7], F16ToF32(F32ToF16(-60.123f)));
  float absmax = 0;
  for (int i = 0; i < 40; ++i) {
    if (i != 3 && i != 7) absmax = std::max(absmax, std::abs(F16ToF32(F32ToF16(x[i]))));
  }
  for (int i = 0; i < 40; ++i) {
    if (i == 3 || i == 7) continue;
    const float code = y[i] * 127.0f / absmax;
    EXPECT_NEAR(code, std::nearbyint(F16ToF32(F32ToF16(x[i])) * (127.0f / absmax)), 1e-3f);
  }
}

INSTANTIATE_TEST_SUITE_P(All, PointwiseTest, testing::ValuesIn(cpu::kAllIsas), IsaName);

}  // namespace
}  // namespace nibble
