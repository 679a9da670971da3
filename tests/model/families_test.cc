// Every family, from both kinds of file, against what an independent implementation computes.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/model/config.h"
#include "runtime/model/loader.h"
#include "runtime/model/plan.h"
#include "tests/model/loaded_model.h"
#include "tests/model/tiny_models.h"
#include "tests/support/greedy.h"

namespace nibble {
namespace {

constexpr float kTolerance = 2e-3f;

// The 20 best, and their log-probabilities, are those of `expected`; ids a hair apart may swap.
void ExpectRow(const RowResult& row, const std::vector<float>& expected) {
  ASSERT_EQ(row.top.size(), 20u);
  EXPECT_FALSE(row.bad_logits);
  std::vector<float> sorted = expected;
  std::sort(sorted.rbegin(), sorted.rend());
  for (std::size_t i = 0; i < row.top.size(); ++i) {
    EXPECT_NEAR(row.top[i].logprob, expected[row.top[i].token], kTolerance)
        << "token " << row.top[i].token;
    EXPECT_NEAR(row.top[i].logprob, sorted[i], kTolerance) << "place " << i;
  }
}

// One prefill of the whole prompt, then the same prompt token by token.
void Check(const TinyModel& model, const std::string& path) {
  LoadOptions options;
  options.page_tokens = 8;  // several pages
  auto loaded = LoadForTest(path, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();

  GreedySequence at_once(*loaded->runner, loaded->plan.kv);
  const auto rows = at_once.AppendAll(model.prompt);
  ASSERT_TRUE(rows.ok()) << rows.status();
  for (const auto& [index, expected] : model.logprobs) {
    SCOPED_TRACE(absl::StrCat(model.name, " prefill, after token ", index));
    ExpectRow((*rows)[index], expected);
  }

  GreedySequence one_by_one(*loaded->runner, loaded->plan.kv);
  for (std::size_t i = 0; i < model.prompt.size(); ++i) {
    const auto row = one_by_one.Append({&model.prompt[i], 1});
    ASSERT_TRUE(row.ok()) << row.status();
    const auto expected = model.logprobs.find(static_cast<int>(i));
    if (expected == model.logprobs.end()) continue;
    SCOPED_TRACE(absl::StrCat(model.name, " decode, after token ", i));
    ExpectRow(*row, expected->second);
  }
}

std::vector<std::string> Names(bool gguf) {
  std::vector<std::string> names;
  for (const TinyModel& model : TinyModels()) {
    if (!gguf || model.has_gguf) names.push_back(model.name);
  }
  return names;
}

class HuggingFaceTest : public ::testing::TestWithParam<std::string> {};
class GgufTest : public ::testing::TestWithParam<std::string> {};

TEST_P(HuggingFaceTest, MatchesAnIndependentImplementation) {
  const TinyModel model = FindTinyModel(GetParam());
  TempDir dir;
  Check(model, WriteHuggingFace(model, dir));
}

TEST_P(GgufTest, MatchesAnIndependentImplementation) {
  const TinyModel model = FindTinyModel(GetParam());
  TempDir dir;
  Check(model, WriteGguf(model, dir));
}

std::string Name(const ::testing::TestParamInfo<std::string>& test) { return test.param; }

INSTANTIATE_TEST_SUITE_P(Families, HuggingFaceTest, ::testing::ValuesIn(Names(false)), Name);
INSTANTIATE_TEST_SUITE_P(Families, GgufTest, ::testing::ValuesIn(Names(true)), Name);

// A multimodal file nests the language model, under either prefix.
TEST(WrapperTest, LanguageModelOfGemma3) {
  for (const std::string prefix : {"language_model.model.", "model.language_model."}) {
    TinyModel model = FindTinyModel("gemma3");
    Json wrapper{Json::Object{}};
    wrapper.Set("architectures", Json::Array{"Gemma3ForConditionalGeneration"});
    wrapper.Set("text_config", model.config);
    model.config = wrapper;
    for (FloatTensor& tensor : model.tensors) {
      tensor.name = prefix + tensor.name.substr(std::string("model.").size());
    }
    TempDir dir;
    Check(model, WriteHuggingFace(model, dir));
  }
}

// A row without a case would be a family that nobody ever ran.
TEST(FamiliesCoverageTest, EveryArchitectureHasACase) {
  for (const std::string& name : KnownArchitectures()) {
    const std::vector<TinyModel> models = TinyModels();
    EXPECT_TRUE(std::any_of(models.begin(), models.end(), [&](const TinyModel& model) {
      return model.config.Find("model_type")->AsString() == name;
    })) << name;
  }
}

}  // namespace
}  // namespace nibble
