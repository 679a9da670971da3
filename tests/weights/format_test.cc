// One table: a checkpoint in each format, written from the format's definition, and the weights it
// stands for.
#include "runtime/weights/format.h"

#include <cmath>

#include "gmock/gmock.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

using Words = std::vector<std::uint32_t>;

Words Repeat(const Words& words, std::size_t times) {
  Words out;
  for (const std::uint32_t word : words) out.insert(out.end(), times, word);
  return out;
}

std::vector<float> Times(const std::vector<float>& values, std::size_t times) {
  std::vector<float> out;
  for (std::size_t i = 0; i < times; ++i) out.insert(out.end(), values.begin(), values.end());
  return out;
}

std::string Config(absl::string_view members) {
  return absl::StrCat(R"({"quantization_config":{)", members, "}}");
}

// A checkpoint that lives as long as the test.
struct Model {
  TempDir dir;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<WeightFormat> format;

  absl::Status Open(const std::string& config, const std::vector<TestTensor>& tensors,
                    LoadQuantization quantize = LoadQuantization::kNone) {
    dir.Write("config.json", config);
    return OpenPath(dir.Write("model.safetensors", Safetensors(tensors)), quantize);
  }
  absl::Status OpenPath(const std::string& path,
                        LoadQuantization quantize = LoadQuantization::kNone) {
    ASSIGN_OR_RETURN(checkpoint, Checkpoint::Open(path));
    ASSIGN_OR_RETURN(format, OpenFormat(*checkpoint, quantize));
    return absl::OkStatus();
  }
};

struct FormatCase {
  const char* name;
  std::string config;
  std::vector<TestTensor> tensors;  // of the layer "m.layer"
  const char* format;               // Name()
  const char* spec;                 // Describe() as people read it
  std::vector<float> weights;       // [n, k]
  LoadQuantization quantize = LoadQuantization::kNone;
};

class FormatTest : public testing::TestWithParam<FormatCase> {};

TEST_P(FormatTest, DecodesToTheWeightsItStandsFor) {
  const FormatCase& c = GetParam();
  Model model;
  const absl::Status opened = model.Open(c.config, c.tensors, c.quantize);
  ASSERT_TRUE(opened.ok()) << opened;
  EXPECT_EQ(model.format->Name(), c.format);
  EXPECT_TRUE(model.format->Has("m.layer"));
  EXPECT_FALSE(model.format->Has("m.other"));
  EXPECT_TRUE(absl::IsNotFound(model.format->Describe("m.other").status()));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearSpec spec, model.format->Describe("m.layer"));
  EXPECT_EQ(Describe(spec), c.spec);
  NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight weight, model.format->Load("m.layer"));
  EXPECT_EQ(SpecOf(weight), spec);
  NIBBLE_ASSERT_OK_AND_ASSIGN(const std::vector<float> decoded, Dequantize(weight));
  ASSERT_EQ(decoded.size(), c.weights.size());
  for (std::size_t i = 0; i < decoded.size(); ++i) {
    EXPECT_EQ(decoded[i], c.weights[i]) << "element " << i;
  }
}

// ---- dense

std::vector<FormatCase> DenseCases() {
  const std::vector<float> w = {1, -2, 0.5f, 0, 3, -0.25f};
  return {
      {"F32", "{}", {{"m.layer.weight", "F32", {2, 3}, Raw(w)}}, "f32", "dense f32", w},
      {"F16", "{}", {{"m.layer.weight", "F16", {2, 3}, RawF16(w)}}, "f16", "dense f16", w},
      {"Bf16", "{}", {{"m.layer.weight", "BF16", {2, 3}, RawBf16(w)}}, "bf16", "dense bf16", w},
      {"DenseLayerOfAGptqModel",
       Config(R"("quant_method":"gptq","bits":4)"),
       {{"m.layer.weight", "F16", {2, 3}, RawF16(w)}},
       "gptq int4",
       "dense f16",
       w},
      {"DenseLayerOfABitsandbytesModel",
       Config(R"("quant_method":"bitsandbytes","load_in_8bit":true)"),
       {{"m.layer.weight", "F16", {2, 3}, RawF16(w)}},
       "bitsandbytes int8",
       "dense f16",
       w},
  };
}

// ---- GPTQ

// Eight codes [3,15,8,0,7,12,1,9] in every of eight columns; zero point 8.
const std::vector<float> kGptq4 = Times({-2.5f, 3.5f, 0, -4, -0.5f, 2, -3.5f, 0.5f}, 8);

std::vector<TestTensor> Gptq4(std::uint32_t zeros, const TestTensor& scales) {
  return {{"m.layer.qweight", "I32", {1, 8}, Raw(Repeat({0x91c708f3}, 8))},
          {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{zeros})},
          scales};
}

TestTensor HalfScales(std::int64_t groups, std::int64_t n, float value) {
  const std::vector<float> values(static_cast<std::size_t>(groups * n), value);
  return {"m.layer.scales", "F16", {groups, n}, RawF16(values)};
}

// All codes 0, so that weights are minus the zero points; one of them is 0.
std::vector<TestTensor> GptqZeros(std::uint32_t word) {
  return {{"m.layer.qweight", "I32", {1, 8}, Raw(Words(8, 0))},
          {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{word})},
          HalfScales(1, 8, 1)};
}
std::vector<float> MinusZeros(const std::vector<float>& zeros) {
  std::vector<float> out;
  for (const float zero : zeros) out.insert(out.end(), 8, zero == 0 ? 0.0f : -zero);
  return out;
}

// Groups of four of eight inputs, with scales 1 and 10.
std::vector<TestTensor> GptqGroups(const std::vector<std::int32_t>& g_idx) {
  std::vector<TestTensor> tensors = {
      {"m.layer.qweight", "I32", {1, 8}, Raw(Repeat({0x91c708f3}, 8))},
      {"m.layer.qzeros", "I32", {2, 1}, Raw(Words{0x77777777, 0x77777777})},
      {"m.layer.scales",
       "F16",
       {2, 8},
       RawF16({1, 1, 1, 1, 1, 1, 1, 1, 10, 10, 10, 10, 10, 10, 10, 10})}};
  if (!g_idx.empty()) tensors.push_back({"m.layer.g_idx", "I32", {8}, Raw(g_idx)});
  return tensors;
}

std::vector<FormatCase> GptqCases() {
  const auto gptq = [](absl::string_view members) {
    return Config(absl::StrCat(R"("quant_method":"gptq",)", members));
  };
  std::vector<float> eighths;
  for (int i = 0; i < 32; ++i) eighths.push_back(0.25f * static_cast<float>(i % 8 - 4));
  const std::vector<float> in_order = Times({-5, 7, 0, -8, -10, 40, -70, 10}, 8);
  const std::vector<TestTensor> three = {
      {"m.layer.qweight", "I32", {3, 32}, Raw(Repeat({0x88fac688, 0xc688fac6, 0xfac688fa}, 32))},
      {"m.layer.qzeros", "I32", {1, 3}, Raw(Words{0xdb6db6db, 0xb6db6db6, 0x6db6db6d})},
      HalfScales(1, 32, 0.25f)};
  return {
      {"GptqInt4", gptq(R"("bits":4,"group_size":128,"sym":true)"),
       Gptq4(0x77777777, HalfScales(1, 8, 0.5f)), "gptq int4 g128", "affine int4 g8", kGptq4},
      {"GptqInt4V2", gptq(R"("bits":4,"group_size":-1,"checkpoint_format":"gptq_v2")"),
       Gptq4(0x88888888, HalfScales(1, 8, 0.5f)), "gptq int4", "affine int4 g8", kGptq4},
      {"GptqPlanarAtFourBitsIsV2", gptq(R"("bits":4,"format":"GPTQ_P")"),
       Gptq4(0x88888888, HalfScales(1, 8, 0.5f)), "gptq int4", "affine int4 g8", kGptq4},
      {"GptqBf16Scales", gptq(R"("bits":4)"),
       Gptq4(0x77777777, {"m.layer.scales", "BF16", {1, 8}, RawBf16(std::vector<float>(8, 0.5f))}),
       "gptq int4", "affine int4 g8", kGptq4},
      {"GptqF32Scales", gptq(R"("bits":4)"),
       Gptq4(0x77777777, {"m.layer.scales", "F32", {1, 8}, Raw(std::vector<float>(8, 0.5f))}),
       "gptq int4", "affine int4 g8", kGptq4},
      {"GptqInt2V2",
       gptq(R"("bits":2,"format":"gptq_v2")"),
       {{"m.layer.qweight", "I32", {1, 16}, Raw(Words(16, 0xe4e4e4e4))},
        {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{0xaaaaaaaa})},
        HalfScales(1, 16, 0.5f)},
       "gptq int2",
       "affine int2 g16",
       Times({-1, -0.5f, 0, 0.5f}, 64)},
      {"GptqInt3", gptq(R"("bits":3,"sym":true)"), three, "gptq int3", "affine int3 g32",
       Times(eighths, 32)},
      {"GptqInt8",
       gptq(R"("bits":8)"),
       {{"m.layer.qweight", "I32", {1, 4}, Raw(Words(4, 0x0580ff00))},
        {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{0x7f7f7f7f})},
        HalfScales(1, 4, 1)},
       "gptq int8",
       "affine int8 g4",
       Times({-128, 127, 0, -123}, 4)},
      {"GptqStoredZeroIsZeroMinusOne", gptq(R"("bits":4,"sym":false)"), GptqZeros(0), "gptq int4",
       "affine int4 g8", MinusZeros(std::vector<float>(8, 1))},
      {"GptqV2StoresZeros", gptq(R"("bits":4,"sym":false,"format":"gptq_v2")"),
       GptqZeros(0x88888850), "gptq int4", "affine int4 g8", MinusZeros({0, 5, 8, 8, 8, 8, 8, 8})},
      {"GptqV1WrapsEachField", gptq(R"("bits":4,"sym":false)"), GptqZeros(0x7777774f), "gptq int4",
       "affine int4 g8", MinusZeros({0, 5, 8, 8, 8, 8, 8, 8})},
      {"GptqV1OfGptqmodelBorrows",
       gptq(R"("bits":4,"sym":false,"meta":{"quantizer":["other:1","gptqmodel:1.4.2"],"x":null})"),
       GptqZeros(0x7777773f), "gptq int4", "affine int4 g8", MinusZeros({0, 5, 8, 8, 8, 8, 8, 8})},
      {"GptqV1OfOldGptqmodelWraps",
       gptq(R"("bits":4,"sym":false,"meta":{"quantizer":["gptqmodel:0.8.1"]})"),
       GptqZeros(0x7777774f), "gptq int4", "affine int4 g8", MinusZeros({0, 5, 8, 8, 8, 8, 8, 8})},
      {"GptqSymWithOtherZerosUsesThem", gptq(R"("bits":4,"sym":true)"), GptqZeros(0x01234567),
       "gptq int4", "affine int4 g8", MinusZeros({8, 7, 6, 5, 4, 3, 2, 1})},
      {"GptqGroups", gptq(R"("bits":4,"group_size":4)"), GptqGroups({}), "gptq int4 g4",
       "affine int4 g4", in_order},
      {"GptqSequentialIndex", gptq(R"("bits":4,"group_size":4,"desc_act":true)"),
       GptqGroups({0, 0, 0, 0, 1, 1, 1, 1}), "gptq int4 g4 act-order", "affine int4 g4", in_order},
      {"GptqAllZeroIndex", gptq(R"("bits":4,"group_size":4)"), GptqGroups({0, 0, 0, 0, 0, 0, 0, 0}),
       "gptq int4 g4", "affine int4 g4", in_order},
      {"GptqActOrder", gptq(R"("bits":4,"group_size":4,"desc_act":false)"),
       GptqGroups({1, 0, 0, 0, 0, 1, 1, 1}), "gptq int4 g4", "affine int4 g4 act-order",
       Times({-50, 7, 0, -8, -1, 40, -70, 10}, 8)},
      {"GptqDynamicBits",
       gptq(
           R"("bits":4,"dynamic":{"-:other":{},"+:m\\.lay":{"bits":8,"group_size":-1},"m":{"bits":2}})"),
       {{"m.layer.qweight", "I32", {1, 4}, Raw(Words(4, 0x0580ff00))},
        {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{0x7f7f7f7f})},
        HalfScales(1, 4, 1)},
       "gptq int4",
       "affine int8 g4",
       Times({-128, 127, 0, -123}, 4)},
      {"AutoRoundStoresZeros", Config(R"("quant_method":"auto-round","bits":4,"group_size":-1)"),
       Gptq4(0x88888888, HalfScales(1, 8, 0.5f)), "gptq int4", "affine int4 g8", kGptq4},
      {"AutoRoundAsGptq",
       Config(
           R"("quant_method":"intel/auto-round","bits":4,"packing_format":"auto_round:auto_gptq")"),
       Gptq4(0x77777777, HalfScales(1, 8, 0.5f)), "gptq int4", "affine int4 g8", kGptq4},
      {"AutoRoundOverrides",
       Config(R"("quant_method":"auto-round","bits":4,"packing_format":"auto_round:auto_gptq",)"
              R"("extra_config":{"m.layer":{"bits":8},"lm_head":{"bits":16}})"),
       {{"m.layer.qweight", "I32", {1, 4}, Raw(Words(4, 0x0580ff00))},
        {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{0x7f7f7f7f})},
        HalfScales(1, 4, 1)},
       "gptq int4",
       "affine int8 g4",
       Times({-128, 127, 0, -123}, 4)},
  };
}

// ---- AWQ

// Columns of one row are [0.5,-2.5,3.5,-4.5,0.5,0,-0.5,1.5]; all eight rows are alike.
std::vector<float> AwqWeights() {
  const float columns[8] = {0.5f, -2.5f, 3.5f, -4.5f, 0.5f, 0, -0.5f, 1.5f};
  std::vector<float> out;
  for (const float column : columns) out.insert(out.end(), 8, column);
  return out;
}

std::vector<FormatCase> AwqCases() {
  const auto awq = [](absl::string_view members) {
    return Config(absl::StrCat(R"("quant_method":"awq","bits":4,)", members));
  };
  const std::vector<TestTensor> gemm = {
      {"m.layer.qweight", "I32", {8, 1}, Raw(Words(8, 0xb80247f9))},
      {"m.layer.qzeros", "I32", {1, 1}, Raw(Words{0x88975688})},
      HalfScales(1, 8, 0.5f)};
  // gemv: one row of eight groups of eight; group g has zero point g and all codes 9.
  std::vector<float> gemv_weights;
  for (int i = 0; i < 64; ++i) gemv_weights.push_back(0.5f * static_cast<float>(9 - i / 8));
  const std::vector<TestTensor> gemv = {
      {"m.layer.qweight", "I32", {1, 8}, Raw(Words(8, 0x99999999))},
      {"m.layer.qzeros", "I32", {1, 4}, Raw(Words{0x76543210, 0, 0, 0})},
      {"m.layer.scales", "F16", {1, 32}, RawF16(std::vector<float>(32, 0.5f))}};
  // gemv_fast: code (n, k) = (n + k) mod 16, placed by the layout's closed form.
  std::vector<std::uint16_t> fast(64);
  std::vector<float> fast_weights(256);
  for (int n = 0; n < 4; ++n) {
    for (int k = 0; k < 64; ++k) {
      const int h = k / 32;
      const int a = k % 32 / 8;
      const int b = k % 8 / 2;
      const int c = k % 2;
      fast[static_cast<std::size_t>(16 * n + 8 * h + 2 * b + c)] |=
          static_cast<std::uint16_t>((n + k) % 16 << (4 * a));
      fast_weights[static_cast<std::size_t>(n * 64 + k)] =
          0.5f * static_cast<float>((n + k) % 16) - 4;
    }
  }
  const auto fast_tensors = [&](const std::string& zeros) {
    return std::vector<TestTensor>{
        {"m.layer.qweight", "I16", {1, 64}, Raw(fast)},
        {"m.layer.scales", "F16", {16, 4}, RawF16(std::vector<float>(64, 0.5f))},
        {zeros, "F16", {16, 4}, RawF16(std::vector<float>(64, -4))}};
  };
  return {
      {"AwqGemm", awq(R"("group_size":8,"zero_point":true,"version":"GEMM")"), gemm, "awq int4 g8",
       "affine int4 g8", AwqWeights()},
      {"AwqOldConfigKeys", Config(R"("w_bit":4,"q_group_size":-1,"zero_point":true)"), gemm,
       "awq int4", "affine int4 g8", AwqWeights()},
      {"AutoRoundAsAwq",
       Config(
           R"("quant_method":"auto-round","bits":4,"group_size":8,"packing_format":"auto_round:auto_awq")"),
       gemm, "awq int4 g8", "affine int4 g8", AwqWeights()},
      {"AwqGemv", awq(R"("group_size":8,"version":"gemv")"), gemv, "awq int4 g8", "affine int4 g8",
       gemv_weights},
      {"AwqGemvFast", awq(R"("group_size":64,"version":"gemv_fast")"),
       fast_tensors("m.layer.qzeros"), "awq int4 g64", "affine int4 g64", fast_weights},
      {"LlmAwq", awq(R"("group_size":64,"backend":"llm-awq")"),
       fast_tensors("m.layer.scaled_zeros"), "awq int4 g64", "affine int4 g64", fast_weights},
  };
}

// ---- bitsandbytes

std::vector<TestTensor> Blocks4(const std::string& type, std::int64_t n, std::int64_t k,
                                std::int64_t block, const std::string& codes,
                                const std::vector<float>& absmax) {
  const std::string state = absl::StrCat(R"({"quant_type":")", type, R"(","blocksize":)", block,
                                         R"(,"dtype":"float16","shape":[)", n, ",", k, "]}");
  return {{"m.layer.weight", "U8", {static_cast<std::int64_t>(codes.size()), 1}, codes},
          {"m.layer.weight.absmax", "F32", {static_cast<std::int64_t>(absmax.size())}, Raw(absmax)},
          {"m.layer.weight.quant_state.bitsandbytes__" + type,
           "U8",
           {static_cast<std::int64_t>(state.size())},
           state}};
}

// Codes 5, 6, 7 and so on: one level of nested scales.
std::vector<TestTensor> DoubleQuantized() {
  std::vector<TestTensor> tensors = Blocks4("nf4", 2, 32, 32, std::string(32, '\xff'), {0, 0});
  tensors[1] = {"m.layer.weight.absmax", "U8", {2}, std::string("\x80\xff", 2)};
  std::vector<float> map(256, 0);
  map[0x80] = 0.25f;
  map[0xff] = 1;
  const std::string state =
      R"({"quant_type":"nf4","blocksize":32,"shape":[2,32],"nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.5})";
  tensors[2] = {"m.layer.weight.quant_state.bitsandbytes__nf4",
                "U8",
                {static_cast<std::int64_t>(state.size())},
                state};
  tensors.push_back({"m.layer.weight.nested_absmax", "F32", {1}, Raw(4.0f)});
  tensors.push_back({"m.layer.weight.nested_quant_map", "F32", {256}, Raw(map)});
  return tensors;
}

const std::vector<float> kNf4Example = {0.4922246f,   -2, 0, 0.88141966f,
                                        -0.18210007f, 2,  0, 1.4459137f};

std::vector<FormatCase> BitsandbytesCases() {
  const std::string four =
      Config(R"("quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4")");
  const std::string nf4("\xa0\x7c\x6f\x7e", 4);
  // Rows of six, blocks of four: scales 1, 2, 4 straddle the rows, so groups are of two. Code 15
  // is 1.
  const std::vector<float> straddled = {1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4};
  // Rows of three: the second begins in the middle of a byte.
  const std::vector<float> odd = {1, -1, 1, -1, 1, -1};
  std::vector<float> twice(32, 1.5f);
  twice.insert(twice.end(), 32, 4.5f);
  std::vector<FormatCase> cases = {
      {"Nf4", four, Blocks4("nf4", 1, 8, 8, nf4, {2}), "bitsandbytes nf4", "codebook g8",
       kNf4Example},
      {"Nf4OfOldConfigs", Config(R"("load_in_4bit":true,"bnb_4bit_quant_type":"nf4")"),
       Blocks4("nf4", 1, 8, 8, nf4, {2}), "bitsandbytes nf4", "codebook g8", kNf4Example},
      {"Fp4",
       Config(R"("quant_method":"bitsandbytes","load_in_4bit":true)"),
       Blocks4("fp4", 1, 8, 8, std::string("\x7b\x05\xe3\x92", 4), {2}),
       "bitsandbytes fp4",
       "codebook g8",
       {0.5f, -2, 0, 1, -0.33333334f, 2, -0.010416667f, 1.3333334f}},
      {"Nf4BlocksAcrossRows", four, Blocks4("nf4", 2, 6, 4, std::string(6, '\xff'), {1, 2, 4}),
       "bitsandbytes nf4", "codebook g2", straddled},
      {"Nf4OddRows", four, Blocks4("nf4", 2, 3, 64, std::string("\xf0\xf0\xf0", 3), {1}),
       "bitsandbytes nf4", "codebook g1", odd},
      {"Nf4DoubleQuantized", four, DoubleQuantized(), "bitsandbytes nf4", "codebook g32", twice},
      {"Int8",
       Config(R"("quant_method":"bitsandbytes","load_in_8bit":true)"),
       {{"m.layer.weight", "I8", {2, 3}, std::string("\x7f\xc0\x20\x81\x00\x01", 6)},
        {"m.layer.SCB", "F32", {2}, Raw(std::vector<float>{1, 127})},
        {"m.layer.weight_format", "U8", {}, std::string(1, '\0')}},
       "bitsandbytes int8",
       "row8 i8 outlier-split",
       {127 * 0.007874015718698502f, -64 * 0.007874015718698502f, 32 * 0.007874015718698502f, -127,
        0, 1}},
      {"Int8WithoutDecomposition",
       Config(R"("quant_method":"bitsandbytes","load_in_8bit":true,"llm_int8_threshold":0.0)"),
       {{"m.layer.weight", "I8", {1, 2}, std::string("\x7f\x00", 2)},
        {"m.layer.SCB", "F32", {1}, Raw(127.0f)}},
       "bitsandbytes int8",
       "row8 i8 dynamic",
       {127, 0}},
  };
  // Storage of another declared type is the same bytes.
  std::vector<TestTensor> stored = Blocks4("nf4", 1, 8, 8, nf4, {2});
  stored[0].dtype = "BF16";
  stored[0].shape = {2, 1};
  cases.push_back(
      {"Nf4StoredAsBf16", four, stored, "bitsandbytes nf4", "codebook g8", kNf4Example});
  return cases;
}

// ---- compressed-tensors

std::string CompressedConfig(absl::string_view format, absl::string_view weights,
                             absl::string_view inputs = "null") {
  return Config(absl::StrCat(R"("quant_method":"compressed-tensors","format":")", format,
                             R"(","config_groups":{"group_0":{"targets":["Linear"],"weights":{)",
                             weights, R"(},"input_activations":)", inputs,
                             R"(}},"ignore":["lm_head"])"));
}

TestTensor ShapeOf(std::int64_t n, std::int64_t k) {
  return {"m.layer.weight_shape", "I64", {2}, Raw(std::vector<std::int64_t>{n, k})};
}

std::vector<FormatCase> CompressedTensorsCases() {
  const char* int4 =
      R"("num_bits":4,"type":"int","strategy":"group","group_size":8,"symmetric":true)";
  const TestTensor packed = {"m.layer.weight_packed", "I32", {2, 2}, Raw(Words(4, 0x91c708f3))};
  const TestTensor scales = {"m.layer.weight_scale", "BF16", {2, 2}, RawBf16({0.5f, 1, 2, 4})};
  const std::vector<float> base = {-5, 7, 0, -8, -1, 4, -7, 1};
  std::vector<float> grouped;
  for (const float scale : {0.5f, 1.0f, 2.0f, 4.0f}) {
    for (const float value : base) grouped.push_back(scale * value);
  }
  // Zero points, stored 3 and 15 for the two rows of group 0, 8 and 0 for group 1.
  std::vector<float> asymmetric;
  const float zeros[2][2] = {{3, 8}, {15, 0}};
  const float codes[8] = {3, 15, 8, 0, 7, 12, 1, 9};
  for (int row = 0; row < 2; ++row) {
    for (int group = 0; group < 2; ++group) {
      for (const float code : codes) asymmetric.push_back(code - zeros[row][group]);
    }
  }
  const TestTensor ones = {"m.layer.weight_scale", "F16", {2, 2}, RawF16({1, 1, 1, 1})};
  // Eight 3-bit codes 0..7: a stream of 24 bits, and the old way in a word of ten codes.
  const std::vector<float> eight = {-4, -3, -2, -1, 0, 1, 2, 3};
  const char* int3 = R"("num_bits":3,"type":"int","strategy":"channel","symmetric":true)";
  const char* bytes = R"("num_bits":8,"type":"int","strategy":"channel","symmetric":true)";
  const char* fp8 = R"("num_bits":8,"type":"float","strategy":"tensor","symmetric":true)";
  const char* dynamic =
      R"({"num_bits":8,"type":"int","strategy":"token","symmetric":true,"dynamic":true})";
  const char* fixed =
      R"({"num_bits":8,"type":"int","strategy":"tensor","symmetric":false,"dynamic":false})";
  const std::string w8("\x80\x7f\x01\xff", 4);
  return {
      {"PackedInt4",
       CompressedConfig("pack-quantized", int4),
       {packed, scales, ShapeOf(2, 16)},
       "compressed-tensors w4a16 g8",
       "affine int4 g8",
       grouped},
      {"PackedInt4Asymmetric",
       CompressedConfig("pack-quantized",
                        R"("num_bits":4,"strategy":"group","group_size":8,"symmetric":false)"),
       {packed,
        ones,
        ShapeOf(2, 16),
        {"m.layer.weight_zero_point", "I32", {1, 2}, Raw(Words{0xf3, 0x08})}},
       "compressed-tensors w4a16 g8",
       "affine int4 g8",
       asymmetric},
      {"PackedInt4ActOrder",
       CompressedConfig("pack-quantized", int4),
       {packed,
        ones,
        ShapeOf(2, 16),
        {"m.layer.weight_g_idx",
         "I32",
         {16},
         Raw(std::vector<std::int32_t>{1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0})}},
       "compressed-tensors w4a16 g8",
       "affine int4 g8 act-order",
       Times(base, 4)},
      {"PackedInt4UnsetIndex",
       CompressedConfig("pack-quantized", int4),
       {packed,
        scales,
        ShapeOf(2, 16),
        {"m.layer.weight_g_idx", "I32", {16}, Raw(std::vector<std::int32_t>(16, -1))}},
       "compressed-tensors w4a16 g8",
       "affine int4 g8",
       grouped},
      {"PackedInt3Stream",
       CompressedConfig("pack-quantized", int3),
       {{"m.layer.weight_packed", "I32", {1, 1}, Raw(Words{0xfac688})},
        {"m.layer.weight_scale", "F16", {1, 1}, RawF16({1})},
        ShapeOf(1, 8)},
       "compressed-tensors w3a16",
       "affine int3 g8",
       eight},
      {"PackedInt3OldWords",
       CompressedConfig("pack-quantized", int3),
       {{"m.layer.weight_packed", "I32", {1, 4}, Raw(Words{0x0afac688 & 0x3fffffff, 0, 0, 0})},
        {"m.layer.weight_scale", "F16", {1, 1}, RawF16({1})},
        ShapeOf(1, 32)},
       "compressed-tensors w3a16",
       "affine int3 g32",
       [] {
         std::vector<float> w = {-4, -3, -2, -1, 0, 1, 2, 3, -2, -3};  // 0x0a above: codes 2 and 1
         w.resize(32, -4);
         return w;
       }()},
      {"PackedInt8Channel",
       CompressedConfig("pack-quantized", bytes),
       {{"m.layer.weight_packed", "I32", {1, 1}, Raw(Words{0x0580ff00})},
        {"m.layer.weight_scale", "F32", {1, 1}, Raw(0.5f)},
        ShapeOf(1, 4)},
       "compressed-tensors w8a16",
       "affine int8 g4",
       {-64, 63.5f, 0, -61.5f}},
      {"Int8Dynamic",
       CompressedConfig("int-quantized", bytes, dynamic),
       {{"m.layer.weight", "I8", {2, 2}, w8},
        {"m.layer.weight_scale", "BF16", {2, 1}, RawBf16({0.5f, 2})}},
       "compressed-tensors w8a8",
       "row8 i8 dynamic",
       {-64, 63.5f, 2, -2}},
      {"Int8OneScaleForAll",
       CompressedConfig("int-quantized", R"("num_bits":8,"strategy":"tensor")"),
       {{"m.layer.weight", "I8", {2, 2}, w8}, {"m.layer.weight_scale", "F32", {1}, Raw(0.5f)}},
       "compressed-tensors w8a16",
       "row8 i8",
       {-64, 63.5f, 0.5f, -0.5f}},
      {"Int8StaticAsymmetricInput",
       CompressedConfig("int-quantized", bytes, fixed),
       {{"m.layer.weight", "I8", {2, 2}, w8},
        {"m.layer.weight_scale", "F32", {2, 1}, Raw(std::vector<float>{1, 1})},
        {"m.layer.input_scale", "F32", {1}, Raw(0.25f)},
        {"m.layer.input_zero_point", "I8", {1}, std::string(1, '\x05')}},
       "compressed-tensors w8a8",
       "row8 i8 static",
       {-128, 127, 1, -1}},
      {"Int8AsymmetricWeight",
       CompressedConfig("int-quantized", R"("num_bits":8,"strategy":"channel","symmetric":false)"),
       {{"m.layer.weight", "I8", {2, 2}, w8},
        {"m.layer.weight_scale", "F32", {2, 1}, Raw(std::vector<float>{1, 1})},
        {"m.layer.weight_zero_point", "I8", {2, 1}, std::string("\x01\xff", 2)}},
       "compressed-tensors w8a16",
       "row8 i8",
       {-129, 126, 2, 0}},
      {"Int8Groups",
       CompressedConfig("int-quantized", R"("num_bits":8,"strategy":"group","group_size":2)"),
       {{"m.layer.weight", "I8", {1, 4}, w8},
        {"m.layer.weight_scale", "F16", {1, 2}, RawF16({1, 2})}},
       "compressed-tensors w8a16 g2",
       "affine int8 g2",
       {-128, 127, 2, -2}},
      {"Fp8",
       CompressedConfig("float-quantized", fp8),
       {{"m.layer.weight", "F8_E4M3", {1, 4}, std::string("\x38\xb8\x7e\x00", 4)},
        {"m.layer.weight_scale", "BF16", {1}, RawBf16({2})}},
       "compressed-tensors w8a16",
       "row8 fp8",
       {2, -2, 896, 0}},
      {"CompressedDenseLayer",
       CompressedConfig("int-quantized", bytes),
       {{"m.layer.weight", "BF16", {1, 2}, RawBf16({1, 2})}},
       "compressed-tensors w8a16",
       "dense bf16",
       {1, 2}},
  };
}

// ---- FP8

std::vector<FormatCase> Fp8Cases() {
  const TestTensor weight = {
      "m.layer.weight", "F8_E4M3", {2, 2}, std::string("\x38\xb8\x7e\x01", 4)};
  return {
      {"Fp8Dynamic",
       Config(R"("quant_method":"fp8","activation_scheme":"dynamic")"),
       {weight, {"m.layer.weight_scale", "F32", {}, Raw(2.0f)}},
       "fp8 dynamic",
       "row8 fp8 dynamic",
       {2, -2, 896, 0x1p-8f}},
      {"Fp8Static",
       Config(R"("quant_method":"fp8","activation_scheme":"static")"),
       {weight,
        {"m.layer.weight_scale", "F32", {1}, Raw(2.0f)},
        {"m.layer.input_scale", "F32", {1}, Raw(0.5f)}},
       "fp8 static",
       "row8 fp8 static",
       {2, -2, 896, 0x1p-8f}},
      {"Fp8Rows",
       Config(R"("quant_method":"fbgemm_fp8","activation_scale_ub":1200.0)"),
       {weight, {"m.layer.weight_scale", "F32", {2, 1}, Raw(std::vector<float>{1, 4})}},
       "fp8 dynamic",
       "row8 fp8 dynamic",
       {1, -1, 1792, 0x1p-7f}},
  };
}

// ---- at load

std::vector<FormatCase> AtLoadCases() {
  const std::vector<float> example = {0.5f, -2, 0, 1, -0.25f, 2, -0.0625f, 1.5f};
  const auto dense = [&](const std::vector<float>& w, std::int64_t n) {
    return std::vector<TestTensor>{
        {"m.layer.weight", "BF16", {n, static_cast<std::int64_t>(w.size()) / n}, RawBf16(w)}};
  };
  return {
      {"LoadNf4", "{}", dense(example, 1), "nf4 at load from bf16", "codebook g8", kNf4Example,
       LoadQuantization::kNf4},
      {"LoadFp4",
       "{}",
       dense(example, 1),
       "fp4 at load from bf16",
       "codebook g8",
       {0.5f, -2, 0, 1, -0.33333334f, 2, -0.010416667f, 1.3333334f},
       LoadQuantization::kFp4},
      {"LoadNf4OfZeros", "{}", dense(std::vector<float>(6, 0), 2), "nf4 at load from bf16",
       "codebook g1", std::vector<float>(6, 0), LoadQuantization::kNf4},
      {"LoadInt8",
       "{}",
       dense({1, -0.5f, 0.25f, 0, 0, 0}, 2),
       "int8 at load from bf16",
       "row8 i8 outlier-split",
       {127 * 0.007874015718698502f, -64 * 0.007874015718698502f, 32 * 0.007874015718698502f, 0, 0,
        0},
       LoadQuantization::kInt8},
      {"LoadInt4",
       "{}",
       dense({-1, 6.5f, 0, 0.5f}, 1),
       "int4 at load from bf16",
       "affine int4 g4",
       {-1, 6.5f, 0, 0.5f},
       LoadQuantization::kInt4},
      {"LoadInt4OfZeros",
       "{}",
       dense({0, 0}, 1),
       "int4 at load from bf16",
       "affine int4 g2",
       {0, 0},
       LoadQuantization::kInt4},
  };
}

const auto kCaseName = [](const auto& tested) { return std::string(tested.param.name); };
INSTANTIATE_TEST_SUITE_P(Dense, FormatTest, testing::ValuesIn(DenseCases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(Gptq, FormatTest, testing::ValuesIn(GptqCases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(Awq, FormatTest, testing::ValuesIn(AwqCases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(Bitsandbytes, FormatTest, testing::ValuesIn(BitsandbytesCases()),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(CompressedTensors, FormatTest, testing::ValuesIn(CompressedTensorsCases()),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(Fp8, FormatTest, testing::ValuesIn(Fp8Cases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(AtLoad, FormatTest, testing::ValuesIn(AtLoadCases()), kCaseName);

}  // namespace
}  // namespace nibble
