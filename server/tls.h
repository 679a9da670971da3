// Transport security of the gRPC port, from --tls-cert, --tls-key and --tls-client-ca.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"
#include "server/options.h"

namespace nibble {

// Plain text without --tls-cert. With --tls-client-ca a client must show a certificate that it
// signed. Errors name the file.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServeOptions& options);

}  // namespace nibble
