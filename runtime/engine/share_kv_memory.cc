#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/engine/load_model.h"

namespace nibble {
namespace {

// One model to be loaded and its plan so far.
struct Candidate {
  LoadSpec* spec;
  OpenedModel opened;
  bool shares;             // it did not say how much KV memory it takes
  std::int64_t alone = 0;  // KV bytes it would take of the whole device
};

absl::Status OfModel(const LoadSpec& spec, const absl::Status& status) {
  const absl::Status why = WithLoadReason(status);
  return WithReason(
      absl::Status(why.code(), absl::StrCat("model '", spec.name, "': ", why.message())),
      ReasonOf(why));
}

// A plan's workspace may depend on its KV, so a share is tried: what the plans with it exceed the
// budget by is taken off again.
absl::Status ShareDevice(const std::string& device, std::int64_t held,
                         std::vector<Candidate>& models) {
  std::int64_t budget = 0, fixed = 0, sharers = 0;
  for (Candidate& model : models) {
    absl::StatusOr<MemoryPlan> plan = model.opened.Plan(model.spec->plan, held);
    if (!plan.ok()) return OfModel(*model.spec, plan.status());
    budget = plan->budget_bytes;
    model.alone = plan->kv_bytes;
    fixed += plan->total_bytes() - (model.shares ? plan->kv_bytes : 0);
    sharers += model.shares ? 1 : 0;
  }
  if (sharers == 0) return absl::OkStatus();
  std::int64_t share = (budget - fixed) / sharers;
  for (int round = 0; round < 8 && share > 0; ++round) {
    std::int64_t total = 0;
    for (Candidate& model : models) {
      if (model.shares) model.spec->plan.kv_bytes = std::min(share, model.alone);
      absl::StatusOr<MemoryPlan> plan = model.opened.Plan(model.spec->plan, held);
      if (!plan.ok()) return OfModel(*model.spec, plan.status());
      total += plan->total_bytes();
    }
    if (total <= budget) return absl::OkStatus();
    share -= (total - budget + sharers - 1) / sharers;
  }
  return WithReason(
      absl::ResourceExhaustedError(absl::StrCat(
          "the models need ", fixed, " bytes of ", device, " besides the KV memory of ", sharers,
          " of them, and may take ", budget, "; serve fewer, or raise --memory")),
      "INSUFFICIENT_MEMORY");
}

}  // namespace

absl::Status ShareKv(std::vector<LoadSpec>* specs, OpenDevices& devices,
                     const MemoryLedger& ledger) {
  std::map<std::string, std::vector<Candidate>> by_device;
  for (LoadSpec& spec : *specs) {
    absl::StatusOr<OpenedModel> opened = OpenModel(spec, devices);
    if (!opened.ok()) return OfModel(spec, opened.status());
    const std::string device = opened->backend->info().name;
    by_device[device].push_back({&spec, *std::move(opened), !spec.plan.kv_bytes.has_value()});
  }
  for (auto& [device, models] : by_device) {
    RETURN_IF_ERROR(ShareDevice(device, ledger.Held(device), models));
  }
  return absl::OkStatus();
}

}  // namespace nibble
