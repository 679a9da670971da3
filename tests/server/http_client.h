// Enough of an HTTP client to test a server: sends bytes, returns what comes until the server
// closes.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace nibble {

// A connected socket, or -1. `address` is 127.0.0.1:PORT.
inline int ConnectTo(const std::string& address) {
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port =
      htons(static_cast<std::uint16_t>(std::atoi(address.substr(address.rfind(':') + 1).c_str())));
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(descriptor, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0) return descriptor;
  close(descriptor);
  return -1;
}

inline std::string Exchange(const std::string& address, const std::string& request) {
  const int descriptor = ConnectTo(address);
  if (descriptor < 0) return "no connection";
  timeval limit{.tv_sec = 5, .tv_usec = 0};
  setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  std::string answer;
  if (send(descriptor, request.data(), request.size(), MSG_NOSIGNAL) >= 0) {
    char buffer[4096];
    for (ssize_t got; (got = recv(descriptor, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<std::size_t>(got));
    }
  }
  close(descriptor);
  return answer;
}

inline std::string Get(const std::string& address, const std::string& path,
                       const std::string& method = "GET") {
  return Exchange(address,
                  method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
}

}  // namespace nibble
