#include "runtime/text/regex.h"

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/text/pre_patterns.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Matches(absl::string_view pattern, absl::string_view text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  if (!regex.ok()) return {};
  std::vector<std::string> matches;
  RegexScratch scratch;
  EXPECT_TRUE((*regex)
                  ->ForEachMatch(text, scratch,
                                 [&](std::size_t begin, std::size_t end) {
                                   matches.emplace_back(text.substr(begin, end - begin));
                                 })
                  .ok());
  return matches;
}

// Every character, against the property that the tokenizer's own code uses.
TEST(RegexTest, SpaceAndWordAreUnicodes) {
  std::string all, spaces, words;
  for (char32_t code = 1; code < 0x20000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    AppendUtf8(code, &all);
    if (IsWhiteSpace(code)) AppendUtf8(code, &spaces);
  }
  std::string found;
  for (const std::string& match : Matches(R"(\s)", all)) found += match;
  EXPECT_EQ(found, spaces);
  found.clear();
  for (const std::string& match : Matches(R"([^\S])", all)) found += match;
  EXPECT_EQ(found, spaces);
  EXPECT_THAT(Matches(R"(\w+)", "d\xC3\xA9j\xC3\xA0_v\xCC\x81u \xC2\xBD 7"),
              ElementsAre("d\xC3\xA9j\xC3\xA0_v\xCC\x81u", "7"));
}

TEST(RegexTest, MatchesThatNeedMoreThanAWindow) {
  for (const std::size_t size : {254, 255, 256, 257, 511, 512, 513, 5000}) {
    const std::string letters(size, 'a');
    EXPECT_THAT(Matches(R"(\p{L}+|\s+(?!\S)|\s+)", letters + "  b"),
                ElementsAre(letters, " ", " ", "b"));
    EXPECT_THAT(Matches("b", letters + "b" + letters), ElementsAre("b"));
    EXPECT_THAT(Matches("ab|b+(?=c)", letters + "b"), ElementsAre("ab"));
    std::string wide;
    while (wide.size() < size) wide += "\xE4\xBD\xA0";
    EXPECT_THAT(Matches(R"(\p{Han}+)", wide + "x" + wide), ElementsAre(wide, wide));
    EXPECT_THAT(Matches(R"(x$|\A\p{L})", wide + "x"), ElementsAre("\xE4\xBD\xA0", "x"));
  }
}

TEST(RegexTest, EmptyMatchesSplitOnce) {
  EXPECT_EQ(Matches(R"((?=b))", "abab").size(), 2u);
  EXPECT_EQ(Matches(R"(x*)", "axb").size(), 2u);  // before a, and x; after x is too near
}

TEST(RegexTest, QuadraticPatternsEndWithAStatus) {
  const auto regex = Regex::Compile(R"(\s+$)");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  const absl::Status status = (*regex)->ForEachMatch(std::string(1 << 20, ' ') + "x", scratch,
                                                     [](std::size_t, std::size_t) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\\s+$"));
  EXPECT_THAT(Matches(R"(\s+$)", std::string(3000, ' ') + "x  "), ElementsAre("  "));
}

TEST(RegexTest, ExponentialPatternsEndWithAStatus) {
  const auto regex = Regex::Compile(R"((a|aa|a*)+b)");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  const absl::Status status = (*regex)->ForEachMatch(std::string(200, 'a') + "cb", scratch,
                                                     [](std::size_t, std::size_t) {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(RegexTest, RefusesWhatWouldMeanSomethingElse) {
  for (const char* pattern :
       {R"([a-z&&[^b]])", R"([[:alpha:]])", R"(\h)", R"(\K)", R"(\R)", R"(\x80)", R"(a{,3})",
        R"(a{2}+)", R"((?m:.))", R"((?<name>a))", R"(\1)", R"(\p{Nonsense})", "(", "[", "a\\",
        R"((*SKIP)a)", R"([\W])"}) {
    EXPECT_EQ(Regex::Compile(pattern).status().code(), absl::StatusCode::kUnimplemented) << pattern;
  }
  EXPECT_EQ(Regex::Compile(std::string(100'000, 'a')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(PrePatternsTest, EveryKindCompilesAndCoversTheWholeText) {
  const std::string text =
      "Hello world's 1234567 DON'T \xE4\xBD\xA0\xE5\xA5\xBD, \xC3\xA9t\xC3\xA9!!\r\n\n  "
      "x\t\xF0\x9F\x99\x82 \xC2\xBD  ";
  for (const char* name : {"default",      "gpt-2",
                           "llama-bpe",    "llama3",
                           "qwen2",        "qwen35",
                           "deepseek-llm", "deepseek-coder",
                           "deepseek-v3",  "deepseek-r1-qwen",
                           "falcon",       "falcon3",
                           "mpt",          "starcoder",
                           "refact",       "smollm",
                           "command-r",    "gpt-4o",
                           "llama4",       "tekken",
                           "olmo",         "stablelm2",
                           "dbrx",         "smaug-bpe",
                           "chatglm-bpe",  "glm4",
                           "poro-chat",    "viking",
                           "bloom",        "jais",
                           "codeshell",    "exaone",
                           "minerva-7b",   "megrez",
                           "trillion",     "bailingmoe",
                           "seed-coder",   "hunyuan",
                           "superbpe",     "tiny_aya",
                           "minicpm5",     "laguna",
                           "ufakzeka"}) {
    const PreKind* kind = FindPreKind(name);
    ASSERT_NE(kind, nullptr) << name;
    PreTokenizers steps;
    ASSERT_TRUE(AppendPrePatterns(*kind, &steps).ok()) << name << AppendPrePatterns(*kind, &steps);
    std::vector<TextPiece> pieces = {{text, true}};
    PreTokenizeScratch scratch;
    for (const auto& step : steps) {
      std::vector<TextPiece> next;
      for (const TextPiece& piece : pieces) ASSERT_TRUE(step->Split(piece, scratch, &next).ok());
      pieces = next;
    }
    std::string joined;
    for (const TextPiece& piece : pieces) joined += std::string(piece.text);
    EXPECT_EQ(joined, text) << name;
    EXPECT_GT(pieces.size(), 5u) << name;
  }
  EXPECT_EQ(FindPreKind("kimi-k2"), nullptr);
}

std::vector<std::string> Pieces(const char* kind, const std::string& text) {
  PreTokenizers steps;
  EXPECT_TRUE(AppendPrePatterns(*FindPreKind(kind), &steps).ok());
  std::vector<TextPiece> pieces = {{text, true}};
  PreTokenizeScratch scratch;
  for (const auto& step : steps) {
    std::vector<TextPiece> next;
    for (const TextPiece& piece : pieces) EXPECT_TRUE(step->Split(piece, scratch, &next).ok());
    pieces = next;
  }
  std::vector<std::string> texts;
  for (const TextPiece& piece : pieces) texts.emplace_back(piece.text);
  return texts;
}

TEST(PrePatternsTest, KindsDifferWhereTheyShould) {
  EXPECT_THAT(Pieces("llama-bpe", "I'LL pay 12345"),
              ElementsAre("I", "'LL", " pay", " ", "123", "45"));
  EXPECT_THAT(Pieces("qwen2", "pay 123"), ElementsAre("pay", " ", "1", "2", "3"));
  EXPECT_THAT(Pieces("gpt-2", "I'LL pay 12345"), ElementsAre("I", "'", "LL", " pay", " 12345"));
  EXPECT_THAT(Pieces("starcoder", "pay 123"), ElementsAre("pay", " ", "1", "2", "3"));
  EXPECT_THAT(Pieces("falcon", "a+b 12345"), ElementsAre("a", "+", "b", " ", "123", "45"));
  EXPECT_THAT(Pieces("gpt-4o", "camelCase HTTPServer's"),
              ElementsAre("camel", "Case", " HTTPServer's"));
  EXPECT_THAT(Pieces("tekken", "isn't 12"), ElementsAre("isn", "'t", " ", "1", "2"));
  EXPECT_THAT(Pieces("deepseek-llm", "Hi \xE4\xBD\xA0 12  "),
              ElementsAre("Hi", " ", "\xE4\xBD\xA0", " ", "12", "  "));
  EXPECT_THAT(Pieces("tiny_aya", "1234567"), ElementsAre("1", "234", "567"));
}

}  // namespace
}  // namespace nibble
