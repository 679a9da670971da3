// The validator: every field of a request, wrong, huge, not a number.
#include "server/wire.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "server/errors.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ServedModel TestModel() {
  ServedModel model;
  model.info.name = "tiny";
  model.info.vocab = kTinyVocab;
  model.info.context = 1000;
  model.defaults.sampling.temperature = 0.7f;
  model.defaults.sampling.top_k = 40;
  auto tokenizer = Tokenizer::FromJson(DumpJson(TinyTokenizer()), "");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  if (tokenizer.ok()) model.tokenizer = *std::move(tokenizer);
  return model;
}

v1::GenerateRequest GoodRequest() {
  v1::GenerateRequest request;
  request.set_text("hello");
  return request;
}

std::vector<std::string> FieldsOf(const absl::Status& status) {
  std::vector<std::string> fields;
  const google::rpc::Status rpc = ToRpcStatus(status);
  for (const auto& detail : rpc.details()) {
    google::rpc::BadRequest bad_request;
    if (!detail.UnpackTo(&bad_request)) continue;
    for (const auto& violation : bad_request.field_violations())
      fields.push_back(violation.field());
  }
  return fields;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct BadField {
  const char* field;
  std::function<void(v1::GenerateRequest&)> spoil;
};

// gtest prints the parameter.
void PrintTo(const BadField& bad, std::ostream* out) { *out << bad.field; }

#define SPOIL(path, expression)                      \
  BadField {                                         \
    path, [](v1::GenerateRequest& r) { expression; } \
  }

class BadFieldTest : public ::testing::TestWithParam<BadField> {};

TEST_P(BadFieldTest, IsRefusedByName) {
  v1::GenerateRequest request = GoodRequest();
  GetParam().spoil(request);

  const absl::StatusOr<Request> result = ValidateGenerate(request, TestModel());

  ASSERT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(FieldsOf(result.status()), ElementsAre(GetParam().field));
  EXPECT_EQ(ErrorReasonOf(result.status()), "INVALID_FIELD");
}

INSTANTIATE_TEST_SUITE_P(
    Prompt, BadFieldTest,
    ::testing::Values(SPOIL("prompt", r.clear_text()), SPOIL("text", r.set_text("")),
                      SPOIL("text", r.set_text(std::string("a\0b", 3))),
                      SPOIL("tokens.ids", r.mutable_tokens()),
                      SPOIL("tokens.ids[0]", r.mutable_tokens()->add_ids(kTinyVocab)),
                      SPOIL("tokens.ids[0]", r.mutable_tokens()->add_ids(0xFFFFFFFF)),
                      SPOIL("chat.messages", r.mutable_chat()),
                      SPOIL("chat.messages[0].role",
                            r.mutable_chat()->add_messages()->set_content("x")),
                      SPOIL("truncate_prompt_tokens", r.set_truncate_prompt_tokens(0)),
                      SPOIL("request_id", r.set_request_id(std::string(129, 'x'))),
                      SPOIL("request_id", r.set_request_id("a\nb")),
                      SPOIL("cache_salt", r.set_cache_salt(std::string(129, 'x'))),
                      SPOIL("tenant", r.set_tenant(std::string(129, 'x')))));

INSTANTIATE_TEST_SUITE_P(
    Sampling, BadFieldTest,
    ::testing::Values(
        SPOIL("sampling.temperature", r.mutable_sampling()->set_temperature(kNan)),
        SPOIL("sampling.temperature", r.mutable_sampling()->set_temperature(kInf)),
        SPOIL("sampling.temperature", r.mutable_sampling()->set_temperature(-kInf)),
        SPOIL("sampling.temperature", r.mutable_sampling()->set_temperature(-0.0f)),
        SPOIL("sampling.temperature", r.mutable_sampling()->set_temperature(-1)),
        SPOIL("sampling.temperature", r.mutable_sampling()->set_temperature(101)),
        SPOIL("sampling.top_p", r.mutable_sampling()->set_top_p(kNan)),
        SPOIL("sampling.top_p", r.mutable_sampling()->set_top_p(0)),
        SPOIL("sampling.top_p", r.mutable_sampling()->set_top_p(1.0001f)),
        SPOIL("sampling.min_p", r.mutable_sampling()->set_min_p(kNan)),
        SPOIL("sampling.min_p", r.mutable_sampling()->set_min_p(-0.1f)),
        SPOIL("sampling.min_p", r.mutable_sampling()->set_min_p(1.1f)),
        SPOIL("sampling.repetition_penalty", r.mutable_sampling()->set_repetition_penalty(kNan)),
        SPOIL("sampling.repetition_penalty", r.mutable_sampling()->set_repetition_penalty(0)),
        SPOIL("sampling.repetition_penalty", r.mutable_sampling()->set_repetition_penalty(-1)),
        SPOIL("sampling.repetition_penalty", r.mutable_sampling()->set_repetition_penalty(1e38f)),
        SPOIL("sampling.presence_penalty", r.mutable_sampling()->set_presence_penalty(kNan)),
        SPOIL("sampling.presence_penalty", r.mutable_sampling()->set_presence_penalty(1e30f)),
        SPOIL("sampling.frequency_penalty", r.mutable_sampling()->set_frequency_penalty(kNan)),
        SPOIL("sampling.frequency_penalty", r.mutable_sampling()->set_frequency_penalty(-kInf)),
        SPOIL("sampling.logit_bias[7]", (*r.mutable_sampling()->mutable_logit_bias())[7] = kNan),
        SPOIL("sampling.logit_bias[7]", (*r.mutable_sampling()->mutable_logit_bias())[7] = kInf),
        SPOIL("sampling.logit_bias[260]", (*r.mutable_sampling()->mutable_logit_bias())[260] = 1),
        SPOIL("sampling.logit_bias[4294967295]",
              (*r.mutable_sampling()->mutable_logit_bias())[0xFFFFFFFF] = 1)));

INSTANTIATE_TEST_SUITE_P(
    StoppingAndOutput, BadFieldTest,
    ::testing::Values(
        SPOIL("stopping.min_tokens", r.mutable_stopping()->set_min_tokens(0xFFFFFFFF)),
        SPOIL("stopping.min_tokens",
              (r.mutable_stopping()->set_min_tokens(9), r.mutable_stopping()->set_max_tokens(8))),
        SPOIL("stopping.stop_strings[0]", r.mutable_stopping()->add_stop_strings("")),
        SPOIL("stopping.stop_strings[0]",
              r.mutable_stopping()->add_stop_strings(std::string(1 << 20, 'x'))),
        SPOIL("stopping.stop_strings",
              for (int i = 0; i < 10000; ++i) r.mutable_stopping()->add_stop_strings("x")),
        SPOIL("stopping.stop_token_ids[0]", r.mutable_stopping()->add_stop_token_ids(kTinyVocab)),
        SPOIL("stopping.stop_token_ids",
              for (int i = 0; i < 1000; ++i) r.mutable_stopping()->add_stop_token_ids(1)),
        SPOIL("stopping.max_duration", r.mutable_stopping()->mutable_max_duration()),
        SPOIL("stopping.max_duration",
              r.mutable_stopping()->mutable_max_duration()->set_seconds(-1)),
        SPOIL("stopping.max_duration",
              r.mutable_stopping()->mutable_max_duration()->set_seconds(INT64_MAX)),
        SPOIL("stopping.max_duration",
              r.mutable_stopping()->mutable_max_duration()->set_nanos(INT32_MIN)),
        SPOIL("stopping.max_duration",
              (r.mutable_stopping()->mutable_max_duration()->set_seconds(10),
               r.mutable_stopping()->mutable_max_duration()->set_nanos(INT32_MIN))),
        SPOIL("stopping.max_duration",
              r.mutable_stopping()->mutable_max_duration()->set_seconds(INT64_MIN)),
        SPOIL("output.num_outputs", r.mutable_output()->set_num_outputs(0)),
        SPOIL("output.num_outputs", r.mutable_output()->set_num_outputs(129)),
        SPOIL("output.num_outputs", r.mutable_output()->set_num_outputs(0xFFFFFFFF)),
        SPOIL("output.top_logprobs", r.mutable_output()->set_top_logprobs(21)),
        SPOIL("output.top_logprobs", r.mutable_output()->set_top_logprobs(0x80000000)),
        SPOIL("output.prompt_top_logprobs", r.mutable_output()->set_prompt_top_logprobs(21))));

TEST(ValidateGenerateTest, UnsetFieldsTakeTheModelsDefaults) {
  const absl::StatusOr<Request> request = ValidateGenerate(GoodRequest(), TestModel());

  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FLOAT_EQ(request->sampling.temperature, 0.7f);
  EXPECT_EQ(request->sampling.top_k, 40);
  EXPECT_EQ(request->sampling.top_logprobs, -1);
  EXPECT_FALSE(request->stopping.max_tokens.has_value());
  EXPECT_EQ(request->output.num_outputs, 1u);
}

TEST(ValidateGenerateTest, ZeroIsAValueWhereTheModelHasADefault) {
  v1::GenerateRequest proto = GoodRequest();
  proto.mutable_sampling()->set_temperature(0);
  proto.mutable_sampling()->set_top_k(0);
  proto.mutable_stopping()->set_max_tokens(0);

  const absl::StatusOr<Request> request = ValidateGenerate(proto, TestModel());

  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(IsGreedy(request->sampling));
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->stopping.max_tokens, 0u);
}

TEST(ValidateGenerateTest, HugeButHarmlessValuesAreClamped) {
  v1::GenerateRequest proto = GoodRequest();
  proto.mutable_sampling()->set_top_k(9'999'999);
  proto.mutable_sampling()->set_temperature(1e-6f);
  proto.mutable_stopping()->set_max_tokens(0xFFFFFFFF);
  proto.mutable_sampling()->set_seed(0xFFFFFFFFFFFFFFFF);

  const absl::StatusOr<Request> request = ValidateGenerate(proto, TestModel());

  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_TRUE(IsGreedy(request->sampling));
  EXPECT_EQ(request->stopping.max_tokens, 1000u);
  EXPECT_EQ(request->sampling.seed, 0xFFFFFFFFFFFFFFFF);
}

TEST(ValidateGenerateTest, UnsetSeedsDiffer) {
  const ServedModel model = TestModel();
  EXPECT_NE(ValidateGenerate(GoodRequest(), model)->sampling.seed,
            ValidateGenerate(GoodRequest(), model)->sampling.seed);
}

TEST(ValidateGenerateTest, DefaultMaxTokensBindsMinTokens) {
  ServedModel model = TestModel();
  model.defaults.max_tokens = 10;
  v1::GenerateRequest proto = GoodRequest();
  EXPECT_EQ(ValidateGenerate(proto, model)->stopping.max_tokens, 10u);

  proto.mutable_stopping()->set_min_tokens(11);
  EXPECT_THAT(FieldsOf(ValidateGenerate(proto, model).status()),
              ElementsAre("stopping.min_tokens"));
}

TEST(ValidateGenerateTest, ConstraintIsUnimplemented) {
  v1::GenerateRequest proto = GoodRequest();
  proto.mutable_constraint()->set_regex("a+");
  EXPECT_EQ(ValidateGenerate(proto, TestModel()).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(ValidateGenerateTest, ListsAtMostSixteenViolationsInFourKilobytes) {
  v1::GenerateRequest proto = GoodRequest();
  for (int i = 0; i < 5000; ++i) proto.mutable_tokens()->add_ids(0xFFFFFFFF);
  proto.set_request_id(std::string(4000, '\x01'));

  const absl::Status status = ValidateGenerate(proto, TestModel()).status();

  EXPECT_EQ(FieldsOf(status).size(), 16u);
  EXPECT_LT(ToRpcStatus(status).ByteSizeLong(), kMaxErrorBytes);
  EXPECT_THAT(std::string(status.message()), HasSubstr("more"));
}

TEST(PreparePromptTest, KeepsOnlyTheLastTokensWhenAsked) {
  v1::GenerateRequest proto = GoodRequest();
  proto.set_truncate_prompt_tokens(2);

  const auto prompt = PreparePrompt(proto, TestModel(), absl::UnixEpoch());

  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_THAT(*prompt, ElementsAre('l', 'o'));
}

TEST(PreparePromptTest, SpellingASpecialTokenIsPlainTextUnlessAsked) {
  v1::GenerateRequest proto;
  proto.set_text("</s>");
  const ServedModel model = TestModel();
  EXPECT_EQ(PreparePrompt(proto, model, absl::UnixEpoch())->size(), 4u);

  proto.set_parse_special_tokens(true);
  EXPECT_THAT(*PreparePrompt(proto, model, absl::UnixEpoch()), ElementsAre(257));
}

TEST(PreparePromptTest, ChatWithoutATemplateIsAPrecondition) {
  v1::GenerateRequest proto;
  proto.mutable_chat()->add_messages()->set_role("user");

  const absl::Status status = PreparePrompt(proto, TestModel(), absl::UnixEpoch()).status();

  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReasonOf(status), "NO_CHAT_TEMPLATE");
}

TEST(ChatVariablesTest, BuildsWhatTemplatesExpect) {
  v1::Chat chat;
  v1::ChatMessage* message = chat.add_messages();
  message->set_role("assistant");
  v1::ToolCall* call = message->add_tool_calls();
  call->set_id("c1");
  call->set_name("add");
  call->set_arguments_json(R"({"a": 1})");
  chat.add_tools_json(R"({"type": "function"})");
  chat.set_template_variables_json(R"({"enable_thinking": false, "n": 12345678901})");

  const absl::StatusOr<Json> variables = ChatVariables(chat);

  ASSERT_TRUE(variables.ok()) << variables.status();
  EXPECT_EQ(
      DumpJson(*variables->Find("messages")),
      R"([{"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", )"
      R"("function": {"name": "add", "arguments": {"a": 1}}}]}])");
  EXPECT_EQ(DumpJson(*variables->Find("tools")), R"([{"type": "function"}])");
  EXPECT_EQ(DumpJson(*variables->Find("n")), "12345678901");
  EXPECT_TRUE(variables->Find("add_generation_prompt")->AsBool());
}

TEST(ChatVariablesTest, BadJsonNamesItsField) {
  v1::Chat chat;
  chat.add_messages()->set_role("user");
  chat.add_tools_json("[1]");
  EXPECT_THAT(FieldsOf(ChatVariables(chat).status()), ElementsAre("chat.tools_json[0]"));

  chat.clear_tools_json();
  chat.set_template_variables_json(std::string(100'000, '['));
  EXPECT_THAT(FieldsOf(ChatVariables(chat).status()), ElementsAre("chat.template_variables_json"));

  chat.set_template_variables_json(R"({"messages": []})");
  EXPECT_THAT(FieldsOf(ChatVariables(chat).status()), ElementsAre("chat.template_variables_json"));
}

TEST(ApplyLoadOptionsTest, NamesEveryWrongField) {
  v1::LoadOptions options;
  options.set_kv_memory_bytes(-1);
  options.set_max_context(0);
  options.set_kv_dtype("f64");
  options.set_quantize("int3");
  options.set_default_max_tokens(0);
  LoadSpec spec;
  EXPECT_THAT(FieldsOf(ApplyLoadOptions(options, &spec)),
              ElementsAre("options.kv_memory_bytes", "options.max_context", "options.kv_dtype",
                          "options.quantize", "options.default_max_tokens"));
}

TEST(ApplyLoadOptionsTest, TakesWhatTheFlagsTake) {
  v1::LoadOptions options;
  options.set_kv_memory_bytes(1 << 20);
  options.set_max_queue(7);
  options.set_admission("reserved");
  options.set_default_max_tokens(5);
  LoadSpec spec;
  ASSERT_TRUE(ApplyLoadOptions(options, &spec).ok());
  EXPECT_EQ(spec.plan.kv_bytes, 1 << 20);
  EXPECT_EQ(spec.max_queue, 7);
  EXPECT_EQ(spec.admission, Admission::kReserved);
  EXPECT_EQ(spec.default_max_tokens, 5u);
}

}  // namespace
}  // namespace nibble
