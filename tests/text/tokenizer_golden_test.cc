// Small tokenizers over every supported component, against the answers recorded from the reference
// library (goldens/make_tokenizer_goldens.py). NIBBLE_TOKENIZER_GOLDENS names another recording.
#include <cstdlib>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/json.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/vocabularies.h"

namespace nibble {
namespace {

using Ids = std::vector<std::int32_t>;

Ids IdsOf(const Json& json) {
  Ids ids;
  for (const Json& id : json.AsArray()) ids.push_back(static_cast<std::int32_t>(id.AsInt64()));
  return ids;
}

std::filesystem::path GoldenPath() {
  if (const char* named = std::getenv("NIBBLE_TOKENIZER_GOLDENS")) return named;
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests" / "text" / "goldens" /
         "tokenizer_goldens.json";
}

void ExpectTexts(const Tokenizer& tokenizer, const Json& texts) {
  for (const Json& text : texts.AsArray()) {
    const Json::Array& fields = text.AsArray();
    const std::string& input = fields[0].AsString();
    const auto encode = [&](bool add_special, bool parse_special) {
      auto ids =
          tokenizer.Encode(input, {.parse_special = parse_special, .add_special = add_special});
      EXPECT_TRUE(ids.ok()) << ids.status();
      return ids.ok() ? *ids : Ids();
    };
    EXPECT_EQ(encode(false, true), IdsOf(fields[1])) << DumpJson(fields[0], {.ascii_only = true});
    EXPECT_EQ(encode(true, true), IdsOf(fields[2])) << DumpJson(fields[0], {.ascii_only = true});
    EXPECT_EQ(encode(false, false), IdsOf(fields[3])) << DumpJson(fields[0], {.ascii_only = true});
  }
}

void ExpectDecodes(const Tokenizer& tokenizer, const Json& decodes) {
  for (const Json& decode : decodes.AsArray()) {
    const Json::Array& fields = decode.AsArray();
    const Ids ids = IdsOf(fields[0]);
    const bool skip_special = fields[1].AsBool();
    EXPECT_EQ(tokenizer.Decode(ids, skip_special), fields[2].AsString()) << DumpJson(fields[0]);
    Detokenizer detokenizer(tokenizer, !skip_special);
    std::string text;
    for (const std::int32_t id : ids) text += detokenizer.Push(id);
    EXPECT_EQ(text + detokenizer.Finish(), fields[2].AsString()) << DumpJson(fields[0]);
  }
}

TEST(TokenizerGoldenTest, AnswersAsTheReferenceDoes) {
  const auto records = ParseJson(ReadFile(GoldenPath()));
  ASSERT_TRUE(records.ok()) << GoldenPath() << ": " << records.status();
  for (const Json& record : records->AsArray()) {
    SCOPED_TRACE(record.Find("name")->AsString());
    const auto tokenizer = Tokenizer::FromJson(DumpJson(*record.Find("tokenizer")), "");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectTexts(**tokenizer, *record.Find("texts"));
    ExpectDecodes(**tokenizer, *record.Find("decodes"));
  }
  EXPECT_GE(records->AsArray().size(), 1u);
}

}  // namespace
}  // namespace nibble
