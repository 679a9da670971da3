#include "server/daemon.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/device/backend.h"
#include "server/admin_service.h"
#include "server/generation_service.h"
#include "server/http_prompt.h"
#include "server/model_service.h"
#include "server/page_status.h"
#include "server/tls.h"
#include "server/version.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxQueuedPreparations = 1024;
constexpr int kAdminThreads = 4;  // loads and unloads that may be under way at once
constexpr std::size_t kMaxQueuedAdminCalls = 16;
constexpr absl::Duration kHeartbeatInterval = absl::Milliseconds(500);
constexpr absl::Duration kLastWrites =
    absl::Seconds(2);  // for ended streams to reach their readers

int PrepareThreads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency() / 4, 2u, 8u));
}
int RpcQueues() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency() / 8, 1u, 4u));
}

std::vector<std::string> NamesOf(const std::vector<ModelOption>& models) {
  std::vector<std::string> names;
  for (const ModelOption& model : models) names.push_back(model.name);
  return names;
}

absl::Status OfFlag(const char* flag, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(flag, ": ", std::string(status.message())));
}

ModelHub::Options HubOptions(
    const ServeOptions& options, HealthWatchers* watchers,
    std::function<void(const std::string&, const absl::Status&)> on_device_lost) {
  ModelHub::Options hub;
  hub.drain_timeout = options.drain_timeout;
  hub.on_change = [watchers](const ModelStatus&) { watchers->Notify(); };
  hub.on_device_lost = std::move(on_device_lost);
  return hub;
}

}  // namespace

Daemon::Daemon(ServeOptions options)
    : options_(std::move(options)),
      started_(absl::Now()),
      metrics_(ThisBuild()),
      hub_(HubOptions(options_, &watchers_,
                      [this](const std::string& model, const absl::Status& status) {
                        LogError("a device is lost",
                                 {{"model", model}, {"status", status.ToString()}});
                        const std::lock_guard lock(mutex_);
                        lost_ = status;
                        changed_.notify_all();
                      }),
           &metrics_),
      state_(&hub_, &metrics_, NamesOf(options_.models), !options_.admin_listen.empty()),
      prepare_pool_(PrepareThreads(), kMaxQueuedPreparations),
      admin_pool_(kAdminThreads, kMaxQueuedAdminCalls) {
  for (const ModelOption& model : options_.models)
    loading_metrics_.push_back(metrics_.ForModel(model.name));
}

absl::Status Daemon::Start() {
  ASSIGN_OR_RETURN(const auto credentials, MakeServerCredentials(options_));
  RpcServerOptions rpc{.listen = options_.listen,
                       .credentials = credentials,
                       .max_connection_age = options_.max_connection_age,
                       .queues = RpcQueues()};
  absl::StatusOr<std::unique_ptr<RpcServer>> started = RpcServer::Start(
      rpc, {MakeGenerationService(&state_, &prepare_pool_, options_.tenant_metadata),
            MakeModelService(&state_), MakeHealthService(&state_, &watchers_)});
  if (!started.ok()) {
    const char* or_else =
        options_.tls_cert.empty() ? "" : "; or --tls-cert and --tls-key do not belong together";
    return absl::Status(
        started.status().code(),
        absl::StrCat("--listen: ", std::string(started.status().message()), or_else));
  }
  rpc_ = *std::move(started);
  if (!options_.admin_listen.empty()) RETURN_IF_ERROR(StartAdmin(credentials));
  if (!options_.http.empty() && options_.http != "off") RETURN_IF_ERROR(StartHttp());
  heartbeat_ = std::thread([this]() noexcept { Watch(); });
  return absl::OkStatus();
}

absl::Status Daemon::StartHttp() {
  const PageFacts facts{
      .grpc_address = rpc_->address(), .prompt = options_.http_prompt, .started = started_};
  HttpPages pages{
      .metrics =
          [this] {
            metrics_.SetHealth(state_.Live(), state_.Ready());
            return metrics_.Scrape();
          },
      .live = [this] { return state_.Live(); },
      .ready = [this] { return state_.Ready(); },
      .status = [this, facts] { return PageStatus(state_, metrics_, facts, absl::Now()); }};
  if (options_.http_prompt) {
    pages.check_prompt = [this](const HttpHead& head) -> std::optional<HttpAnswer> {
      const absl::Status status = CheckPromptHead(head, options_.http_prompt_hosts);
      return status.ok() ? std::nullopt : std::optional(ErrorAnswer(status));
    };
    pages.answer_prompt = [this](const std::string& body, std::weak_ptr<StreamWaker> waker) {
      return AnswerPrompt(&state_, &prepare_pool_, body, std::move(waker));
    };
  }
  auto started = HttpServer::Start(options_.http, std::move(pages));
  if (!started.ok()) return OfFlag("--http", started.status());
  http_ = *std::move(started);
  return absl::OkStatus();
}

absl::Status Daemon::StartAdmin(std::shared_ptr<grpc::ServerCredentials> credentials) {
  AdminOptions admin{.model_root = options_.model_root, .drain_timeout = options_.drain_timeout};
  std::error_code error;
  if (!admin.model_root.empty() && !std::filesystem::is_directory(admin.model_root, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model-root: ", admin.model_root, " is no directory"));
  }
  std::int64_t device_bytes = 0;
  if (NeedsDeviceBytes(options_)) {
    ASSIGN_OR_RETURN(const auto backend, OpenBackend(MakeLoadSpec(options_, 0).backend));
    device_bytes = backend->info().memory_bytes;
  }
  admin.defaults = MakeLoadSpec(options_, device_bytes);
  const bool local = absl::StartsWith(options_.admin_listen, "unix:");
  RpcServerOptions rpc{
      .listen = options_.admin_listen,
      .credentials = local ? grpc::InsecureServerCredentials() : std::move(credentials),
      .queues = 1};
  auto started =
      RpcServer::Start(rpc, {MakeAdminService(&state_, &admin_pool_, std::move(admin)),
                             MakeModelService(&state_), MakeHealthService(&state_, &watchers_)});
  if (!started.ok()) return OfFlag("--admin-listen", started.status());
  admin_rpc_ = *std::move(started);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LoadSpec>> Daemon::StartupSpecs() {
  std::map<std::string, std::int64_t> device_bytes;
  std::vector<LoadSpec> specs;
  for (const ModelOption& model : options_.models) {
    const BackendOptions device = MakeLoadSpec(options_, model, 0).backend;
    std::int64_t& bytes = device_bytes[device.device];
    if (bytes == 0 && NeedsDeviceBytes(options_)) {
      ASSIGN_OR_RETURN(const auto backend, OpenBackend(device));
      bytes = backend->info().memory_bytes;
    }
    specs.push_back(MakeLoadSpec(options_, model, bytes));
  }
  if (specs.size() > 1) RETURN_IF_ERROR(hub_.ShareKvMemory(&specs));
  return specs;
}

absl::Status Daemon::LoadModels(const StartupProgress& progress) {
  ASSIGN_OR_RETURN(const std::vector<LoadSpec> specs, StartupSpecs());
  for (const LoadSpec& spec : specs) {
    const auto report = [&](const std::string& stage, std::int64_t done, std::int64_t total) {
      if (progress) progress(spec.name, stage, done, total);
      return state_.CheckAccepting().ok();
    };
    RETURN_IF_ERROR(state_.CheckAccepting());
    const auto loaded = hub_.Load(spec, report);
    if (!loaded.ok()) {
      return absl::Status(loaded.status().code(),
                          absl::StrCat("model ", spec.name, " (", spec.path,
                                       "): ", std::string(loaded.status().message())));
    }
    const ModelInfo& info = (*loaded)->info;
    LogInfo("model loaded", {{"model", info.name},
                             {"format", info.format},
                             {"architecture", info.architecture},
                             {"context", absl::StrCat(info.context)},
                             {"weights_bytes", absl::StrCat(info.plan.weights_bytes)},
                             {"expanded_bytes", absl::StrCat(info.plan.expanded_bytes)},
                             {"kv_bytes", absl::StrCat(info.plan.kv_bytes)},
                             {"seconds", absl::StrCat(absl::ToDoubleSeconds(info.load_time))}});
  }
  loading_metrics_.clear();  // the hub holds them from here on
  watchers_.Notify();
  return absl::OkStatus();
}

// Health watchers are woken by the hub; a hanging engine says nothing, so its heartbeat is looked
// at.
void Daemon::Watch() {
  bool live = true;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, absl::ToChronoMilliseconds(kHeartbeatInterval),
                            [this] { return ending_; })) {
    lock.unlock();
    if (const bool now = state_.Live(); now != live) {
      live = now;
      if (live) {
        LogInfo("the engines' heartbeat is back");
      } else {
        LogError("an engine has not moved for long: not live",
                 {{"limit", absl::FormatDuration(kHeartbeatLimit)}});
      }
      watchers_.Notify();
    }
    if (http_ != nullptr) http_->NoticeLeavers();
    const bool hangs = !live && Hangs();
    lock.lock();
    if (hangs && lost_.ok()) {
      lost_ = absl::InternalError("an engine hangs");
      changed_.notify_all();
    }
  }
}

void Daemon::Stop() {
  state_.Drain();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  watchers_.Notify();
}

absl::Status Daemon::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || !lost_.ok(); });
  return lost_;
}

void Daemon::Drain(absl::Duration timeout) {
  Stop();
  hub_.Drain(absl::Now() + timeout);
}

Daemon::~Daemon() {
  Stop();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (heartbeat_.joinable()) heartbeat_.join();
  hub_.Drain(absl::Now());  // whoever did not drain ends what still runs
  watchers_.End();
  for (RpcServer* server : {admin_rpc_.get(), rpc_.get()}) {
    if (server != nullptr) server->Shutdown(absl::Now() + kLastWrites);
  }
  admin_pool_.Stop();
  prepare_pool_.Stop();
  http_.reset();
}

}  // namespace nibble
