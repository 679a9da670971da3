#include "server/http_prompt.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

HttpHead GoodHead() {
  return {.host = "127.0.0.1:8080",
          .origin = "http://127.0.0.1:8080",
          .fetch_site = "same-origin",
          .content_type = "application/json",
          .prompt_header = "1"};
}

absl::Status CheckHost(const std::string& host) {
  HttpHead head = GoodHead();
  head.host = host;
  head.origin = "http://" + host;
  return CheckPromptHead(head, {"gpu-1.corp"});
}

TEST(PromptHeadTest, TakesThePageAndCommandLineClients) {
  EXPECT_TRUE(CheckPromptHead(GoodHead(), {}).ok());
  HttpHead curl = GoodHead();
  curl.origin = curl.fetch_site = "";
  curl.content_type = "Application/JSON; charset=utf-8";
  EXPECT_TRUE(CheckPromptHead(curl, {}).ok());
  HttpHead behind_tls = GoodHead();
  behind_tls.origin = "https://127.0.0.1:8080";
  EXPECT_TRUE(CheckPromptHead(behind_tls, {}).ok());
}

TEST(PromptHeadTest, RefusesOtherSites) {
  const auto refuses = [](auto change) {
    HttpHead head = GoodHead();
    change(head);
    return absl::IsPermissionDenied(CheckPromptHead(head, {}));
  };
  EXPECT_TRUE(refuses([](HttpHead& head) { head.prompt_header = ""; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.content_type = "text/plain"; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.content_type = ""; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.fetch_site = "cross-site"; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.fetch_site = "same-site"; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.origin = "http://evil.example"; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.origin = "http://127.0.0.1:80"; }));
  EXPECT_TRUE(refuses([](HttpHead& head) { head.origin = "null"; }));
}

TEST(PromptHeadTest, RefusesNamesThatMayBeMadeToPointHere) {
  for (const char* host : {"127.0.0.1", "10.0.0.7:8080", "[::1]:8080", "[fd00::1]", "localhost:1",
                           "LOCALHOST", "gpu-1.corp:8080", "GPU-1.Corp"}) {
    EXPECT_TRUE(CheckHost(host).ok()) << host;
  }
  for (const char* host :
       {"evil.example:8080", "localhost.evil.example", "gpu-1.corp.evil.example",
        "127.0.0.1.evil.example", "gpu-1", "", ":8080", "[", "[]", "[::1", "[x]"}) {
    EXPECT_FALSE(CheckHost(host).ok()) << host;
  }
  EXPECT_THAT(std::string(CheckHost("nibble.svc").message()),
              HasSubstr("--http-prompt-hosts nibble.svc"));
}

TEST(HostNamesTest, AreNamesWithoutPorts) {
  const auto names = ParseHostNames("Gpu-1.corp, nibble.svc");
  ASSERT_TRUE(names.ok()) << names.status();
  EXPECT_THAT(*names, ElementsAre("gpu-1.corp", "nibble.svc"));
  for (const char* bad : {"a:80", "http://a", "a,,b", "*", "a b"})
    EXPECT_FALSE(ParseHostNames(bad).ok()) << bad;
}

TEST(ParsePromptTest, BoundsWhatIsAsked) {
  const auto unset = ParsePrompt(R"({"text": "hi", "sampling": {"temperature": 0}})");
  ASSERT_TRUE(unset.ok()) << unset.status();
  EXPECT_EQ(unset->stopping().max_tokens(), kDefaultHttpTokens);
  EXPECT_EQ(unset->sampling().temperature(), 0);
  const auto set = ParsePrompt(R"({"chat": {"messages": [{"role": "user", "content": "hi"}]},
                                   "model": "m", "stopping": {"max_tokens": 7}})");
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->stopping().max_tokens(), 7u);
  EXPECT_THAT(
      std::string(
          ParsePrompt(R"({"text": "x", "stopping": {"max_tokens": 1025}})").status().message()),
      HasSubstr("at most 1024"));
}

TEST(ParsePromptTest, RefusesWhatIsForGrpcOnlyAndWhatDoesNotParse) {
  for (const char* body :
       {R"({"text": "x", "output": {"num_outputs": 128}})", R"({"text": "x", "priority": 9})",
        R"({"text": "x", "tenant": "a"})", R"({"text": "x", "constraint": {"regex": "a"}})",
        R"({"tokens": {"ids": [1]}})", R"({"text": "x", "nonsense": 1})", R"({"text": 1)", "", "[]",
        "null", "\xff", R"({"text": "x", "stopping": {"max_tokens": -1}})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParsePrompt(body).status())) << body;
  }
  std::string deep;
  for (int i = 0; i < 20'000; ++i) deep += "{\"chat\":";
  EXPECT_FALSE(ParsePrompt(deep).ok());
}

TEST(ErrorAnswerTest, SaysWhatHttpClientsActOn) {
  const HttpAnswer full = ErrorAnswer(
      WithRetry(WithReason(absl::ResourceExhaustedError("the queue is full"), "QUEUE_FULL"),
                absl::Milliseconds(300)));
  EXPECT_EQ(full.status, 429u);
  EXPECT_EQ(full.retry_after_seconds, 1);
  EXPECT_THAT(full.body, HasSubstr("\"reason\": \"QUEUE_FULL\""));
  EXPECT_EQ(ErrorAnswer(absl::NotFoundError("no model")).status, 404u);
  EXPECT_THAT(ErrorAnswer(absl::InternalError("secret path")).body,
              ::testing::Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace nibble
