#include "runtime/weights/gguf.h"

#include <functional>

#include "gmock/gmock.h"
#include "tests/support/conformance.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<GgufFile> ReadBytes(absl::string_view bytes) {
  const TempDir dir;
  auto file = RandomAccessFile::Open(dir.Write("x.gguf", bytes));
  if (!file.ok()) return file.status();
  return ReadGguf(**file);
}

// Three keys and two tensors, right in every respect.
GgufWriter Good() {
  GgufWriter gguf;
  gguf.Text("general.architecture", "llama").U32("a.count", 7);
  gguf.Key("a.names", 9,
           Raw(std::uint32_t{8}) + Raw(std::uint64_t{2}) + GgufWriter::String("x") +
               GgufWriter::String(""));
  gguf.Tensor("first", {32, 2}, 8, std::string(68, '\1'));
  gguf.Tensor("second", {3}, 0, Raw(std::vector<float>{1, 2, 3}));
  return gguf;
}

TEST(GgufTest, ReadsKeysAndTensors) {
  const auto read = ReadBytes(Good().Build());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read->metadata.String("general.architecture"), "llama");
  EXPECT_EQ(read->metadata.Integer("a.count"), 7);
  EXPECT_EQ(read->metadata.Number("a.count"), 7.0);
  EXPECT_THAT(*read->metadata.Strings("a.names"), ElementsAre("x", ""));
  ASSERT_EQ(read->tensors.size(), 2u);
  EXPECT_EQ(read->tensors[0].shape, (std::vector<std::int64_t>{2, 32}));
  EXPECT_EQ(read->tensors[0].bytes, 68u);
  EXPECT_EQ(read->tensors[1].offset, read->tensors[0].offset + 96);
  EXPECT_EQ(read->tensors[1].dtype, DType::kF32);
}

TEST(GgufTest, WidensEveryScalarAndArrayType) {
  GgufWriter gguf;
  gguf.Key("u8", 0, Raw(std::uint8_t{200})).Key("i8", 1, Raw(std::int8_t{-2}));
  gguf.Key("u16", 2, Raw(std::uint16_t{40000})).Key("i16", 3, Raw(std::int16_t{-3}));
  gguf.Key("i32", 5, Raw(std::int32_t{-4}))
      .Key("f32", 6, Raw(0.5f))
      .Key("bool", 7, std::string(1, '\2'));
  gguf.Key("u64", 10, Raw(~std::uint64_t{0})).Key("i64", 11, Raw(std::int64_t{-5}));
  gguf.Key("f64", 12, Raw(0.25));
  const auto array = [](std::uint32_t type, std::uint64_t count, const std::string& raw) {
    return Raw(type) + Raw(count) + raw;
  };
  gguf.Key("i16s", 9, array(3, 2, Raw(std::vector<std::int16_t>{-1, 2})));
  gguf.Key("f32s", 9, array(6, 2, Raw(std::vector<float>{1.5f, -2})));
  gguf.Key("bools", 9, array(7, 3, std::string("\1\0\2", 3)));
  gguf.Key("none", 9, array(8, 0, ""));

  const auto read = ReadBytes(gguf.Build());
  ASSERT_TRUE(read.ok()) << read.status();
  const GgufMetadata& m = read->metadata;
  EXPECT_EQ(m.Integer("u8"), 200);
  EXPECT_EQ(m.Integer("i8"), -2);
  EXPECT_EQ(m.Integer("u16"), 40000);
  EXPECT_EQ(m.Integer("i16"), -3);
  EXPECT_EQ(m.Integer("i32"), -4);
  EXPECT_EQ(m.Number("f32"), 0.5);
  EXPECT_EQ(m.Integer("f32"), std::nullopt);
  EXPECT_EQ(m.Bool("bool"), true);
  EXPECT_EQ(m.Integer("u64"), std::nullopt) << "does not fit";
  EXPECT_EQ(m.Integer("i64"), -5);
  EXPECT_EQ(m.Number("f64"), 0.25);
  EXPECT_THAT(*m.Integers("i16s"), ElementsAre(-1, 2));
  EXPECT_THAT(*m.Numbers("f32s"), ElementsAre(1.5, -2));
  EXPECT_EQ(std::get<std::vector<bool>>(*m.Find("bools")), (std::vector<bool>{true, false, true}));
  EXPECT_TRUE(m.Strings("none")->empty());
  EXPECT_EQ(m.Strings("i16s"), nullptr);
  EXPECT_EQ(m.Find("absent"), nullptr);
}

// A large string array crosses the reader's buffer many times.
TEST(GgufTest, ReadsArraysLargerThanTheBuffer) {
  std::string raw = Raw(std::uint32_t{8}) + Raw(std::uint64_t{50'000});
  for (int i = 0; i < 50'000; ++i) raw += GgufWriter::String(absl::StrCat("token", i));
  GgufWriter gguf;
  gguf.Key("tokens", 9, raw).U32("after", 9);
  const auto read = ReadBytes(gguf.Build());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->metadata.Strings("tokens")->at(49'999), "token49999");
  EXPECT_EQ(read->metadata.Integer("after"), 9);
}

struct Malformed {
  const char* name;
  std::function<std::string()> bytes;
  const char* reason;
};

std::string Broken(const std::function<void(GgufWriter&)>& how) {
  GgufWriter gguf = Good();
  how(gguf);
  return gguf.Build();
}

std::string ArrayOf(std::uint32_t type, std::uint64_t count) { return Raw(type) + Raw(count); }

// One extra tensor after the good ones.
std::string WithTensor(absl::string_view name, const std::vector<std::int64_t>& dims,
                       std::uint32_t type, std::size_t bytes) {
  return Broken([&](GgufWriter& g) { g.Tensor(name, dims, type, std::string(bytes, '\0')); });
}

std::string WithKey(absl::string_view key, std::uint32_t type, const std::string& value) {
  return Broken([&](GgufWriter& g) { g.Key(key, type, value); });
}

std::vector<Malformed> MalformedCases() {
  constexpr std::uint64_t kHuge = ~std::uint64_t{0};
  constexpr std::int64_t kTop = std::numeric_limits<std::int64_t>::max();
  return {
      {"Empty", [] { return std::string(); }, "truncated"},
      {"FourBytes", [] { return std::string("GGUF"); }, "truncated"},
      {"BadMagic", [] { return Broken([](auto& g) { g.magic = "FUGG"; }); }, "not a GGUF file"},
      {"Version0", [] { return Broken([](auto& g) { g.version = 0; }); }, "version 0"},
      {"Version1", [] { return Broken([](auto& g) { g.version = 1; }); }, "version 1"},
      {"Version4", [] { return Broken([](auto& g) { g.version = 4; }); }, "version 4"},
      {"BigEndian", [] { return Broken([](auto& g) { g.version = 3u << 24; }); }, "big-endian"},
      {"KeyCount2To64", [] { return Broken([](auto& g) { g.keys = kHuge; }); }, "key-value count"},
      {"TensorCount2To64", [] { return Broken([](auto& g) { g.tensors = kHuge; }); },
       "tensor count"},
      {"KeyCountTooLarge", [] { return Broken([](auto& g) { g.keys = 4; }); }, ""},
      {"TensorCountTooLarge", [] { return Broken([](auto& g) { g.tensors = 3; }); }, ""},
      {"KeyLength2To63",
       [] {
         return Broken([](auto& g) {
           g.keys++;
           g.metadata += Raw(std::uint64_t{1} << 63);
         });
       },
       "length of 9223372036854775808"},
      {"StringLengthPastTheEnd", [] { return WithKey("s", 8, Raw(std::uint64_t{1'000'000})); },
       "length of 1000000"},
      {"EmptyKey", [] { return WithKey("", 4, Raw(1u)); }, "has no name"},
      {"DuplicateKey", [] { return WithKey("a.count", 4, Raw(1u)); }, "duplicate key \"a.count\""},
      {"UnknownValueType", [] { return WithKey("k", 13, Raw(1u)); }, "unknown value type 13"},
      {"HugeValueType", [] { return WithKey("k", 0xffffffffu, Raw(1u)); }, "unknown value type"},
      {"UnknownArrayType", [] { return WithKey("k", 9, ArrayOf(99, 1)); }, "value type 99"},
      {"NestedArray", [] { return WithKey("k", 9, ArrayOf(9, 1)); }, "nested"},
      {"ArrayCount2To64", [] { return WithKey("k", 9, ArrayOf(0, kHuge)); }, "array elements"},
      {"ArrayCountOverflows", [] { return WithKey("k", 9, ArrayOf(10, (kHuge >> 3) + 2)); },
       "array elements"},
      {"StringArrayCount", [] { return WithKey("k", 9, ArrayOf(8, 1u << 29)); }, "array elements"},
      {"ArrayElementAbove2To63", [] { return WithKey("k", 9, ArrayOf(10, 1) + Raw(kHuge)); },
       "above 2^63"},
      {"AlignmentZero", [] { return WithKey("general.alignment", 4, Raw(0u)); }, "power of two"},
      {"Alignment13", [] { return WithKey("general.alignment", 4, Raw(13u)); }, "power of two"},
      {"AlignmentIsAString",
       [] { return WithKey("general.alignment", 8, GgufWriter::String("32")); }, "power of two"},
      {"AlignmentIsSigned", [] { return WithKey("general.alignment", 5, Raw(32)); },
       "power of two"},
      {"AlignmentIsU64", [] { return WithKey("general.alignment", 10, Raw(std::uint64_t{32})); },
       "power of two"},
      {"Alignment2To31", [] { return WithKey("general.alignment", 4, Raw(0x80000000u)); },
       "past the end"},
      {"LongTensorName", [] { return WithTensor(std::string(64, 'n'), {1}, 0, 4); },
       "64 bytes, not 1 to 63"},
      {"EmptyTensorName", [] { return WithTensor("", {1}, 0, 4); }, "0 bytes, not 1 to 63"},
      {"DuplicateTensor", [] { return WithTensor("first", {1}, 0, 4); },
       "duplicate tensor \"first\""},
      {"NoDims", [] { return WithTensor("t", {}, 0, 4); }, "has 0 dimensions"},
      {"FiveDims", [] { return WithTensor("t", {1, 1, 1, 1, 1}, 0, 4); }, "has 5 dimensions"},
      {"Dims2To32",
       [] {
         return Broken([](auto& g) {
           g.tensors++;
           g.table += GgufWriter::String("t") + Raw(0xffffffffu) + std::string(64, '\1');
         });
       },
       "has 4294967295 dimensions"},
      {"ZeroDim", [] { return WithTensor("t", {4, 0}, 0, 0); }, "dimension 1 of 0"},
      {"NegativeDim", [] { return WithTensor("t", {4, -1}, 0, 16); }, "dimension 1 of -1"},
      {"ElementsOverflow", [] { return WithTensor("t", {kTop, 2}, 0, 16); },
       "2^63 or more elements"},
      {"BytesOverflow", [] { return WithTensor("t", {kTop}, 28, 16); }, "2^63 or more bytes"},
      {"TwoNearlyWholeTensors",
       [] {
         return Broken([](auto& g) {
           g.TensorAt("t", {0x7fffffffffffffc0}, 24, 128, "");
           g.TensorAt("u", {0x7fffffffffffffc0}, 24, 128, "");
         });
       },
       "past the end"},
      {"RemovedType", [] { return WithTensor("t", {32}, 4, 32); }, "ggml type 4"},
      {"RuntimeOnlyType", [] { return WithTensor("t", {32}, 9, 36); }, "ggml type 9"},
      {"UnknownType", [] { return WithTensor("t", {32}, 1000, 36); }, "ggml type 1000"},
      {"NegativeType", [] { return WithTensor("t", {32}, 0xffffffffu, 36); },
       "ggml type 4294967295"},
      {"RowNotWholeBlocks", [] { return WithTensor("t", {48}, 8, 51); }, "whole blocks of 32"},
      {"OffsetWithAHole",
       [] { return Broken([](auto& g) { g.TensorAt("t", {8}, 0, 160, std::string(64, '\0')); }); },
       "has offset 160, not 128"},
      {"OffsetThatOverlaps",
       [] { return Broken([](auto& g) { g.TensorAt("t", {8}, 0, 0, std::string(32, '\0')); }); },
       "has offset 0, not 128"},
      {"UnalignedOffset",
       [] { return Broken([](auto& g) { g.TensorAt("t", {8}, 0, 108, std::string(32, '\0')); }); },
       "has offset 108, not 128"},
      {"TruncatedData",
       [] {
         const std::string whole = Good().Build();
         return whole.substr(0, whole.size() - 21);
       },
       "the file is truncated"},
      {"NoDataAtAll",
       [] {
         GgufWriter gguf = Good();
         gguf.data.clear();
         return gguf.Build();
       },
       "the file is truncated"},
  };
}

class MalformedGguf : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedGguf, IsRefusedWithTheReason) {
  const auto read = ReadBytes(GetParam().bytes());
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(std::string(read.status().message()), HasSubstr(GetParam().reason));
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("x.gguf: "));
}

INSTANTIATE_TEST_SUITE_P(Catalogue, MalformedGguf, testing::ValuesIn(MalformedCases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// Wherever the file ends, it is refused and nothing past the end is read.
TEST(GgufTest, EveryTruncationOfTheHeaderIsRefused) {
  const std::string whole = Good().Build();
  for (std::size_t size = 0; size + 20 < whole.size(); ++size) {
    EXPECT_FALSE(ReadBytes(whole.substr(0, size)).ok()) << size << " bytes";
  }
}

TEST(GgufTest, AcceptsVersion2AndOtherAlignments) {
  GgufWriter gguf;
  gguf.version = 2;
  gguf.alignment = 64;
  gguf.U32("general.alignment", 64);
  gguf.Tensor("a", {1}, 0, Raw(1.0f)).Tensor("b", {1}, 0, Raw(2.0f));
  const auto read = ReadBytes(gguf.Build());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tensors[1].offset % 64, 0u);
}

// Real vocabularies: files of other people's writer, without tensors.
TEST(GgufTest, ReadsRealVocabularies) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir / "tokenizer")) {
    if (entry.path().extension() != ".gguf") continue;
    SCOPED_TRACE(entry.path().string());
    NIBBLE_ASSERT_OK_AND_ASSIGN(const auto file, RandomAccessFile::Open(entry.path().string()));
    NIBBLE_ASSERT_OK_AND_ASSIGN(const GgufFile read, ReadGguf(*file));
    EXPECT_TRUE(read.tensors.empty());
    ASSERT_NE(read.metadata.Strings("tokenizer.ggml.tokens"), nullptr);
    EXPECT_GT(read.metadata.Strings("tokenizer.ggml.tokens")->size(), 30'000u);
    ++files;
  }
  EXPECT_GE(files, 4);
}

}  // namespace
}  // namespace nibble
