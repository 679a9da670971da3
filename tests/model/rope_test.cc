// Frequencies against figures that their papers and models publish, worked out by hand.
#include <cmath>

#include "gtest/gtest.h"
#include "runtime/model/config.h"

namespace nibble {
namespace {

using Kind = RopeScaling::Kind;

RopeConfig Rope(double theta, std::int32_t dim, Kind kind = Kind::kNone) {
  RopeConfig rope;
  rope.theta = theta;
  rope.dim = dim;
  rope.scaling.kind = kind;
  return rope;
}

TEST(RopeTest, DefaultIsAGeometricSeries) {
  const RopeTable table = BuildRopeTable(Rope(10000, 8), 2048);
  ASSERT_EQ(table.inv_freq.size(), 4u);
  EXPECT_FLOAT_EQ(table.inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(table.inv_freq[1], 0.1f);
  EXPECT_FLOAT_EQ(table.inv_freq[2], 0.01f);
  EXPECT_FLOAT_EQ(table.inv_freq[3], 0.001f);
  EXPECT_EQ(table.attention_factor, 1.0f);
}

TEST(RopeTest, LinearDividesEveryFrequency) {
  RopeConfig rope = Rope(10000, 8, Kind::kLinear);
  rope.scaling.factor = 4;
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 2048).inv_freq[1], 0.025f);
}

TEST(RopeTest, DynamicIsFixedByTheConfiguredContext) {
  RopeConfig rope = Rope(10000, 8, Kind::kDynamic);
  rope.scaling.factor = 2;
  rope.scaling.original_context = 1024;
  // Within the context the model was trained for, nothing is scaled.
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 512).inv_freq[1], 0.1f);
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 1024).inv_freq[1], 0.1f);
  // theta' = 10000 * (2 * 2 - 1)^(8 / 6)
  const double theta = 10000 * std::pow(3.0, 8.0 / 6.0);
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 2048).inv_freq[1],
                  static_cast<float>(std::pow(theta, -0.25)));
}

TEST(RopeTest, Llama3StretchesOnlyLongWavelengths) {
  RopeConfig rope = Rope(500000, 128, Kind::kLlama3);  // Llama 3.1
  rope.scaling.factor = 8;
  rope.scaling.original_context = 8192;
  const RopeTable plain = BuildRopeTable(Rope(500000, 128), 131072);
  const RopeTable scaled = BuildRopeTable(rope, 131072);
  EXPECT_FLOAT_EQ(scaled.inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(scaled.inv_freq[28], plain.inv_freq[28]);         // wavelength 1956 < 8192 / 4
  EXPECT_FLOAT_EQ(scaled.inv_freq[36], plain.inv_freq[36] / 8.0f);  // wavelength 10090 > 8192
  const double wavelength = 2 * M_PI * std::pow(500000.0, 2.0 * 32 / 128);  // 4443: between
  const double s = (8192 / wavelength - 1) / 3;
  EXPECT_FLOAT_EQ(scaled.inv_freq[32],
                  static_cast<float>(2 * M_PI / wavelength * ((1 - s) / 8 + s)));
}

TEST(RopeTest, YarnRampsBetweenItsCorrections) {
  RopeConfig rope = Rope(10000, 128, Kind::kYarn);
  rope.scaling.factor = 4;
  rope.scaling.original_context = 4096;
  const RopeTable plain = BuildRopeTable(Rope(10000, 128), 4096);
  const RopeTable table = BuildRopeTable(rope, 16384);
  EXPECT_FLOAT_EQ(table.attention_factor, static_cast<float>(0.1 * std::log(4.0) + 1));
  // corr(32) = 20.95, corr(1) = 45.03: floor 20, ceil 46.
  EXPECT_FLOAT_EQ(table.inv_freq[20], plain.inv_freq[20]);
  EXPECT_FLOAT_EQ(table.inv_freq[46], plain.inv_freq[46] / 4);
  EXPECT_FLOAT_EQ(table.inv_freq[33], plain.inv_freq[33] * (0.5f / 4 + 0.5f));
  rope.scaling.truncate = false;
  EXPECT_LT(BuildRopeTable(rope, 16384).inv_freq[45], plain.inv_freq[45] * 0.251f);
}

TEST(RopeTest, YarnMagnitudesDivide) {
  RopeConfig rope = Rope(10000, 64, Kind::kYarn);
  rope.scaling.factor = 40;
  rope.scaling.original_context = 4096;
  rope.scaling.mscale = 0.707;
  rope.scaling.mscale_all_dim = 0.707;
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4096).attention_factor, 1.0f);
  rope.scaling.mscale = 1.0;
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4096).attention_factor, 1.3688879f / 1.2608038f);
  rope.scaling.attention_factor = 1.5;
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4096).attention_factor, 1.5f);
}

TEST(RopeTest, LongRopePicksItsListByTheConfiguredContext) {
  RopeConfig rope = Rope(10000, 4, Kind::kLongRope);  // Phi-3-mini-128k's contexts
  rope.scaling.factor = 32;
  rope.scaling.original_context = 4096;
  rope.scaling.short_factor = {1.0, 2.0};
  rope.scaling.long_factor = {4.0, 8.0};
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4096).inv_freq[1], 0.005f);
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4097).inv_freq[1], 0.00125f);
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4096).attention_factor, 1.1902381f);
}

TEST(RopeTest, GgufDivisorsDivide) {
  RopeConfig rope = Rope(10000, 4);
  rope.scaling.frequency_divisors = {1.0, 8.0};
  EXPECT_FLOAT_EQ(BuildRopeTable(rope, 4096).inv_freq[1], 0.00125f);
}

}  // namespace
}  // namespace nibble
