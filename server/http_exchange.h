// Answers that come in pieces, over libmicrohttpd: a connection sleeps while there is nothing to
// send and is woken by whoever makes the pieces.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "absl/time/time.h"
#include "runtime/engine/token_stream.h"

struct MHD_Connection;
struct MHD_Response;

namespace nibble {

// The headers that decide whether a POST may come in.
struct HttpHead {
  std::string host, origin, fetch_site, content_type, prompt_header;
};

struct HttpAnswer {
  unsigned status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::optional<int> retry_after_seconds = std::nullopt;
};

// Makes the answer of one exchange. Only the server's thread calls it; destroyed when all was sent
// or the client is gone.
class AnswerStream {
 public:
  struct Beginning {
    HttpAnswer answer;
    bool streams = false;  // pieces follow; `answer.body` is not used
  };
  struct Piece {
    std::string text;  // empty: nothing yet, the waker will be called
    bool last = false;
  };
  virtual ~AnswerStream() = default;
  virtual std::optional<Beginning> Begin() = 0;  // nothing: not known yet, the waker will be called
  virtual Piece Next() = 0;
};

// Sends `answer`, with the headers that every answer carries. False: the connection must close.
bool SendAnswer(MHD_Connection* connection, const HttpAnswer& answer);
void AddCommonHeaders(MHD_Response* response, const HttpAnswer& answer);

// One POST. The server's thread calls all methods but Wake, which is for any thread.
class HttpExchange final : public StreamWaker, public std::enable_shared_from_this<HttpExchange> {
 public:
  explicit HttpExchange(MHD_Connection* connection) : connection_(connection) {}

  std::string body;  // as far as it has come

  bool answering() const { return answer_ != nullptr; }
  void Answer(std::unique_ptr<AnswerStream> answer) { answer_ = std::move(answer); }

  // Queues the beginning of the answer, or lets the connection sleep until it is known. False: the
  // client is gone or the server ends, the connection must close.
  bool Proceed();

  // The connection is done with: nothing touches it from here on.
  void Detach();

  void Wake() override;
  void End();  // the server ends: Wake, for the last time. Any thread

 private:
  static ssize_t Read(void* self, std::uint64_t position, char* buffer, std::size_t size);

  // Runs `step` until it returns true. When there is nothing to be done the connection sleeps, and
  // this returns false.
  template <typename Step>
  bool TryOrSleep(Step step);
  bool Over();  // the client is gone, or the server ends

  std::unique_ptr<AnswerStream> answer_;
  AnswerStream::Piece piece_;
  std::size_t sent_ = 0;  // bytes of piece_

  std::mutex mutex_;  // guards what follows
  MHD_Connection* connection_;
  bool asleep_ = false;
  bool woken_ = false;  // since the last look at answer_
  bool ending_ = false;
};

// The exchanges that are being answered. Any thread.
class HttpExchanges {
 public:
  static constexpr std::size_t kMax = 8;

  bool Add(std::shared_ptr<HttpExchange> exchange);  // false: there are kMax
  void Remove(const std::shared_ptr<HttpExchange>& exchange);
  void WakeAll();
  // Waits for answers to be sent, then ends what is left.
  void End(absl::Duration wait);

 private:
  std::mutex mutex_;  // guards exchanges_
  std::condition_variable removed_;
  std::set<std::shared_ptr<HttpExchange>> exchanges_;
};

}  // namespace nibble
