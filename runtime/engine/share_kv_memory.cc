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

// What all of them take together; `fixed` is without the KV pools of those that share.
struct Together {
  std::int64_t budget = 0, total = 0, fixed = 0, sharers = 0;
  std::int64_t left() const { return budget - fixed; }
};

absl::StatusOr<Together> Sum(std::int64_t held, std::vector<Candidate>& models) {
  Together sum;
  std::int64_t common = 0;
  for (Candidate& model : models) {
    absl::StatusOr<MemoryPlan> plan = model.opened.Plan(model.spec->plan, held);
    if (!plan.ok()) return OfModel(*model.spec, plan.status());
    if (!model.spec->plan.kv_bytes.has_value()) model.alone = plan->kv_bytes;
    common = std::max(common, plan->shared_bytes);
    sum.budget = plan->budget_bytes;
    sum.total += plan->own_bytes();
    sum.fixed += plan->own_bytes() - (model.shares ? plan->kv_bytes : 0);
    sum.sharers += model.shares ? 1 : 0;
  }
  sum.total += common;
  sum.fixed += common;
  return sum;
}

// Settles PrefillWeights::kAuto: a plan of one model would take for its copy what the others need.
// All that would keep one alone keep it, or none.
absl::Status ChooseWeights(std::int64_t held, std::vector<Candidate>& models) {
  std::vector<PrefillWeights*> choices;
  for (Candidate& model : models) {
    PlanOptions& options = model.spec->plan;
    if (options.prefill_weights != PrefillWeights::kAuto) continue;
    absl::StatusOr<MemoryPlan> plan = model.opened.Plan(options, held);
    if (!plan.ok()) return OfModel(*model.spec, plan.status());
    if (plan->expanded_bytes > 0) choices.push_back(&options.prefill_weights);
    options.prefill_weights = PrefillWeights::kPacked;
  }
  if (choices.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Together packed, Sum(held, models));
  for (PrefillWeights* choice : choices) *choice = PrefillWeights::kExpanded;
  const absl::StatusOr<Together> expanded = Sum(held, models);
  const double least = kLeastKvShare * static_cast<double>(packed.left());
  if (expanded.ok() && static_cast<double>(expanded->left()) >= std::max(least, 0.0))
    return absl::OkStatus();
  for (PrefillWeights* choice : choices) *choice = PrefillWeights::kPacked;
  return absl::OkStatus();
}

// A plan's workspace may depend on its KV, so a share is tried: what the plans with it exceed the
// budget by is taken off again.
absl::Status ShareDevice(const std::string& device, std::int64_t held,
                         std::vector<Candidate>& models) {
  RETURN_IF_ERROR(ChooseWeights(held, models));
  ASSIGN_OR_RETURN(const Together all, Sum(held, models));
  if (all.sharers == 0) return absl::OkStatus();
  std::int64_t share = all.left() / all.sharers;
  for (int round = 0; round < 8 && share > 0; ++round) {
    for (Candidate& model : models) {
      if (model.shares) model.spec->plan.kv_bytes = std::min(share, model.alone);
    }
    ASSIGN_OR_RETURN(const Together tried, Sum(held, models));
    if (tried.total <= all.budget) return absl::OkStatus();
    share -= (tried.total - all.budget + all.sharers - 1) / all.sharers;
  }
  return WithReason(
      absl::ResourceExhaustedError(absl::StrCat(
          "the models need ", all.fixed, " bytes of ", device, " besides the KV memory of ",
          all.sharers, " of them, and may take ", all.budget, "; serve fewer, or raise --memory")),
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
