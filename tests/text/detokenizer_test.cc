#include "runtime/text/detokenizer.h"

#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/text/unicode.h"
#include "tests/support/conformance.h"
#include "tests/support/vocabularies.h"

namespace nibble {
namespace {

using Ids = std::vector<std::int32_t>;

int CountReplacements(const std::string& text) {
  int count = 0;
  for (std::size_t at = text.find(kReplacementCharacter.data()); at != std::string::npos;
       at = text.find(kReplacementCharacter.data(), at + 3)) {
    ++count;
  }
  return count;
}

// Pushes `ids` one by one; every piece is whole, and together they are what Decode says.
void ExpectPiecesJoin(const Tokenizer& tokenizer, const Ids& ids, bool keep_special) {
  Detokenizer detokenizer(tokenizer, keep_special);
  std::string text;
  int replacements = 0;
  const std::string whole = tokenizer.Decode(ids, !keep_special);
  for (const std::int32_t id : ids) {
    const std::string piece = detokenizer.Push(id);
    ASSERT_TRUE(IsValidUtf8(piece));
    replacements += CountReplacements(piece);
    text += piece;
    ASSERT_EQ(whole.compare(0, text.size(), text), 0);  // what is shown is never taken back
  }
  const std::string rest = detokenizer.Finish();
  ASSERT_TRUE(IsValidUtf8(rest));
  replacements += CountReplacements(rest);
  ASSERT_EQ(text + rest, whole);
  ASSERT_EQ(replacements, CountReplacements(whole));
}

TEST(DetokenizerTest, PiecesOfRandomIdsJoinToTheDecodedText) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const auto& [name, tokenizer] : AllTokenizers(dir)) {
    ASSERT_NE(tokenizer, nullptr);
    SCOPED_TRACE(name);
    std::mt19937 random(11);
    for (int round = 0; round < 300; ++round) {
      Ids ids(random() % 40);
      // Low ids are special tokens and bytes in many vocabularies: draw half of them there.
      const std::int32_t limit =
          round % 2 == 0 ? std::min(tokenizer->vocab_size(), 300) : tokenizer->vocab_size();
      for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % (limit + 2)) - 1;
      ASSERT_NO_FATAL_FAILURE(ExpectPiecesJoin(*tokenizer, ids, round % 3 == 0));
    }
  }
}

TEST(DetokenizerTest, PiecesOfRealTextJoinWithoutReplacements) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const std::string text =
      "Größe 你好，世界！ 안녕 🙂🚀👩‍👩‍👧‍👦 नमस्ते 뽕 "
      "\t\n\n "
      "½";
  for (const auto& [name, tokenizer] : AllTokenizers(dir)) {
    if (name.find("babyllama") == 0) continue;
    SCOPED_TRACE(name);
    const Ids ids = tokenizer->Encode(text, {.add_special = false}).value();
    ASSERT_NO_FATAL_FAILURE(ExpectPiecesJoin(*tokenizer, ids, false));
    EXPECT_EQ(tokenizer->Decode(ids, true), text);
  }
}

// A character of three tokens appears with the third, and plain words at once.
TEST(DetokenizerTest, ShowsACharacterWhenItIsWhole) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto gpt2 = TokenizerOf(dir / "tokenizer" / "ggml-vocab-gpt-2.gguf");
  const auto id = [&](const char* token) { return gpt2->TokenId(token).value(); };
  Detokenizer detokenizer(*gpt2, false);
  EXPECT_EQ(detokenizer.Push(id("A")), "A");
  EXPECT_EQ(detokenizer.Push(id("ĠB")), " B");
  // 뽕 is EB BD 95
  EXPECT_EQ(detokenizer.Push(id("ë")), "");
  EXPECT_EQ(detokenizer.Push(id("½")), "");
  EXPECT_EQ(detokenizer.Push(id("ķ")), "뽕");
  EXPECT_EQ(detokenizer.Push(id("ë")), "");
  EXPECT_EQ(detokenizer.Push(id("A")),
            "\xEF\xBF\xBD"
            "A");
  EXPECT_EQ(detokenizer.Push(id("ë")), "");
  EXPECT_EQ(detokenizer.Finish(), "\xEF\xBF\xBD");
}

TEST(DetokenizerTest, ByteFallbackRunsAreJudgedWhole) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto tokenizer = TokenizerOf(dir / "checkpoints" / "stories260k-hf");
  const auto byte = [](int value) { return value + 3; };
  const std::int32_t word = tokenizer->TokenId("▁the").value();
  Detokenizer detokenizer(*tokenizer, false);
  EXPECT_EQ(detokenizer.Push(word), "the");  // the leading space is stripped
  EXPECT_EQ(detokenizer.Push(word), " the");
  for (const int value : {0xE4, 0xBD, 0xA0}) EXPECT_EQ(detokenizer.Push(byte(value)), "");
  EXPECT_EQ(detokenizer.Push(word), "\xE4\xBD\xA0 the");
  EXPECT_EQ(detokenizer.Push(byte(0xE4)), "");
  EXPECT_EQ(detokenizer.Push(byte(0x41)), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(detokenizer.Push(byte(0x42)), "\xEF\xBF\xBD");  // the run is broken
  EXPECT_EQ(detokenizer.Push(word), " the");
  EXPECT_EQ(detokenizer.Push(byte(0x42)), "");
  EXPECT_EQ(detokenizer.Finish(), "B");

  // A long run is shown in parts.
  Detokenizer patient(*tokenizer, false);
  std::size_t shown = 0;
  for (int i = 0; i < 1000; ++i) shown += patient.Push(byte(0x41)).size();
  EXPECT_GE(shown, 1000 - ByteRun::kMaxHeld);
}

TEST(DetokenizerTest, ContinuingAPromptKeepsTheLeadingSpace) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto tokenizer = TokenizerOf(dir / "checkpoints" / "stories260k-hf");
  Detokenizer detokenizer(*tokenizer, false, /*at_start=*/false);
  EXPECT_EQ(detokenizer.Push(tokenizer->TokenId("▁the").value()), " the");
}

TEST(DetokenizerTest, HidesSpecialTokensUnlessKept) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto tokenizer = TokenizerOf(dir / "tokenizer" / "ggml-vocab-gpt-2.gguf");
  Detokenizer hiding(*tokenizer, false);
  Detokenizer keeping(*tokenizer, true);
  EXPECT_EQ(hiding.Push(50256), "");
  EXPECT_EQ(keeping.Push(50256), "<|endoftext|>");
}

struct Found {
  std::string text;
  int matched = -1;
};

// By the definition: of all places where a stop string ends, the first; the longest that ends
// there.
Found Naive(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    Found best;
    std::size_t longest = 0;
    for (std::size_t i = 0; i < stops.size(); ++i) {
      const std::size_t size = stops[i].size();
      if (size > longest && size <= end && text.compare(end - size, size, stops[i]) == 0) {
        longest = size;
        best = {text.substr(0, end - size), static_cast<int>(i)};
      }
    }
    if (best.matched >= 0) return best;
  }
  return {text, -1};
}

TEST(StopMatcherTest, AgreesWithSearchingTheWholeText) {
  std::mt19937 random(5);
  int matches = 0;
  const auto letters = [&](std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text.push_back("ab\n"[random() % 3]);
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = letters(random() % 6);
    const std::string text = letters(random() % 30);
    const Found expected = Naive(text, stops);
    StopMatcher matcher(stops);
    std::string shown;
    int matched = -1;
    for (std::size_t at = 0; at < text.size() && matched < 0;) {
      const std::size_t size = 1 + random() % 4;
      StopMatcher::Result result = matcher.Push(std::string_view(text).substr(at, size));
      shown += result.text;
      matched = result.matched;
      at += size;
      ASSERT_EQ(expected.text.compare(0, shown.size(), shown), 0) << "leaked part of a stop string";
    }
    if (matched < 0) shown += matcher.Finish();
    matches += matched >= 0 ? 1 : 0;
    ASSERT_EQ(matched, expected.matched);
    ASSERT_EQ(shown, expected.text);
  }
  EXPECT_GT(matches, 1000);
  EXPECT_LT(matches, 4000);
}

TEST(StopMatcherTest, HoldsBackNoMoreThanItMust) {
  StopMatcher matcher({"STOP", "</s>"});
  EXPECT_EQ(matcher.Push("hello S").text, "hello ");
  EXPECT_EQ(matcher.Push("T").text, "");
  EXPECT_EQ(matcher.Push("AR").text, "STAR");
  EXPECT_EQ(matcher.Push(" <").text, " ");
  EXPECT_EQ(matcher.Finish(), "<");
  const StopMatcher::Result result = matcher.Push("x</s>y");
  EXPECT_EQ(result.text, "x");
  EXPECT_EQ(result.matched, 1);
}

}  // namespace
}  // namespace nibble
