// POST /prompt below HTTP: pieces as they come, clients that leave, bounds, the server's end.
#include "server/http_exchange.h"

#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/http.h"
#include "tests/server/http_client.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// What a test feeds an answer with, and what it sees of it.
struct Script {
  std::mutex mutex;
  bool begun = false;
  std::deque<AnswerStream::Piece> pieces;
  std::weak_ptr<StreamWaker> waker;
  std::string body;
  std::atomic<int> asked{0}, destroyed{0};

  void Say(const std::string& text, bool last = false) {
    std::shared_ptr<StreamWaker> wake;
    {
      const std::lock_guard lock(mutex);
      begun = true;
      pieces.push_back({text, last});
      wake = waker.lock();
    }
    if (wake != nullptr) wake->Wake();
  }
};

class ScriptedAnswer final : public AnswerStream {
 public:
  explicit ScriptedAnswer(Script* script) : script_(script) {}
  ~ScriptedAnswer() override { ++script_->destroyed; }
  std::optional<Beginning> Begin() override {
    const std::lock_guard lock(script_->mutex);
    if (!script_->begun) return std::nullopt;
    return Beginning{.answer = {.content_type = "text/event-stream"}, .streams = true};
  }
  Piece Next() override {
    const std::lock_guard lock(script_->mutex);
    if (script_->pieces.empty()) return {};
    Piece piece = std::move(script_->pieces.front());
    script_->pieces.pop_front();
    return piece;
  }

 private:
  Script* script_;
};

bool Eventually(const std::function<bool()>& condition) {
  for (const absl::Time end = absl::Now() + absl::Seconds(10); absl::Now() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return false;
}

class ExchangeTest : public ::testing::Test {
 protected:
  ExchangeTest() {
    HttpPages pages;
    pages.live = [] { return true; };
    pages.check_prompt = [](const HttpHead& head) -> std::optional<HttpAnswer> {
      if (head.prompt_header == "1") return std::nullopt;
      return HttpAnswer{.status = 403, .body = "no\n"};
    };
    pages.answer_prompt = [this](const std::string& body, std::weak_ptr<StreamWaker> waker) {
      {
        const std::lock_guard lock(script_.mutex);
        script_.body = body;
        script_.waker = std::move(waker);
      }
      ++script_.asked;
      return std::make_unique<ScriptedAnswer>(&script_);
    };
    auto server = HttpServer::Start("127.0.0.1:0", std::move(pages));
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  static std::string Post(const std::string& body, const std::string& more = "") {
    return absl::StrCat("POST /prompt HTTP/1.1\r\nHost: x\r\nX-Nibble-Prompt: 1\r\n", more,
                        "Content-Length: ", body.size(), "\r\n\r\n", body);
  }
  int Send(const std::string& request) {
    const int descriptor = ConnectTo(server_->address());
    EXPECT_EQ(send(descriptor, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    return descriptor;
  }
  // Reads until `text` has come.
  static std::string ReadUntil(int descriptor, const std::string& text) {
    timeval limit{.tv_sec = 10, .tv_usec = 0};
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    std::string all;
    char buffer[4096];
    while (all.find(text) == std::string::npos) {
      const ssize_t got = recv(descriptor, buffer, sizeof(buffer), 0);
      if (got <= 0) break;
      all.append(buffer, static_cast<std::size_t>(got));
    }
    return all;
  }

  Script script_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(ExchangeTest, PiecesComeAsTheyAreMade) {
  const int client = Send(Post("question"));
  ASSERT_TRUE(Eventually([&] { return script_.asked == 1; }));
  EXPECT_EQ(script_.body, "question");
  script_.Say("one");
  EXPECT_THAT(ReadUntil(client, "one"), StartsWith("HTTP/1.1 200"));
  script_.Say(absl::StrCat(std::string(100'000, 'x'), "two"));  // larger than a buffer
  EXPECT_THAT(ReadUntil(client, "two"), HasSubstr("two"));
  script_.Say("three", true);
  EXPECT_THAT(ReadUntil(client, "0\r\n\r\n"), HasSubstr("three"));
  EXPECT_TRUE(Eventually([&] { return script_.destroyed == 1; }));
  close(client);
}

TEST_F(ExchangeTest, OneConnectionIsAnsweredOneAtATime) {
  const int client = Send(Post("a") + Post("b"));
  ASSERT_TRUE(Eventually([&] { return script_.asked == 1; }));
  script_.Say("first");
  ReadUntil(client, "first");
  EXPECT_EQ(script_.asked, 1);
  script_.Say("", true);
  ASSERT_TRUE(Eventually([&] { return script_.asked == 2; }));
  EXPECT_EQ(script_.body, "b");
  script_.Say("second", true);
  EXPECT_THAT(ReadUntil(client, "second"), HasSubstr("second"));
  close(client);
}

TEST_F(ExchangeTest, LeaversAreNoticedWhileNothingIsSent) {
  for (const bool begun : {false, true}) {
    SCOPED_TRACE(begun);
    const int asked = script_.asked, destroyed = script_.destroyed;
    {
      const std::lock_guard lock(script_.mutex);
      script_.begun = false;
    }
    const int client = Send(Post("x"));
    ASSERT_TRUE(Eventually([&] { return script_.asked == asked + 1; }));
    if (begun) {
      script_.Say("began");
      ReadUntil(client, "began");
    }
    server_->NoticeLeavers();
    EXPECT_EQ(script_.destroyed, destroyed);
    close(client);
    EXPECT_TRUE(Eventually([&] {
      server_->NoticeLeavers();
      return script_.destroyed == destroyed + 1;
    }));
  }
}

TEST_F(ExchangeTest, BodiesAndHeadsAreBounded) {
  const std::string address = server_->address();
  EXPECT_THAT(Exchange(address, "POST /prompt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              StartsWith("HTTP/1.1 403"));
  EXPECT_THAT(
      Exchange(address, Post(std::string(kMaxHttpBodyBytes + 1, 'x'), "Connection: close\r\n")),
      StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(Exchange(address,
                       "POST /prompt HTTP/1.1\r\nHost: x\r\nX-Nibble-Prompt: 1\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n20000\r\n" +
                           std::string(0x20000, 'x') + "\r\n0\r\n\r\n"),
              Not(HasSubstr("200")));
  EXPECT_EQ(script_.asked, 0);
}

TEST_F(ExchangeTest, ThereAreNoMoreThanTheMost) {
  std::vector<int> clients;
  for (std::size_t i = 0; i < HttpExchanges::kMax; ++i) clients.push_back(Send(Post("x")));
  ASSERT_TRUE(Eventually([&] { return script_.asked == static_cast<int>(HttpExchanges::kMax); }));
  const std::string refused = Exchange(server_->address(), Post("x", "Connection: close\r\n"));
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 429"));
  EXPECT_THAT(refused, HasSubstr("Retry-After: 1"));
  for (const int client : clients) close(client);
  EXPECT_TRUE(Eventually([&] {
    server_->NoticeLeavers();
    return script_.destroyed == static_cast<int>(HttpExchanges::kMax);
  }));
}

TEST_F(ExchangeTest, TheServerEndsWhileAnswersSleep) {
  const int before = Send(Post("x"));
  ASSERT_TRUE(Eventually([&] { return script_.asked == 1; }));
  const std::weak_ptr<StreamWaker> late = script_.waker;
  const int after = Send(Post("x"));
  ASSERT_TRUE(Eventually([&] { return script_.asked == 2; }));
  script_.Say("began");
  ReadUntil(after, "began");
  server_.reset();
  EXPECT_EQ(script_.destroyed, 2);
  EXPECT_EQ(late.lock(), nullptr);
  close(before);
  close(after);
}

TEST_F(ExchangeTest, WakersMayBeLate) {
  std::atomic<bool> stop{false};
  std::thread waker([&] {  // wakes exchanges at every moment of their lives
    while (!stop) server_->NoticeLeavers();
  });
  for (int i = 0; i < 200; ++i) {
    const int client = Send(Post("x"));
    ASSERT_TRUE(Eventually([&] { return script_.asked == i + 1; })) << i;
    if (i % 2 == 0) {
      script_.Say("text", true);
      EXPECT_THAT(ReadUntil(client, "0\r\n\r\n"), HasSubstr("text"));
    }
    close(client);
    ASSERT_TRUE(Eventually([&] { return script_.destroyed == i + 1; })) << i;
    const std::lock_guard lock(script_.mutex);
    script_.begun = false;
    script_.pieces.clear();
  }
  stop = true;
  waker.join();
}

}  // namespace
}  // namespace nibble
