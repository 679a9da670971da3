#include "server/http.h"

#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/status.h"
#include "server/errors.h"

namespace nibble {
namespace {

constexpr unsigned kMaxConnections = 128;
constexpr unsigned kMaxConnectionsOfOneAddress = 64;
constexpr std::size_t kConnectionBytes = 16 << 10;  // request line and headers
constexpr unsigned kIdleSeconds = 10;
constexpr int kBacklog = 128;

struct Answer {
  unsigned status = MHD_HTTP_OK;
  const char* content_type = "text/plain; charset=utf-8";
  std::string body;
};

Answer AnswerFor(const HttpPages& pages, absl::string_view method, absl::string_view path) {
  if (method != "GET" && method != "HEAD")
    return {.status = MHD_HTTP_METHOD_NOT_ALLOWED, .body = "use GET\n"};
  if (path == "/metrics") {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = pages.metrics()};
  }
  if (path == "/livez" || path == "/readyz") {
    const bool good = path == "/livez" ? pages.live() : pages.ready();
    return {.status = good ? unsigned{MHD_HTTP_OK} : unsigned{MHD_HTTP_SERVICE_UNAVAILABLE},
            .body = good ? "ok\n" : "not ok\n"};
  }
  if (path == "/") return {.content_type = "text/html; charset=utf-8", .body = pages.home()};
  return {.status = MHD_HTTP_NOT_FOUND, .body = "there are /metrics, /livez, /readyz and /\n"};
}

// Answers at the first call, when the headers are there: a body is never read.
MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* path, const char* method,
                     const char*, const char*, std::size_t*, void**) {
  const Answer answer = AnswerFor(static_cast<HttpServer*>(self)->pages(), method, path);
  MHD_Response* response = MHD_create_response_from_buffer(
      answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, answer.content_type);
  if (answer.status == MHD_HTTP_METHOD_NOT_ALLOWED)
    MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
  const MHD_Result queued = MHD_queue_response(connection, answer.status, response);
  MHD_destroy_response(response);
  return queued;
}

struct HostPort {
  std::string host, port;
};

absl::StatusOr<HostPort> SplitHostPort(const std::string& listen) {
  const std::size_t colon = listen.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(listen.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(listen), " is no HOST:PORT with a port from 0 to 65535"));
  }
  std::string host = listen.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  return HostPort{host, listen.substr(colon + 1)};
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
  ASSIGN_OR_RETURN(const HostPort where, SplitHostPort(listen));
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
      MHD_USE_EPOLL_INTERNAL_THREAD, 0, nullptr, nullptr, &OnRequest, server.get(),
      MHD_OPTION_LISTEN_SOCKET, *descriptor, MHD_OPTION_CONNECTION_LIMIT, kMaxConnections,
      MHD_OPTION_PER_IP_CONNECTION_LIMIT, kMaxConnectionsOfOneAddress,
      MHD_OPTION_CONNECTION_MEMORY_LIMIT, kConnectionBytes, MHD_OPTION_CONNECTION_TIMEOUT,
      kIdleSeconds, MHD_OPTION_END);
  if (server->daemon_ == nullptr) {
    close(*descriptor);
    return absl::UnavailableError(absl::StrCat("cannot start the HTTP server on ", listen));
  }
  return server;
}

HttpServer::~HttpServer() {
  if (daemon_ != nullptr) MHD_stop_daemon(daemon_);  // closes the socket
}

}  // namespace nibble
