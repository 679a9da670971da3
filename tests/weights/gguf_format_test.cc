// GGUF through the format table: experts, biases, mixed types.
#include "gmock/gmock.h"
#include "runtime/weights/format.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint16_t kHalf = 0x3800;  // 0.5

std::string Q8Block(signed char value) {
  return Raw(kHalf) + std::string(32, static_cast<char>(value));
}

class GgufFormatTest : public testing::Test {
 protected:
  void Open(const GgufWriter& gguf) {
    NIBBLE_ASSERT_OK_AND_ASSIGN(checkpoint_, Checkpoint::Open(dir_.Write("m.gguf", gguf.Build())));
    NIBBLE_ASSERT_OK_AND_ASSIGN(format_, OpenFormat(*checkpoint_));
  }

  TempDir dir_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<WeightFormat> format_;
};

TEST_F(GgufFormatTest, ExpertsOfAStack) {
  GgufWriter gguf;
  gguf.Tensor("blk.0.ffn_up_exps.weight", {32, 2, 3}, 8,
              Q8Block(0) + Q8Block(1) + Q8Block(2) + Q8Block(3) + Q8Block(4) + Q8Block(5));
  gguf.Tensor("blk.0.ffn_up_exps.bias", {2, 3}, 0, Raw(std::vector<float>{0, 1, 2, 3, 4, 5}));
  Open(gguf);

  for (int expert = 0; expert < 3; ++expert) {
    const std::string layer = absl::StrCat("blk.0.ffn_up_exps#", expert);
    EXPECT_TRUE(format_->Has(layer));
    NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearSpec spec, format_->Describe(layer));
    EXPECT_EQ(Describe(spec), "affine int8 g32");
    NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight weight, format_->Load(layer));
    EXPECT_EQ(SpecOf(weight), spec);
    const float first = static_cast<float>(2 * expert);
    EXPECT_THAT(weight.bias, ElementsAre(first, first + 1));
    const std::vector<float> decoded = *Dequantize(weight);
    EXPECT_EQ(decoded.front(), 0.5f * first);
    EXPECT_EQ(decoded.back(), 0.5f * (first + 1));
  }
  EXPECT_FALSE(format_->Has("blk.0.ffn_up_exps#3"));
  EXPECT_TRUE(absl::IsNotFound(format_->Load("blk.0.ffn_up_exps#3").status()));
  for (const char* name : {"blk.0.ffn_up_exps#", "blk.0.ffn_up_exps#-1", "blk.0.ffn_up_exps#x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(format_->Describe(name).status())) << name;
  }
  EXPECT_THAT(std::string(format_->Describe("blk.0.ffn_up_exps").status().message()),
              HasSubstr("not a matrix"));
}

TEST_F(GgufFormatTest, TheNameIsTheTypeOfMostBytes) {
  GgufWriter gguf;
  gguf.Tensor("a.weight", {32, 1}, 8, Q8Block(1));
  gguf.Tensor("b.weight", {32, 4}, 2, std::string(72, '\0'));
  gguf.Tensor("norm.weight", {1000}, 0, std::string(4000, '\0'));
  Open(gguf);
  EXPECT_EQ(format_->Name(), "gguf Q4_0");
}

TEST_F(GgufFormatTest, TypesThatCannotBeServedAreNamed) {
  GgufWriter gguf;
  gguf.Tensor("a.weight", {256, 1}, 16, std::string(66, '\0'));
  Open(gguf);
  const absl::Status status = format_->Describe("a").status();
  EXPECT_TRUE(absl::IsUnimplemented(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"a.weight\" [1, 256] IQ2_XXS"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("requantize"));
}

TEST_F(GgufFormatTest, InfiniteBlockScalesAreRefused) {
  GgufWriter gguf;
  gguf.Tensor("a.weight", {32, 1}, 8, Raw(std::uint16_t{0x7c00}) + std::string(32, '\1'));
  gguf.Tensor("b.weight", {256, 1}, 12,
              Raw(kHalf) + Raw(std::uint16_t{0x7e00}) + std::string(140, '\0'));
  Open(gguf);
  EXPECT_THAT(std::string(format_->Load("a").status().message()), HasSubstr("block 0"));
  EXPECT_THAT(std::string(format_->Load("b").status().message()), HasSubstr("\"b.weight\""));
}

TEST_F(GgufFormatTest, FloatsCanBeQuantizedAtLoad) {
  GgufWriter gguf;
  gguf.Tensor("blk.0.attn_q.weight", {2, 2}, 1, RawF16({1, 1, 1, 1}));
  gguf.Tensor("token_embd.weight", {2, 2}, 1, RawF16({1, 2, 3, 4}));
  Open(gguf);
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto quantized,
                              OpenFormat(*checkpoint_, LoadQuantization::kNf4));
  EXPECT_EQ(quantized->Name(), "nf4 at load from gguf F16");
  EXPECT_EQ(Describe(*quantized->Describe("blk.0.attn_q")), "codebook g2");
  EXPECT_THAT(*Dequantize(*quantized->Load("blk.0.attn_q")), Each(1.0f));
  EXPECT_EQ(Describe(*quantized->Describe("token_embd")), "dense f16") << "an embedding";
}

}  // namespace
}  // namespace nibble
