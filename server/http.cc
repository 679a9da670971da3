#include "server/http.h"

#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/page/page_files.h"
#include "server/values.h"

namespace nibble {
namespace {

constexpr unsigned kMaxConnections = 128;
constexpr unsigned kMaxConnectionsOfOneAddress = 64;
constexpr std::size_t kConnectionBytes = 16 << 10;  // request line and headers
constexpr unsigned kIdleSeconds = 10;
constexpr int kBacklog = 128;
constexpr absl::Duration kLastPieces = absl::Seconds(1);

// GET and HEAD.
HttpAnswer AnswerFor(const HttpPages& pages, absl::string_view path) {
  if (path == "/metrics") {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = pages.metrics()};
  }
  if (path == "/livez" || path == "/readyz") {
    const bool good = path == "/livez" ? pages.live() : pages.ready();
    return {.status = good ? unsigned{MHD_HTTP_OK} : unsigned{MHD_HTTP_SERVICE_UNAVAILABLE},
            .body = good ? "ok\n" : "not ok\n"};
  }
  if (path == "/status") return {.content_type = "application/json", .body = pages.status()};
  for (const PageFile& file : PageFiles()) {
    if (path == file.path)
      return {.content_type = file.content_type, .body = std::string(file.content)};
  }
  return {.status = MHD_HTTP_NOT_FOUND,
          .body = "there are /, /status, /metrics, /livez and /readyz\n"};
}

HttpHead HeadOf(MHD_Connection* connection) {
  const auto header = [connection](const char* name) -> std::string {
    const char* value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
    return value == nullptr ? "" : value;
  };
  return {.host = header(MHD_HTTP_HEADER_HOST),
          .origin = header(MHD_HTTP_HEADER_ORIGIN),
          .fetch_site = header("Sec-Fetch-Site"),
          .content_type = header(MHD_HTTP_HEADER_CONTENT_TYPE),
          .prompt_header = header("X-Nibble-Prompt")};
}

// Why a POST may not send its body; nothing when it may.
std::optional<HttpAnswer> RefusePost(const HttpPages& pages, MHD_Connection* connection) {
  if (!pages.answer_prompt) {
    return HttpAnswer{.status = MHD_HTTP_NOT_FOUND,
                      .body = "prompts over HTTP are off: start the server with --http-prompt\n"};
  }
  if (std::optional<HttpAnswer> refusal = pages.check_prompt(HeadOf(connection))) return refusal;
  const char* length =
      MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
  std::uint64_t bytes = 0;
  if (length != nullptr && (!absl::SimpleAtoi(length, &bytes) || bytes > kMaxHttpBodyBytes)) {
    return HttpAnswer{.status = MHD_HTTP_CONTENT_TOO_LARGE,
                      .body = absl::StrCat("a request may have ", kMaxHttpBodyBytes,
                                           " bytes; send longer prompts over gRPC\n")};
  }
  return std::nullopt;
}

// Called with the headers, with each part of the body, and when all is there or the connection was
// woken.
MHD_Result ContinuePost(HttpServer& server, MHD_Connection* connection,
                        const std::shared_ptr<HttpExchange>& exchange, const char* data,
                        std::size_t* size) {
  if (*size > 0) {
    if (exchange->body.size() + *size > kMaxHttpBodyBytes) return MHD_NO;  // of unannounced length
    exchange->body.append(data, *size);
    *size = 0;
    return MHD_YES;
  }
  if (!exchange->answering()) {
    if (!server.exchanges().Add(exchange)) {
      const HttpAnswer busy{.status = MHD_HTTP_TOO_MANY_REQUESTS,
                            .body = absl::StrCat(HttpExchanges::kMax,
                                                 " prompts are being answered over HTTP, which "
                                                 "is the most; try again, or use gRPC\n"),
                            .retry_after_seconds = 1};
      return SendAnswer(connection, busy) ? MHD_YES : MHD_NO;
    }
    exchange->Answer(server.pages().answer_prompt(exchange->body, exchange));
  }
  return exchange->Proceed() ? MHD_YES : MHD_NO;
}

// Only POST /prompt has a body that is read; all else is answered when the headers are there.
MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* url, const char* verb,
                     const char*, const char* data, std::size_t* size, void** state) {
  HttpServer& server = *static_cast<HttpServer*>(self);
  if (*state != nullptr) {
    return ContinuePost(server, connection, *static_cast<std::shared_ptr<HttpExchange>*>(*state),
                        data, size);
  }
  const absl::string_view method = verb, path = url;
  if (method == "POST" && path == "/prompt") {
    if (const std::optional<HttpAnswer> refusal = RefusePost(server.pages(), connection))
      return SendAnswer(connection, *refusal) ? MHD_YES : MHD_NO;
    *state = new std::shared_ptr<HttpExchange>(std::make_shared<HttpExchange>(connection));
    return MHD_YES;
  }
  const HttpAnswer answer =
      method == "GET" || method == "HEAD"
          ? AnswerFor(server.pages(), path)
          : HttpAnswer{.status = MHD_HTTP_METHOD_NOT_ALLOWED, .body = "use GET\n"};
  return SendAnswer(connection, answer) ? MHD_YES : MHD_NO;
}

// However a request ended.
void OnCompleted(void* self, MHD_Connection*, void** state, MHD_RequestTerminationCode) {
  if (*state == nullptr) return;
  const std::unique_ptr<std::shared_ptr<HttpExchange>> exchange(
      static_cast<std::shared_ptr<HttpExchange>*>(*state));
  *state = nullptr;
  (*exchange)->Detach();
  static_cast<HttpServer*>(self)->exchanges().Remove(*exchange);
}

// A listening socket, or -1 with errno.
int Listen(const addrinfo& address) {
  const int descriptor = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (descriptor < 0) return -1;
  const int on = 1, off = 0;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.ai_family == AF_INET6)
    setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  if (bind(descriptor, address.ai_addr, address.ai_addrlen) == 0 &&
      listen(descriptor, kBacklog) == 0) {
    return descriptor;
  }
  const int error = errno;
  close(descriptor);
  errno = error;
  return -1;
}

absl::StatusOr<int> ListenOn(const HostPort& where) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  // Without IPv6 on this machine, [::] means every IPv4 address.
  for (const std::string& host :
       {where.host, std::string(where.host == "::" ? "0.0.0.0" : where.host)}) {
    addrinfo* found = nullptr;
    const int error =
        getaddrinfo(host.empty() ? nullptr : host.c_str(), where.port.c_str(), &hints, &found);
    if (error != 0)
      return absl::InvalidArgumentError(absl::StrCat(Quote(host), ": ", gai_strerror(error)));
    const int descriptor = Listen(*found);
    const int listen_error = errno;
    freeaddrinfo(found);
    if (descriptor >= 0) return descriptor;
    if (listen_error != EAFNOSUPPORT && listen_error != EADDRNOTAVAIL) {
      return absl::UnavailableError(strerror(listen_error));
    }
  }
  return absl::UnavailableError("no address of this host");
}

int BoundPort(int descriptor) {
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return 0;
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& listen,
                                                              HttpPages pages) {
  ASSIGN_OR_RETURN(const HostPort where, ParseHostPort(listen));
  const absl::StatusOr<int> descriptor = ListenOn(where);
  if (!descriptor.ok()) {
    return absl::Status(descriptor.status().code(),
                        absl::StrCat("cannot listen on ", listen, ": ",
                                     std::string(descriptor.status().message())));
  }
  const std::string address =
      absl::StrCat(listen.substr(0, listen.rfind(':')), ":", BoundPort(*descriptor));
  std::unique_ptr<HttpServer> server(new HttpServer(address, std::move(pages)));
  server->daemon_ = MHD_start_daemon(
      MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME, 0, nullptr, nullptr, &OnRequest,
      server.get(), MHD_OPTION_LISTEN_SOCKET, *descriptor, MHD_OPTION_CONNECTION_LIMIT,
      kMaxConnections, MHD_OPTION_PER_IP_CONNECTION_LIMIT, kMaxConnectionsOfOneAddress,
      MHD_OPTION_CONNECTION_MEMORY_LIMIT, kConnectionBytes, MHD_OPTION_CONNECTION_TIMEOUT,
      kIdleSeconds, MHD_OPTION_NOTIFY_COMPLETED, &OnCompleted, server.get(), MHD_OPTION_END);
  if (server->daemon_ == nullptr) {
    close(*descriptor);
    return absl::UnavailableError(absl::StrCat("cannot start the HTTP server on ", listen));
  }
  return server;
}

HttpServer::~HttpServer() {
  if (daemon_ == nullptr) return;
  exchanges_.End(kLastPieces);
  MHD_stop_daemon(daemon_);  // closes the socket
}

}  // namespace nibble
