// How subcommands reach a daemon.
#pragma once

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"

namespace nibble {

struct ClientFlags {
  std::string server;
  std::string tls_ca, tls_cert, tls_key;
  bool tls = false;

  void AddTo(CLI::App& app, const char* help);
  // Does not wait for a connection. InvalidArgument and NotFound name the file at fault.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect() const;
};

// A server's status with what its details add: each field that is wrong, and after how long to try
// again.
absl::Status FromGrpc(const grpc::Status& status);

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout);  // infinite: none

}  // namespace nibble
