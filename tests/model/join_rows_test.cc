#include "runtime/model/join_rows.h"

#include <cstring>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

HostBuffer RandomBytes(std::size_t size, std::mt19937& random) {
  HostBuffer buffer(size);
  for (std::byte& byte : buffer.bytes()) byte = static_cast<std::byte>(random());
  return buffer;
}

HostBuffer Floats(std::size_t count, std::mt19937& random) {
  HostBuffer buffer(count * sizeof(float));
  for (float& value : buffer.As<float>()) value = static_cast<float>(random() % 1000) / 1000.0f;
  return buffer;
}

constexpr std::int64_t kInputs = 64;

LinearWeight MakeDense(std::int64_t n, std::mt19937& random) {
  LinearWeight weight{n, kInputs, Dense{DType::kF32, Floats(n * kInputs, random)}, {}};
  weight.bias.assign(n, 0.5f);
  return weight;
}

LinearWeight MakeAffine(std::int64_t n, std::mt19937& random) {
  Affine affine;
  affine.group = 32;
  affine.codes = RandomBytes(n * CodeRowBytes(kInputs, 4), random);
  affine.scales = FlatScales{DType::kF32, Floats(n * 2, random)};
  affine.offset = ZeroCodes{RandomBytes(n * 2, random)};
  return {n, kInputs, std::move(affine), {}};
}

LinearWeight MakeCodebook(std::int64_t n, std::mt19937& random) {
  Codebook codebook;
  for (int i = 0; i < 16; ++i) codebook.table[i] = static_cast<float>(i) - 8.0f;
  codebook.group = 32;
  codebook.codes = RandomBytes(n * CodeRowBytes(kInputs, 4), random);
  codebook.scales = FlatScales{DType::kF32, Floats(n * 2, random)};
  return {n, kInputs, std::move(codebook), {}};
}

LinearWeight MakeRow8(std::int64_t n, std::size_t scales, std::mt19937& random) {
  Row8 row;
  row.codes = RandomBytes(n * kInputs, random);
  row.scales.assign(scales, 0.25f * static_cast<float>(n));
  return {n, kInputs, std::move(row), {}};
}

void ExpectStacked(const LinearWeight& top, const LinearWeight& bottom) {
  const auto joined = JoinRows(top, bottom, "up");
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ(joined->n, top.n + bottom.n);
  EXPECT_EQ(joined->bias.size(), top.bias.size() + bottom.bias.size());
  auto expected = *Dequantize(top);
  const auto below = *Dequantize(bottom);
  expected.insert(expected.end(), below.begin(), below.end());
  const auto actual = Dequantize(*joined);
  ASSERT_TRUE(actual.ok()) << actual.status();
  EXPECT_EQ(*actual, expected);
}

TEST(JoinRowsTest, StacksEveryEncoding) {
  std::mt19937 random(7);
  ExpectStacked(MakeDense(3, random), MakeDense(5, random));
  ExpectStacked(MakeAffine(3, random), MakeAffine(5, random));
  ExpectStacked(MakeCodebook(3, random), MakeCodebook(5, random));
  ExpectStacked(MakeRow8(3, 3, random), MakeRow8(5, 5, random));
  ExpectStacked(MakeRow8(3, 1, random),
                MakeRow8(5, 1, random));  // one scale a tensor becomes one a row
}

TEST(JoinRowsTest, RefusesWhatDiffers) {
  std::mt19937 random(7);
  const auto kinds = JoinRows(MakeDense(3, random), MakeAffine(3, random), "experts.1.up_proj");
  EXPECT_EQ(kinds.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(kinds.status().message()), HasSubstr("experts.1.up_proj"));

  LinearWeight ordered = MakeAffine(3, random), other = MakeAffine(3, random);
  for (std::int64_t i = 0; i < kInputs; ++i) {
    std::get<Affine>(ordered.encoding).permutation.push_back(static_cast<std::int32_t>(i));
    std::get<Affine>(other.encoding)
        .permutation.push_back(static_cast<std::int32_t>(kInputs - 1 - i));
  }
  EXPECT_THAT(std::string(JoinRows(ordered, other, "up").status().message()),
              HasSubstr("act-order"));

  LinearWeight table = MakeCodebook(3, random);
  std::get<Codebook>(table.encoding).table[3] = 99.0f;
  EXPECT_THAT(std::string(JoinRows(MakeCodebook(3, random), table, "up").status().message()),
              HasSubstr("code table"));
}

}  // namespace
}  // namespace nibble
