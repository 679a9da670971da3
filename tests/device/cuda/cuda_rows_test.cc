// What is packed for a GPU, before it gets there: hardly any of it needs one.
#include "runtime/device/cuda_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "runtime/device/cuda_linear.h"
#include "runtime/device/cuda_step.h"
#include "tests/device/random_weight.h"

namespace nibble {
namespace {

// The matrix that the rows describe, columns in the order of the layer's input.
std::vector<float> Decode(const LinearWeight& weight) {
  const CudaForm form = CudaFormOf(SpecOf(weight)).value();
  const CudaRows rows = CudaRows::Of(weight, form).value();
  const PackedShape& shape = form.shape;
  std::vector<float> out(static_cast<std::size_t>(weight.n * weight.k));
  std::vector<float> scales(static_cast<std::size_t>(form.groups) + 1), offsets(scales);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(weight.k) + 1);
  std::vector<std::byte> elements(static_cast<std::size_t>(weight.k) * 4);
  for (std::int64_t n = 0; n < weight.n; ++n) {
    rows.Scales(n, scales.data());
    if (form.kind == CudaForm::Kind::kPacked) {
      if (shape.offset != OffsetMode::kConstant) rows.Offsets(n, offsets.data());
      rows.Codes(n, codes.data());
    } else if (form.kind != CudaForm::Kind::kE4m3) {
      rows.Elements(n, elements.data());
    }
    for (std::int64_t k = 0; k < weight.k; ++k) {
      const auto group = static_cast<std::size_t>(form.groups == 0 ? 0 : k / form.file_group);
      const std::int64_t column =
          rows.order().empty() ? k : rows.order()[static_cast<std::size_t>(k)];
      float& w = out[static_cast<std::size_t>(n * weight.k + column)];
      if (form.kind == CudaForm::Kind::kPacked) {
        const int q = CodeAt(codes.data(), k, shape.bits);
        if (shape.kind == CodeKind::kCodebook) {
          w = scales[group] * rows.table()[static_cast<std::size_t>(q)];
        } else if (shape.offset == OffsetMode::kBias) {
          w = std::fma(scales[group], static_cast<float>(q - rows.zero()), offsets[group]);
        } else {
          const float zero =
              shape.offset == OffsetMode::kZeros ? offsets[group] : static_cast<float>(rows.zero());
          w = scales[group] * (static_cast<float>(q) - zero);
        }
      } else if (form.kind == CudaForm::Kind::kRow8) {
        const auto byte = static_cast<std::uint8_t>(elements[static_cast<std::size_t>(k)]);
        w = scales[0] * static_cast<std::int8_t>(byte);
      } else if (rows.element() == DType::kF32) {
        std::memcpy(&w, elements.data() + k * 4, 4);
      } else {
        std::uint16_t bits;
        std::memcpy(&bits, elements.data() + k * 2, 2);
        w = rows.element() == DType::kF16 ? F16ToF32(bits) : Bf16ToF32(bits);
      }
    }
  }
  return out;
}

TEST(CudaRowsTest, DescribeTheWeight) {
  for (const std::int64_t k : {320, 72, 75}) {
    for (const NamedWeight& each : EveryEncoding(k == 320 ? 48 : 40, k, 6)) {
      const LinearSpec spec = SpecOf(each.weight);
      if (spec.kind == EncodingKind::kRow8 && spec.dtype == DType::kF8E4M3) continue;
      const std::vector<float> expected = Dequantize(each.weight).value();
      const std::vector<float> got = Decode(each.weight);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(got[i], expected[i], 1e-5f + 1e-5f * std::abs(expected[i]))
            << each.name << ", k " << k << " at " << i;
      }
    }
  }
}

// Scales and biases that halves round leave less behind than 16-bit weights would.
TEST(CudaRowsTest, RoundedNumbersMoveWeightsLittle) {
  WeightMaker make(6);
  LinearWeight weight =
      make.AffineWeight(48, 256, 4, 32, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel);
  // As a quantizer chooses them: codes spread over both sides of zero.
  auto& affine = std::get<Affine>(weight.encoding);
  auto& scales = std::get<TwoLevelScales>(affine.scales);
  auto& minimum = std::get<TwoLevelOffset>(affine.offset).minimum;
  for (std::size_t i = 0; i < 48; ++i)
    minimum.super.As<std::uint16_t>()[i] =
        F32ToF16(7.3f * F16ToF32(scales.super.As<std::uint16_t>()[i]));
  std::copy(scales.codes.bytes().begin(), scales.codes.bytes().end(),
            minimum.codes.bytes().begin());
  const std::vector<float> expected = Dequantize(weight).value();

  const CudaForm form = CudaFormOf(SpecOf(weight)).value();
  ASSERT_EQ(form.shape.offset, OffsetMode::kBias);
  const CudaRows rows = CudaRows::Of(weight, form).value();
  ASSERT_FALSE(rows.exact_in_half());
  const float up = PowerOfTwo(HalfExponent(rows.LargestNumber()));
  const auto half = [up](float v) { return F16ToF32(F32ToF16(v / up)) * up; };
  std::vector<float> row_scales(8), offsets(8);
  std::vector<std::uint8_t> codes(128);
  double difference = 0, norm = 0;
  for (std::int64_t n = 0; n < 48; ++n) {
    rows.Scales(n, row_scales.data());
    rows.Offsets(n, offsets.data());
    rows.Codes(n, codes.data());
    for (std::int64_t k = 0; k < 256; ++k) {
      const auto group = static_cast<std::size_t>(k / 32);
      const int q = CodeAt(codes.data(), k, 4) - rows.zero();
      const float w =
          std::fma(half(row_scales[group]), static_cast<float>(q), half(offsets[group]));
      const float exact = expected[static_cast<std::size_t>(n * 256 + k)];
      difference += (w - exact) * (w - exact), norm += exact * exact;
    }
  }
  EXPECT_LT(std::sqrt(difference / norm), 3e-4);
}

TEST(CudaRowsTest, FormsAreKnownFromTheSpecAlone) {
  for (const NamedWeight& each : EveryEncoding(40, 320, 6)) {
    const LinearSpec spec = SpecOf(each.weight);
    const auto form = CudaFormOf(spec);
    ASSERT_TRUE(form.ok()) << form.status();
    if (spec.kind == EncodingKind::kAffine && spec.group % 16 == 0) {
      EXPECT_EQ(form->kind, CudaForm::Kind::kPacked) << each.name;
      EXPECT_EQ(form->file_group % form->shape.group, 0) << each.name;
    }
  }
  LinearSpec seven = SpecOf(EveryEncoding(40, 320, 6)[3].weight);
  seven.bits = 7;
  EXPECT_EQ(CudaFormOf(seven).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(CudaRowsTest, RowsOfEightBitsKeepTheirBytes) {
  if (!cuda::SupportsRow8(48, 320)) GTEST_SKIP() << "no device that multiplies bytes";
  WeightMaker make(6);
  const LinearWeight weight = make.Row8Weight(48, 320, DType::kI8, ActivationQuant::kStatic);
  const CudaForm form = CudaFormOf(SpecOf(weight)).value();
  ASSERT_EQ(form.kind, CudaForm::Kind::kRow8);
  EXPECT_EQ(form.bytes(), 48 * (320 + 4 + 4));
  const CudaRows rows = CudaRows::Of(weight, form).value();
  const Row8& row8 = std::get<Row8>(weight.encoding);
  ASSERT_NE(row8.static_zero, 0);
  const std::vector<float> values = Dequantize(weight).value();
  for (std::int64_t n = 0; n < 48; ++n) {
    const auto row = values.begin() + n * 320;
    const double sum = std::accumulate(row, row + 320, 0.0);
    EXPECT_NEAR(rows.InputOffset(n), -sum * row8.static_zero * row8.static_scale, 1e-3);
  }
  // What the products of bytes do not take stays packed.
  EXPECT_EQ(
      CudaFormOf(SpecOf(make.Row8Weight(40, 320, DType::kI8, ActivationQuant::kDynamic)))->kind,
      CudaForm::Kind::kPacked);
  EXPECT_EQ(CudaFormOf(SpecOf(make.Row8Weight(48, 320, DType::kI8, ActivationQuant::kNone)))->kind,
            CudaForm::Kind::kPacked);
  EXPECT_EQ(
      CudaFormOf(SpecOf(make.Row8Weight(48, 320, DType::kF8E4M3, ActivationQuant::kNone)))->kind,
      CudaForm::Kind::kE4m3);
}

TEST(CudaRowsTest, LargestScaleIsAHalf) {
  for (const float largest : {1e-25f, 3e-5f, 1.0f, 65504.0f, 1e20f}) {
    const float scaled = largest / PowerOfTwo(HalfExponent(largest));
    EXPECT_LT(scaled, 65504.0f);
    EXPECT_GE(scaled, 8192.0f);
  }
  EXPECT_EQ(HalfExponent(0.0f), 0);
}

TEST(CudaStepTest, PaddingTouchesNothing) {
  const StepLimits limits{16, 8, 8, 8, 256};
  KvLayout kv;
  kv.page_tokens = 64;
  const CudaStepLayout layout(limits, kv);
  std::vector<std::byte> host(static_cast<std::size_t>(layout.bytes()), std::byte{0x7f});
  const std::vector<std::int32_t> tokens = {5, -1}, positions = {70, 3}, slots = {4, 2},
                                  queries = {1, 1}, contexts = {71, 4}, offsets = {0, 2, 3},
                                  tables = {9, 7, 3};
  const std::vector<LogitRow> rows = {{.token_index = 1, .slot = 2, .output_position = 6}};
  StepInput input;
  input.tokens = tokens;
  input.positions = positions;
  input.slots = slots;
  input.query_lengths = queries;
  input.context_lengths = contexts;
  input.block_table_offsets = offsets;
  input.block_tables = tables;
  input.logit_rows = rows;
  CudaStepShape shape = ShapeOf(input);
  EXPECT_TRUE(shape.decode);
  EXPECT_EQ(shape.max_context, 71);
  shape.tokens = shape.sequences = shape.rows = 4;
  EXPECT_LE(layout.Write(input, shape, host.data()), layout.bytes());

  const std::byte* base = host.data();
  const auto ints = [](const std::int32_t* at, std::size_t count) {
    return std::vector<std::int32_t>(at, at + count);
  };
  using Ints = std::vector<std::int32_t>;
  EXPECT_EQ(ints(layout.tokens(base), 4), (Ints{5, -1, 0, 0}));
  EXPECT_EQ(ints(layout.token_slots(base), 4), (Ints{4, 2, 0, 0}));
  EXPECT_EQ(ints(layout.places(base), 4), (Ints{7 * 64 + 6, 3 * 64 + 3, -1, -1}));
  EXPECT_EQ(ints(layout.contexts(base), 4), (Ints{71, 4, 0, 0}));
  EXPECT_EQ(ints(layout.query_offsets(base), 5), (Ints{0, 1, 2, 3, 4}));
  EXPECT_EQ(ints(layout.pages(base), 2), (Ints{9, 7}));
  EXPECT_EQ(ints(layout.pages(base) + layout.ld_pages(), 1), (Ints{3}));
  EXPECT_EQ(ints(layout.row_tokens(base), 4), (Ints{1, 0, 0, 0}));
  EXPECT_TRUE(layout.rows(base)[0].sample);
  EXPECT_EQ(layout.rows(base)[0].output_position, 6);
  for (int r = 1; r < 4; ++r) EXPECT_FALSE(layout.rows(base)[r].sample);
}

}  // namespace
}  // namespace nibble
