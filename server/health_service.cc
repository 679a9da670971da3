#include "server/health_service.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "server/errors.h"
#include "server/unary.h"

namespace nibble {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

HealthCheckResponse::ServingStatus StatusOf(const ServingState& state, const std::string& service) {
  const std::optional<bool> serves = state.Serves(service);
  if (!serves.has_value()) return HealthCheckResponse::SERVICE_UNKNOWN;
  return *serves ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

// Sends the status now and after each change, until the client goes or the server ends.
class WatchHandler final : public CallHandler {
 public:
  WatchHandler(Call& call, const ServingState* state, HealthWatchers* watchers)
      : call_(call), state_(state), watchers_(watchers) {}

  void OnRequest(const grpc::ByteBuffer& bytes) override {
    const absl::Status status = ParseRequest(bytes, &request_);
    if (!status.ok()) {
      call_.Finish(status);
      return;
    }
    watchers_->Add(call_.waker());
    Send();
  }
  void OnWake() override { Send(); }
  void OnWritten() override { Send(); }

 private:
  void Send() {
    if (!call_.writable()) return;
    if (watchers_->ended()) {
      call_.Finish(WithReason(absl::UnavailableError("the server is shutting down"), "DRAINING"));
      return;
    }
    const HealthCheckResponse::ServingStatus now = StatusOf(*state_, request_.service());
    if (sent_ == now) return;
    sent_ = now;
    HealthCheckResponse response;
    response.set_status(now);
    call_.Write(response);
  }

  Call& call_;
  const ServingState* state_;
  HealthWatchers* watchers_;
  HealthCheckRequest request_;
  std::optional<HealthCheckResponse::ServingStatus> sent_;
};

}  // namespace

void HealthWatchers::Add(std::weak_ptr<StreamWaker> watcher) {
  const std::lock_guard lock(mutex_);
  std::erase_if(watchers_, [](const auto& known) { return known.expired(); });
  watchers_.push_back(std::move(watcher));
}

void HealthWatchers::Notify() {
  std::vector<std::weak_ptr<StreamWaker>> watchers;
  {
    const std::lock_guard lock(mutex_);
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) {
    if (const auto waker = watcher.lock()) waker->Wake();
  }
}

void HealthWatchers::End() {
  ended_.store(true);
  Notify();
}

RpcService MakeHealthService(const ServingState* state, HealthWatchers* watchers) {
  RpcService service{kHealthService, {}};
  service.methods.push_back(Unary<HealthCheckRequest, HealthCheckResponse>(
      "Check",
      [state](const HealthCheckRequest& request, HealthCheckResponse* response) -> absl::Status {
        const HealthCheckResponse::ServingStatus status = StatusOf(*state, request.service());
        if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
          return absl::NotFoundError(
              absl::StrCat("health knows no ", Quote(request.service()),
                           ": ask for \"\", \"live\", a service or a model"));
        }
        response->set_status(status);
        return absl::OkStatus();
      }));
  service.methods.push_back(
      {"Watch", [state, watchers](Call& call) -> std::unique_ptr<CallHandler> {
         return std::make_unique<WatchHandler>(call, state, watchers);
       }});
  return service;
}

}  // namespace nibble
