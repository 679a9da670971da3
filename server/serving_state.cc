#include "server/serving_state.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/errors.h"

namespace nibble {

ServingState::ServingState(ModelHub* hub, Metrics* metrics, std::vector<std::string> startup_models,
                           bool administered)
    : hub_(hub),
      metrics_(metrics),
      startup_models_(std::move(startup_models)),
      administered_(administered),
      required_(startup_models_) {}

absl::Status ServingState::CheckAccepting() const {
  if (!draining_.load()) return absl::OkStatus();
  return WithRetry(
      WithReason(absl::UnavailableError("the server is shutting down; ask another one"),
                 "DRAINING"),
      absl::Seconds(1));
}

std::string ServingState::Resolve(const std::string& name) const {
  return name.empty() && !startup_models_.empty() ? startup_models_.front() : name;
}

std::vector<ModelStatus> ServingState::List() const {
  std::vector<ModelStatus> listed = hub_->List();
  const std::lock_guard lock(mutex_);
  for (const std::string& name : required_) {
    const bool known = std::any_of(listed.begin(), listed.end(),
                                   [&](const ModelStatus& status) { return status.name == name; });
    if (!known) listed.push_back({.name = name, .state = ModelState::kLoading});
  }
  return listed;
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ServingState::Find(
    const std::string& name) const {
  if (name.size() > 128)
    return InvalidField("model", absl::StrCat("must have at most 128 bytes, has ", name.size()));
  const std::string resolved = Resolve(name);
  absl::StatusOr<std::shared_ptr<const ServedModel>> found = hub_->Find(resolved);
  if (found.ok() || !absl::IsNotFound(found.status())) return found;
  const std::lock_guard lock(mutex_);
  if (std::find(required_.begin(), required_.end(), resolved) == required_.end()) return found;
  return WithRetry(
      WithReason(absl::UnavailableError(absl::StrCat("model ", resolved, " is still loading")),
                 "MODEL_LOADING"),
      absl::Seconds(2));
}

void ServingState::Forget(const std::string& name) {
  const std::lock_guard lock(mutex_);
  std::erase(required_, name);
}

void ServingState::CountRefused(const std::string& name, const absl::Status& status) const {
  const std::string resolved = Resolve(name);
  const std::string reason = ErrorReasonOf(status);
  for (const ModelStatus& known : List()) {
    if (known.name != resolved && !resolved.empty()) continue;
    metrics_->ForModel(known.name)->CountRejected(status.code(), reason);
    return;
  }
  metrics_->CountUnknownModel(status.code(), reason);
}

bool ServingState::Ready() const {
  if (draining_.load() || !Live()) return false;
  const std::vector<ModelStatus> listed = hub_->List();
  const std::lock_guard lock(mutex_);
  return std::all_of(required_.begin(), required_.end(), [&](const std::string& name) {
    return std::any_of(listed.begin(), listed.end(), [&](const ModelStatus& status) {
      return status.name == name && status.state == ModelState::kServing;
    });
  });
}

std::optional<bool> ServingState::Serves(const std::string& service) const {
  if (service.empty() || service == kGenerationService) return Ready();
  if (service == kLiveService) return Live();
  if (service == kModelService || service == kHealthService ||
      (service == kAdminService && administered_)) {
    return !draining_.load();
  }
  for (const ModelStatus& status : List()) {
    if (status.name == service)
      return status.state == ModelState::kServing && !draining_.load() && Live();
  }
  return std::nullopt;
}

}  // namespace nibble
