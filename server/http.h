// The small HTTP/1.1 door for machines that scrape and probe, and a page for people: /metrics
// /livez /readyz / and nothing else.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct MHD_Daemon;

namespace nibble {

// What the paths answer; called from the server's thread, must be quick.
struct HttpPages {
  std::function<std::string()> metrics;  // Prometheus text format
  std::function<bool()> live;
  std::function<bool()> ready;
  std::function<std::string()> home;  // HTML
};

// One thread; connections, their memory and their idle time are bounded, and bodies are never read.
class HttpServer {
 public:
  // Unavailable when the address cannot be listened on; InvalidArgument when it is none.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen,
                                                           HttpPages pages);
  ~HttpServer();

  const std::string& address() const { return address_; }  // HOST:PORT as bound
  const HttpPages& pages() const { return pages_; }

 private:
  HttpServer(std::string address, HttpPages pages)
      : address_(std::move(address)), pages_(std::move(pages)) {}

  const std::string address_;
  const HttpPages pages_;
  MHD_Daemon* daemon_ = nullptr;
};

}  // namespace nibble
