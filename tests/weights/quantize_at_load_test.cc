#include "runtime/weights/quantize_at_load.h"

#include <bit>
#include <cmath>
#include <random>

#include "gmock/gmock.h"
#include "runtime/weights/bitsandbytes_tables.h"
#include "runtime/weights/module_pattern.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

LinearWeight Normal(std::int64_t n, std::int64_t k) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  LinearWeight weight;
  weight.n = n;
  weight.k = k;
  Dense dense{DType::kF32, HostBuffer(static_cast<std::size_t>(n * k * 4))};
  for (float& value : dense.data.As<float>()) value = normal(random);
  weight.encoding = std::move(dense);
  return weight;
}

struct Error {
  double absolute = 0;
  double relative = 0;
};

Error MeanError(const LinearWeight& weight, LoadQuantization mode) {
  const std::vector<float> before = *Dequantize(weight);
  const std::vector<float> after = *Dequantize(*QuantizeDense(weight, mode));
  Error error;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double difference =
        std::abs(static_cast<double>(before[i]) - static_cast<double>(after[i]));
    error.absolute += difference;
    error.relative += difference / (std::abs(static_cast<double>(before[i])) + 1e-8);
  }
  error.absolute /= static_cast<double>(before.size());
  error.relative /= static_cast<double>(before.size());
  return error;
}

// The library's own figures for 1024 x 1024 normal numbers in blocks of 64, within seven
// deviations.
TEST(QuantizeAtLoadTest, ErrorsAreThoseOfTheLibrary) {
  const LinearWeight weight = Normal(1024, 1024);
  const Error nf4 = MeanError(weight, LoadQuantization::kNf4);
  EXPECT_NEAR(nf4.absolute, 0.072798, 7 * 7.4e-5);
  EXPECT_NEAR(nf4.relative, 0.203339, 7 * 3.4e-4);
  const Error fp4 = MeanError(weight, LoadQuantization::kFp4);
  EXPECT_NEAR(fp4.absolute, 0.096543, 7 * 1.11e-4);
  EXPECT_NEAR(fp4.relative, 0.260125, 7 * 3.8e-4);
}

// Half a step of 15 over the range of 128 normal numbers, or of 254 over that of a row.
TEST(QuantizeAtLoadTest, IntegerErrorsAreWithinHalfAStep) {
  const LinearWeight weight = Normal(64, 256);
  EXPECT_LT(MeanError(weight, LoadQuantization::kInt4).absolute, 0.11);
  EXPECT_LT(MeanError(weight, LoadQuantization::kInt8).absolute, 0.008);
}

TEST(QuantizeAtLoadTest, NearestCodeOfEveryTableEntry) {
  // Each entry of the table is its own nearest one, at a scale that is exact.
  LinearWeight weight;
  weight.n = 1;
  weight.k = 16;
  for (const auto& [table, mode] : {std::pair(kNf4Table, LoadQuantization::kNf4),
                                    std::pair(kFp4Table, LoadQuantization::kFp4)}) {
    Dense dense{DType::kF32, HostBuffer(64)};
    std::copy(table.begin(), table.end(), dense.data.As<float>().begin());
    weight.encoding = std::move(dense);
    EXPECT_THAT(*Dequantize(*QuantizeDense(weight, mode)), testing::ElementsAreArray(table));
  }
}

TEST(QuantizeAtLoadTest, TheTablesAreTheLibrarysBits) {
  const std::uint32_t nf4[16] = {0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0,
                                 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000,
                                 0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A,
                                 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000};
  const std::uint32_t fp4[8] = {0x00000000, 0x3BAAAAAB, 0x3F2AAAAB, 0x3F800000,
                                0x3EAAAAAB, 0x3F000000, 0x3E2AAAAB, 0x3E800000};
  for (std::size_t i = 0; i < 16; ++i)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(kNf4Table[i]), nf4[i]) << i;
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(kFp4Table[i]), fp4[i]) << i;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(kFp4Table[i + 8]), fp4[i] | 0x80000000) << i;
  }
}

// Rows of 100 in blocks of 64: the code of an element depends on its block, not on its row.
TEST(QuantizeAtLoadTest, BlocksRunAcrossRows) {
  const LinearWeight wide = Normal(3, 100);
  LinearWeight flat = Normal(1, 300);
  EXPECT_EQ(*Dequantize(*QuantizeDense(wide, LoadQuantization::kNf4)),
            *Dequantize(*QuantizeDense(flat, LoadQuantization::kNf4)));
}

TEST(ModulePatternTest, IsAnchoredAtTheStartOnly) {
  const ModulePattern pattern = *ModulePattern::Compile(R"(model\.layers\.(3|4)\.)");
  EXPECT_TRUE(*pattern.Matches("model.layers.3.mlp.down_proj"));
  EXPECT_FALSE(*pattern.Matches("model.layers.33.mlp.down_proj"));
  EXPECT_FALSE(*pattern.Matches("x.model.layers.3.mlp"));
  EXPECT_TRUE(*ModulePattern::Compile(".*down")->Matches("model.layers.3.mlp.down_proj"));
  EXPECT_FALSE(ModulePattern::Compile("(").ok());
  EXPECT_FALSE(ModulePattern::Compile(std::string(5000, 'a')).ok());
}

TEST(ModulePatternTest, RunawayPatternsAreAnError) {
  const ModulePattern pattern = *ModulePattern::Compile("(a+)+(b|c)+(a*)*(a*)*$");
  EXPECT_FALSE(
      pattern.Matches(std::string(200, 'a') + "bcbcbcbcbc" + std::string(200, 'a') + "x").ok());
}

}  // namespace
}  // namespace nibble
