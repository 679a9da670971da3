// The small HTTP/1.1 door: /metrics, /livez and /readyz for machines, a page for people (/,
// /page/*, /status), POST /prompt where it is switched on, and nothing else.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "server/http_exchange.h"

struct MHD_Daemon;

namespace nibble {

inline constexpr std::size_t kMaxHttpBodyBytes = 64 << 10;  // of POST /prompt

// What the paths answer; called from the server's thread, must be quick.
struct HttpPages {
  std::function<std::string()> metrics;  // Prometheus text format
  std::function<bool()> live;
  std::function<bool()> ready;
  std::function<std::string()> status;  // JSON, what the page shows
  // Unset: there is no POST /prompt. `check` may refuse before the body is read; `answer` takes the
  // body, and whom to wake when there is more.
  std::function<std::optional<HttpAnswer>(const HttpHead&)> check_prompt;
  std::function<std::unique_ptr<AnswerStream>(const std::string&, std::weak_ptr<StreamWaker>)>
      answer_prompt;
};

// One thread; connections, their memory and their idle time are bounded. Only POST /prompt has a
// body that is read.
class HttpServer {
 public:
  // Unavailable when the address cannot be listened on; InvalidArgument when it is none.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen,
                                                           HttpPages pages);
  ~HttpServer();  // gives answers that have ended a moment to be sent

  // Notices clients that left while nothing could be sent to them. Call a few times a second; any
  // thread.
  void NoticeLeavers() { exchanges_.WakeAll(); }

  const std::string& address() const { return address_; }  // HOST:PORT as bound
  const HttpPages& pages() const { return pages_; }
  HttpExchanges& exchanges() { return exchanges_; }

 private:
  HttpServer(std::string address, HttpPages pages)
      : address_(std::move(address)), pages_(std::move(pages)) {}

  const std::string address_;
  const HttpPages pages_;
  HttpExchanges exchanges_;
  MHD_Daemon* daemon_ = nullptr;
};

}  // namespace nibble
