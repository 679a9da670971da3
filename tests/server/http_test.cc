#include "server/http.h"

#include <atomic>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/http_client.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class HttpTest : public ::testing::Test {
 protected:
  HttpTest() {
    auto server =
        HttpServer::Start("127.0.0.1:0", {.metrics = [] { return std::string("nibble_up 1\n"); },
                                          .live = [] { return true; },
                                          .ready = [this] { return ready_.load(); },
                                          .status = [] { return std::string("{\"models\": []}"); },
                                          .check_prompt = nullptr,
                                          .answer_prompt = nullptr});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::string Fetch(const std::string& path, const std::string& method = "GET") {
    return Get(server_->address(), path, method);
  }

  std::atomic<bool> ready_{false};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpTest, AnswersItsPathsAndNoOther) {
  EXPECT_THAT(Fetch("/metrics"), HasSubstr("nibble_up 1"));
  EXPECT_THAT(Fetch("/metrics"), HasSubstr("version=0.0.4"));
  EXPECT_THAT(Fetch("/livez"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Fetch("/readyz"), StartsWith("HTTP/1.1 503"));
  ready_ = true;
  EXPECT_THAT(Fetch("/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Fetch("/"), HasSubstr("<title>Nibble</title>"));
  EXPECT_THAT(Fetch("/"),
              HasSubstr("Content-Security-Policy: default-src 'none'; script-src 'self'"));
  EXPECT_THAT(Fetch("/page/page.js"), HasSubstr("Content-Type: text/javascript"));
  EXPECT_THAT(Fetch("/status"), HasSubstr("{\"models\": []}"));
  EXPECT_THAT(Fetch("/metrics/../etc/passwd"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Fetch("/healthz"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Fetch("/livez", "HEAD"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Fetch("/metrics", "DELETE"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Fetch("/metrics", "BREW"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Fetch("/prompt", "POST"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Fetch("/prompt", "POST"), HasSubstr("--http-prompt"));
  EXPECT_THAT(Fetch("/prompt"), StartsWith("HTTP/1.1 404"));
}

TEST_F(HttpTest, BodiesAreNotReadAndHeadersAreBounded) {
  EXPECT_THAT(Exchange(server_->address(),
                       "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx"),
              StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Exchange(server_->address(),
                       "GET /" + std::string(100'000, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n"),
              Not(HasSubstr("200")));
  EXPECT_THAT(Fetch("/livez"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTest, IdleConnectionsOfOneAddressDoNotShutOutForLong) {
  std::vector<int> idle;
  for (int i = 0; i < 300; ++i) idle.push_back(ConnectTo(server_->address()));
  for (const int descriptor : idle) {
    if (descriptor >= 0) close(descriptor);
  }
  // The server turns away whatever comes before it has noticed that they are closed.
  std::string answer;
  for (const absl::Time end = absl::Now() + absl::Seconds(10); answer.empty() && absl::Now() < end;
       absl::SleepFor(absl::Milliseconds(5))) {
    answer = Fetch("/livez");
  }
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
}

TEST(HttpStartTest, RefusesWhatIsNoAddressAndPortsInUse) {
  const auto start = [](const std::string& listen) {
    return HttpServer::Start(listen, {}).status().code();
  };
  for (const char* bad :
       {"", "x", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x"}) {
    EXPECT_EQ(start(bad), absl::StatusCode::kInvalidArgument) << bad;
  }
  const auto first = HttpServer::Start("127.0.0.1:0", {});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(start((*first)->address()), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace nibble
