#include "runtime/base/json.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string ReasonFor(absl::string_view text, const JsonLimits& limits = {}) {
  const absl::StatusOr<Json> parsed = ParseJson(text, limits);
  EXPECT_FALSE(parsed.ok()) << text;
  EXPECT_TRUE(parsed.ok() || absl::IsInvalidArgument(parsed.status()));
  return std::string(parsed.status().message());
}

TEST(JsonTest, KeepsTheOrderOfMembersAndTheKindsOfNumbers) {
  const Json json = *ParseJson(R"( {"b": [1, -2, 3.0, 1e2, true, null], "a": "x\u00e9\n"} )");
  ASSERT_EQ(json.AsObject().size(), 2u);
  EXPECT_EQ(json.AsObject()[0].first, "b");
  const Json::Array& items = json.Find("b")->AsArray();
  EXPECT_TRUE(items[0].is_integer());
  EXPECT_TRUE(items[0].FitsUint64());
  EXPECT_FALSE(items[1].FitsUint64());
  EXPECT_EQ(items[1].AsInt64(), -2);
  EXPECT_FALSE(items[2].is_integer());
  EXPECT_EQ(items[2].AsDouble(), 3.0);
  EXPECT_FALSE(items[3].is_integer());
  EXPECT_TRUE(items[4].AsBool());
  EXPECT_TRUE(items[5].is_null());
  EXPECT_EQ(json.Find("a")->AsString(), "x\xc3\xa9\n");
  EXPECT_EQ(json.Find("c"), nullptr);
  EXPECT_EQ(items[0].Find("x"), nullptr) << "no object";
}

TEST(JsonTest, IntegersAtTheEndsOfTheirRange) {
  const Json::Array items =
      ParseJson(
          "[18446744073709551615, 9223372036854775807, -9223372036854775808, 18446744073709551616]")
          ->AsArray();
  EXPECT_EQ(items[0].AsUint64(), std::numeric_limits<std::uint64_t>::max());
  EXPECT_FALSE(items[0].FitsInt64());
  EXPECT_EQ(items[0].AsInt64(), std::numeric_limits<std::int64_t>::max()) << "saturates";
  EXPECT_TRUE(items[1].FitsInt64());
  EXPECT_EQ(items[2].AsInt64(), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(items[2].AsUint64(), 0u) << "saturates";
  EXPECT_FALSE(items[3].is_integer()) << "2^64 fits no integer";
}

TEST(JsonTest, RefusesWhatIsNotJson) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "'a'",
                           "01",
                           "+1",
                           "NaN",
                           "nul",
                           "{}{}",
                           "[1 2]",
                           "\"\\x\"",
                           "\"\n\"",
                           "{1:2}",
                           "\"\xff\"",
                           "\"\xed\xa0\x80\"",
                           "\"\\ud800\"",
                           "// x\n{}",
                           "1e999"}) {
    ReasonFor(text);
  }
  EXPECT_THAT(ReasonFor("{\"a\": }"), HasSubstr("byte 7"));
}

TEST(JsonTest, ANulByteDoesNotEndTheText) {
  EXPECT_THAT(ReasonFor(absl::string_view("{}\0{", 4)), HasSubstr("byte 2"));
  EXPECT_THAT(ReasonFor(absl::string_view("\"a\0\"", 4)), HasSubstr("NUL"));
  EXPECT_EQ(ParseJson("\"a\\u0000b\"")->AsString(), std::string("a\0b", 3))
      << "an escaped one is text";
}

TEST(JsonTest, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_THAT(ReasonFor(R"({"a":1,"a":1})"), HasSubstr("duplicate key \"a\""));
  EXPECT_THAT(ReasonFor(R"([{"x":{"a":1,"\u0061":1}}])"), HasSubstr("duplicate key \"a\""));
  EXPECT_TRUE(ParseJson(R"([{"a":1},{"a":1}])").ok());
}

TEST(JsonTest, BoundsDepthAndCount) {
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']')).ok());
  EXPECT_THAT(ReasonFor(std::string(65, '[') + std::string(65, ']')), HasSubstr("deeper than 64"));
  EXPECT_THAT(ReasonFor(std::string(10'000'000, '[')), HasSubstr("deeper than 64"));
  EXPECT_TRUE(ParseJson("[1,2,3]", {.max_values = 4}).ok());
  EXPECT_THAT(ReasonFor("[1,2,3,4]", {.max_values = 4}), HasSubstr("more than 4 values"));
}

TEST(JsonTest, ErrorsDoNotRepeatTheInput) {
  EXPECT_LT(ReasonFor("{\"" + std::string(100'000, 'a')).size(), 400u);
  EXPECT_LT(ReasonFor(absl::StrCat("{\"", std::string(100'000, 'a'), "\":1,\"",
                                   std::string(100'000, 'a'), "\":1}"))
                .size(),
            400u);
}

TEST(JsonTest, SetReplacesOrAppends) {
  Json json;
  json.Set("a", 1);
  json.Set("b", "x");
  json.Set("a", true);
  EXPECT_EQ(DumpJson(json), R"({"a": true, "b": "x"})");
}

// What Python's json.dumps writes, which chat templates show to models.
TEST(JsonTest, DumpsAsPythonDoes) {
  const Json json = *ParseJson(
      R"({"b":[1,2.0,1e-7,1.5e300,0.1,-0.0,100000000000000000000.0],"a":{"é":"<\"\n\u0001>"},"e":[],"o":{}})");
  EXPECT_EQ(DumpJson(json),
            "{\"b\": [1, 2.0, 1e-07, 1.5e+300, 0.1, -0.0, 1e+20], \"a\": {\"é\": "
            "\"<\\\"\\n\\u0001>\"}, \"e\": [], "
            "\"o\": {}}");
  EXPECT_EQ(DumpJson(*json.Find("a"), {.ascii_only = true}), "{\"\\u00e9\": \"<\\\"\\n\\u0001>\"}");
  EXPECT_EQ(DumpJson(*ParseJson(R"({"b":1,"a":[1,{}]})"), {.indent = 2, .sort_keys = true}),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": 1\n}");
  EXPECT_EQ(DumpJson(*ParseJson("[1,{\"a\":2}]"), {.item_separator = ",", .key_separator = ":"}),
            "[1,{\"a\":2}]");
  EXPECT_EQ(DumpJson(Json(~std::uint64_t{0})), "18446744073709551615");
}

TEST(JsonTest, DumpedTextParsesToTheSameValue) {
  const Json json =
      *ParseJson(R"({"a":[1,-2,0.30000000000000004,1e22,"\ud83d\ude00",null,false]})");
  EXPECT_EQ(*ParseJson(DumpJson(json)), json);
  EXPECT_EQ(*ParseJson(DumpJson(json, {.indent = 4, .ascii_only = true})), json);
}

}  // namespace
}  // namespace nibble
