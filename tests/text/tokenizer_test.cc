#include "runtime/text/tokenizer.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
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
#include "runtime/text/bpe_model.h"
#include "runtime/text/byte_alphabet.h"
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

TEST(VocabularyTest, Llama3FilesGiveTheExpectedIds) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const std::filesystem::path vocabulary = dir / "tokenizer" / "llama-bpe" / "tokenizer.json";
  if (!std::filesystem::exists(vocabulary)) {
    GTEST_SKIP() << "the Llama 3 vocabulary is not at hand, only its texts";
  }
  const auto tokenizer = Tokenizer::FromJson(ReadFile(vocabulary), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectCases(**tokenizer, dir / "tokenizer" / "ggml-vocab-llama-bpe.gguf");
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

// A byte-level vocabulary of the 256 bytes and a few merges.
GgufVocabulary SmallByteLevel() {
  GgufVocabulary v;
  v.model = "gpt2";
  v.pre = "gpt-2";
  for (int byte = 0; byte < 256; ++byte)
    v.tokens.push_back(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
  for (const char* token : {"th", "the", "Ġthe", "<|end|>", "<tool>"}) v.tokens.push_back(token);
  v.merges = {"t h", "th e", "Ġ the"};
  v.types.assign(v.tokens.size(), 1);
  v.types[259] = 3;
  v.types[260] = 4;
  v.eos = 259;
  return v;
}

GgufVocabulary SmallScored() {
  GgufVocabulary v;
  v.model = "llama";
  v.pre = "default";
  v.tokens = {"<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "<0x41>", "ba"};
  v.scores = {0, 0, 0, -9, -9, -9, -1, -2, 0, -1};
  v.types = {2, 3, 3, 1, 1, 1, 1, 1, 6, 1};
  return v;
}

std::string ErrorOf(const GgufVocabulary& vocabulary) {
  const auto tokenizer = Tokenizer::FromGguf(vocabulary);
  return tokenizer.ok() ? "" : std::string(tokenizer.status().message());
}

TEST(GgufVocabularyTest, SmallOnesEncode) {
  const auto bytes = Tokenizer::FromGguf(SmallByteLevel());
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(Encode(**bytes, "the the"), (Ids{257, 258}));
  EXPECT_EQ(Encode(**bytes, "a<tool>", true), (Ids{'a', 260}));
  EXPECT_EQ((*bytes)->end_ids(), Ids{259});
  EXPECT_EQ((*bytes)->TokenBytes(258), " the");
  EXPECT_EQ((*bytes)->TokenBytes(-1), "");
  EXPECT_EQ((*bytes)->TokenBytes(1000), "");

  const auto scored = Tokenizer::FromGguf(SmallScored());
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_EQ(Encode(**scored, "ab", true), (Ids{1, 7}));
  EXPECT_EQ(Encode(**scored, "ba"), (Ids{3, 9}));
  // "ab" and "ba" score alike: the leftmost pair joins first.
  EXPECT_EQ(Encode(**scored, "aba"), (Ids{7, 4}));
  EXPECT_EQ(Encode(**scored, "A"), (Ids{3, 8}));
  EXPECT_EQ(Encode(**scored, "C"), (Ids{3, 0}));  // no byte token
  EXPECT_EQ((*scored)->Decode({7, 3, 8}, true), "ab A");
}

TEST(GgufVocabularyTest, BadOnesAreRefusedByName) {
  GgufVocabulary v = SmallByteLevel();
  v.pre = "kimi-k2";
  EXPECT_THAT(ErrorOf(v), HasSubstr("kimi-k2"));
  v = SmallByteLevel();
  v.model = "rwkv";
  EXPECT_THAT(ErrorOf(v), HasSubstr("rwkv"));
  v = SmallByteLevel();
  v.merges.push_back("th zz");
  EXPECT_THAT(ErrorOf(v), HasSubstr("\"zz\", which is no token"));
  v = SmallByteLevel();
  v.merges.push_back("nospace");
  EXPECT_THAT(ErrorOf(v), HasSubstr("nospace"));
  v = SmallByteLevel();
  v.tokens[5] = "the";
  EXPECT_THAT(ErrorOf(v), HasSubstr("two ids, 5 and 257"));
  v = SmallByteLevel();
  v.types.pop_back();
  EXPECT_THAT(ErrorOf(v), HasSubstr("token_type has 260 entries for 261 tokens"));
  v = SmallByteLevel();
  v.eos = 261;
  EXPECT_THAT(ErrorOf(v), HasSubstr("eos_token_id is 261"));
  v = SmallByteLevel();
  v.add_bos = true;
  EXPECT_THAT(ErrorOf(v), HasSubstr("bos_token_id is not set"));
  v = SmallByteLevel();
  v.tokens.clear();
  EXPECT_THAT(ErrorOf(v), HasSubstr("tokenizer.ggml.tokens"));
  v = SmallScored();
  v.scores.resize(3);
  EXPECT_THAT(ErrorOf(v), HasSubstr("scores has 3 entries for 10 tokens"));
  v = SmallScored();
  v.scores.clear();
  EXPECT_THAT(ErrorOf(v), HasSubstr("needs tokenizer.ggml.scores"));
  v = SmallScored();
  v.scores[4] = std::nanf("");
  EXPECT_THAT(ErrorOf(v), HasSubstr("score of token 4"));
  v = SmallScored();
  v.tokens[9] = std::string(5000, 'a');
  EXPECT_THAT(ErrorOf(v), HasSubstr("token 9 has 5000 bytes"));
}

TEST(GgufVocabularyTest, TokensThatAreNotUtf8AreHarmless) {
  GgufVocabulary v = SmallScored();
  v.tokens[9] = "a\xE4\xBD";
  const auto tokenizer = Tokenizer::FromGguf(v);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Encode(**tokenizer, "ab"), Ids{7});
  EXPECT_EQ((*tokenizer)->Decode({9}, true), "a\xEF\xBF\xBD");
}

// One found before the model runs would leave it a part of a character.
TEST(GgufVocabularyTest, NoAddedTokenCutsACharacter) {
  GgufVocabulary v = SmallScored();
  for (const char* half : {"\xBD", "\xBD\xA0", "\xE4\xBD"}) {
    v.tokens[9] = half;
    v.types[9] = 4;
    const auto tokenizer = Tokenizer::FromGguf(v);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ(Encode(**tokenizer, "ab\xE4\xBD\xA0"), (Ids{7, 0}));
  }
}

// tokenizer.json with the given parts around a tiny model.
std::string SmallJson(const std::string& members, const std::string& model_members = "") {
  return absl::StrCat(
      R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": ["a b"])",
      model_members, "}", members, "}");
}

std::string JsonError(const std::string& json, const std::string& config = "") {
  const auto tokenizer = Tokenizer::FromJson(json, config);
  return tokenizer.ok() ? "" : std::string(tokenizer.status().message());
}

TEST(TokenizerJsonTest, RefusesByNameWhatItCannotRun) {
  EXPECT_EQ(JsonError(SmallJson("")), "");
  const std::pair<const char*, const char*> parts[] = {
      {R"(, "normalizer": {"type": "BertNormalizer"})", "BertNormalizer"},
      {R"(, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]})", "Nmt"},
      {R"(, "pre_tokenizer": {"type": "UnicodeScripts"})", "UnicodeScripts"},
      {R"(, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a&&b]"}, "behavior": "Isolated"})",
       "&&"},
      {R"(, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Odd"})",
       "Odd"},
      {R"(, "pre_tokenizer": {"type": "Split", "behavior": "Isolated"})", "pattern"},
      {R"(, "post_processor": {"type": "BertProcessing"})", "BertProcessing"},
      {R"(, "decoder": {"type": "WordPiece"})", "WordPiece"},
      {R"(, "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]})",
       "ByteFallback"},
      {R"(, "decoder": {"type": "Strip", "content": " ", "start": 1, "stop": 0})", "Strip"},
      {R"(, "added_tokens": [{"id": 9, "content": "ab"}])", "has id 9 but the vocabulary says 2"},
      {R"(, "added_tokens": [{"id": 1, "content": "x"}])", "id 1 has two tokens"},
      {R"(, "added_tokens": [{"id": 2000000000, "content": "x"}])", "largest id"},
      {R"(, "added_tokens": [{"id": -1, "content": "x"}])", "\"id\""},
      {R"(, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}},
          {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [77]}}})",
       "77"},
  };
  for (const auto& [members, what] : parts)
    EXPECT_THAT(JsonError(SmallJson(members)), HasSubstr(what)) << members;
  EXPECT_THAT(JsonError(SmallJson("", R"(, "unk_token": "<nothing>")")), HasSubstr("<nothing>"));
  EXPECT_THAT(JsonError(R"({"model": {"type": "Unigram", "vocab": []}})"), HasSubstr("Unigram"));
  EXPECT_THAT(JsonError(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}})"),
              HasSubstr("id 0"));
  EXPECT_THAT(JsonError(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})"),
              HasSubstr("\"b\""));
  EXPECT_THAT(JsonError(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}})"),
              HasSubstr("merge 0"));
  EXPECT_THAT(JsonError(R"({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}})"),
              HasSubstr("\"id\""));
  EXPECT_THAT(JsonError("{}"), HasSubstr("model"));
  EXPECT_THAT(JsonError("[]"), HasSubstr("not an object"));
  EXPECT_THAT(JsonError("{"), HasSubstr("JSON"));
  EXPECT_THAT(JsonError(SmallJson(""), R"({"add_bos_token": 1})"), HasSubstr("add_bos_token"));
  EXPECT_THAT(JsonError(SmallJson(""), R"({"add_bos_token": true})"), HasSubstr("bos_token"));
}

// `count` times `step`, as the list of a Sequence.
std::string Steps(const std::string& step, int count) {
  return absl::StrJoin(std::vector<std::string>(static_cast<std::size_t>(count), step), ", ");
}

// A small file must not make much of a small text.
TEST(TokenizerJsonTest, StepsCannotGrowATextWithoutBound) {
  const auto normalizers = [](const std::string& step, int count) {
    return SmallJson(absl::StrCat(R"(, "normalizer": {"type": "Sequence", "normalizers": [)",
                                  Steps(step, count), "]}"));
  };
  const auto pre_tokenizers = [](const std::string& step, int count) {
    return SmallJson(absl::StrCat(R"(, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [)",
                                  Steps(step, count), "]}"));
  };
  const auto decoders = [](const std::string& step, int count) {
    return SmallJson(absl::StrCat(R"(, "decoder": {"type": "Sequence", "decoders": [)",
                                  Steps(step, count), "]}"));
  };
  const std::string lower = R"({"type": "Lowercase"})";
  const std::string twice = R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"})";
  const std::string metaspace = R"({"type": "Metaspace", "replacement": "    ", "split": false})";
  const std::string bytes =
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";
  EXPECT_EQ(JsonError(normalizers(lower, 32)), "");
  EXPECT_THAT(JsonError(normalizers(lower, 33)), HasSubstr("33 normalizers"));
  EXPECT_THAT(JsonError(pre_tokenizers(metaspace, 33)), HasSubstr("33 pre_tokenizers"));
  EXPECT_THAT(JsonError(decoders(twice, 33)), HasSubstr("33 replacements"));
  EXPECT_EQ(JsonError(decoders(twice, 4)), "");
  EXPECT_THAT(JsonError(decoders(twice, 30)), HasSubstr("too much of a token of 1 bytes"));
  for (const std::string& json :
       {normalizers(twice, 30), pre_tokenizers(metaspace, 30), pre_tokenizers(bytes, 30)}) {
    const auto tokenizer = Tokenizer::FromJson(json, "");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_TRUE(absl::IsResourceExhausted((*tokenizer)->Encode("a \xC3\xA9", {}).status())) << json;
  }
  EXPECT_THAT(JsonError(absl::StrCat(
                  normalizers(twice, 30).substr(0, normalizers(twice, 30).size() - 1),
                  R"(, "added_tokens": [{"id": 4, "content": "a<", "special": false}]})")),
              HasSubstr("normalized text"));
}

TEST(TokenizerJsonTest, ConfigMayListMoreTokens) {
  const auto tokenizer = Tokenizer::FromJson(SmallJson(""), R"({"added_tokens_decoder": {
      "4": {"content": "<x>", "special": true}, "2": {"content": "<taken>"}, "9": {"content": "ab"}}})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Encode(**tokenizer, "ab<x>", false, true), (Ids{2, 4}));
  EXPECT_EQ((*tokenizer)->TokenId("<taken>"), std::nullopt);
}

TEST(ChatTemplateSourceTest, IsFoundWhereverItIs) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  const auto phi3 = Checkpoint::Open((dir / "tokenizer" / "ggml-vocab-phi-3.gguf").string());
  ASSERT_TRUE(phi3.ok());
  EXPECT_THAT(FindChatTemplate(**phi3).value().value_or(""), HasSubstr("<|assistant|>"));
  EXPECT_EQ(FindChatTemplate(**phi3, "tool_use").value(), std::nullopt);

  const std::filesystem::path copy =
      std::filesystem::path(::testing::TempDir()) / "template_source";
  std::filesystem::remove_all(copy);
  std::filesystem::create_directories(copy);
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json"}) {
    std::filesystem::copy(dir / "checkpoints" / "stories260k-hf" / file, copy);
  }
  const auto write = [&](const char* file, const char* text) {
    std::ofstream(copy / file) << text;
  };
  const auto find = [&](const char* name) {
    const auto checkpoint = Checkpoint::Open(copy.string());
    return FindChatTemplate(**checkpoint, name).value();
  };
  EXPECT_EQ(find("default"), std::nullopt);
  write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(find("default"), "one");
  EXPECT_EQ(find("tool_use"), std::nullopt);
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(find("default"), "d");
  EXPECT_EQ(find("tool_use"), "t");
  write("chat_template.jinja", "file");
  EXPECT_EQ(find("default"), "file");
  EXPECT_EQ(find("tool_use"), "t");
  std::filesystem::remove_all(copy);
}

TEST(TokenizerJsonTest, ConfigOverridesTheTemplate) {
  const std::string with_template = SmallJson(R"(, "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [3]}}})");
  const auto ids = [](const std::string& json, const char* config) {
    auto tokenizer = Tokenizer::FromJson(json, config);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return (*tokenizer)->Encode("ab", {}).value();
  };
  EXPECT_EQ(ids(with_template, ""), (Ids{3, 2}));
  EXPECT_EQ(ids(with_template, R"({"bos_token": "<s>", "add_bos_token": null})"), (Ids{3, 2}));
  EXPECT_EQ(ids(with_template, R"({"bos_token": "<s>", "add_bos_token": true})"), (Ids{3, 2}));
  EXPECT_EQ(ids(with_template, R"({"bos_token": "<s>", "add_bos_token": false})"), Ids{2});
  EXPECT_EQ(ids(SmallJson(""), R"({"bos_token": {"content": "<s>"}, "add_bos_token": true})"),
            (Ids{3, 2}));
  EXPECT_EQ(ids(SmallJson(""), R"({"eos_token": "b", "add_eos_token": true})"), (Ids{2, 1}));
  const auto named =
      Tokenizer::FromJson(SmallJson(""), R"({"bos_token": "<s>", "eos_token": {"content": "b"},
      "pad_token": null, "additional_special_tokens": []})");
  EXPECT_EQ((*named)->special_token_names(),
            (std::map<std::string, std::string>{{"bos_token", "<s>"}, {"eos_token", "b"}}));
  EXPECT_EQ((*named)->bos(), 3);
  EXPECT_EQ((*named)->end_ids(), Ids{1});
}

// The short and the long way of merging, and cutting words apart, are the same encoding.
TEST(BpeModelTest, LongPiecesEncodeAsTheirDefinitionSays) {
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    TokenTable tokens;
    ASSERT_TRUE(tokens.Reserve(200, 4000, 200).ok());
    std::vector<std::string> texts = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (std::int32_t id = 0; id < 3; ++id) ASSERT_TRUE(tokens.Add(id, texts[id]).ok());
    for (int i = 0; i < 30; ++i) {
      const std::string left = texts[random() % texts.size()];
      const std::string right = texts[random() % texts.size()];
      if (left.size() + right.size() > 12 || tokens.Find(left + right) != kNoToken) continue;
      ASSERT_TRUE(tokens.Add(static_cast<std::int32_t>(texts.size()), left + right).ok());
      texts.push_back(left + right);
      merges.emplace_back(left, right);
    }
    const auto model = BpeModel::FromMerges(tokens, merges, {}, false);
    ASSERT_TRUE(model.ok()) << model.status();
    std::string text;
    for (int i = 0; i < 300; ++i) text.push_back(static_cast<char>('a' + random() % 3));
    // The definition: of all neighbours, join the leftmost pair of the lowest rank; again until
    // none.
    std::vector<std::string> parts;
    for (const char c : text) parts.emplace_back(1, c);
    for (bool joined = true; joined;) {
      joined = false;
      for (const auto& [left, right] : merges) {
        for (std::size_t i = 0; i + 1 < parts.size() && !joined; ++i) {
          if (parts[i] != left || parts[i + 1] != right) continue;
          parts[i] += parts[i + 1];
          parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
          joined = true;
        }
        if (joined) break;
      }
    }
    Ids expected;
    for (const std::string& part : parts) expected.push_back(tokens.Find(part));
    BpeModel::Scratch scratch;
    Ids ids;
    (*model)->Encode(text, scratch, &ids);
    ASSERT_EQ(ids, expected);
  }
}

}  // namespace
}  // namespace nibble
