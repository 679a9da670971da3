#include "server/http_exchange.h"

#include <microhttpd.h>
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

constexpr std::size_t kPieceBytes = 16 << 10;

// Everything the page needs comes from this server, as files: no inline script or style runs, so
// what a model says cannot either. Nobody may frame the page.
constexpr char kContentSecurityPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

}  // namespace

void AddCommonHeaders(MHD_Response* response, const HttpAnswer& answer) {
  const auto add = [response](const char* name, const std::string& value) {
    MHD_add_response_header(response, name, value.c_str());
  };
  add(MHD_HTTP_HEADER_CONTENT_TYPE, answer.content_type);
  add(MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
  add("Content-Security-Policy", kContentSecurityPolicy);
  add("X-Content-Type-Options", "nosniff");
  add("Referrer-Policy", "no-referrer");
  add("Cross-Origin-Resource-Policy", "same-origin");
  if (answer.retry_after_seconds.has_value())
    add(MHD_HTTP_HEADER_RETRY_AFTER, absl::StrCat(*answer.retry_after_seconds));
  if (answer.status == MHD_HTTP_METHOD_NOT_ALLOWED) add(MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
}

bool SendAnswer(MHD_Connection* connection, const HttpAnswer& answer) {
  MHD_Response* response = MHD_create_response_from_buffer(
      answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return false;
  AddCommonHeaders(response, answer);
  const MHD_Result queued = MHD_queue_response(connection, answer.status, response);
  MHD_destroy_response(response);
  return queued == MHD_YES;
}

template <typename Step>
bool HttpExchange::TryOrSleep(Step step) {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      woken_ = false;
    }
    if (step()) return true;
    const std::lock_guard lock(mutex_);
    if (woken_) continue;
    MHD_suspend_connection(connection_);
    asleep_ = true;
    return false;
  }
}

bool HttpExchange::Proceed() {
  std::optional<AnswerStream::Beginning> beginning;
  bool over = false;
  const bool known = TryOrSleep([&] {
    over = Over();
    if (!over) beginning = answer_->Begin();
    return over || beginning.has_value();
  });
  if (!known) return true;
  if (over) return false;
  if (!beginning->streams) return SendAnswer(connection_, beginning->answer);
  MHD_Response* response =
      MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, kPieceBytes, &Read, this, nullptr);
  if (response == nullptr) return false;
  AddCommonHeaders(response, beginning->answer);
  MHD_add_response_header(response, "X-Accel-Buffering", "no");  // proxies hand pieces on at once
  const MHD_Result queued = MHD_queue_response(connection_, beginning->answer.status, response);
  MHD_destroy_response(response);
  return queued == MHD_YES;
}

ssize_t HttpExchange::Read(void* self, std::uint64_t, char* buffer, std::size_t size) {
  HttpExchange& exchange = *static_cast<HttpExchange*>(self);
  bool over = false;
  const bool any = exchange.TryOrSleep([&] {
    over = exchange.Over();
    if (over || exchange.sent_ < exchange.piece_.text.size() || exchange.piece_.last) return true;
    exchange.piece_ = exchange.answer_->Next();
    exchange.sent_ = 0;
    return exchange.piece_.last || !exchange.piece_.text.empty();
  });
  if (!any) return 0;
  if (over) return MHD_CONTENT_READER_END_WITH_ERROR;
  const std::string& text = exchange.piece_.text;
  const std::size_t count = std::min(size, text.size() - exchange.sent_);
  if (count == 0) return MHD_CONTENT_READER_END_OF_STREAM;
  std::memcpy(buffer, text.data() + exchange.sent_, count);
  exchange.sent_ += count;
  return static_cast<ssize_t>(count);
}

// A client that has only stopped sending counts as gone: browsers and command line clients never do
// that alone.
bool HttpExchange::Over() {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return true;
  }
  const MHD_ConnectionInfo* info =
      MHD_get_connection_info(connection_, MHD_CONNECTION_INFO_CONNECTION_FD);
  if (info == nullptr) return true;
  pollfd descriptor{.fd = info->connect_fd, .events = POLLRDHUP, .revents = 0};
  if (poll(&descriptor, 1, 0) < 0) return true;
  return (descriptor.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void HttpExchange::Wake() {
  const std::lock_guard lock(mutex_);
  woken_ = true;
  if (connection_ == nullptr || !asleep_) return;
  asleep_ = false;
  MHD_resume_connection(connection_);
}

void HttpExchange::End() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  Wake();
}

void HttpExchange::Detach() {
  answer_.reset();
  const std::lock_guard lock(mutex_);
  connection_ = nullptr;
}

bool HttpExchanges::Add(std::shared_ptr<HttpExchange> exchange) {
  const std::lock_guard lock(mutex_);
  if (exchanges_.size() >= kMax) return false;
  exchanges_.insert(std::move(exchange));
  return true;
}

void HttpExchanges::Remove(const std::shared_ptr<HttpExchange>& exchange) {
  const std::lock_guard lock(mutex_);
  exchanges_.erase(exchange);
  removed_.notify_all();
}

void HttpExchanges::WakeAll() {
  std::vector<std::shared_ptr<HttpExchange>> exchanges;
  {
    const std::lock_guard lock(mutex_);
    exchanges.assign(exchanges_.begin(), exchanges_.end());
  }
  for (const auto& exchange : exchanges) exchange->Wake();
}

void HttpExchanges::End(absl::Duration wait) {
  std::unique_lock lock(mutex_);
  removed_.wait_for(lock, absl::ToChronoMilliseconds(wait), [this] { return exchanges_.empty(); });
  const std::vector<std::shared_ptr<HttpExchange>> left(exchanges_.begin(), exchanges_.end());
  lock.unlock();
  for (const auto& exchange : left) exchange->End();
}

}  // namespace nibble
