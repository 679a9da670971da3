#include "server/admin_service.h"

#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nibble/v1/admin.pb.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/unary.h"
#include "server/wire.h"
#include "server/wire_response.h"

namespace nibble {
namespace {

absl::StatusOr<LoadSpec> MakeSpec(const AdminOptions& admin, absl::string_view name,
                                  const std::string& path, const v1::LoadOptions& options) {
  LoadSpec spec = admin.defaults;
  RETURN_IF_ERROR(ApplyLoadOptions(options, &spec));
  ASSIGN_OR_RETURN(spec.path, PathBelow(admin.model_root, path));
  spec.check_path = [root = admin.model_root](const std::string& file) {
    return ContainPath(root, file);
  };
  RETURN_IF_ERROR(spec.check_path(spec.path).status());
  spec.name = name.empty() ? DefaultModelName(path) : std::string(name);
  return spec;
}

// What a load reports to its call, and the call to the load.
class LoadReport {
 public:
  explicit LoadReport(std::weak_ptr<StreamWaker> waker) : waker_(std::move(waker)) {}

  // --- the load's thread ---
  // False: the client is gone. Only the newest progress is kept, so that a slow reader costs
  // nothing.
  bool Progress(const std::string& stage, std::int64_t done, std::int64_t total) {
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) return false;
      v1::LoadProgress& progress = progress_.emplace();
      progress.set_stage(stage);
      progress.set_done_bytes(done);
      progress.set_total_bytes(total);
    }
    Wake();
    return true;
  }
  void Done(absl::StatusOr<std::shared_ptr<const ServedModel>> result) {
    {
      const std::lock_guard lock(mutex_);
      result_ = std::move(result);
    }
    Wake();
  }
  bool cancelled() const {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }

  // --- the call's thread ---
  void Cancel() {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  std::optional<v1::LoadProgress> TakeProgress() {
    const std::lock_guard lock(mutex_);
    return std::exchange(progress_, std::nullopt);
  }
  std::optional<absl::StatusOr<std::shared_ptr<const ServedModel>>> result() const {
    const std::lock_guard lock(mutex_);
    return result_;
  }

 private:
  void Wake() {
    if (const auto waker = waker_.lock()) waker->Wake();
  }

  const std::weak_ptr<StreamWaker> waker_;
  mutable std::mutex mutex_;  // guards what follows
  bool cancelled_ = false;
  std::optional<v1::LoadProgress> progress_;
  std::optional<absl::StatusOr<std::shared_ptr<const ServedModel>>> result_;
};

class LoadHandler final : public CallHandler {
 public:
  LoadHandler(Call& call, ServingState* state, PreparePool* pool,
              std::shared_ptr<const AdminOptions> options)
      : call_(call), state_(state), pool_(pool), options_(std::move(options)) {}

  void OnRequest(const grpc::ByteBuffer& bytes) override {
    const absl::Status status = Start(bytes);
    if (!status.ok()) call_.Finish(status);
  }
  void OnWake() override { Pump(); }
  void OnWritten() override { Pump(); }
  void OnCancel() override { report_->Cancel(); }

 private:
  absl::Status Start(const grpc::ByteBuffer& bytes) {
    v1::LoadModelRequest request;
    RETURN_IF_ERROR(ParseRequest(bytes, &request));
    RETURN_IF_ERROR(state_->CheckAccepting());
    return pool_->Submit([report = report_, state = state_, options = options_, request] {
      report->Done(Load(*options, request, state, *report));
    });
  }

  static absl::StatusOr<std::shared_ptr<const ServedModel>> Load(
      const AdminOptions& options, const v1::LoadModelRequest& request, ServingState* state,
      LoadReport& report) {
    ASSIGN_OR_RETURN(LoadSpec spec,
                     MakeSpec(options, request.name(), request.path(), request.options()));
    switch (request.replace_policy()) {
      case v1::REPLACE_POLICY_UNSPECIFIED: spec.replace = ReplacePolicy::kRefuse; break;
      case v1::REPLACE_POLICY_LOAD_THEN_DRAIN: spec.replace = ReplacePolicy::kLoadThenDrain; break;
      case v1::REPLACE_POLICY_DRAIN_THEN_LOAD: spec.replace = ReplacePolicy::kDrainThenLoad; break;
      default:
        return InvalidField("replace_policy",
                            absl::StrCat("is no ReplacePolicy: ", request.replace_policy()));
    }
    if (absl::Status bad = ValidateModelName(spec.name); !bad.ok()) {
      return InvalidField("name", std::string(bad.message()));
    }
    LogInfo("loading a model for an administrator", {{"model", spec.name}, {"path", spec.path}});
    auto loaded = state->hub().Load(
        spec, [&](const std::string& stage, std::int64_t done, std::int64_t total) {
          return report.Progress(stage, done, total) && state->CheckAccepting().ok();
        });
    LogInfo(loaded.ok() ? "loaded" : "not loaded",
            {{"model", spec.name}, {"status", loaded.ok() ? "OK" : loaded.status().ToString()}});
    return loaded;
  }

  void Pump() {
    if (!call_.writable()) return;
    v1::LoadModelResponse response;
    if (std::optional<v1::LoadProgress> progress = report_->TakeProgress()) {
      *response.mutable_progress() = *std::move(progress);
      call_.Write(response);
      return;
    }
    const auto result = report_->result();
    if (!result.has_value()) return;
    if (result->ok()) {
      *response.mutable_model() = ToProto(ModelStatus{
          .name = (**result)->info.name, .state = ModelState::kServing, .model = **result});
      call_.Write(response);
    }
    call_.Finish(result->status());
  }

  Call& call_;
  ServingState* state_;
  PreparePool* pool_;
  const std::shared_ptr<const AdminOptions> options_;
  const std::shared_ptr<LoadReport> report_ = std::make_shared<LoadReport>(call_.waker());
};

absl::Status Unload(const v1::UnloadModelRequest& request, ServingState* state,
                    const AdminOptions& options) {
  if (request.name().empty()) return InvalidField("name", "must not be empty");
  absl::Duration timeout = options.drain_timeout;
  if (request.has_drain_timeout()) {
    const std::optional<absl::Duration> asked = ToDuration(request.drain_timeout());
    if (!asked.has_value() || *asked < absl::ZeroDuration() || *asked > absl::Hours(24))
      return InvalidField("drain_timeout", "must be from 0 s to 24 h");
    timeout = *asked;
  }
  RETURN_IF_ERROR(state->hub().Unload(request.name(), timeout));
  state->Forget(request.name());
  LogInfo("unloaded a model for an administrator", {{"model", request.name()}});
  return absl::OkStatus();
}

}  // namespace

RpcService MakeAdminService(ServingState* state, PreparePool* pool, AdminOptions admin) {
  const auto options = std::make_shared<const AdminOptions>(std::move(admin));
  RpcService service{kAdminService, {}};
  service.methods.push_back(PooledUnary<v1::PlanLoadRequest, v1::PlanLoadResponse>(
      "PlanLoad", pool,
      [state, options](const v1::PlanLoadRequest& request,
                       v1::PlanLoadResponse* response) -> absl::Status {
        ASSIGN_OR_RETURN(const LoadSpec spec,
                         MakeSpec(*options, "plan", request.path(), request.options()));
        ASSIGN_OR_RETURN(const MemoryPlan plan, state->hub().Plan(spec));
        *response->mutable_plan() = ToProto(plan);
        return absl::OkStatus();
      }));
  service.methods.push_back(
      {"LoadModel", [state, pool, options](Call& call) -> std::unique_ptr<CallHandler> {
         return std::make_unique<LoadHandler>(call, state, pool, options);
       }});
  service.methods.push_back(PooledUnary<v1::UnloadModelRequest, v1::UnloadModelResponse>(
      "UnloadModel", pool,
      [state, options](const v1::UnloadModelRequest& request, v1::UnloadModelResponse*)
          -> absl::Status { return Unload(request, state, *options); }));
  return service;
}

}  // namespace nibble
