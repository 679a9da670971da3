// Models without files: every shape opens, every format is what it says, and one of each runs.
#include "runtime/model/synthetic.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/device/backend.h"
#include "runtime/model/loader.h"
#include "runtime/model/plan.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/greedy.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(SyntheticTest, EveryShapeIsAConfiguration) {
  for (const std::string& shape : SyntheticShapes()) {
    const auto model = OpenSynthetic({shape, "int4-g128"});
    ASSERT_TRUE(model.ok()) << shape << ": " << model.status();
    const auto config = ReadModelConfig(*model->checkpoint);
    ASSERT_TRUE(config.ok()) << shape << ": " << config.status();
    EXPECT_EQ(config->heads % config->kv_heads, 0) << shape;
  }
}

// What the publishers say.
TEST(SyntheticTest, ShapesHaveTheirNumberOfParameters) {
  struct Known {
    const char* shape;
    double billions;
  };
  const auto backend = OpenBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (const Known& known : {Known{"smollm2-135m", 0.1345},
                             {"llama-3.2-1b", 1.236},
                             {"llama-3.2-3b", 3.213},
                             {"llama-3-8b", 8.030},
                             {"llama-3-70b", 70.554},
                             {"mistral-7b", 7.248},
                             {"mixtral-8x7b", 46.703},
                             {"qwen2.5-0.5b", 0.494},
                             {"qwen2.5-7b", 7.616},
                             {"qwen2.5-72b", 72.706},
                             {"qwen3-8b", 8.191},
                             {"qwen3-30b-a3b", 30.532},
                             {"phi-3-mini", 3.821},
                             {"gemma-2-2b", 2.614},
                             {"gemma-2-9b", 9.242}}) {
    const auto model = OpenSynthetic({known.shape, "int4-g128"});
    ASSERT_TRUE(model.ok()) << model.status();
    const auto config = ReadModelConfig(*model->checkpoint);
    ASSERT_TRUE(config.ok()) << config.status();
    PlanOptions options;
    options.memory_bytes = std::int64_t{1} << 40;
    options.max_context = 512;
    options.max_batch = 1;
    const auto plan = PlanMemory(*config, *model->checkpoint, *model->format, **backend, options);
    ASSERT_TRUE(plan.ok()) << known.shape << ": " << plan.status();
    EXPECT_NEAR(static_cast<double>(plan->parameters) / 1e9, known.billions, known.billions * 0.001)
        << known.shape;
  }
}

TEST(SyntheticTest, WeightsAreWhatTheirFormatSaysAndOfUnitGain) {
  for (const std::string& format : SyntheticFormats()) {
    const auto model = OpenSynthetic({"tiny", format});
    ASSERT_TRUE(model.ok()) << format << ": " << model.status();
    for (const char* layer : {"model.embed_tokens", "model.layers.0.self_attn.v_proj",
                              "model.layers.1.mlp.down_proj"}) {
      const auto weight = model->format->Load(layer);
      ASSERT_TRUE(weight.ok()) << weight.status();
      EXPECT_EQ(SpecOf(*weight), *model->format->Describe(layer)) << format << ' ' << layer;
      ASSERT_EQ(CheckBuffers(*weight), absl::OkStatus()) << format << ' ' << layer;
      const auto values = Dequantize(*weight);
      ASSERT_TRUE(values.ok());
      double square = 0;
      for (const float value : *values) square += double{value} * value;
      const double gain =
          std::sqrt(square / static_cast<double>(values->size()) * static_cast<double>(weight->k));
      EXPECT_THAT(gain, ::testing::AllOf(::testing::Gt(0.6), ::testing::Lt(1.5)))
          << format << ' ' << layer;
    }
  }
}

TEST(SyntheticTest, EveryFormatRunsOnTheCpuAndTakesWhatWasPlanned) {
  const auto backend = OpenBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (const std::string& format : SyntheticFormats()) {
    const auto model = OpenSynthetic({"tiny", format});
    ASSERT_TRUE(model.ok()) << model.status();
    const auto config = ReadModelConfig(*model->checkpoint);
    PlanOptions options;
    options.max_batch = 2;
    const auto plan = PlanMemory(*config, *model->checkpoint, *model->format, **backend, options);
    ASSERT_TRUE(plan.ok()) << format << ": " << plan.status();
    const auto runner =
        LoadRunner(*config, *model->checkpoint, *model->format, *plan, **backend, nullptr);
    ASSERT_TRUE(runner.ok()) << format << ": " << runner.status();
    EXPECT_EQ((*runner)->memory().weights_bytes, plan->weights_bytes) << format;
    // Weights of no sane scale would give infinities, or one token all the probability.
    GreedySequence sequence(**runner, plan->kv);
    const auto row = sequence.Append(std::vector<std::int32_t>{3, 1, 4, 1, 5});
    ASSERT_TRUE(row.ok()) << format << ": " << row.status();
    EXPECT_FALSE(row->bad_logits) << format;
    ASSERT_EQ(row->top.size(), 20u);
    EXPECT_THAT(row->top.front().logprob, ::testing::AllOf(::testing::Gt(-6), ::testing::Lt(-0.5)))
        << format;
    EXPECT_GT(row->top.front().logprob, row->top.back().logprob) << format;
  }
}

TEST(SyntheticTest, ATextOfItsOwnWordsComesBack) {
  const auto model = OpenSynthetic({"tiny", "f16"});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto vocabulary = model->checkpoint->ReadSideFile("vocab.json");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  const auto tokenizer = Tokenizer::FromVocabAndMerges(*vocabulary, "", "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 512);
  EXPECT_EQ((*tokenizer)->Decode({0, 25, 1}, true), "azb");
}

TEST(SyntheticTest, RefusalsListWhatThereIs) {
  EXPECT_THAT(std::string(OpenSynthetic({"llama-9", "f16"}).status().message()),
              HasSubstr("llama-3-8b"));
  EXPECT_THAT(std::string(OpenSynthetic({"tiny", "int5"}).status().message()),
              HasSubstr("int4-g128"));
  EXPECT_TRUE(absl::IsNotFound(
      OpenSynthetic({"tiny", "f16"})->format->Load("model.layers.9.mlp.up_proj").status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(OpenSynthetic(Json(Json::Object{}), "empty", "f16").status()));
}

}  // namespace
}  // namespace nibble
