// What cannot be served is refused before its weights are read, by name, with the reason and what
// to do.
#include <limits>

#include "gmock/gmock.h"
#include "runtime/weights/format.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string Config(absl::string_view members) {
  return absl::StrCat(R"({"quantization_config":{)", members, "}}");
}

struct Refused {
  const char* name;
  std::string config;
  std::vector<TestTensor> tensors;
  const char* reason;
  LoadQuantization quantize = LoadQuantization::kNone;
};

// Opens, describes and, when that succeeds, loads layer "l": some values are only seen in the data.
absl::Status Try(const TempDir& dir, const Refused& c) {
  dir.Write("config.json", c.config);
  dir.Write("model.safetensors", Safetensors(c.tensors));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(dir.path().string()));
  ASSIGN_OR_RETURN(const auto format, OpenFormat(*checkpoint, c.quantize));
  RETURN_IF_ERROR(format->Describe("l").status());
  return format->Load("l").status();
}

class RefusedFormat : public testing::TestWithParam<Refused> {};

TEST_P(RefusedFormat, NamesTheReason) {
  const TempDir dir;
  const absl::Status status = Try(dir, GetParam());
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().reason));
}

std::string Zeros(std::size_t bytes) { return std::string(bytes, '\0'); }

std::vector<Refused> GeneralCases() {
  const std::vector<TestTensor> half = {{"l.weight", "F16", {1, 2}, RawF16({1, 2})}};
  const std::vector<TestTensor> packed = {{"l.qweight", "I32", {1, 8}, Zeros(32)}};
  return {
      {"UnknownMethod", Config(R"("quant_method":"aqlm")"), half,
       "quantized by \"aqlm\", which is not supported"},
      {"MarlinMethod", Config(R"("quant_method":"marlin","bits":4)"), half, "\"marlin\""},
      {"Fp8OfBlocks", Config(R"("quant_method":"fp8","weight_block_size":[128,128])"), half,
       "weight_block_size"},
      {"Fp8WithoutScale",
       Config(R"("quant_method":"fp8")"),
       {{"l.weight", "F8_E4M3", {1, 2}, Zeros(2)}},
       "no tensor \"l.weight_scale\""},
      {"Fp8ScaleIsZero",
       Config(R"("quant_method":"fp8")"),
       {{"l.weight", "F8_E4M3", {1, 2}, Zeros(2)}, {"l.weight_scale", "F32", {1}, Zeros(4)}},
       "not positive"},
      {"Fp8WithoutInputScale",
       Config(R"("quant_method":"fp8","activation_scheme":"static")"),
       {{"l.weight", "F8_E4M3", {1, 2}, Zeros(2)}, {"l.weight_scale", "F32", {1}, Raw(1.0f)}},
       "l.input_scale"},
      {"Fp8OtherScheme", Config(R"("quant_method":"fp8","activation_scheme":"magic")"), half,
       "\"magic\""},
      {"ConfigIsAList", R"({"quantization_config":[1]})", half, "not an object"},
      {"MethodIsANumber", Config(R"("quant_method":4)"), half, "not a string"},
      {"NoSuchLayer",
       "{}",
       {{"m.weight", "F16", {1, 2}, RawF16({1, 2})}},
       "no tensor \"l.weight\""},
      {"Fp8WithoutAConfig",
       "{}",
       {{"l.weight", "F8_E4M3", {1, 2}, Zeros(2)}},
       "F8_E4M3 cannot be served"},
      {"DoubleWeights", "{}", {{"l.weight", "F64", {1, 1}, Zeros(8)}}, "F64 cannot be served"},
      {"VectorWeight", "{}", {{"l.weight", "F16", {2}, Zeros(4)}}, "not a matrix"},
      {"EmptyMatrix", "{}", {{"l.weight", "F16", {2, 0}, ""}}, "not a matrix"},
      {"BiasOfAnotherSize",
       "{}",
       {{"l.bias", "F16", {2}, RawF16({1, 2})}, {"l.weight", "F16", {1, 2}, RawF16({1, 2})}},
       "shape [1]"},
      {"BiasOfIntegers",
       "{}",
       {{"l.bias", "I32", {1}, Zeros(4)}, {"l.weight", "F16", {1, 2}, RawF16({1, 2})}},
       "F32 or F16 or BF16"},
      {"QuantizingQuantizedWeights", Config(R"("quant_method":"gptq","bits":4)"), packed,
       "leave --quantize out", LoadQuantization::kNf4},
      {"QuantizingNan",
       "{}",
       {{"l.weight",
         "F32",
         {1, 2},
         Raw(std::vector<float>{1, std::numeric_limits<float>::quiet_NaN()})}},
       "layer \"l\": row 0",
       LoadQuantization::kNf4},
      {"QuantizingInfinity",
       "{}",
       {{"l.weight",
         "F32",
         {1, 2},
         Raw(std::vector<float>{1, std::numeric_limits<float>::infinity()})}},
       "row 0",
       LoadQuantization::kInt4},
      {"QuantizingWhatF16CannotHold",
       "{}",
       {{"l.weight", "F32", {1, 2}, Raw(std::vector<float>{1, 1e30f})}},
       "row 0",
       LoadQuantization::kInt8},
      {"QuantizingToScalesF16CannotHold",
       "{}",
       {{"l.weight", "F32", {1, 2}, Raw(std::vector<float>{1, 1e30f})}},
       "too large",
       LoadQuantization::kInt4},
  };
}

std::vector<Refused> GptqCases() {
  const auto gptq = [](absl::string_view members) {
    return Config(absl::StrCat(R"("quant_method":"gptq",)", members));
  };
  const auto layer = [](std::vector<std::int64_t> qweight, std::vector<std::int64_t> qzeros,
                        std::vector<std::int64_t> scales) {
    const auto bytes = [](const std::vector<std::int64_t>& shape, std::int64_t size) {
      return Zeros(static_cast<std::size_t>(shape[0] * shape[1] * size));
    };
    return std::vector<TestTensor>{{"l.qweight", "I32", qweight, bytes(qweight, 4)},
                                   {"l.qzeros", "I32", qzeros, bytes(qzeros, 4)},
                                   {"l.scales", "F16", scales, bytes(scales, 2)}};
  };
  const std::vector<TestTensor> good = layer({1, 8}, {1, 1}, {1, 8});
  const auto with = [&](const TestTensor& tensor) {
    std::vector<TestTensor> tensors = layer({1, 8}, {2, 1}, {2, 8});
    tensors.push_back(tensor);
    return tensors;
  };
  const auto index = [](const std::vector<std::int32_t>& g_idx) {
    return TestTensor{"l.g_idx", "I32", {static_cast<std::int64_t>(g_idx.size())}, Raw(g_idx)};
  };
  std::vector<TestTensor> no_zeros = good;
  no_zeros.erase(no_zeros.begin() + 1);
  std::vector<TestTensor> infinite = good;
  infinite[2].bytes = RawF16(std::vector<float>(8, std::numeric_limits<float>::infinity()));
  return {
      {"GptqNoBits", gptq(R"("group_size":128)"), good, "does not say \"bits\""},
      {"GptqBits5", gptq(R"("bits":5)"), good, "5 bits"},
      {"GptqBitsText", gptq(R"("bits":"4")"), good, "not an integer"},
      {"GptqGroup0", gptq(R"("bits":4,"group_size":0)"), good, "group_size is 0"},
      {"GptqGroupMinus7", gptq(R"("bits":4,"group_size":-7)"), good, "group_size is -7"},
      {"GptqMarlinFormat", gptq(R"("bits":4,"checkpoint_format":"marlin")"), good,
       "format \"marlin\""},
      {"GptqMarlinFlag", gptq(R"("bits":4,"is_marlin_format":true)"), good, "marlin"},
      {"GptqBitblas", gptq(R"("bits":4,"format":"bitblas")"), good, "bitblas"},
      {"GptqPlanar3", gptq(R"("bits":3,"checkpoint_format":"gptq_p")"), good, "bit planes"},
      {"GptqPlanarDynamic3", gptq(R"("bits":4,"format":"gptq_p","dynamic":{"l":{"bits":3}})"), good,
       "bit planes"},
      {"GptqPackedInInt64", gptq(R"("bits":4,"pack_dtype":"int64")"), good, "pack_dtype int64"},
      {"GptqMarlinTensors", gptq(R"("bits":4)"), {{"l.B", "I32", {1, 16}, Zeros(64)}}, "Marlin"},
      {"GptqNoZeros", gptq(R"("bits":4)"), no_zeros, "no tensor \"l.qzeros\""},
      {"GptqOtherBits", gptq(R"("bits":8)"), good,
       "the quantization config does not fit the tensors"},
      {"GptqOtherGroup", gptq(R"("bits":4,"group_size":4)"), good, "does not fit"},
      {"GptqScalesOfAnotherShape", gptq(R"("bits":4)"), layer({1, 8}, {1, 1}, {1, 4}),
       "shape [1, 8]"},
      {"GptqThreeBitsOfPartWords", gptq(R"("bits":3)"), layer({1, 32}, {1, 3}, {1, 32}),
       "whole words"},
      {"GptqOddColumns", gptq(R"("bits":4)"), layer({1, 7}, {1, 1}, {1, 7}), "whole words"},
      {"GptqIndexTooLarge", gptq(R"("bits":4,"group_size":4)"),
       with(index({0, 0, 0, 0, 1, 1, 1, 2})), "group 2 of 2"},
      {"GptqIndexNegative", gptq(R"("bits":4,"group_size":4)"),
       with(index({0, 0, 0, 0, 1, 1, 1, -1})), "group -1"},
      {"GptqIndexOfAnotherLength", gptq(R"("bits":4,"group_size":4)"), with(index({0, 0, 1})),
       "shape [8]"},
      {"GptqIndexOfUnequalGroups", gptq(R"("bits":4,"group_size":4)"),
       with(index({0, 0, 0, 1, 1, 1, 1, 1})), "group 0 has not 4 inputs"},
      {"GptqIndexOfBytes", gptq(R"("bits":4,"group_size":4)"),
       with({"l.g_idx", "U8", {8}, Zeros(8)}), "type I32"},
      {"GptqScalesAreInfinite", gptq(R"("bits":4)"), infinite, "infinite or not a number"},
      {"GptqDynamicIsAList", gptq(R"("bits":4,"dynamic":[])"), good,
       "\"dynamic\" is not an object"},
      {"GptqDynamicPatternIsWrong", gptq(R"("bits":4,"dynamic":{"+:(":{"bits":8}})"), good,
       "module pattern \"(\""},
      {"AutoRoundOtherPacking",
       Config(R"("quant_method":"auto-round","bits":4,"packing_format":"auto_round:marlin")"), good,
       "packing_format"},
  };
}

std::vector<Refused> AwqCases() {
  const auto awq = [](absl::string_view members) {
    return Config(absl::StrCat(R"("quant_method":"awq",)", members));
  };
  const std::vector<TestTensor> good = {{"l.qweight", "I32", {8, 1}, Zeros(32)},
                                        {"l.qzeros", "I32", {1, 1}, Zeros(4)},
                                        {"l.scales", "F16", {1, 8}, Zeros(16)}};
  std::vector<TestTensor> no_zeros = good;
  no_zeros.erase(no_zeros.begin() + 1);
  return {
      {"AwqBits3", awq(R"("bits":3,"group_size":8)"), good, "AWQ with 3 bits"},
      {"AwqMarlin", awq(R"("bits":4,"group_size":8,"version":"marlin")"), good,
       "version \"marlin\""},
      {"AwqGroup0", awq(R"("bits":4,"group_size":0)"), good, "group_size is 0"},
      {"AwqGroup12", awq(R"("bits":4,"group_size":12)"), good, "group_size is 12"},
      {"AwqWithoutZeros", awq(R"("bits":4,"group_size":8,"zero_point":false)"), no_zeros,
       "without zero points"},
      {"AwqOtherGroup", awq(R"("bits":4,"group_size":16)"), good, "whole groups of 16"},
      {"AwqIsGemvInstead", awq(R"("bits":4,"group_size":8,"version":"gemv")"), good,
       "should have shape"},
      {"AwqIsGemmInstead", awq(R"("bits":4,"group_size":8,"version":"gemv_fast")"), good,
       "type I16"},
  };
}

std::vector<Refused> BitsandbytesCases() {
  const std::string four = Config(R"("quant_method":"bitsandbytes","load_in_4bit":true)");
  const auto state = [](const std::string& json, std::size_t bytes = 4,
                        std::vector<std::int64_t> absmax = {1}, float value = 1) {
    return std::vector<TestTensor>{
        {"l.weight", "U8", {static_cast<std::int64_t>(bytes), 1}, Zeros(bytes)},
        {"l.weight.absmax", "F32", absmax,
         Raw(std::vector<float>(static_cast<std::size_t>(absmax[0]), value))},
        {"l.weight.quant_state.bitsandbytes__nf4",
         "U8",
         {static_cast<std::int64_t>(json.size())},
         json}};
  };
  const std::string good = R"({"quant_type":"nf4","blocksize":64,"shape":[1,8]})";
  std::vector<TestTensor> other_map = state(good);
  other_map.push_back({"l.weight.quant_map", "F32", {16}, Zeros(64)});
  std::vector<TestTensor> no_offset = state(good);
  no_offset[1] = {"l.weight.absmax", "U8", {1}, Zeros(1)};
  no_offset.push_back({"l.weight.nested_absmax", "F32", {1}, Zeros(4)});
  no_offset.push_back({"l.weight.nested_quant_map", "F32", {256}, Zeros(1024)});
  std::vector<TestTensor> unnested = state(good);
  unnested[1] = {"l.weight.absmax", "U8", {1}, Zeros(1)};
  const std::string eight = Config(R"("quant_method":"bitsandbytes","load_in_8bit":true)");
  const auto rows = [](const TestTensor& scb) {
    return std::vector<TestTensor>{{"l.weight", "I8", {2, 2}, Zeros(4)}, scb};
  };
  std::vector<TestTensor> turing = rows({"l.SCB", "F32", {2}, Zeros(8)});
  turing.push_back({"l.weight_format", "U8", {}, std::string(1, '\2')});
  return {
      {"BnbStateIsNoJson", four, state("{"), "is not JSON"},
      {"BnbStateIsAList", four, state("[]"), "not a JSON object"},
      {"BnbOtherType", four, state(R"({"quant_type":"int4","blocksize":64,"shape":[1,8]})"),
       "quant_type \"int4\""},
      {"BnbBlock48", four, state(R"({"quant_type":"nf4","blocksize":48,"shape":[1,8]})"),
       "not a power of two"},
      {"BnbBlock0", four, state(R"({"quant_type":"nf4","blocksize":0,"shape":[1,8]})"),
       "not a power of two"},
      {"BnbNoShape", four, state(R"({"quant_type":"nf4","blocksize":64})"), "no \"shape\""},
      {"BnbShapeOfThree", four, state(R"({"quant_type":"nf4","shape":[1,2,4]})"), "no \"shape\""},
      {"BnbNegativeShape", four, state(R"({"quant_type":"nf4","shape":[-1,-8]})"),
       "says shape [-1, -8]"},
      {"BnbHugeShape", four,
       state(R"({"quant_type":"nf4","shape":[9223372036854775807,9223372036854775807]})"),
       "says shape"},
      {"BnbShapeOfOtherSize", four, state(R"({"quant_type":"nf4","shape":[1,10]})"),
       "4-bit codes of [1, 10]"},
      {"BnbAbsmaxOfOtherSize", four, state(good, 4, {2}), "shape [1]"},
      {"BnbAbsmaxIsNan", four, state(good, 4, {1}, std::numeric_limits<float>::quiet_NaN()), "NaN"},
      {"BnbOtherMap", four, other_map, "for code 0"},
      {"BnbNestedWithoutOffset", four, no_offset, "nested_offset"},
      {"BnbNestedTensorsMissing", four, unnested, "type F32"},
      {"BnbScbOfOtherSize", eight, rows({"l.SCB", "F32", {3}, Zeros(12)}), "shape [2]"},
      {"BnbScbIsInfinite", eight,
       rows({"l.SCB",
             "F32",
             {2},
             Raw(std::vector<float>{1, std::numeric_limits<float>::infinity()})}),
       "infinite"},
      {"BnbTuringOrder", eight, turing, "\"row\""},
      {"BnbThresholdIsText", Config(R"("quant_method":"bitsandbytes","llm_int8_threshold":"6")"),
       turing, "llm_int8_threshold"},
  };
}

std::vector<Refused> CompressedTensorsCases() {
  const auto config = [](absl::string_view format, absl::string_view weights,
                         absl::string_view inputs = "null", absl::string_view more = "") {
    return Config(absl::StrCat(R"("quant_method":"compressed-tensors","format":")", format,
                               R"(","config_groups":{"g":{"targets":["Linear"],"weights":{)",
                               weights, R"(},"input_activations":)", inputs, "}}", more));
  };
  const char* int4 = R"("num_bits":4,"strategy":"channel")";
  const char* int8 = R"("num_bits":8,"strategy":"channel")";
  const auto packed = [](std::int64_t n, std::int64_t k) {
    return std::vector<TestTensor>{
        {"l.weight_packed", "I32", {1, 1}, Zeros(4)},
        {"l.weight_scale", "F16", {1, 1}, RawF16({1})},
        {"l.weight_shape", "I64", {2}, Raw(std::vector<std::int64_t>{n, k})}};
  };
  const std::vector<TestTensor> bytes = {{"l.weight", "I8", {1, 4}, Zeros(4)},
                                         {"l.weight_scale", "F16", {1, 1}, RawF16({1})}};
  std::vector<TestTensor> no_shape = packed(1, 8);
  no_shape.pop_back();
  std::vector<TestTensor> two_scales = bytes;
  two_scales[1] = {"l.weight_scale", "F16", {1, 2}, RawF16({1, 1})};
  std::vector<TestTensor> fp8 = bytes;
  fp8[0].dtype = "F8_E4M3";
  fp8[1] = {"l.weight_scale", "F16", {1, 2}, RawF16({1, 1})};
  const auto inputs = [](absl::string_view members) {
    return absl::StrCat("{\"num_bits\":8,", members, "}");
  };
  return {
      {"CtSparse24", config("marlin-24", int4), packed(1, 8), "format \"marlin-24\""},
      {"CtNvfp4", config("nvfp4-pack-quantized", int4), packed(1, 8), "nvfp4"},
      {"CtSparsity",
       config("pack-quantized", int4, "null",
              R"(,"sparsity_config":{"format":"sparse-24-bitmask"})"),
       packed(1, 8), "sparsity format"},
      {"CtRotations",
       config("pack-quantized", int4, "null", R"(,"transform_config":{"config_groups":{"a":1}})"),
       packed(1, 8), "transform_config"},
      {"CtBits7", config("pack-quantized", R"("num_bits":7,"strategy":"channel")"), packed(1, 4),
       "7 bits"},
      {"CtBits16", config("pack-quantized", R"("num_bits":16,"strategy":"channel")"), packed(1, 4),
       "16 bits"},
      {"CtBlocks", config("float-quantized", R"("num_bits":8,"strategy":"block")"), bytes,
       "scales by block"},
      {"CtGroup0", config("pack-quantized", R"("num_bits":4,"strategy":"group","group_size":0)"),
       packed(1, 8), "group_size 0"},
      {"CtNoGroupForTheLayer",
       Config(
           R"("quant_method":"compressed-tensors","config_groups":{"g":{"targets":["re:other"]}})"),
       bytes, "no config_groups entry"},
      {"CtShapeOfOtherRows", config("pack-quantized", int4), packed(2, 8), "4-bit codes of [2, 8]"},
      {"CtShapeOfOtherColumns", config("pack-quantized", int4), packed(1, 9),
       "4-bit codes of [1, 9]"},
      {"CtNegativeShape", config("pack-quantized", int4), packed(1, -8), "codes of"},
      {"CtNoShape", config("pack-quantized", int4), no_shape, "weight_shape"},
      {"CtNoZeros",
       config("pack-quantized", R"("num_bits":4,"strategy":"channel","symmetric":false)"),
       packed(1, 8), "weight_zero_point"},
      {"CtTwoScales", config("int-quantized", int8), two_scales, "shape [1, 1]"},
      {"CtFp8Groups",
       config("float-quantized", R"("num_bits":8,"strategy":"group","group_size":2)"), fp8,
       "scale a group"},
      {"CtInt8GroupsWithInputs",
       config("int-quantized", R"("num_bits":8,"strategy":"group","group_size":2)",
              inputs(R"("strategy":"token","dynamic":true)")),
       two_scales, "scale a channel"},
      {"CtFourBitInputs", config("int-quantized", int8, R"({"num_bits":4,"dynamic":true})"), bytes,
       "of 4 bits"},
      {"CtLocalInputs", config("int-quantized", int8, inputs(R"("dynamic":"local")")), bytes,
       "dynamic=\"local\""},
      {"CtDynamicZeros",
       config("int-quantized", int8,
              inputs(R"("strategy":"token","dynamic":true,"symmetric":false)")),
       bytes, "dynamic zero points"},
      {"CtNoInputScale",
       config("int-quantized", int8, inputs(R"("strategy":"tensor","dynamic":false)")), bytes,
       "l.input_scale"},
  };
}

const auto kCaseName = [](const auto& tested) { return std::string(tested.param.name); };
INSTANTIATE_TEST_SUITE_P(General, RefusedFormat, testing::ValuesIn(GeneralCases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(Gptq, RefusedFormat, testing::ValuesIn(GptqCases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(Awq, RefusedFormat, testing::ValuesIn(AwqCases()), kCaseName);
INSTANTIATE_TEST_SUITE_P(Bitsandbytes, RefusedFormat, testing::ValuesIn(BitsandbytesCases()),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(CompressedTensors, RefusedFormat,
                         testing::ValuesIn(CompressedTensorsCases()), kCaseName);

// Two files that disagree about how the weights were made.
TEST(QuantConfigTest, ConflictsAreRefused) {
  const TempDir dir;
  dir.Write("model.safetensors", Safetensors({{"l.qweight", "I32", {1, 8}, Zeros(32)}}));
  const auto try_with = [&](absl::string_view config, const std::string& side) {
    dir.Write("config.json", Config(absl::StrCat(R"("quant_method":"gptq",)", config)));
    dir.Write("quantize_config.json", side);
    const auto checkpoint = Checkpoint::Open(dir.path().string());
    return OpenFormat(**checkpoint).status();
  };
  EXPECT_TRUE(
      try_with(R"("bits":4,"group_size":32)", R"({"BITS":4,"q_group_size":32,"damp_percent":0.1})")
          .ok());
  EXPECT_THAT(std::string(try_with(R"("bits":4)", R"({"w_bit":8})").message()),
              HasSubstr("config.json says bits 4 and quantize_config.json says 8"));
  EXPECT_FALSE(try_with(R"("bits":4,"group_size":32)", R"({"group_size":64})").ok());
  EXPECT_FALSE(try_with(R"("bits":4,"sym":true)", R"({"sym":false})").ok());
  EXPECT_FALSE(try_with(R"("bits":4,"desc_act":true)", R"({"desc_act":false})").ok());
  EXPECT_FALSE(try_with(R"("bits":4,"checkpoint_format":"gptq_v2")", R"({"format":"gptq"})").ok());
  EXPECT_TRUE(try_with(R"("bits":4,"checkpoint_format":"gptq")", R"({"format":"GPTQ"})").ok());
  EXPECT_FALSE(try_with(R"("bits":4)", "[]").ok());
  EXPECT_FALSE(try_with(R"("bits":4)", R"({"bits":4,"bits":8})").ok());
}

TEST(QuantConfigTest, OldCheckpointsKeepItInASideFile) {
  const TempDir dir;
  dir.Write("config.json", R"({"model_type":"llama"})");
  dir.Write("gptq_model-4bit-128g.safetensors",
            Safetensors({{"l.qweight", "I32", {1, 8}, Zeros(32)}}));
  const auto name = [&] {
    const auto checkpoint = Checkpoint::Open(dir.path().string());
    const auto format = OpenFormat(**checkpoint);
    return format.ok() ? (*format)->Name() : std::string(format.status().message());
  };
  dir.Write("quantize_config.json", R"({"bits":4,"group_size":128,"desc_act":true})");
  EXPECT_EQ(name(), "gptq int4 g128 act-order");
  std::filesystem::remove(dir.path() / "quantize_config.json");
  dir.Write("quant_config.json",
            R"({"zero_point":true,"q_group_size":128,"w_bit":4,"version":"GEMM"})");
  EXPECT_EQ(name(), "awq int4 g128");
}

// Left behind by a tool, beside weights that are not packed.
TEST(QuantConfigTest, ASideFileBesideDenseWeightsIsIgnored) {
  const TempDir dir;
  dir.Write("quantize_config.json", R"({"bits":4})");
  dir.Write("model.safetensors", Safetensors({{"l.weight", "F16", {1, 2}, RawF16({1, 2})}}));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path().string()));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto format, OpenFormat(*checkpoint));
  EXPECT_EQ(format->Name(), "f16");
}

}  // namespace
}  // namespace nibble
