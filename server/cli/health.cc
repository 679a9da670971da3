// nibble health: whether a daemon is ready; the probe of containers and service managers.
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "runtime/base/json.h"
#include "server/cli/client.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/values.h"

namespace nibble {
namespace {

using grpc::health::v1::HealthCheckResponse;

absl::StatusOr<HealthCheckResponse::ServingStatus> Check(const ClientFlags& server,
                                                         const std::string& service,
                                                         absl::Duration timeout) {
  const absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = server.Connect();
  if (!channel.ok()) return channel.status();
  const auto stub = grpc::health::v1::Health::NewStub(*channel);
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const absl::Status status = FromGrpc(stub->Check(&context, request, &response));
  if (status.ok()) return response.status();
  if (absl::IsNotFound(status))
    return absl::NotFoundError(absl::StrCat("the daemon knows no service or model ", service));
  return absl::Status(status.code(),
                      absl::StrCat("no answer from ", server.server, ": ", status.message()));
}

}  // namespace

int RunHealth(int argc, char** argv) {
  CLI::App app("Exit status 0 when a daemon is ready, 1 when not.", "nibble health");
  ClientFlags server;
  server.server = "127.0.0.1:50051";
  std::string service;
  std::string timeout_text = "2s";
  bool as_json = false;
  server.AddTo(app, "HOST:PORT or unix:PATH of the daemon (127.0.0.1:50051)");
  app.add_option("--service", service,
                 "a model's name, a service's, or `live` (unset: the daemon as a whole)");
  app.add_option("--timeout", timeout_text, "to wait for the answer (2s)");
  app.add_flag("--json", as_json, "print JSON");
  if (const auto exit = ParseArguments(app, argc, argv)) return *exit;
  const absl::StatusOr<absl::Duration> timeout = ParseDuration(timeout_text);
  if (!timeout.ok()) return Fail(app, kUsage, timeout.status());

  const auto status = Check(server, service, *timeout);
  const bool ready = status.ok() && *status == HealthCheckResponse::SERVING;
  if (as_json) {
    Json json;
    json.Set("server", server.server);
    json.Set("service", service);
    json.Set("ready", ready);
    json.Set("status", status.ok() ? HealthCheckResponse::ServingStatus_Name(*status) : "UNKNOWN");
    if (!status.ok()) json.Set("error", std::string(status.status().message()));
    std::printf("%s\n", DumpJson(json).c_str());
    return ready ? kDone : kFailed;
  }
  if (!status.ok())
    return Fail(app, absl::IsInvalidArgument(status.status()) ? kUsage : kFailed, status.status());
  std::printf("%s\n", HealthCheckResponse::ServingStatus_Name(*status).c_str());
  return ready ? kDone : kFailed;
}

}  // namespace nibble
