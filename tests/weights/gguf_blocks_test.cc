// Blocks written by hand, element by element, and what they decode to.
#include "runtime/weights/gguf_blocks.h"

#include "gmock/gmock.h"
#include "runtime/base/status.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr std::uint16_t kHalf = 0x3800;  // 0.5
constexpr std::uint16_t kTwo = 0x4000;

std::vector<float> Decode(int type, std::int64_t k, const std::string& block) {
  HostBuffer raw(block.size());
  std::memcpy(raw.data(), block.data(), block.size());
  const auto weight = DecodeGgml(type, 1, k, std::move(raw));
  EXPECT_TRUE(weight.ok()) << weight.status();
  if (!weight.ok()) return {};
  EXPECT_EQ(SpecOf(*weight), *GgmlSpec(type, 1, k));
  const auto decoded = Dequantize(*weight);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  return decoded.ok() ? *decoded : std::vector<float>();
}

// Bytes 0x10, 0x32, 0x54, ...: low nibbles 0, 2, 4, .., high nibbles 1, 3, 5, ..
std::string Nibbles(int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>((i * 2 % 16) | (i * 2 + 1) % 16 << 4);
  return out;
}

TEST(GgufBlocksTest, Q4_0) {
  const auto w = Decode(2, 32, Raw(kHalf) + Nibbles(16));
  for (int i = 0; i < 32; ++i) {
    const int q = i < 16 ? i * 2 % 16 : ((i - 16) * 2 + 1) % 16;
    EXPECT_EQ(w[static_cast<std::size_t>(i)], 0.5f * static_cast<float>(q - 8)) << i;
  }
}

TEST(GgufBlocksTest, Q4_1) {
  const auto w = Decode(3, 32, Raw(kHalf) + Raw(kTwo) + Nibbles(16));
  EXPECT_EQ(w[0], 2.0f);
  EXPECT_EQ(w[1], 3.0f);
  EXPECT_EQ(w[16], 2.5f);
}

TEST(GgufBlocksTest, Q5KeepsTheFifthBitsApart) {
  const std::uint32_t high = 0x80000001;  // elements 0 and 31
  const auto q5_0 = Decode(6, 32, Raw(kHalf) + Raw(high) + std::string(16, '\0'));
  EXPECT_EQ(q5_0[0], 0.0f);
  EXPECT_EQ(q5_0[1], -8.0f);
  EXPECT_EQ(q5_0[31], 0.0f);
  const auto q5_1 = Decode(7, 32, Raw(kHalf) + Raw(kTwo) + Raw(high) + std::string(16, '\x21'));
  EXPECT_EQ(q5_1[0], 0.5f * 17 + 2);
  EXPECT_EQ(q5_1[1], 0.5f * 1 + 2);
  EXPECT_EQ(q5_1[31], 0.5f * 18 + 2);
}

TEST(GgufBlocksTest, Q8_0IsSigned) {
  std::string qs(32, '\0');
  qs[0] = static_cast<char>(-128);
  qs[1] = 127;
  qs[31] = -1;
  const auto w = Decode(8, 32, Raw(kHalf) + qs);
  EXPECT_EQ(w[0], -64.0f);
  EXPECT_EQ(w[1], 63.5f);
  EXPECT_EQ(w[2], 0.0f);
  EXPECT_EQ(w[31], -0.5f);
}

TEST(GgufBlocksTest, Q2_K) {
  std::string scales(16, '\0');
  scales[0] = 0x31;  // scale 1, minimum 3
  scales[15] = 0x12;
  std::string qs(64, '\0');
  qs[0] = 0x02;                      // element 0: 2
  qs[63] = static_cast<char>(0xc0);  // element 255: 3
  const auto w = Decode(10, 256, scales + qs + Raw(kHalf) + Raw(kTwo));
  EXPECT_EQ(w[0], 0.5f * 1 * 2 - 2.0f * 3);
  EXPECT_EQ(w[1], -6.0f);
  EXPECT_EQ(w[16], 0.0f);
  EXPECT_EQ(w[255], 0.5f * 2 * 3 - 2.0f * 1);
}

TEST(GgufBlocksTest, Q3_K) {
  std::string hmask(32, '\0');
  hmask[0] = 0x01;                      // element 0 keeps its 4
  hmask[31] = static_cast<char>(0x80);  // and so does element 255
  std::string qs(64, '\0');
  qs[0] = 0x03;
  qs[63] = static_cast<char>(0x40);  // element 255: 1
  std::string scales(12, '\0');
  scales[0] = 0x05;                      // scale 0: low bits 5
  scales[8] = 0x02;                      // scale 0: high bits 2 -> 37 - 32 = 5
  scales[7] = 0x10;                      // scale 15: low bits 1
  scales[11] = static_cast<char>(0xc0);  // scale 15: high bits 3 -> 49 - 32 = 17
  const auto w = Decode(11, 256, hmask + qs + scales + Raw(kHalf));
  EXPECT_EQ(w[0], 0.5f * 5 * 3);
  EXPECT_EQ(w[1], 0.5f * 5 * -4);
  EXPECT_EQ(w[255], 0.5f * 17 * 1);
  EXPECT_EQ(w[254], 0.5f * 17 * -4);
}

// Sub-block 0: scale 33, minimum 2; sub-block 7: scale 49 + 2^5.., spread over three bytes.
std::string SixBits() {
  std::string s(12, '\0');
  s[0] = 33;                        // sc0
  s[4] = 2;                         // m0
  s[3] = static_cast<char>(0x80);   // high bits of sc7: 2
  s[7] = 0x40;                      // high bits of m7: 1
  s[11] = static_cast<char>(0x5f);  // sc7 low 15, m7 low 5
  return s;                         // sc7 = 47, m7 = 21
}

TEST(GgufBlocksTest, Q4_K) {
  std::string qs(128, '\0');
  qs[0] = 0x0f;
  qs[127] = static_cast<char>(0x90);
  const auto w = Decode(12, 256, Raw(kHalf) + Raw(kTwo) + SixBits() + qs);
  EXPECT_EQ(w[0], 0.5f * 33 * 15 - 2.0f * 2);
  EXPECT_EQ(w[1], -4.0f);
  EXPECT_EQ(w[255], 0.5f * 47 * 9 - 2.0f * 21);
  EXPECT_EQ(w[128], 0.0f);
}

TEST(GgufBlocksTest, Q5_K) {
  std::string qh(32, '\0');
  qh[0] = 0x01;
  qh[31] = static_cast<char>(0x80);
  std::string qs(128, '\0');
  qs[0] = 0x0f;
  qs[127] = static_cast<char>(0x90);
  const auto w = Decode(13, 256, Raw(kHalf) + Raw(kTwo) + SixBits() + qh + qs);
  EXPECT_EQ(w[0], 0.5f * 33 * 31 - 2.0f * 2);
  EXPECT_EQ(w[255], 0.5f * 47 * 25 - 2.0f * 21);
}

TEST(GgufBlocksTest, Q6_K) {
  std::string ql(128, '\0');
  ql[0] = 0x0f;    // element 0 low nibble; element 64 high nibble is 0
  ql[127] = 0x70;  // element 255
  std::string qh(64, '\0');
  qh[0] = 0x03;                      // element 0 high bits 3 -> 63
  qh[63] = static_cast<char>(0x80);  // element 255 high bits 2 -> 39
  std::string scales(16, '\0');
  scales[0] = static_cast<char>(-128);
  scales[15] = 3;
  const auto w = Decode(14, 256, ql + qh + scales + Raw(kHalf));
  EXPECT_EQ(w[0], 0.5f * -128 * 31);
  EXPECT_EQ(w[1], 0.5f * -128 * -32);
  EXPECT_EQ(w[255], 0.5f * 3 * 7);
  EXPECT_EQ(w[64], 0.0f);
}

TEST(GgufBlocksTest, Iq4Tables) {
  const auto nl = Decode(20, 32, Raw(kHalf) + Nibbles(16));
  EXPECT_EQ(nl[0], 0.5f * -127);
  EXPECT_EQ(nl[16], 0.5f * -104);
  EXPECT_EQ(nl[4], 0.5f * 1);
  std::string qs(128, '\0');
  qs[127] = static_cast<char>(0xf0);
  std::string scales_l(4, '\0');
  scales_l[3] = 0x50;                       // sub-block 7: low 5
  const std::uint16_t scales_h = 3u << 14;  // sub-block 7: high 3 -> 53 - 32 = 21
  const auto xs = Decode(23, 256, Raw(kHalf) + Raw(scales_h) + scales_l + qs);
  EXPECT_EQ(xs[0], 0.5f * -32 * -127);
  EXPECT_EQ(xs[255], 0.5f * 21 * 113);
}

TEST(GgufBlocksTest, TernaryDigits) {
  // 243 values of five digits, most significant first, stored as ceil(value * 256 / 243).
  const auto byte = [](int a, int b, int c, int d, int e) {
    const int value = (((a * 3 + b) * 3 + c) * 3 + d) * 3 + e;
    return static_cast<char>((value * 256 + 242) / 243);
  };
  std::string qs(48, byte(1, 1, 1, 1, 1));
  qs[0] = byte(2, 0, 1, 2, 0);
  qs[47] = byte(0, 1, 2, 0, 2);
  std::string qh(4, byte(1, 1, 1, 1, 0));
  qh[3] = byte(0, 2, 1, 2, 0);
  const auto w = Decode(34, 256, qs + qh + Raw(kTwo));
  EXPECT_EQ(w[0], 2.0f);
  EXPECT_EQ(w[32], -2.0f);
  EXPECT_EQ(w[64], 0.0f);
  EXPECT_EQ(w[96], 2.0f);
  EXPECT_EQ(w[128], -2.0f);
  EXPECT_EQ(w[175], -2.0f);
  EXPECT_EQ(w[239], 2.0f);
  EXPECT_EQ(w[243], -2.0f);
  EXPECT_EQ(w[247], 2.0f);
  EXPECT_EQ(w[251], 0.0f);
  EXPECT_EQ(w[255], 2.0f);

  std::string two(64, '\x55');  // all ones: zero
  two[0] = static_cast<char>(0x52);
  two[63] = 0x15;
  const auto tq2 = Decode(35, 256, two + Raw(kTwo));
  EXPECT_EQ(tq2[0], 2.0f);
  EXPECT_EQ(tq2[32], -2.0f);
  EXPECT_EQ(tq2[255], -2.0f);
}

TEST(GgufBlocksTest, Mxfp4) {
  const auto w = Decode(39, 32, std::string(1, '\x80') + Nibbles(16));  // scale 2
  EXPECT_EQ(w[0], 0.0f);
  EXPECT_EQ(w[1], 2.0f);     // code 2: 1
  EXPECT_EQ(w[3], 8.0f);     // code 6: 4
  EXPECT_EQ(w[16], 1.0f);    // code 1: 0.5
  EXPECT_EQ(w[23], -12.0f);  // code 15: -6
  EXPECT_EQ(Decode(39, 32, std::string(1, '\0') + std::string(16, '\x11'))[0], 0x1p-128f);
}

TEST(GgufBlocksTest, WhatCannotBeServedIsNamed) {
  EXPECT_THAT(std::string(GgmlSpec(16, 1, 256).status().message()), HasSubstr("IQ2_XXS"));
  EXPECT_THAT(std::string(GgmlSpec(24, 1, 256).status().message()), HasSubstr("I8"));
  EXPECT_TRUE(absl::IsUnimplemented(GgmlSpec(999, 1, 256).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeGgml(2, 1, 32, HostBuffer(17)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeGgml(2, 1, 33, HostBuffer(18)).status()));
}

}  // namespace
}  // namespace nibble
