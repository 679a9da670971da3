#include "runtime/engine/model_hub.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/engine/load_model.h"
#include "runtime/engine/reaper.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxNamesTold = 10;
constexpr absl::Duration kRetryLoading = absl::Seconds(2);

absl::Status Draining(const std::string& name) {
  return WithRetry(
      WithReason(absl::UnavailableError(absl::StrCat("model '", name, "' is draining")),
                 "DRAINING"),
      absl::Seconds(1));
}

absl::Status Loading(const std::string& name) {
  return WithRetry(WithReason(absl::UnavailableError(absl::StrCat("model '", name, "' is loading")),
                              "MODEL_LOADING"),
                   kRetryLoading);
}

absl::Status ShuttingDown() {
  return WithRetry(WithReason(absl::UnavailableError("the server is shutting down"), "DRAINING"),
                   absl::Seconds(1));
}

}  // namespace

absl::Status ValidateModelName(absl::string_view name) {
  const auto letter = [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); };
  const bool shaped = !name.empty() && name.size() <= 128 && letter(name[0]) &&
                      std::all_of(name.begin(), name.end(), [&](char c) {
                        return letter(c) || c == '.' || c == '_' || c == '/' || c == '-';
                      });
  if (!shaped) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat("model name '", name.substr(0, 64),
                                                "' must be 1 to 128 letters, digits, '.', '_', '/' "
                                                "or '-', the first a letter or digit")),
        "INVALID_FIELD");
  }
  if (name == "live" || absl::StartsWith(name, "nibble.v1.") || absl::StartsWith(name, "grpc.")) {
    return WithReason(absl::InvalidArgumentError(absl::StrCat(
                          "model name '", name, "' is the name of a service; choose another")),
                      "INVALID_FIELD");
  }
  return absl::OkStatus();
}

struct ModelHub::Impl {
  // One name. `loading` lasts as long as a Load of it; `loaded` is empty until the first one has
  // succeeded and again once the model was handed to the reaper.
  struct Entry {
    std::string name;
    ModelState state = ModelState::kLoading;
    LoadedModel loaded;
    std::shared_ptr<const ServedModel> model;
    std::string error;         // kFailed: why,
    bool device_lost = false;  // and whether it was the device
    bool loading = false;
    std::optional<LoadStage> progress = std::nullopt;  // while `loading`
    std::shared_ptr<ModelMetrics> metrics;

    ModelStatus Status() const { return {name, state, model, error, progress}; }
    absl::Status CheckReplaceable(ReplacePolicy policy) const;
  };

  Impl(Options hub_options, Metrics* hub_metrics)
      : options(std::move(hub_options)), metrics(hub_metrics) {}

  Entry* FindEntry(absl::string_view name) {
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [&](const auto& e) { return e->name == name; });
    return found == entries.end() ? nullptr : found->get();
  }

  absl::Status NotFound(absl::string_view name) const {
    std::vector<std::string> names;
    for (const auto& entry : entries) {
      if (names.size() < kMaxNamesTold) names.push_back(absl::StrCat("'", entry->name, "'"));
    }
    return WithReason(absl::NotFoundError(absl::StrCat(
                          "no model '", name.substr(0, 64), "'; ",
                          names.empty() ? "none is loaded"
                                        : absl::StrCat("there is ", absl::StrJoin(names, ", ")))),
                      "MODEL_NOT_FOUND");
  }

  // Under the lock: the state and its gauge. The caller tells on_change outside.
  static void SetState(Entry& entry, ModelState state) {
    entry.state = state;
    entry.metrics->SetState(static_cast<int>(state));
  }
  void Tell(const ModelStatus& status) const {
    if (options.on_change) options.on_change(status);
  }

  void DeviceLost(const std::string& name, const absl::Status& error) {
    std::optional<ModelStatus> status;
    {
      std::lock_guard lock(mutex);
      if (Entry* entry = FindEntry(name)) {
        entry->error = std::string(error.message());
        entry->device_lost = true;
        SetState(*entry, ModelState::kFailed);
        status = entry->Status();
      }
    }
    if (status.has_value()) Tell(*status);
    if (options.on_device_lost) options.on_device_lost(name, error);
  }

  absl::Status Begin(const LoadSpec& spec, ModelStatus* status);
  absl::StatusOr<LoadedModel> Build(const LoadSpec& spec, std::shared_ptr<ModelMetrics> series,
                                    const HubProgress& progress);
  void DrainFirst(const LoadSpec& spec);
  absl::StatusOr<std::shared_ptr<const ServedModel>> End(const LoadSpec& spec,
                                                         absl::StatusOr<LoadedModel> built);
  void Retire(LoadedModel old, absl::Time deadline, absl::Status refusal,
              std::function<void()> on_gone = nullptr);

  const Options options;
  Metrics* const metrics;
  OpenDevices devices;
  const std::shared_ptr<MemoryLedger> ledger = std::make_shared<MemoryLedger>();
  std::mutex plan_mutex;  // a plan and its lease are taken together

  mutable std::mutex mutex;  // guards everything below but the atomic
  std::condition_variable changed;
  std::vector<std::unique_ptr<Entry>> entries;  // in the order they were first listed
  int loads = 0;                                // in progress
  bool draining = false;
  std::atomic<bool> cancel_loads{false};

  Reaper reaper;  // last: its thread ends first, and what it reaps may still call back
};

ModelHub::ModelHub(Options options, Metrics* metrics)
    : impl_(std::make_unique<Impl>(std::move(options), metrics)) {}

ModelHub::~ModelHub() { Drain(absl::InfinitePast()); }

absl::StatusOr<MemoryPlan> ModelHub::Plan(const LoadSpec& spec) const {
  absl::StatusOr<OpenedModel> opened = OpenModel(spec, impl_->devices);
  if (!opened.ok()) return WithLoadReason(opened.status());
  absl::StatusOr<MemoryPlan> plan =
      opened->Plan(spec.plan, impl_->ledger->Held(opened->backend->info().name));
  if (!plan.ok()) return WithLoadReason(plan.status());
  return plan;
}

absl::Status ModelHub::ShareKvMemory(std::vector<LoadSpec>* specs) const {
  return ShareKv(specs, impl_->devices, *impl_->ledger);
}

// --- load ---

// Whether a load may take the name. What ends by itself is worth another try: a model that is being
// unloaded, and another load where this one would replace what comes of it.
absl::Status ModelHub::Impl::Entry::CheckReplaceable(ReplacePolicy policy) const {
  if (state == ModelState::kDraining && !loading) return Draining(name);
  if (policy == ReplacePolicy::kRefuse && (loading || state != ModelState::kFailed)) {
    return WithReason(absl::AlreadyExistsError(absl::StrCat(
                          "model '", name, "' is ", loading ? "being loaded" : "loaded",
                          "; choose another name or a replace policy")),
                      "MODEL_EXISTS");
  }
  return loading ? Loading(name) : absl::OkStatus();
}

absl::Status ModelHub::Impl::Begin(const LoadSpec& spec, ModelStatus* status) {
  RETURN_IF_ERROR(ValidateModelName(spec.name));
  std::lock_guard lock(mutex);
  if (draining) return ShuttingDown();
  Entry* entry = FindEntry(spec.name);
  if (entry != nullptr) RETURN_IF_ERROR(entry->CheckReplaceable(spec.replace));
  if (entry == nullptr) {
    entries.push_back(std::make_unique<Entry>());
    entry = entries.back().get();
    entry->name = spec.name;
    entry->metrics = metrics->ForModel(spec.name);
    SetState(*entry, ModelState::kLoading);
  }
  entry->loading = true;
  ++loads;
  *status = entry->Status();
  return absl::OkStatus();
}

void ModelHub::Impl::Retire(LoadedModel old, absl::Time deadline, absl::Status refusal,
                            std::function<void()> on_gone) {
  old.engine->Close(std::move(refusal));
  reaper.Retire(std::move(old), deadline, std::move(on_gone));
}

// DRAIN_THEN_LOAD: the old model ends before the new one is read.
void ModelHub::Impl::DrainFirst(const LoadSpec& spec) {
  LoadedModel old;
  ModelStatus status;
  {
    std::lock_guard lock(mutex);
    Entry& entry = *FindEntry(spec.name);
    if (entry.loaded.engine == nullptr) return;
    SetState(entry, ModelState::kDraining);
    old = std::move(entry.loaded);
    status = entry.Status();
  }
  Tell(status);
  bool gone = false;
  Retire(std::move(old), MonotonicNow() + options.drain_timeout, Draining(spec.name), [&] {
    std::lock_guard lock(mutex);
    gone = true;
    changed.notify_all();
  });
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return gone; });
}

absl::StatusOr<LoadedModel> ModelHub::Impl::Build(const LoadSpec& spec,
                                                  std::shared_ptr<ModelMetrics> series,
                                                  const HubProgress& progress) {
  const HubProgress report = [&](const std::string& stage, std::int64_t done, std::int64_t total) {
    {
      std::lock_guard lock(mutex);
      FindEntry(spec.name)->progress = LoadStage{stage, done, total};
    }
    return !cancel_loads.load() && (!progress || progress(stage, done, total));
  };
  const auto cancelled = [] { return absl::CancelledError("the load was cancelled"); };
  if (!report("read", 0, 1)) return cancelled();
  ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(spec, devices));
  if (!report("plan", 0, 1)) return cancelled();
  MemoryPlan plan;
  MemoryLedger::Lease memory;
  {
    const std::string& device = opened.backend->info().name;
    std::lock_guard lock(plan_mutex);
    ASSIGN_OR_RETURN(plan, opened.Plan(spec.plan, ledger->Held(device)));
    memory = ledger->Take(device, plan.own_bytes());
  }
  EngineHooks hooks;
  hooks.on_device_lost = [this, name = spec.name](const absl::Status& error) {
    DeviceLost(name, error);
  };
  hooks.on_done = [this] { reaper.Wake(); };
  return LoadModel(spec, std::move(opened), plan, std::move(memory), std::move(series),
                   std::move(hooks), report);
}

// Puts the model in its place, or cleans up after one that did not come to be.
absl::StatusOr<std::shared_ptr<const ServedModel>> ModelHub::Impl::End(
    const LoadSpec& spec, absl::StatusOr<LoadedModel> built) {
  LoadedModel old;
  ModelStatus status;
  std::unique_ptr<Entry> removed;
  absl::StatusOr<std::shared_ptr<const ServedModel>> result = nullptr;
  if (!built.ok()) result = built.status();
  {
    std::lock_guard lock(mutex);
    Entry& entry = *FindEntry(spec.name);
    entry.loading = entry.device_lost = false;
    entry.progress.reset();
    if (built.ok() && draining) result = ShuttingDown();
    if (built.ok() && !draining) {
      old = std::move(entry.loaded);
      entry.loaded = *std::move(built);
      entry.model = entry.loaded.model;
      entry.error.clear();
      SetState(entry, ModelState::kServing);
      entry.loaded.engine->Start();
      result = entry.model;
      status = entry.Status();
    } else if (entry.loaded.engine != nullptr && entry.state == ModelState::kServing) {
      status = entry.Status();  // LOAD_THEN_DRAIN: the old one goes on
    } else {
      entry.error = std::string(result.status().message());
      SetState(entry, ModelState::kFailed);
      status = entry.Status();
      if (entry.model == nullptr) {  // never served: only this call is told
        const auto at = std::find_if(entries.begin(), entries.end(),
                                     [&](const auto& e) { return e.get() == &entry; });
        removed = std::move(*at);
        entries.erase(at);
      }
    }
  }
  Tell(status);
  if (removed != nullptr) Tell({spec.name, ModelState::kUnloaded, nullptr, removed->error});
  if (old.engine != nullptr) {
    Retire(std::move(old), MonotonicNow() + options.drain_timeout, Draining(spec.name));
  }
  return result;
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelHub::Load(const LoadSpec& spec,
                                                                  const HubProgress& progress) {
  ModelStatus status;
  RETURN_IF_ERROR(impl_->Begin(spec, &status));
  impl_->Tell(status);
  if (spec.replace == ReplacePolicy::kDrainThenLoad) impl_->DrainFirst(spec);
  absl::StatusOr<LoadedModel> built =
      impl_->Build(spec, impl_->metrics->ForModel(spec.name), progress);
  if (!built.ok()) built = WithLoadReason(built.status());
  auto result = impl_->End(spec, std::move(built));
  {
    std::lock_guard lock(impl_->mutex);
    --impl_->loads;
    impl_->changed.notify_all();
  }
  return result;
}

// --- unload ---

absl::Status ModelHub::Unload(const std::string& name, absl::Duration drain_timeout) {
  LoadedModel old;
  ModelStatus status;
  {
    std::lock_guard lock(impl_->mutex);
    Impl::Entry* entry = impl_->FindEntry(name);
    if (entry == nullptr) return impl_->NotFound(name);
    if (entry->loading) return Loading(name);
    if (entry->state == ModelState::kDraining) return Draining(name);
    Impl::SetState(*entry, ModelState::kDraining);
    old = std::move(entry->loaded);
    status = entry->Status();
  }
  impl_->Tell(status);
  if (old.engine != nullptr) {
    bool gone = false;
    impl_->Retire(std::move(old), MonotonicNow() + drain_timeout, Draining(name), [&] {
      std::lock_guard lock(impl_->mutex);
      gone = true;
      impl_->changed.notify_all();
    });
    std::unique_lock lock(impl_->mutex);
    impl_->changed.wait(lock, [&] { return gone; });
  }
  std::unique_ptr<Impl::Entry> removed;
  {
    std::lock_guard lock(impl_->mutex);
    const auto at = std::find_if(impl_->entries.begin(), impl_->entries.end(),
                                 [&](const auto& entry) { return entry->name == name; });
    if (at != impl_->entries.end()) {
      removed = std::move(*at);
      impl_->entries.erase(at);
      removed->metrics->SetState(-1);
    }
  }
  impl_->Tell({name, ModelState::kUnloaded, nullptr, ""});
  return absl::OkStatus();
}

void ModelHub::Drain(absl::Time wall_deadline) {
  const absl::Time deadline = MonotonicNow() + (wall_deadline - absl::Now());
  std::vector<LoadedModel> models;
  std::vector<ModelStatus> told;
  impl_->cancel_loads.store(true);
  {
    std::lock_guard lock(impl_->mutex);
    impl_->draining = true;
    for (const auto& entry : impl_->entries) {
      if (entry->loaded.engine == nullptr) continue;
      models.push_back(std::move(entry->loaded));
      if (entry->state == ModelState::kServing) Impl::SetState(*entry, ModelState::kDraining);
      told.push_back(entry->Status());
    }
  }
  for (const ModelStatus& status : told) impl_->Tell(status);
  for (LoadedModel& model : models) impl_->Retire(std::move(model), deadline, ShuttingDown());
  impl_->reaper.Hasten(deadline);
  {
    std::unique_lock lock(impl_->mutex);
    impl_->changed.wait(lock, [&] { return impl_->loads == 0; });
  }
  impl_->reaper.Hasten(deadline);  // of what a load put there meanwhile
  impl_->reaper.WaitUntilEmpty();
}

// --- lookup ---

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelHub::Find(absl::string_view name) const {
  std::lock_guard lock(impl_->mutex);
  const Impl::Entry* entry = nullptr;
  if (!name.empty()) {
    entry = impl_->FindEntry(name);
  } else if (!impl_->entries.empty()) {
    entry = impl_->entries.front().get();
  }
  if (entry == nullptr) return impl_->NotFound(name);
  switch (entry->state) {
    case ModelState::kServing: return entry->model;
    case ModelState::kLoading: return Loading(entry->name);
    case ModelState::kDraining:
      // A replacement that drains first comes back under the same name.
      return entry->loading ? WithRetry(Draining(entry->name), kRetryLoading)
                            : Draining(entry->name);
    case ModelState::kFailed:
    case ModelState::kUnloaded: break;
  }
  return WithRetry(WithReason(absl::UnavailableError(
                                  absl::StrCat("model '", entry->name, "' failed: ", entry->error)),
                              entry->device_lost ? "DEVICE_FAULT" : "MODEL_FAILED"),
                   kRetryLoading);
}

std::vector<ModelStatus> ModelHub::List() const {
  std::vector<ModelStatus> list;
  std::lock_guard lock(impl_->mutex);
  for (const auto& entry : impl_->entries) list.push_back(entry->Status());
  return list;
}

bool ModelHub::Alive(absl::Duration limit) const {
  if (!impl_->reaper.Alive(limit)) return false;
  std::lock_guard lock(impl_->mutex);
  return std::all_of(impl_->entries.begin(), impl_->entries.end(), [&](const auto& entry) {
    return entry->loaded.engine == nullptr || entry->loaded.engine->Alive(limit);
  });
}

}  // namespace nibble
