#include "server/cli/client.h"

#include <chrono>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "runtime/base/status.h"
#include "runtime/engine/served_model.h"
#include "server/cli/units.h"

namespace nibble {
namespace {

absl::StatusOr<std::string> ReadPem(const char* flag, const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat(flag, ": cannot read ", path));
  return text.str();
}

}  // namespace

void ClientFlags::AddTo(CLI::App& app, const char* help) {
  const char* const group = "Server";
  app.add_option("--server", server, help)->group(group);
  app.add_flag("--tls", tls, "encrypt, and trust the system's authorities")->group(group);
  app.add_option("--tls-ca", tls_ca, "encrypt, and trust what this file's certificates signed")
      ->group(group);
  app.add_option("--tls-cert", tls_cert, "the certificate to show, where the server asks for one")
      ->group(group);
  app.add_option("--tls-key", tls_key, "its key")->group(group);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ClientFlags::Connect() const {
  if (tls_cert.empty() != tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together");
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (tls || !tls_ca.empty() || !tls_cert.empty()) {
    grpc::SslCredentialsOptions options;
    ASSIGN_OR_RETURN(options.pem_root_certs, ReadPem("--tls-ca", tls_ca));
    ASSIGN_OR_RETURN(options.pem_cert_chain, ReadPem("--tls-cert", tls_cert));
    ASSIGN_OR_RETURN(options.pem_private_key, ReadPem("--tls-key", tls_key));
    credentials = grpc::SslCredentials(options);
  }
  return grpc::CreateChannel(server, credentials);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  std::string message = status.error_message();
  std::string reason;
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      google::rpc::BadRequest bad_request;
      google::rpc::ErrorInfo info;
      google::rpc::RetryInfo retry;
      if (detail.UnpackTo(&info)) reason = info.reason();
      if (detail.UnpackTo(&bad_request) && bad_request.field_violations_size() > 1) {
        for (const auto& violation : bad_request.field_violations()) {
          absl::StrAppend(&message, "\n  ", violation.field(), ": ", violation.description());
        }
      }
      if (detail.UnpackTo(&retry)) {
        const auto& delay = retry.retry_delay();
        absl::StrAppend(&message, " (try again in ",
                        ShowTime(absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos())),
                        ")");
      }
    }
  }
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), message);
  return reason.empty() ? result : WithReason(std::move(result), reason);
}

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  if (timeout == absl::InfiniteDuration()) return;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
}

}  // namespace nibble
