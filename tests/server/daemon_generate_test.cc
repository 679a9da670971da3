// One request from a client's side: events, errors, cancels, deadlines, and what the metrics say
// afterwards.
#include <cmath>
#include <map>
#include <mutex>
#include <thread>

#include "grpcpp/generic/generic_stub.h"
#include "tests/server/daemon_test.h"

namespace nibble {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using GenerateTest = DaemonTest;

TEST_F(GenerateTest, EventsComeInOrder) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::GenerateRequest request = Ask("hello", 5);
  request.set_request_id("label");
  request.mutable_output()->set_num_outputs(2);
  request.mutable_output()->set_output_token_ids(true);
  request.mutable_output()->set_prompt_token_ids(true);
  request.mutable_output()->set_top_logprobs(2);
  request.mutable_output()->set_prompt_top_logprobs(1);

  const Answer answer = Generate(request);

  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_FALSE(answer.events.empty());
  EXPECT_EQ(answer.events[0].started().request_id(), "label");
  EXPECT_EQ(answer.events[0].started().model(), "tiny");
  EXPECT_EQ(answer.events[0].started().prompt_tokens(), 5u);
  std::vector<std::uint32_t> prompt, tokens(2), finished;
  bool chunk_seen = false;
  for (std::size_t i = 1; i < answer.events.size(); ++i) {
    const v1::GenerateResponse& event = answer.events[i];
    EXPECT_FALSE(event.has_started());
    if (event.has_prompt()) {
      EXPECT_FALSE(chunk_seen);
      prompt.insert(prompt.end(), event.prompt().token_ids().begin(),
                    event.prompt().token_ids().end());
    }
    if (event.has_chunk()) {
      chunk_seen = true;
      const auto index = event.chunk().output_index();
      ASSERT_LT(index, 2u);
      EXPECT_THAT(finished, ::testing::Not(Contains(index)));
      tokens[index] += static_cast<std::uint32_t>(event.chunk().token_ids_size());
      EXPECT_EQ(event.chunk().logprobs_size(), event.chunk().token_ids_size());
    }
    if (event.has_finished()) {
      EXPECT_EQ(event.finished().reason(), v1::FINISH_REASON_LENGTH);
      EXPECT_EQ(event.finished().completion_tokens(), 5u);
      finished.push_back(event.finished().output_index());
    }
  }
  EXPECT_THAT(prompt, ElementsAre('h', 'e', 'l', 'l', 'o'));
  EXPECT_THAT(tokens, ElementsAre(5u, 5u));
  EXPECT_THAT(finished, ::testing::UnorderedElementsAre(0u, 1u));
}

TEST_F(GenerateTest, EveryPromptKindAnswersTheSame) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::GenerateRequest text = Ask("<|turn|>user:hi\n<|turn|>assistant:", 8);
  text.set_parse_special_tokens(true);
  v1::GenerateRequest chat = Ask("", 8);
  v1::ChatMessage* message = chat.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  v1::TokenizeRequest tokenize;
  *tokenize.mutable_chat() = chat.chat();
  v1::TokenizeResponse ids;
  grpc::ClientContext context;
  ASSERT_TRUE(generation_->Tokenize(&context, tokenize, &ids).ok());
  v1::GenerateRequest tokens = Ask("", 8);
  for (const std::uint32_t id : ids.token_ids()) tokens.mutable_tokens()->add_ids(id);

  const std::string expected = Generate(text).text;

  EXPECT_EQ(ids.token_ids(0), 258u);
  EXPECT_EQ(Generate(chat).text, expected);
  EXPECT_EQ(Generate(tokens).text, expected);
}

TEST_F(GenerateTest, AContinuedMessageEndsWhereItsTextDoes) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::TokenizeRequest request;
  for (const auto& [role, content] : {std::pair{"user", "hi"}, std::pair{"assistant", "Roses"}}) {
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
  }
  request.mutable_chat()->set_continue_last_message(true);
  v1::TokenizeResponse ids;
  grpc::ClientContext first, second;
  ASSERT_TRUE(generation_->Tokenize(&first, request, &ids).ok());
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = ids.token_ids();
  detokenize.set_keep_special_tokens(true);
  v1::DetokenizeResponse text;
  ASSERT_TRUE(generation_->Detokenize(&second, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "<|turn|>user:hi\n<|turn|>assistant:Roses");
}

TEST_F(GenerateTest, WhatIsTooLongToTokenizeAtOnceIsTheRequestsFault) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::TokenizeRequest tokenize;
  for (int i = 0; i < 1'100'000; ++i)
    tokenize.mutable_text()->append("\xC3\xAF");  // 4 bytes of ids
  v1::TokenizeResponse ids;
  grpc::ClientContext first, second;
  const grpc::Status text = generation_->Tokenize(&first, tokenize, &ids);
  EXPECT_EQ(text.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << text.error_message();
  EXPECT_THAT(DetailsOf(text).fields, ElementsAre("text"));
  EXPECT_EQ(DetailsOf(text).reason, "INVALID_FIELD");
  EXPECT_THAT(text.error_message(), HasSubstr("in parts"));

  v1::DetokenizeRequest detokenize;
  detokenize.set_keep_special_tokens(true);
  for (int i = 0; i < 1'000'000; ++i) detokenize.add_token_ids(kTinyVocab - 1);
  v1::DetokenizeResponse response;
  const grpc::Status detokenized = generation_->Detokenize(&second, detokenize, &response);
  EXPECT_EQ(detokenized.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(DetailsOf(detokenized).fields, ElementsAre("token_ids"));
}

TEST_F(GenerateTest, DetokenizeInvertsTokenize) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::TokenizeRequest tokenize;
  tokenize.set_text("na\xC3\xAFve \xF0\x9F\x98\x80");
  v1::TokenizeResponse ids;
  grpc::ClientContext first, second;
  ASSERT_TRUE(generation_->Tokenize(&first, tokenize, &ids).ok());
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(generation_->Detokenize(&second, detokenize, &text).ok());
  EXPECT_EQ(text.text(), tokenize.text());
  EXPECT_EQ(text.model(), "tiny");

  detokenize.add_token_ids(kTinyVocab);
  grpc::ClientContext third;
  const grpc::Status status = generation_->Detokenize(&third, detokenize, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

struct Refusal {
  grpc::StatusCode code;
  std::string reason;
  std::vector<std::string> fields;
};

class RefusalTest : public DaemonTest {
 protected:
  void ExpectRefused(const v1::GenerateRequest& request, const Refusal& expected) {
    const Answer answer = Generate(request);
    const ErrorDetails details = DetailsOf(answer.status);
    EXPECT_EQ(answer.status.error_code(), expected.code) << answer.status.error_message();
    EXPECT_EQ(details.reason, expected.reason);
    EXPECT_EQ(details.fields, expected.fields);
    EXPECT_TRUE(answer.events.empty());
  }
};

TEST_F(RefusalTest, SaysWhatIsWrong) {
  MakeModel("plain", {.chat_template = false});
  ASSERT_NO_FATAL_FAILURE(Serve({"plain=" + models_.File("plain")}));
  v1::GenerateRequest request = Ask("x", 1);
  request.mutable_sampling()->set_top_p(NAN);
  ExpectRefused(request, {grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", {"sampling.top_p"}});

  request = Ask(std::string(kTinyContext + 1, 'x'), 1);
  ExpectRefused(request, {grpc::StatusCode::INVALID_ARGUMENT, "CONTEXT_EXCEEDED", {"text"}});

  request = Ask("x", 1);
  request.set_model("absent");
  ExpectRefused(request, {grpc::StatusCode::NOT_FOUND, "MODEL_NOT_FOUND", {}});
  request.set_model(std::string(100'000, 'm'));
  ExpectRefused(request, {grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", {"model"}});

  request = Ask("x", 1);
  request.mutable_constraint()->set_regex("a");
  ExpectRefused(request, {grpc::StatusCode::UNIMPLEMENTED, "UNSUPPORTED", {}});

  request = Ask("", 1);
  request.mutable_chat()->add_messages()->set_role("refuse");
  request.set_model("tiny");
  ExpectRefused(request, {grpc::StatusCode::INVALID_ARGUMENT, "CHAT_TEMPLATE_REFUSED", {"chat"}});
  request.set_model("plain");
  ExpectRefused(request, {grpc::StatusCode::FAILED_PRECONDITION, "NO_CHAT_TEMPLATE", {}});
}

// A small KV pool shortens the context, and the refusal says so in numbers.
TEST_F(RefusalTest, WhatCanNeverFitIsRefusedWithNumbers) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--kv-memory=1MiB"}));
  const Answer answer = Generate(Ask(std::string(5000, 'x'), 1));
  EXPECT_THAT(answer.status.error_code(), ::testing::AnyOf(grpc::StatusCode::INVALID_ARGUMENT,
                                                           grpc::StatusCode::FAILED_PRECONDITION));
  EXPECT_THAT(DetailsOf(answer.status).reason,
              ::testing::AnyOf("CONTEXT_EXCEEDED", "EXCEEDS_KV_POOL"));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("5000"));
  EXPECT_FALSE(DetailsOf(answer.status).retry);
  EXPECT_TRUE(AllBlocksFree());
}

// Sends bytes that no stub would.
grpc::Status SendRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& bytes) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::Status status;
  const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  call->Finish(&response, &status, &status);
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  return status;
}

TEST_F(RefusalTest, BytesThatDoNotParseAreInvalid) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::GenerateRequest request = Ask("XX", 1);
  std::string bad_text = request.SerializeAsString();
  bad_text.replace(bad_text.find("XX"), 2, "\xFF\xFE");
  for (const char* method : {"Generate", "Tokenize"}) {
    const std::string path = std::string("/nibble.v1.GenerationService/") + method;
    const grpc::Status status = SendRaw(channel_, path, bad_text);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(DetailsOf(status).fields, ElementsAre("text"));
    EXPECT_EQ(SendRaw(channel_, path, "\xFF\xFF\xFF").error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  EXPECT_EQ(SendRaw(channel_, "/nibble.v1.GenerationService/Generate", std::string(5 << 20, 'x'))
                .error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(SendRaw(channel_, "/nibble.v1.GenerationService/Absent", "").error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Generate(Ask("still here", 1)).status.ok());
}

TEST_F(RefusalTest, CompressedRequestsAreRefusedBeforeTheyInflate) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  const Answer answer = Generate(Ask(std::string(3 << 20, 'x'), 1), &context);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Generate(Ask("still here", 1)).status.ok());
}

// gRPC retries a call only when its refusal is Trailers-Only, so a retried refusal is the proof
// that it was.
TEST_F(RefusalTest, RefusalsAreTrailersOnly) {
  ASSERT_NO_FATAL_FAILURE(Open({"tiny=" + MakeModel("tiny")}));  // not loaded: UNAVAILABLE
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(
      R"({"methodConfig": [{"name": [{"service": "nibble.v1.GenerationService"}],
      "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.02s", "backoffMultiplier": 1,
                      "retryableStatusCodes": ["UNAVAILABLE"]}}]})");
  generation_ = v1::GenerationService::NewStub(Connect(daemon_->grpc_address(), arguments));
  std::thread loader([this] {
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_TRUE(daemon_->LoadModels(nullptr).ok());
  });

  const Answer answer = Generate(Ask("hello", 2));

  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  loader.join();
}

TEST_F(GenerateTest, WhileTheModelLoadsRequestsAreUnavailable) {
  ASSERT_NO_FATAL_FAILURE(Open({"tiny=" + MakeModel("tiny")}));
  const Answer answer = Generate(Ask("hello", 2));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(answer.status).reason, "MODEL_LOADING");
  EXPECT_TRUE(DetailsOf(answer.status).retry);
}

TEST_F(GenerateTest, CancelFreesTheBlocks) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  for (const std::size_t after : {1u, 2u, 20u}) {
    grpc::ClientContext context;
    std::size_t seen = 0;
    const Answer answer = Generate(Ask("hello", 15000), &context, [&](const v1::GenerateResponse&) {
      if (++seen == after) context.TryCancel();
    });
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Eventually([this] { return AllBlocksFree(); }));
}

TEST_F(GenerateTest, DeadlinesEndTheRequest) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  for (const absl::Duration deadline :
       {absl::ZeroDuration(), absl::Milliseconds(1), absl::Milliseconds(200)}) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    EXPECT_EQ(Generate(Ask("hello", 15000), &context).status.error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Hours(24 * 365 * 10)));
  EXPECT_TRUE(Generate(Ask("hello", 2), &context).status.ok());
  EXPECT_TRUE(Eventually([this] { return AllBlocksFree(); }));
}

TEST_F(GenerateTest, ASlowReaderIsAbortedAndANeighbourIsNot) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  // Windows that do not grow, so that the client's end takes little.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  const auto slow = v1::GenerationService::NewStub(Connect(daemon_->grpc_address(), arguments));
  v1::GenerateRequest greedy_reader = Ask("hello", 15000);
  greedy_reader.mutable_output()->set_top_logprobs(20);
  grpc::ClientContext context;
  const auto unread =
      slow->Generate(&context, greedy_reader);  // nothing is read until it has ended

  const std::string expected = Generate(Ask("canary", 50)).text;
  EXPECT_TRUE(Eventually([&] {
    return Metric(
               "nibble_requests_total{code=\"ABORTED\",model=\"tiny\",reason=\"SLOW_CONSUMER\"}") ==
           1;
  }));
  EXPECT_EQ(Generate(Ask("canary", 50)).text, expected);

  v1::GenerateResponse event;
  while (unread->Read(&event)) {
  }
  const grpc::Status status = unread->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(status).reason, "SLOW_CONSUMER");
  EXPECT_TRUE(Eventually([this] { return AllBlocksFree(); }));
}

TEST_F(GenerateTest, NoResponseExceedsOneMegabyte) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::GenerateRequest request = Ask("hello", 6000);
  request.mutable_output()->set_top_logprobs(20);
  request.mutable_output()->set_output_token_ids(true);
  request.mutable_output()->set_final_only(true);

  const Answer answer = Generate(request);

  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.token_ids.size(), 6000u);
  std::size_t chunks = 0;
  for (const v1::GenerateResponse& event : answer.events) {
    EXPECT_LE(event.ByteSizeLong(), std::size_t{1} << 20);
    EXPECT_EQ(event.chunk().logprobs_size(), event.chunk().token_ids_size());
    chunks += event.has_chunk();
  }
  EXPECT_GT(chunks, 1u);   // it did exceed it
  EXPECT_LT(chunks, 20u);  // and came at its end
}

// What the clients counted is what the server counted, exactly.
TEST_F(GenerateTest, MetricsEqualWhatClientsCounted) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--max-queue=4"}));
  constexpr int kClients = 8, kRequests = 12;
  std::mutex mutex;
  std::map<std::string, int> statuses;
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < kRequests; ++i) {
        v1::GenerateRequest request = Ask("prompt", 40);
        grpc::ClientContext context;
        const int kind = (client + i) % 4;
        if (kind == 1) request.mutable_sampling()->set_temperature(-1);
        if (kind == 2) request.mutable_stopping()->set_max_tokens(15000);
        if (kind == 3) request.mutable_output()->set_num_outputs(3);
        const Answer answer = Generate(request, &context, [&](const v1::GenerateResponse& event) {
          if (kind == 2 && event.has_chunk()) context.TryCancel();
        });
        const std::string reason = answer.status.error_code() == grpc::StatusCode::CANCELLED
                                       ? "CANCELLED"
                                   : answer.status.ok() ? "NONE"
                                                        : DetailsOf(answer.status).reason;
        static const std::map<grpc::StatusCode, std::string> kNames{
            {grpc::StatusCode::OK, "OK"},
            {grpc::StatusCode::CANCELLED, "CANCELLED"},
            {grpc::StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT"},
            {grpc::StatusCode::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"}};
        const std::lock_guard lock(mutex);
        ++statuses["nibble_requests_total{code=\"" + kNames.at(answer.status.error_code()) +
                   "\",model=\"tiny\",reason=\"" + reason + "\"}"];
      }
    });
  }
  for (std::thread& client : clients) client.join();

  int total = 0;
  for (const auto& [series, count] : statuses) {
    EXPECT_TRUE(Eventually([&, &name = series, &expected = count] {
      return Metric(name) == expected;
    })) << series
        << " is " << Metric(series) << ", clients counted " << count;
    total += count;
  }
  EXPECT_EQ(total, kClients * kRequests);
  EXPECT_GE(statuses.size(), 3u);
  EXPECT_TRUE(Eventually([this] { return AllBlocksFree(); }));
}

}  // namespace
}  // namespace nibble
