#include "runtime/weights/safetensors.h"

#include <ctime>

#include "gmock/gmock.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<SafetensorsFile> ReadBytes(absl::string_view bytes,
                                          const SafetensorsLimits& limits = {}) {
  const TempDir dir;
  auto file = RandomAccessFile::Open(dir.Write("x.safetensors", bytes));
  if (!file.ok()) return file.status();
  return ReadSafetensors(**file, limits);
}

const char kTensor[] = R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})";

std::string Data(std::size_t bytes) { return std::string(bytes, '\0'); }

std::string OneTensor(absl::string_view dtype, absl::string_view shape, absl::string_view offsets,
                      std::size_t bytes) {
  return WithLength(absl::StrCat(R"({"test":{"dtype":")", dtype, R"(","shape":)", shape,
                                 R"(,"data_offsets":)", offsets, "}}")) +
         Data(bytes);
}

struct Malformed {
  const char* name;
  std::string bytes;
  const char* reason;
};

class MalformedSafetensors : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedSafetensors, IsRefusedWithTheReason) {
  const auto read = ReadBytes(GetParam().bytes);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(std::string(read.status().message()), HasSubstr(GetParam().reason));
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("x.safetensors: "));
}

std::vector<Malformed> MalformedCases() {
  std::string ten = "{";
  for (int i = 0; i < 10; ++i) {
    absl::StrAppend(&ten, i > 0 ? "," : "", "\"t", i,
                    R"(":{"dtype":"F32","shape":[4],"data_offsets":[0,16]})");
  }
  ten += "}";
  const auto member = [](absl::string_view text) {
    return WithLength(absl::StrCat("{\"test\":", text, "}")) + Data(16);
  };
  return {
      {"Empty", "", "too small"},
      {"SevenBytes", std::string(7, '\0'), "too small"},
      {"HeaderTooLarge", std::string("\x3c\0\0\0\0\xff\xff\xff", 8) + kTensor + Data(16),
       "header too large"},
      {"HeaderAboveTheFormatsLimit", Raw(std::uint64_t{100'000'001}) + kTensor, "header too large"},
      {"LengthAndNothing", Raw(std::uint64_t{0x3c}), "invalid header length"},
      {"HugeLength", Raw(~std::uint64_t{0}) + kTensor, "header too large"},
      {"NotUtf8", Raw(std::uint64_t{1}) + "\xff", "invalid JSON"},
      {"InvalidUtf8InName",
       WithLength("{\"te\xffst\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}") +
           Data(4),
       "invalid JSON"},
      {"OpenBrace", WithLength("{"), "invalid JSON"},
      {"ZeroLengthHeader", Raw(std::uint64_t{0}), "invalid JSON"},
      {"NotAnObject", WithLength("[]"), "not a JSON object"},
      {"NulAfterTheHeader", WithLength(std::string("{}\0\0", 4)), "invalid JSON"},
      {"TwoDocuments", WithLength("{}{}"), "invalid JSON"},
      {"TrailingJunk", WithLength(kTensor) + Data(16) + "junk", "truncated or has a tail"},
      {"MissingBytes", WithLength(kTensor) + Data(14), "truncated or has a tail"},
      {"SizeMismatch", OneTensor("I32", "[2,2]", "[0,4]", 4), "need 16"},
      {"ProductOverflows", OneTensor("I32", "[2,18446744073709551614]", "[0,16]", 16), "overflows"},
      {"ProductWrapsToFour", OneTensor("U8", "[4194305,4194305,211106198978564]", "[0,4]", 4),
       "overflows"},
      {"ProductWrapsToZero", OneTensor("U8", "[4294967296,4294967296]", "[0,0]", 0), "overflows"},
      {"BytesOverflow", OneTensor("I32", "[2,9223372036854775807]", "[0,16]", 16), "overflows"},
      {"TenOverlap", WithLength(ten) + Data(16), "overlap or leave a hole"},
      {"HoleAtTheStart", OneTensor("I32", "[2,2]", "[4,20]", 20), "overlap or leave a hole"},
      {"BeginAfterEnd", OneTensor("I32", "[0]", "[4,0]", 4), "before it begins"},
      {"EndNearTheTop", OneTensor("U8", "[1]", "[18446744073709551614,18446744073709551615]", 1),
       "overlap or leave a hole"},
      {"ZeroSizeInsideAnother",
       WithLength(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                  R"("b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})") +
           Data(8),
       "overlap or leave a hole"},
      {"MetadataNumber", WithLength(R"({"__metadata__":{"a":1}})"), "is not a string"},
      {"MetadataNull", WithLength(R"({"__metadata__":{"a":null}})"), "is not a string"},
      {"MetadataNested", WithLength(R"({"__metadata__":{"a":{}}})"), "is not a string"},
      {"MetadataList", WithLength(R"({"__metadata__":[]})"), "__metadata__ is not an object"},
      {"OddSubByte", OneTensor("F4", "[3]", "[0,2]", 2), "not whole bytes"},
      {"UnknownDtype", OneTensor("Q4", "[16]", "[0,16]", 16),
       "tensor \"test\" has unknown dtype \"Q4\""},
      {"FloatDimension", OneTensor("I32", "[4.0]", "[0,16]", 16), "not an unsigned integer"},
      {"ExponentDimension", OneTensor("I32", "[4e0]", "[0,16]", 16), "not an unsigned integer"},
      {"NegativeDimension", OneTensor("I32", "[-4]", "[0,16]", 16), "not an unsigned integer"},
      {"StringDimension", OneTensor("I32", "[\"4\"]", "[0,16]", 16), "not an unsigned integer"},
      {"DimensionAboveU64", OneTensor("I32", "[18446744073709551616]", "[0,16]", 16),
       "not an unsigned integer"},
      {"FloatOffset", OneTensor("I32", "[4]", "[0,16.0]", 16), "not two unsigned integers"},
      {"NegativeOffset", OneTensor("I32", "[4]", "[-16,0]", 16), "not two unsigned integers"},
      {"ThreeOffsets", OneTensor("I32", "[4]", "[0,16,16]", 16), "not two unsigned integers"},
      {"NoDtype", member(R"({"shape":[4],"data_offsets":[0,16]})"), "lacks"},
      {"NoShape", member(R"({"dtype":"I32","data_offsets":[0,16]})"), "lacks"},
      {"NoOffsets", member(R"({"dtype":"I32","shape":[4]})"), "lacks"},
      {"EntryIsAList", member("[]"), "is not an object"},
      {"DtypeIsANumber", member(R"({"dtype":3,"shape":[4],"data_offsets":[0,16]})"),
       "not a string"},
      {"ShapeIsANumber", member(R"({"dtype":"I32","shape":4,"data_offsets":[0,16]})"),
       "not an array"},
      {"DuplicateTensor",
       WithLength(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})") +
           Data(1),
       "duplicate key"},
      {"DuplicateField",
       WithLength(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})") +
           Data(1),
       "duplicate key"},
      {"LongName",
       WithLength(absl::StrCat("{\"", std::string(5000, 'a'),
                               R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})")) +
           Data(1),
       "5000 bytes"},
      {"HighRank", OneTensor("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]", 1), "rank 17"},
      {"DeepNesting", WithLength(std::string(100'000, '[')), "nested deeper"},
      {"DeepUnknownMember",
       WithLength(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":)" +
                  std::string(1000, '[') + std::string(1000, ']') + "}}") +
           Data(1),
       "nested deeper"},
  };
}

INSTANTIATE_TEST_SUITE_P(Catalogue, MalformedSafetensors, testing::ValuesIn(MalformedCases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

struct Valid {
  const char* name;
  std::string bytes;
  std::size_t tensors;
};

class ValidSafetensors : public testing::TestWithParam<Valid> {};

TEST_P(ValidSafetensors, IsRead) {
  const auto read = ReadBytes(GetParam().bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tensors.size(), GetParam().tensors);
}

INSTANTIATE_TEST_SUITE_P(
    Catalogue, ValidSafetensors,
    testing::ValuesIn(std::vector<Valid>{
        {"TrailingWhitespace", WithLength("{}\r \t\n"), 0},
        {"WhitespaceOnBothSides", WithLength("\t\n{}\r "), 0},
        {"ZeroDimension", OneTensor("I32", "[2,0]", "[0,0]", 0), 1},
        {"Scalar", OneTensor("I32", "[]", "[0,4]", 4), 1},
        {"SubByte", OneTensor("F4", "[4]", "[0,2]", 2), 1},
        {"UnknownMember",
         WithLength(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[{}]}})") + Data(1),
         1},
        {"OddHeaderLength", WithLength(std::string(kTensor) + " ") + Data(16), 1},
        {"OutOfOrder",
         WithLength(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]},)"
                    R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})") +
             Data(5),
         2}}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(SafetensorsTest, OffsetsAreAbsoluteAndMetadataIsKept) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[3,7]},)"
      R"("a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}})";
  const auto read = ReadBytes(WithLength(header) + Data(7));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->tensors.size(), 2u);
  EXPECT_EQ(read->tensors[0].name, "a");
  EXPECT_EQ(read->tensors[1].name, "b");
  EXPECT_EQ(read->tensors[1].offset, 8 + header.size() + 3);
  EXPECT_EQ(read->tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(read->tensors[1].shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(read->metadata.front(), (std::pair<std::string, std::string>("format", "pt")));
}

// Hundreds of thousands of entries that share the same bytes: the count is refused, in little time.
TEST(SafetensorsTest, HeaderOfManyEntriesFailsFast) {
  std::string header = "{";
  for (int i = 0; i < 300'000; ++i) {
    absl::StrAppend(&header, i > 0 ? "," : "", "\"", i,
                    R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  }
  header += "}";
  const std::clock_t begin = std::clock();  // of the processor: other processes do not count
  const auto read = ReadBytes(WithLength(header));
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("limit is 250000"));
  EXPECT_LT(seconds, 20);  // sanitizers included
}

TEST(SafetensorsTest, ValuesBeyondTheLimitStopTheParser) {
  std::string header = "{\"a\":{\"x\":[";
  for (int i = 0; i < 3000; ++i) header += "0,";
  header += "0]}}";
  SafetensorsLimits limits;
  limits.tensors = 10;
  const auto read = ReadBytes(WithLength(header), limits);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("more than 1100 values"));
}

}  // namespace
}  // namespace nibble
