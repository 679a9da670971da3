#include "runtime/model/config.h"

#include <cmath>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/status.h"
#include "tests/model/tiny_models.h"
#include "tests/support/gguf_writer.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<ModelConfig> Read(const TinyModel& model,
                                 const std::string& generation_config = "") {
  TempDir dir;
  WriteHuggingFace(model, dir);
  if (!generation_config.empty()) dir.Write("generation_config.json", generation_config);
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(dir.path()));
  return ReadModelConfig(*checkpoint);
}

// The model with one key changed; a null Json removes nothing but writes null.
TinyModel With(const std::string& name, const std::string& key, Json value) {
  TinyModel model = FindTinyModel(name);
  model.config.Set(key, std::move(value));
  return model;
}

TinyModel Without(const std::string& name, const std::string& key) {
  TinyModel model = FindTinyModel(name);
  Json::Object& members = model.config.AsObject();
  std::erase_if(members, [&](const Json::Member& member) { return member.first == key; });
  return model;
}

std::vector<std::int32_t> Windows(const ModelConfig& config) {
  std::vector<std::int32_t> windows;
  for (const LayerConfig& layer : config.layer) windows.push_back(layer.window);
  return windows;
}

TEST(ConfigTest, ReadsLlama) {
  const auto config = Read(FindTinyModel("llama"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->hidden, 32);
  EXPECT_EQ(config->heads, 4);
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_EQ(config->vocab, 40);
  EXPECT_EQ(config->max_context, 128);
  EXPECT_TRUE(config->tied_head);
  EXPECT_FLOAT_EQ(config->norm_eps, 1e-5f);
  EXPECT_FLOAT_EQ(config->attention_scale, 1.0f / std::sqrt(8.0f));
  EXPECT_THAT(config->eos_ids, ElementsAre(2));
  EXPECT_EQ(config->bos_id, 1);
}

TEST(ConfigTest, TakesClassDefaultsForAbsentKeys) {
  const auto eps = Read(Without("llama", "rms_norm_eps"));
  ASSERT_TRUE(eps.ok()) << eps.status();
  EXPECT_FLOAT_EQ(eps->norm_eps, 1e-6f);
  const auto theta = Read(Without("mixtral", "rope_theta"));
  ASSERT_TRUE(theta.ok()) << theta.status();
  EXPECT_EQ(theta->ropes[0].theta, 1e6);
  const auto context = Read(Without("mistral", "max_position_embeddings"));
  ASSERT_TRUE(context.ok()) << context.status();
  EXPECT_EQ(context->max_context, 131072);
  const auto tied = Read(Without("gemma2", "tie_word_embeddings"));
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_TRUE(tied->tied_head);
}

TEST(ConfigTest, AbsentAndNullWindowDiffer) {
  const auto absent = Read(Without("mistral", "sliding_window"));
  ASSERT_TRUE(absent.ok()) << absent.status();
  EXPECT_THAT(Windows(*absent), ElementsAre(4096, 4096, 4096, 4096));
  const auto null = Read(With("mistral", "sliding_window", nullptr));
  ASSERT_TRUE(null.ok()) << null.status();
  EXPECT_THAT(Windows(*null), ElementsAre(0, 0, 0, 0));
}

TEST(ConfigTest, QwenSlidesOnlyWhenAskedTo) {
  TinyModel model = With("qwen2", "sliding_window", 16);
  auto config = Read(model);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(0, 0, 0, 0));
  model.config.Set("use_sliding_window", true);
  model.config.Set("max_window_layers", 3);
  config = Read(model);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(0, 0, 0, 16));
}

TEST(ConfigTest, LayerTypesGoBeforePatterns) {
  const Json types =
      Json::Array{"full_attention", "sliding_attention", "full_attention", "sliding_attention"};
  const auto config = Read(With("gemma2", "layer_types", types));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(0, 64, 0, 64));
  const auto chunked = Read(With("gemma2", "layer_types", Json::Array(4, "chunked_attention")));
  EXPECT_EQ(chunked.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(chunked.status().message()), HasSubstr("chunked_attention"));
  EXPECT_FALSE(Read(With("gemma2", "layer_types", Json::Array(3, "full_attention"))).ok());
}

TEST(ConfigTest, Gemma3SlidesFiveOfSixWithARopeOfTheirOwn) {
  const auto config = Read(FindTinyModel("gemma3"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(Windows(*config), ElementsAre(8, 8, 8, 8, 8, 0, 8));
  EXPECT_EQ(config->layer[0].rope, 1);
  EXPECT_EQ(config->layer[5].rope, 0);
  ASSERT_EQ(config->ropes.size(), 2u);
  EXPECT_EQ(config->ropes[0].theta, 1e6);
  EXPECT_EQ(config->ropes[1].theta, 1e4);
  EXPECT_TRUE(config->norm_adds_one);
}

TEST(ConfigTest, SmolLm3LeavesPositionsOutOfEveryFourthLayer) {
  for (const TinyModel& model : {FindTinyModel("smollm3"), Without("smollm3", "no_rope_layers")}) {
    const auto config = Read(model);
    ASSERT_TRUE(config.ok()) << config.status();
    for (int i = 0; i < 5; ++i) EXPECT_EQ(config->layer[i].rope, i == 3 ? -1 : 0) << i;
  }
}

TEST(ConfigTest, ReadsRopeParametersOfTransformers5) {
  TinyModel model = Without("llama3", "rope_scaling");
  Json rope = *FindTinyModel("llama3").config.Find("rope_scaling");
  rope.Set("rope_theta", 250000.0);
  model.config.Set("rope_parameters", rope);
  const auto config = Read(model);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->ropes[0].theta, 250000.0);
  EXPECT_EQ(config->ropes[0].scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(config->ropes[0].scaling.original_context, 16);

  Json full{Json::Object{}}, sliding{Json::Object{}}, both{Json::Object{}};
  full.Set("rope_type", "linear");
  full.Set("factor", 8.0);
  full.Set("rope_theta", 1e6);
  sliding.Set("rope_type", "default");
  sliding.Set("rope_theta", 1e4);
  both.Set("full_attention", full);
  both.Set("sliding_attention", sliding);
  const auto gemma = Read(With("gemma3", "rope_parameters", both));
  ASSERT_TRUE(gemma.ok()) << gemma.status();
  EXPECT_EQ(gemma->ropes[0].scaling.factor, 8.0);
  EXPECT_EQ(gemma->ropes[1].scaling.kind, RopeScaling::Kind::kNone);
}

TEST(ConfigTest, YarnExtendsTheContext) {
  const auto config = Read(FindTinyModel("qwen3_yarn"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->max_context, 128);  // 4 * 32
}

TEST(ConfigTest, EmbeddingScaleIsRoundedToTheTypeOfTheWeights) {
  const auto f32 = Read(FindTinyModel("gemma2"));
  ASSERT_TRUE(f32.ok()) << f32.status();
  EXPECT_FLOAT_EQ(f32->embedding_scale, std::sqrt(32.0f));
  const auto bf16 = Read(With("gemma2", "torch_dtype", "bfloat16"));
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  EXPECT_EQ(bf16->embedding_scale, 5.65625f);
}

TEST(ConfigTest, ActivationsAreOfTheTypeTheModelWasTrainedIn) {
  EXPECT_EQ(Read(With("llama", "torch_dtype", "bfloat16"))->dtype, DType::kBF16);
  EXPECT_EQ(Read(With("llama", "torch_dtype", "float16"))->dtype, DType::kF16);
  EXPECT_EQ(Read(With("llama", "torch_dtype", "float32"))->dtype, DType::kF16);
  // Sums of Gemma's outgrow f16.
  EXPECT_EQ(Read(With("gemma2", "torch_dtype", "float16"))->dtype, DType::kBF16);
}

TEST(ConfigTest, GenerationConfigNamesTheEndTokens) {
  const auto config =
      Read(FindTinyModel("llama"), R"({"eos_token_id": [7, 9], "bos_token_id": 3})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_ids, ElementsAre(7, 9));
  EXPECT_EQ(config->bos_id, 3);
}

TEST(ConfigTest, IgnoresSpecialTokensOutsideTheVocabulary) {
  TinyModel model = With("llama", "eos_token_id", Json::Array{2, 40, -1});
  model.config.Set("bos_token_id", 40);
  const auto config = Read(model);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_ids, ElementsAre(2));
  EXPECT_FALSE(config->bos_id.has_value());
}

TEST(ConfigTest, ReadsTheLanguageModelOfAWrapper) {
  TinyModel model = FindTinyModel("gemma3");
  Json wrapper{Json::Object{}};
  wrapper.Set("architectures", Json::Array{"Gemma3ForConditionalGeneration"});
  wrapper.Set("text_config", model.config);
  wrapper.Set("eos_token_id", Json::Array{1, 6});
  model.config = wrapper;
  for (FloatTensor& tensor : model.tensors) tensor.name = "language_model." + tensor.name;
  const auto config = Read(model);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "gemma3_text");
  EXPECT_THAT(config->eos_ids, ElementsAre(1, 6));
}

TEST(ConfigTest, RefusesAnUnknownArchitectureByName) {
  const auto config = Read(With("llama", "architectures", Json::Array{"MambaForCausalLM"}));
  EXPECT_EQ(config.status().code(), absl::StatusCode::kUnimplemented);
  const std::string message(config.status().message());
  EXPECT_THAT(message, HasSubstr("MambaForCausalLM"));
  for (const std::string& known : KnownArchitectures()) EXPECT_THAT(message, HasSubstr(known));
}

// Key, value, and what the message must say besides the key.
struct BadValue {
  const char* name;
  const char* model;
  const char* key;
  Json value;
  const char* says;
};

class BadConfigTest : public ::testing::TestWithParam<BadValue> {};

TEST_P(BadConfigTest, NamesKeyAndValue) {
  const auto config = Read(With(GetParam().model, GetParam().key, GetParam().value));
  ASSERT_FALSE(config.ok());
  const std::string message(config.status().message());
  EXPECT_THAT(message, HasSubstr(GetParam().key));
  EXPECT_THAT(message, HasSubstr(GetParam().says));
}

Json Scaling(std::initializer_list<Json::Member> members) { return Json(Json::Object(members)); }

INSTANTIATE_TEST_SUITE_P(
    All, BadConfigTest,
    ::testing::Values(
        BadValue{"ZeroVocab", "llama", "vocab_size", 0, "is 0"},
        BadValue{"NegativeHidden", "llama", "hidden_size", -32, "is -32"},
        BadValue{"HugeHidden", "llama", "hidden_size", std::int64_t{1} << 40, "131072"},
        BadValue{"BillionLayers", "llama", "num_hidden_layers", 1000000000, "1024"},
        BadValue{"ZeroLayers", "llama", "num_hidden_layers", 0, "is 0"},
        BadValue{"ZeroHeads", "llama", "num_attention_heads", 0, "is 0"},
        BadValue{"HeadsNotDividing", "llama", "num_attention_heads", 6, "6"},
        BadValue{"KvHeadsNotDividing", "llama", "num_key_value_heads", 3, "3"},
        BadValue{"ZeroHeadDim", "qwen3", "head_dim", 0, "is 0"},
        BadValue{"TextWhereANumberBelongs", "llama", "hidden_size", "32", "\"32\""},
        BadValue{"FractionWhereAnIntegerBelongs", "llama", "hidden_size", 32.5, "32.5"},
        BadValue{"ZeroTheta", "llama", "rope_theta", 0.0, "is 0"},
        BadValue{"NegativeTheta", "llama", "rope_theta", -1.0, "-1"},
        BadValue{"NegativeEps", "llama", "rms_norm_eps", -1.0, "-1"},
        BadValue{"ZeroContext", "llama", "max_position_embeddings", 0, "is 0"},
        BadValue{"MoreUsedThanExperts", "mixtral", "num_experts_per_tok", 5, "4"},
        BadValue{"NegativeSoftcap", "gemma2", "final_logit_softcapping", -1.0, "-1"},
        BadValue{"UnknownActivation", "llama", "hidden_act", "relu", "relu"}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Rope, BadConfigTest,
    ::testing::Values(BadValue{"UnknownType", "llama", "rope_scaling",
                               Scaling({{"rope_type", "spiral"}}), "spiral"},
                      BadValue{"NoFactor", "llama", "rope_scaling",
                               Scaling({{"rope_type", "linear"}}), "factor is missing"},
                      BadValue{"ZeroFactor", "llama", "rope_scaling",
                               Scaling({{"rope_type", "linear"}, {"factor", 0.0}}), "is 0"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ConfigTest, RopeErrorsNameTheKey) {
  const auto equal = Read(With("llama", "rope_scaling",
                               Scaling({{"rope_type", "llama3"},
                                        {"factor", 8.0},
                                        {"low_freq_factor", 4.0},
                                        {"high_freq_factor", 4.0}})));
  EXPECT_THAT(std::string(equal.status().message()), HasSubstr("high_freq_factor is 4"));
  const auto lists = Read(With("phi3", "rope_scaling",
                               Scaling({{"type", "longrope"},
                                        {"short_factor", Json::Array{1.0}},
                                        {"long_factor", Json::Array{1.0}}})));
  EXPECT_THAT(std::string(lists.status().message()),
              HasSubstr("short_factor has 1 entries; it must have 4"));
}

TEST(ConfigTest, SizesMustAgreeWithTheTensors) {
  const auto vocab = Read(With("llama", "vocab_size", 41));
  EXPECT_THAT(std::string(vocab.status().message()),
              HasSubstr("model.embed_tokens.weight has shape [40, 32]"));
  const auto layers = Read(With("llama", "num_hidden_layers", 5));
  EXPECT_THAT(std::string(layers.status().message()),
              HasSubstr("model.layers.4.input_layernorm.weight is missing"));
}

TEST(ConfigTest, HeadsThatDivideNothingNeedAHeadDim) {
  TinyModel model = With("llama", "num_attention_heads", 3);
  model.config.Set("num_key_value_heads", 3);
  EXPECT_THAT(std::string(Read(model).status().message()),
              HasSubstr("does not divide the hidden size 32"));
  model.config.Set("head_dim", 8);
  EXPECT_TRUE(Read(model).ok()) << Read(model).status();
}

absl::StatusOr<ModelConfig> ReadGguf(const TinyModel& model) {
  TempDir dir;
  const std::string path = WriteGguf(model, dir);
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(path));
  return ReadModelConfig(*checkpoint);
}

TEST(ConfigTest, GgufSaysTheSameAsConfigJson) {
  for (const TinyModel& model : TinyModels()) {
    if (!model.has_gguf) continue;
    SCOPED_TRACE(model.name);
    const auto json = Read(model);
    const auto gguf = ReadGguf(model);
    ASSERT_TRUE(json.ok()) << json.status();
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->hidden, json->hidden);
    EXPECT_EQ(gguf->head_dim, json->head_dim);
    EXPECT_EQ(gguf->kv_heads, json->kv_heads);
    EXPECT_EQ(gguf->vocab, json->vocab);
    EXPECT_EQ(gguf->max_context, json->max_context);
    EXPECT_EQ(gguf->tied_head, json->tied_head);
    EXPECT_EQ(gguf->experts, json->experts);
    EXPECT_EQ(gguf->expert_intermediate, json->expert_intermediate);
    EXPECT_EQ(gguf->activation, json->activation);
    EXPECT_EQ(gguf->eos_ids, json->eos_ids);
    EXPECT_EQ(Windows(*gguf), Windows(*json));
    EXPECT_FLOAT_EQ(gguf->attention_scale, json->attention_scale);
    EXPECT_FALSE(gguf->norm_adds_one);
    for (int i = 0; i < json->layers; ++i) {
      EXPECT_EQ(gguf->layer[i].rope, json->layer[i].rope) << i;
      EXPECT_EQ(gguf->layer[i].moe, json->layer[i].moe) << i;
    }
    ASSERT_EQ(gguf->ropes.size(), json->ropes.size());
    for (std::size_t i = 0; i < json->ropes.size(); ++i) {
      const RopeTable ours = BuildRopeTable(gguf->ropes[i], 128),
                      theirs = BuildRopeTable(json->ropes[i], 128);
      EXPECT_FLOAT_EQ(ours.attention_factor, theirs.attention_factor);
      ASSERT_EQ(ours.inv_freq.size(), theirs.inv_freq.size());
      for (std::size_t j = 0; j < ours.inv_freq.size(); ++j) {
        EXPECT_NEAR(ours.inv_freq[j] / theirs.inv_freq[j], 1.0f, 1e-6f) << j;
      }
    }
  }
}

TEST(ConfigTest, GgufErrorsNameTheKey) {
  TempDir dir;
  GgufWriter gguf;
  gguf.SetString("general.architecture", "llama");
  gguf.SetUint32("llama.embedding_length", 32);
  dir.Write("model.gguf", gguf.File());
  auto checkpoint = Checkpoint::Open(dir.File("model.gguf"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(std::string(ReadModelConfig(**checkpoint).status().message()),
              HasSubstr("llama.block_count is missing"));
}

}  // namespace
}  // namespace nibble
