#include "runtime/text/tokenizer.h"

#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/json.h"
#include "runtime/text/unicode.h"
#include "tests/support/conformance.h"
#include "tests/support/vocabularies.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Ids = std::vector<std::int32_t>;

Ids Encode(const Tokenizer& tokenizer, absl::string_view text, bool add_special = false,
           bool parse_special = false) {
  auto ids = tokenizer.Encode(text, {.parse_special = parse_special, .add_special = add_special});
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : Ids();
}

std::vector<std::pair<std::string, Ids>> VocabularyCases(const std::filesystem::path& vocabulary) {
  const std::string texts = ReadFile(vocabulary.string() + ".inp");
  const std::string expected = ReadFile(vocabulary.string() + ".out");
  std::vector<std::pair<std::string, Ids>> cases;
  const std::vector<std::string> lines = absl::StrSplit(expected, '\n');
  for (absl::string_view text : absl::StrSplit(texts, "\n__ggml_vocab_test__\n")) {
    Ids ids;
    for (absl::string_view word : absl::StrSplit(lines[cases.size()], ' ', absl::SkipEmpty())) {
      std::int32_t id = -1;
      EXPECT_TRUE(absl::SimpleAtoi(word, &id));
      ids.push_back(id);
    }
    cases.emplace_back(text, ids);
  }
  return cases;
}

void ExpectCases(const Tokenizer& tokenizer, const std::filesystem::path& vocabulary) {
  const auto cases = VocabularyCases(vocabulary);
  EXPECT_EQ(cases.size(), 47u);
  for (const auto& [text, ids] : cases)
    EXPECT_EQ(Encode(tokenizer, text), ids) << vocabulary << ": " << text;
}

TEST(VocabularyTest, EveryGgufVocabularyGivesTheExpectedIds) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  int vocabularies = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir / "tokenizer")) {
    if (entry.path().extension() != ".gguf") continue;
    SCOPED_TRACE(entry.path());
    ++vocabularies;
    const auto tokenizer = TokenizerOf(entry.path());
    ASSERT_NE(tokenizer, nullptr);
    ExpectCases(*tokenizer, entry.path());
  }
  EXPECT_GE(vocabularies, 4);
}

TEST(VocabularyTest, Qwen2FilesGiveTheExpectedIds) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto tokenizer = Qwen2Tokenizer(dir);
  ASSERT_NE(tokenizer, nullptr);
  ExpectCases(*tokenizer, dir / "tokenizer" / "ggml-vocab-qwen2.gguf");
  EXPECT_EQ(tokenizer->end_ids(), Ids{151643});
  EXPECT_EQ(tokenizer->bos(), std::nullopt);
  EXPECT_EQ(Encode(*tokenizer, "<|im_start|>", false, true), Ids{151644});
  EXPECT_GT(Encode(*tokenizer, "<|im_start|>", false, false).size(), 1u);
}

TEST(VocabularyTest, Llama3Texts) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const std::filesystem::path vocabulary = dir / "tokenizer" / "ggml-vocab-llama-bpe.gguf";
  if (!std::filesystem::exists(vocabulary))
    GTEST_SKIP() << "the Llama 3 vocabulary is not at hand, only its texts";
}

Ids IdsOf(const Json& json) {
  Ids ids;
  for (const Json& id : json.AsArray()) ids.push_back(static_cast<std::int32_t>(id.AsInt64()));
  return ids;
}

TEST(VocabularyTest, SmolLm2GivesLlamaCppsIds) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto model = SmolLm2Path();
  if (!model)
    GTEST_SKIP() << "no SmolLM2-135M-Instruct.Q4_1.gguf: set NIBBLE_SMOLLM2 to run this test";
  const auto tokenizer = TokenizerOf(*model);
  ASSERT_NE(tokenizer, nullptr);
  const auto json = ParseJson(ReadFile(dir / "smollm2" / "tokenize.json"));
  ASSERT_TRUE(json.ok());
  for (const Json& c : json->Find("cases")->AsArray()) {
    const std::string& text = c.Find("text")->AsString();
    SCOPED_TRACE(text);
    const Ids ids = IdsOf(*c.Find("ids"));
    EXPECT_EQ(Encode(*tokenizer, text, false, true), ids);
    EXPECT_EQ(Encode(*tokenizer, text, true, true), IdsOf(*c.Find("ids_add_special")));
    EXPECT_EQ(Encode(*tokenizer, text, false, false), IdsOf(*c.Find("ids_no_parse_special")));
    EXPECT_EQ(tokenizer->Decode(ids, false), c.Find("detokenized")->AsString());
  }
}

TEST(VocabularyTest, TextsSurviveTheRoundTrip) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const auto& [name, tokenizer] : AllTokenizers(dir)) {
    ASSERT_NE(tokenizer, nullptr) << name;
    if (name.find("babyllama") == 0) continue;  // 105 tokens: most characters are unknown
    for (const auto& [text, ids] : VocabularyCases(dir / "tokenizer" / "ggml-vocab-gpt-2.gguf")) {
      EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text), false), text) << name;
    }
  }
}

TEST(VocabularyTest, SpecialTokensAreTextUnlessAskedFor) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const auto& [name, tokenizer] : AllTokenizers(dir)) {
    ASSERT_NE(tokenizer, nullptr);
    for (std::int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
      if (!tokenizer->IsSpecial(id)) continue;
      const std::string text = tokenizer->Decode({id}, false);
      if (text.empty() || tokenizer->TokenId(text) != id) continue;
      const std::string within = absl::StrCat("a", text, "b");
      for (const std::int32_t found : Encode(*tokenizer, within, false, false)) {
        const bool unknown =
            tokenizer->TokenBytes(found) == "<unk>";  // characters a small vocabulary lacks
        EXPECT_TRUE(unknown || !tokenizer->IsSpecial(found)) << name << ": " << text;
      }
      EXPECT_THAT(Encode(*tokenizer, within, false, true), ::testing::Contains(id))
          << name << ": " << text;
    }
  }
}

TEST(VocabularyTest, BeginningOfTextAsTheFileSays) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto spm = TokenizerOf(dir / "tokenizer" / "ggml-vocab-llama-spm.gguf");
  const auto gpt2 = TokenizerOf(dir / "tokenizer" / "ggml-vocab-gpt-2.gguf");
  const auto coder = TokenizerOf(dir / "tokenizer" / "ggml-vocab-deepseek-coder.gguf");
  ASSERT_TRUE(spm && gpt2 && coder);
  EXPECT_EQ(Encode(*spm, "Hello", true), (Ids{1, 15043}));
  EXPECT_EQ(spm->Encode("Hello", {}).value(), (Ids{1, 15043}));
  EXPECT_EQ(Encode(*spm, "", true), Ids{1});
  EXPECT_EQ(gpt2->Encode("Hello", {}).value(), Encode(*gpt2, "Hello", false));
  EXPECT_EQ(coder->Encode("", {}).value(), Ids{32013});
  EXPECT_EQ(spm->special_token_names().at("bos_token"), "<s>");
  EXPECT_EQ(gpt2->end_ids(), Ids{50256});
  EXPECT_TRUE(spm->StripsLeadingSpace());
  EXPECT_FALSE(gpt2->StripsLeadingSpace());
}

// Phi-3's special tokens swallow the white space after them.
TEST(VocabularyTest, Phi3StripsAfterSpecialTokens) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto phi3 = TokenizerOf(dir / "tokenizer" / "ggml-vocab-phi-3.gguf");
  ASSERT_NE(phi3, nullptr);
  const Ids ids = Encode(*phi3, "<|user|>\nHello<|end|>\n", false, true);
  EXPECT_EQ(ids, (Ids{32010, 15043, 32007}));
}

// Texts that made servers of this kind recurse or run for minutes. The bound is generous: these
// tests also run unoptimized and under sanitizers; what they catch takes minutes.
TEST(HostileTextTest, EndsSoon) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  std::string letters;
  std::mt19937 random(7);
  for (int i = 0; i < (1 << 20); ++i) letters.push_back(static_cast<char>('a' + random() % 26));
  std::string mixed;
  for (int i = 0; i < 50'000; ++i) mixed += "us";
  std::string marks = "a";
  for (int i = 0; i < 50'000; ++i)
    mixed += i % 2 == 0 ? "\xCC\xA3" : "\xCC\x81";  // two combining classes
  const std::vector<std::string> texts = {std::string(43'000, 'A'),
                                          std::string(128 << 10, 'Z'),
                                          std::string(100'000, '\n'),
                                          std::string(200'000, ' '),
                                          std::string(200'000, ' ') + "\xE4\xBD\xA0",
                                          std::string(100'000, '7'),
                                          std::string(100'000, '!'),
                                          letters,
                                          mixed,
                                          marks};
  for (const auto& [name, tokenizer] : AllTokenizers(dir)) {
    ASSERT_NE(tokenizer, nullptr);
    for (const std::string& text : texts) {
      const auto begin = std::chrono::steady_clock::now();
      const Ids ids = Encode(*tokenizer, text);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      EXPECT_LT(seconds.count(), 20) << name << ": " << text.substr(0, 10) << "...";
      if (name.find("babyllama") != 0 && name != "qwen2") {
        EXPECT_EQ(tokenizer->Decode(ids, false), text) << name;
      }
    }
  }
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto tokenizer = TokenizerOf(dir / "tokenizer" / "ggml-vocab-gpt-2.gguf");
  for (const char* text : {"\xFF", "a\xC3", "\xED\xA0\x80", "\xC0\x80", "\xF4\x90\x80\x80"}) {
    EXPECT_EQ(tokenizer->Encode(text, {}).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(TokenizerTest, MemoryIsInTheOrderOfTheVocabulary) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto tokenizer = TokenizerOf(dir / "tokenizer" / "ggml-vocab-gpt-2.gguf");
  EXPECT_GT(tokenizer->memory_bytes(), 50'000 * 30);
  EXPECT_LT(tokenizer->memory_bytes(), 50'000 * 300);
}

}  // namespace
}  // namespace nibble
