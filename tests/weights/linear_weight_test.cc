#include "runtime/weights/linear_weight.h"

#include <random>

#include "gmock/gmock.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

template <typename T>
HostBuffer Buffer(const std::vector<T>& values) {
  HostBuffer buffer(values.size() * sizeof(T));
  std::memcpy(buffer.data(), values.data(), buffer.size());
  return buffer;
}

HostBuffer Halves(const std::vector<float>& values) {
  std::vector<std::uint16_t> halves;
  for (const float value : values) halves.push_back(F32ToF16(value));
  return Buffer(halves);
}

HostBuffer PackedRows(std::int64_t n, std::int64_t k, int bits,
                      const std::vector<std::uint8_t>& codes) {
  HostBuffer packed(static_cast<std::size_t>(n * CodeRowBytes(k, bits)));
  for (std::int64_t row = 0; row < n; ++row) {
    PackCodes(codes.data() + row * k, bits, k, packed.data() + row * CodeRowBytes(k, bits));
  }
  return packed;
}

class CodeRowsTest : public testing::TestWithParam<int> {};

TEST_P(CodeRowsTest, CodeILiesAtBitITimesBits) {
  const int bits = GetParam();
  std::mt19937 random(7);
  for (const std::int64_t k : {1, 2, 7, 8, 9, 31, 32, 33, 352}) {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(k));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random() & ((1u << bits) - 1));
    std::vector<std::byte> row(static_cast<std::size_t>(CodeRowBytes(k, bits)));
    PackCodes(codes.data(), bits, k, row.data());
    for (std::int64_t i = 0; i < k * bits; ++i) {
      const int bit = static_cast<int>(row[static_cast<std::size_t>(i / 8)]) >> (i % 8) & 1;
      ASSERT_EQ(bit, codes[static_cast<std::size_t>(i / bits)] >> (i % bits) & 1)
          << "k " << k << " bit " << i;
    }
    std::vector<std::uint8_t> back(codes.size());
    UnpackCodes(row.data(), bits, k, back.data());
    EXPECT_EQ(back, codes) << k;
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, CodeRowsTest, testing::Values(1, 2, 3, 4, 5, 6, 8));

LinearWeight DenseF32(std::int64_t n, std::int64_t k, const std::vector<float>& values) {
  LinearWeight weight;
  weight.n = n;
  weight.k = k;
  weight.encoding = Dense{DType::kF32, Buffer(values)};
  return weight;
}

// [4, 64], groups of 16, every part different in every group; two-level scales in super-groups of
// two.
LinearWeight RandomAffine(int bits, bool two_level, OffsetKind offset) {
  constexpr std::int64_t kN = 4;
  constexpr std::int64_t kK = 64;
  std::mt19937 random(static_cast<unsigned>(bits));
  std::vector<std::uint8_t> codes(kN * kK);
  for (auto& code : codes) code = static_cast<std::uint8_t>(random() & ((1u << bits) - 1));
  const auto floats = [&](std::size_t count) {
    std::vector<float> values(count);
    for (auto& value : values) value = static_cast<float>(random() % 1000) / 512.0f;
    return values;
  };
  const auto small = [&](std::size_t count) {
    std::vector<std::int8_t> values(count);
    for (auto& value : values) value = static_cast<std::int8_t>(random() % 60);
    return values;
  };
  Affine affine;
  affine.bits = bits;
  affine.group = 16;
  affine.codes = PackedRows(kN, kK, bits, codes);
  if (two_level) {
    affine.scales = TwoLevelScales{Halves(floats(8)), Buffer(small(16)), 2};
  } else {
    affine.scales = FlatScales{DType::kF16, Halves(floats(16))};
  }
  switch (offset) {
    case OffsetKind::kZeroCodes: {
      const std::vector<std::int8_t> zeros = small(16);
      affine.offset = ZeroCodes{Buffer(std::vector<std::uint8_t>(zeros.begin(), zeros.end()))};
      break;
    }
    case OffsetKind::kBias: affine.offset = BiasOffset{DType::kF16, Halves(floats(16))}; break;
    case OffsetKind::kTwoLevel:
      affine.offset = TwoLevelOffset{{Halves(floats(8)), Buffer(small(16)), 2}};
      break;
    default: affine.offset = ConstantOffset{3};
  }
  LinearWeight weight;
  weight.n = kN;
  weight.k = kK;
  weight.encoding = std::move(affine);
  weight.bias = {1, 2, 3, 4};
  return weight;
}

TEST(LinearWeightTest, DenseWidens) {
  LinearWeight weight;
  weight.n = 1;
  weight.k = 2;
  weight.encoding = Dense{DType::kBF16, Buffer(std::vector<std::uint16_t>{0x3f80, 0xc000})};
  EXPECT_THAT(*Dequantize(weight), ElementsAre(1, -2));
  EXPECT_EQ(Describe(SpecOf(weight)), "dense bf16");
}

TEST(LinearWeightTest, AffineFormulas) {
  LinearWeight weight;
  weight.n = 1;
  weight.k = 4;
  const auto with = [&](Scales scales, Offset offset) {
    weight.encoding =
        Affine{4, 2, PackedRows(1, 4, 4, {0, 5, 9, 15}), std::move(scales), std::move(offset), {}};
    return *Dequantize(weight);
  };
  const auto flat = [] { return FlatScales{DType::kF16, Halves({0.5f, 2})}; };
  EXPECT_THAT(with(flat(), ConstantOffset{8}), ElementsAre(-4, -1.5f, 2, 14));
  EXPECT_THAT(with(flat(), ZeroCodes{Buffer(std::vector<std::uint8_t>{1, 15})}),
              ElementsAre(-0.5f, 2, -12, 0));
  EXPECT_THAT(with(flat(), BiasOffset{DType::kF16, Halves({1, -3})}), ElementsAre(1, 3.5f, 15, 27));
  const auto levels = [](float super, std::int8_t a, std::int8_t b) {
    return TwoLevelScales{Halves({super}), Buffer(std::vector<std::int8_t>{a, b}), 2};
  };
  EXPECT_THAT(with(levels(0.5f, 2, -3), ConstantOffset{8}), ElementsAre(-8, -3, -1.5f, -10.5f));
  EXPECT_THAT(with(levels(1, 1, 2), TwoLevelOffset{levels(0.25f, 4, 8)}),
              ElementsAre(-1, 4, 16, 28));
}

TEST(LinearWeightTest, PermutationIsUndone) {
  LinearWeight weight;
  weight.n = 1;
  weight.k = 4;
  weight.encoding = Affine{4,
                           4,
                           PackedRows(1, 4, 4, {1, 2, 3, 4}),
                           FlatScales{DType::kF32, Buffer<float>({1})},
                           ConstantOffset{0},
                           {2, 0, 3, 1}};
  EXPECT_THAT(*Dequantize(weight), ElementsAre(2, 4, 1, 3));
  EXPECT_EQ(Describe(SpecOf(weight)), "affine int4 g4 act-order");
}

TEST(LinearWeightTest, CodebookWithE8M0ScalesReachesTheEndsOfTheRange) {
  LinearWeight weight;
  weight.n = 1;
  weight.k = 3;
  Codebook book;
  book.table[1] = 0.5f;
  book.table[2] = 6.0f;
  book.group = 1;
  book.codes = PackedRows(1, 3, 4, {1, 1, 2});
  book.scales = FlatScales{DType::kF8E8M0, Buffer<std::uint8_t>({0, 255, 127})};
  weight.encoding = std::move(book);
  EXPECT_THAT(*Dequantize(weight), ElementsAre(0x1p-128f, 0x1p127f, 6));
}

TEST(LinearWeightTest, Row8Formulas) {
  LinearWeight weight;
  weight.n = 2;
  weight.k = 2;
  Row8 row8;
  row8.codes = Buffer<std::int8_t>({-128, 127, 1, -1});
  row8.scales = {0.5f, 2};
  row8.zeros = {0, 3};
  weight.encoding = std::move(row8);
  EXPECT_THAT(*Dequantize(weight), ElementsAre(-64, 63.5f, -4, -8));
  Row8 fp8;
  fp8.dtype = DType::kF8E4M3;
  fp8.codes = Buffer<std::uint8_t>({0x38, 0x7e, 0x81, 0x08});  // 1, 448, -2^-9, 2^-6
  fp8.scales = {2};
  fp8.activation = ActivationQuant::kDynamic;
  weight.encoding = std::move(fp8);
  EXPECT_THAT(*Dequantize(weight), ElementsAre(2, 896, -0x1p-8f, 0x1p-5f));
  EXPECT_EQ(Describe(SpecOf(weight)), "row8 fp8 dynamic");
}

TEST(LinearWeightTest, HostBytesCountsEveryBuffer) {
  const LinearSpec k_quant = SpecOf(RandomAffine(4, true, OffsetKind::kTwoLevel));
  EXPECT_EQ(HostBytes(k_quant), 4 * 32 + 2 * (16 + 8 * 2) + 4 * 4);
  const LinearSpec zeros = SpecOf(RandomAffine(3, false, OffsetKind::kZeroCodes));
  EXPECT_EQ(HostBytes(zeros), 4 * 24 + 16 * 2 + 16 + 4 * 4);
  EXPECT_EQ(HostBytes(SpecOf(RandomAffine(8, false, OffsetKind::kBias))),
            4 * 64 + 16 * 2 * 2 + 4 * 4);
  EXPECT_EQ(HostBytes(SpecOf(DenseF32(2, 3, std::vector<float>(6)))), 24);
}

TEST(LinearWeightTest, BuffersOfTheWrongSizeAreNamed) {
  LinearWeight dense = DenseF32(2, 3, std::vector<float>(5));
  EXPECT_THAT(std::string(Dequantize(dense).status().message()), HasSubstr("20 bytes, not 24"));
  LinearWeight affine = RandomAffine(4, false, OffsetKind::kZeroCodes);
  std::get<Affine>(affine.encoding).group = 8;
  EXPECT_THAT(std::string(CheckBuffers(affine).message()), HasSubstr("scales"));
  affine = RandomAffine(4, false, OffsetKind::kZeroCodes);
  std::get<Affine>(affine.encoding).offset = ZeroCodes{};
  EXPECT_THAT(std::string(CheckBuffers(affine).message()), HasSubstr("zeros"));
  affine = RandomAffine(4, false, OffsetKind::kZeroCodes);
  std::get<Affine>(affine.encoding).permutation = std::vector<std::int32_t>(64, 1);
  EXPECT_THAT(std::string(CheckBuffers(affine).message()), HasSubstr("permutation"));
  affine = RandomAffine(4, false, OffsetKind::kZeroCodes);
  affine.bias.pop_back();
  EXPECT_THAT(std::string(CheckBuffers(affine).message()), HasSubstr("bias"));
}

struct SliceCase {
  const char* name;
  LinearWeight (*make)();
};

class SliceTest : public testing::TestWithParam<SliceCase> {};

TEST_P(SliceTest, ASliceDecodesToTheSliceOfTheWhole) {
  const LinearWeight weight = GetParam().make();
  const std::vector<float> whole = *Dequantize(weight);
  NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight rows, Slice(weight, Axis::kN, 1, 3));
  EXPECT_EQ(rows.n, 2);
  EXPECT_THAT(*Dequantize(rows), ElementsAreArray(whole.begin() + 64, whole.begin() + 192));
  for (const auto& [begin, end] : {std::pair(0, 32), std::pair(32, 64)}) {
    NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight columns, Slice(weight, Axis::kK, begin, end));
    EXPECT_EQ(columns.k, 32);
    EXPECT_EQ(columns.bias.empty(), begin != 0 || weight.bias.empty()) << "added once";
    std::vector<float> expected;
    for (int row = 0; row < 4; ++row) {
      expected.insert(expected.end(), whole.begin() + row * 64 + begin,
                      whole.begin() + row * 64 + end);
    }
    EXPECT_THAT(*Dequantize(columns), ElementsAreArray(expected));
  }
  EXPECT_FALSE(Slice(weight, Axis::kN, 2, 5).ok());
  EXPECT_FALSE(Slice(weight, Axis::kK, 3, 3).ok());
  EXPECT_FALSE(Slice(weight, Axis::kK, -1, 32).ok());
}

TEST_P(SliceTest, PermutedRowsDecodeToThePermutedRows) {
  const std::vector<float> whole = *Dequantize(GetParam().make());
  const std::vector<std::int32_t> order = {2, 0, 3, 1};
  const LinearWeight permuted = PermuteRows(GetParam().make(), order);
  std::vector<float> expected;
  for (const std::int32_t row : order) {
    expected.insert(expected.end(), whole.begin() + row * 64, whole.begin() + (row + 1) * 64);
  }
  EXPECT_THAT(*Dequantize(permuted), ElementsAreArray(expected));
  const std::vector<float> bias = GetParam().make().bias;
  for (std::size_t i = 0; i < permuted.bias.size(); ++i) {
    EXPECT_EQ(permuted.bias[i], bias[static_cast<std::size_t>(order[i])]);
  }
}

LinearWeight RampDense() {
  std::vector<float> values(256);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  return DenseF32(4, 64, values);
}

LinearWeight RampRow8() {
  LinearWeight weight;
  weight.n = 4;
  weight.k = 64;
  Row8 row8;
  row8.codes = HostBuffer(256);
  for (int i = 0; i < 256; ++i)
    row8.codes.bytes()[static_cast<std::size_t>(i)] = static_cast<std::byte>(i);
  row8.scales = {1, 2, 3, 4};
  row8.zeros = {4, 3, 2, 1};
  weight.encoding = std::move(row8);
  return weight;
}

// Groups of 4 in three-bit codes: rows whose slices do not begin at a byte.
LinearWeight RandomCodebook() {
  std::mt19937 random(3);
  std::vector<std::uint8_t> codes(256);
  for (auto& code : codes) code = random() & 15;
  std::vector<float> scales(64);
  for (auto& scale : scales) scale = static_cast<float>(random() % 100);
  Codebook book;
  for (int i = 0; i < 16; ++i) book.table[static_cast<std::size_t>(i)] = static_cast<float>(i * i);
  book.group = 4;
  book.codes = PackedRows(4, 64, 4, codes);
  book.scales = FlatScales{DType::kF32, Buffer(scales)};
  LinearWeight weight;
  weight.n = 4;
  weight.k = 64;
  weight.encoding = std::move(book);
  return weight;
}

INSTANTIATE_TEST_SUITE_P(
    Encodings, SliceTest,
    testing::Values(
        SliceCase{"Dense", RampDense}, SliceCase{"Row8", RampRow8},
        SliceCase{"Codebook", RandomCodebook},
        SliceCase{"Int3Constant", [] { return RandomAffine(3, false, OffsetKind::kConstant); }},
        SliceCase{"Int4Zeros", [] { return RandomAffine(4, false, OffsetKind::kZeroCodes); }},
        SliceCase{"Int5Bias", [] { return RandomAffine(5, false, OffsetKind::kBias); }},
        SliceCase{"Int6TwoLevel", [] { return RandomAffine(6, true, OffsetKind::kConstant); }},
        SliceCase{"Int2TwoLevelMinimum",
                  [] { return RandomAffine(2, true, OffsetKind::kTwoLevel); }}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(SliceTest, PartsOfGroupsAreRefused) {
  EXPECT_FALSE(Slice(RandomAffine(4, false, OffsetKind::kConstant), Axis::kK, 8, 64).ok());
  EXPECT_FALSE(Slice(RandomAffine(4, false, OffsetKind::kConstant), Axis::kK, 0, 24).ok());
  const auto split = Slice(RandomAffine(4, true, OffsetKind::kConstant), Axis::kK, 16, 64);
  EXPECT_THAT(std::string(split.status().message()), HasSubstr("whole groups of 32"));
  LinearWeight permuted = RandomAffine(4, false, OffsetKind::kConstant);
  for (int i = 0; i < 64; ++i) std::get<Affine>(permuted.encoding).permutation.push_back(63 - i);
  EXPECT_FALSE(Slice(permuted, Axis::kK, 0, 32).ok());
  EXPECT_TRUE(Slice(permuted, Axis::kN, 0, 2).ok());
}

// One group over the row may be cut anywhere, also between bytes.
TEST(SliceTest, OneGroupIsCutAnywhere) {
  LinearWeight weight;
  weight.n = 2;
  weight.k = 10;
  std::vector<std::uint8_t> codes = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 7, 6, 5, 4, 3, 2, 1, 0, 7, 6};
  weight.encoding = Affine{3,
                           10,
                           PackedRows(2, 10, 3, codes),
                           FlatScales{DType::kF32, Buffer<float>({1, 2})},
                           ConstantOffset{0},
                           {}};
  NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight part, Slice(weight, Axis::kK, 3, 8));
  EXPECT_THAT(*Dequantize(part), ElementsAre(3, 4, 5, 6, 7, 8, 6, 4, 2, 0));
  EXPECT_EQ(SpecOf(part).group, 5);
}

}  // namespace
}  // namespace nibble
