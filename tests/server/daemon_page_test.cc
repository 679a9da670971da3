// The page's end of a whole daemon: what /status says, and POST /prompt, which takes the same path
// as gRPC and leaves nothing behind.
#include "tests/server/daemon_test.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class PageTest : public DaemonTest {};

TEST_F(PageTest, StatusFollowsALoad) {
  ASSERT_NO_FATAL_FAILURE(Open({"tiny=" + MakeModel("tiny")}));
  const auto status = [this] { return Get(daemon_->http_address(), "/status"); };
  EXPECT_THAT(status(), HasSubstr("\"state\": \"loading\""));
  EXPECT_THAT(status(), HasSubstr("\"ready\": false"));
  std::string while_loading;
  const auto report = [&](const std::string&, const std::string& stage, std::int64_t,
                          std::int64_t) {
    if (stage == "weights") while_loading = status();
  };
  ASSERT_TRUE(daemon_->LoadModels(report).ok());
  EXPECT_THAT(while_loading, HasSubstr("\"progress\": {\"stage\": \"weights\""));
  const std::string loaded = status();
  EXPECT_THAT(loaded, HasSubstr("\"state\": \"serving\""));
  EXPECT_THAT(loaded, HasSubstr("\"ready\": true"));
  EXPECT_THAT(loaded, Not(HasSubstr("\"progress\"")));
  EXPECT_TRUE(ParseJson(loaded.substr(loaded.find("\r\n\r\n"))).ok()) << loaded;
}

TEST_F(PageTest, StatusCountsWhatClientsAsked) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  ASSERT_TRUE(Generate(Ask("hello", 7)).status.ok());
  v1::GenerateRequest bad = Ask("hello", 7);
  bad.mutable_sampling()->set_top_p(7);
  EXPECT_FALSE(Generate(bad).status.ok());
  bad.set_model("absent");
  EXPECT_FALSE(Generate(bad).status.ok());
  const std::string page = Get(daemon_->http_address(), "/status");
  const auto status = ParseJson(page.substr(page.find("\r\n\r\n")));
  ASSERT_TRUE(status.ok()) << status.status();
  const Json& model = status->Find("models")->AsArray()[0];
  EXPECT_EQ(model.Find("output_tokens")->AsInt64(), 7);
  EXPECT_EQ(model.Find("inter_token")->Find("count")->AsInt64(), 6);
  EXPECT_EQ(model.Find("inter_token")->Find("le")->AsArray().size(),
            model.Find("inter_token")->Find("cumulative")->AsArray().size());
  EXPECT_EQ(model.Find("outcomes")->AsArray().size(), 2u);
  EXPECT_EQ(model.Find("planned")->Find("weights")->AsInt64(),
            daemon_->hub().List()[0].model->info.plan.weights_bytes);
  EXPECT_EQ(status->Find("unknown_model")->AsArray()[0].Find("reason")->AsString(),
            "MODEL_NOT_FOUND");
}

class PromptTest : public DaemonTest {
 protected:
  static std::string Post(const std::string& body, const std::string& more = "") {
    return absl::StrCat("POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Nibble-Prompt: 1\r\n",
                        "Content-Type: application/json\r\n", more, "Content-Length: ", body.size(),
                        "\r\n\r\n", body);
  }
  std::string Ask(const std::string& body) {
    return Exchange(daemon_->http_address(), Post(body, "Connection: close\r\n"));
  }
  double Requests(const std::string& code, const std::string& reason) {
    return Metric("nibble_requests_total{code=\"" + code + "\",model=\"tiny\",reason=\"" + reason +
                  "\"}");
  }
};

TEST_F(PromptTest, AnswersAsGrpcDoes) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--http-prompt"}));
  const std::string answer = Ask(
      R"({"text": "hello", "sampling": {"temperature": 0}, "stopping": {"max_tokens": 5, "ignore_eos": true}})");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/event-stream"));
  EXPECT_THAT(answer, HasSubstr("data: {\"started\":{"));
  EXPECT_THAT(answer, HasSubstr("\"reason\":\"FINISH_REASON_LENGTH\""));
  EXPECT_THAT(answer, HasSubstr("\"completion_tokens\":5"));
  EXPECT_EQ(Metric("nibble_output_tokens_total{model=\"tiny\"}"), 5);
  EXPECT_EQ(Requests("OK", "NONE"), 1);
}

TEST_F(PromptTest, RefusalsHaveStatusesAndAreCounted) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--http-prompt"}));
  EXPECT_THAT(Ask("{"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Ask(R"({"text": ""})"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Ask(R"({"text": "x", "model": "absent"})"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Ask(R"({"text": "x", "sampling": {"top_p": 7}})"), HasSubstr("sampling.top_p"));
  EXPECT_EQ(Requests("INVALID_ARGUMENT", "MALFORMED_MESSAGE"), 1);
  EXPECT_EQ(Requests("INVALID_ARGUMENT", "INVALID_FIELD"), 2);
  EXPECT_THAT(Exchange(daemon_->http_address(),
                       "POST /prompt HTTP/1.1\r\nHost: evil.example\r\nX-Nibble-Prompt: 1\r\n"
                       "Content-Type: application/json\r\nConnection: close\r\n\r\n"),
              StartsWith("HTTP/1.1 403"));
}

TEST_F(PromptTest, LeavingCancelsAndFreesTheCache) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--http-prompt"}));
  for (int i = 0; i < 3; ++i) {
    const int client = ConnectTo(daemon_->http_address());
    const std::string request =
        Post(R"({"text": "hi", "stopping": {"max_tokens": 1024, "ignore_eos": true}})");
    ASSERT_GT(send(client, request.data(), request.size(), MSG_NOSIGNAL), 0);
    char first;
    ASSERT_EQ(recv(client, &first, 1, 0), 1);
    close(client);
  }
  EXPECT_TRUE(Eventually([&] { return Requests("CANCELLED", "CANCELLED") == 3; }));
  EXPECT_TRUE(Eventually([&] { return AllBlocksFree(); }));
}

TEST_F(PromptTest, DrainingEndsAnswersInOrder) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--http-prompt"}));
  const int client = ConnectTo(daemon_->http_address());
  const std::string request =
      Post(R"({"text": "hi", "stopping": {"max_tokens": 1024, "ignore_eos": true}})");
  ASSERT_GT(send(client, request.data(), request.size(), MSG_NOSIGNAL), 0);
  char first;
  ASSERT_EQ(recv(client, &first, 1, 0), 1);
  daemon_->Stop();
  EXPECT_THAT(Ask(R"({"text": "x"})"), StartsWith("HTTP/1.1 503"));
  daemon_->Drain(absl::Seconds(20));
  daemon_.reset();
  std::string all;
  char buffer[4096];
  for (ssize_t got; (got = recv(client, buffer, sizeof(buffer), 0)) > 0;)
    all.append(buffer, static_cast<std::size_t>(got));
  EXPECT_THAT(all, HasSubstr("\"finished\":{"));
  EXPECT_THAT(all, Not(HasSubstr("event: error")));
  close(client);
}

TEST_F(PromptTest, IsOffUnlessAskedFor) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  EXPECT_THAT(Ask(R"({"text": "x"})"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Get(daemon_->http_address(), "/status"), HasSubstr("\"prompt\": false"));
}

}  // namespace
}  // namespace nibble
