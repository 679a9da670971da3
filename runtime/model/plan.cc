#include "runtime/model/plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/ceil_div.h"
#include "runtime/base/status.h"
#include "runtime/model/program_builder.h"

namespace nibble {
namespace {

constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kGiB = 1 << 30;
constexpr double kBudgetShare = 0.9;  // of the device, when --memory is unset

// A host shares its memory with everybody else, so that an unset --kv-memory stops there even when
// more is free.
constexpr std::int64_t kHostKvCap = kGiB;
constexpr std::int64_t kHostKvShare = 4;  // and at this part of the budget

constexpr std::int32_t kHostBatch = 64, kDeviceBatch = 256;
constexpr std::int32_t kHostStepTokens = 512, kDeviceStepTokens = 2048;
constexpr std::int32_t kDeviceTileTokens = 128;
constexpr std::int32_t kMinLogitRows =
    32;  // prompt log-probabilities score so many rows a step at least

// What no table lists: on a host the daemon itself; on a card the context with its libraries, once
// for all models, and of each its handles and fragmentation.
constexpr std::int64_t kHostOther = 24 * kMiB, kDeviceShared = 672 * kMiB, kDeviceOther = 48 * kMiB;
constexpr std::int64_t kBytesPerVocabularyEntry =
    192;  // strings, hash entries and merges of the tokenizer

bool OnHost(const DeviceInfo& info) { return absl::StartsWith(info.name, "cpu"); }

std::string Show(std::int64_t bytes) {
  if (bytes >= kGiB) return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / kGiB);
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / kMiB);
}

struct WeightTotals {
  std::int64_t bytes = 0;
  std::int64_t parameters = 0;
};

absl::StatusOr<WeightTotals> CountWeights(const WeightPlan& plan, const WeightFormat& format,
                                          const Backend& backend) {
  WeightTotals totals;
  for (const LinearPlan& linear : plan.linears) {
    ASSIGN_OR_RETURN(std::vector<LinearSpec> specs, DescribeLinear(format, linear));
    ASSIGN_OR_RETURN(std::int64_t bytes, backend.PackedBytes(specs, linear.axis));
    totals.bytes += bytes;
    for (const LinearSpec& spec : specs)
      totals.parameters += spec.n * spec.k + (spec.has_bias ? spec.n : 0);
  }
  for (const VectorPlan& vector : plan.vectors) {
    totals.bytes += vector.size * static_cast<std::int64_t>(sizeof(float));
    totals.parameters += vector.size;
  }
  return totals;
}

// Dynamic scaling may be stretched by its factor; all else ends where the model's positions end.
std::int64_t LargestContext(const ModelConfig& config) {
  std::int64_t largest = config.max_context;
  for (const RopeConfig& rope : config.ropes) {
    if (rope.scaling.kind != RopeScaling::Kind::kDynamic) continue;
    largest =
        std::max(largest, static_cast<std::int64_t>(rope.scaling.factor * config.max_context));
  }
  return largest;
}

absl::StatusOr<StepLimits> WantedLimits(const ModelConfig& config, const PlanOptions& options,
                                        bool on_host) {
  StepLimits limits;
  const std::int64_t largest = LargestContext(config);
  limits.max_context = options.max_context.value_or(config.max_context);
  if (limits.max_context < 1 || limits.max_context > largest) {
    return absl::InvalidArgumentError(absl::StrCat("--max-context is ", limits.max_context,
                                                   "; this model takes from 1 to ", largest,
                                                   " tokens"));
  }
  limits.max_sequences = options.max_batch.value_or(on_host ? kHostBatch : kDeviceBatch);
  constexpr std::int32_t kMaxBatch = 4096;
  if (limits.max_sequences < 1 || limits.max_sequences > kMaxBatch) {
    return absl::InvalidArgumentError(absl::StrCat("--max-batch is ", limits.max_sequences,
                                                   "; it must be from 1 to ", kMaxBatch));
  }
  limits.max_slots = limits.max_sequences;
  limits.max_tokens = std::max(on_host ? kHostStepTokens : kDeviceStepTokens, limits.max_sequences);
  limits.max_logit_rows = std::max(limits.max_sequences, kMinLogitRows);
  limits.tile_tokens = on_host ? 1 : kDeviceTileTokens;
  return limits;
}

absl::StatusOr<KvLayout> Layout(const ModelConfig& config, const PlanOptions& options,
                                const Backend& backend) {
  if (options.page_tokens < 1 || options.page_tokens > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("a page holds ", options.page_tokens, " tokens; it must hold from 1 to 1024"));
  }
  KvLayout kv;
  kv.num_layers = config.layers;
  kv.num_kv_heads = config.kv_heads;
  kv.head_dim = config.head_dim;
  kv.page_tokens = options.page_tokens;
  kv.dtype = options.kv_dtype.value_or(backend.DefaultKvDType(options.compute));
  RETURN_IF_ERROR(backend.CheckKv(kv));
  return kv;
}

absl::Status DoesNotFit(const MemoryPlan& plan, const PlanOptions& options, const DeviceInfo& info,
                        std::int64_t kv_needed, const std::string& kv_what) {
  const std::string expanded =
      plan.expanded_bytes > 0 ? absl::StrCat(", their expanded copy ", Show(plan.expanded_bytes),
                                             " (--prefill-weights=packed does without)")
                              : "";
  const std::string budget = options.memory_bytes
                                 ? absl::StrCat("--memory is ", Show(plan.budget_bytes))
                                 : absl::StrCat("the budget is ", Show(plan.budget_bytes),
                                                ", 90% of what ", info.name, " has");
  return absl::ResourceExhaustedError(
      absl::StrCat("the model needs ", Show(plan.fixed_bytes() + kv_needed), ": weights ",
                   Show(plan.weights_bytes), expanded, ", workspace ", Show(plan.workspace_bytes),
                   ", other ", Show(plan.other_bytes + plan.graphs_bytes), ", and ",
                   Show(kv_needed), " of KV for ", kv_what, "; ", budget,
                   ". Raise --memory, lower --max-context or --max-batch, take a narrower "
                   "--kv-dtype, or serve a smaller "
                   "quantization"));
}

// Bytes of KV to hold; whole pages are cut from it. `available` is what the budget leaves.
std::int64_t KvBudget(const MemoryPlan& plan, const PlanOptions& options, bool on_host,
                      std::int64_t available, std::int64_t sequence_bytes) {
  const std::int64_t useful =
      sequence_bytes * plan.limits.max_sequences;  // every sequence at full length
  if (options.kv_bytes) return std::min(*options.kv_bytes, useful);
  std::int64_t bytes = std::min(available, useful);
  if (on_host) {
    std::int64_t cap = std::min(kHostKvCap, plan.budget_bytes / kHostKvShare);
    if (options.max_context)
      cap = std::max(cap, sequence_bytes);  // asked for: room for one at least
    bytes = std::min(bytes, cap);
  }
  return bytes;
}

absl::Status SizeKvPool(const PlanOptions& options, const DeviceInfo& info, MemoryPlan& plan) {
  const std::int64_t available = plan.budget_bytes - plan.fixed_bytes();
  const std::int64_t page_bytes = plan.kv.BytesPerPage();
  const std::int64_t sequence_bytes =
      CeilDiv(plan.limits.max_context, plan.kv.page_tokens) * page_bytes;
  if (available < page_bytes)
    return DoesNotFit(plan, options, info, page_bytes, "one page of one sequence");
  if (options.kv_bytes && *options.kv_bytes > available) {
    return DoesNotFit(plan, options, info, *options.kv_bytes, "--kv-memory");
  }
  const std::int64_t bytes = KvBudget(plan, options, OnHost(info), available, sequence_bytes);
  const std::int64_t pages =
      std::min<std::int64_t>(bytes / page_bytes, std::numeric_limits<int>::max());
  if (pages < 1) {
    return absl::ResourceExhaustedError(absl::StrCat("--kv-memory is ", Show(bytes),
                                                     "; one page of ", plan.kv.page_tokens,
                                                     " tokens takes ", Show(page_bytes)));
  }
  plan.kv.num_pages = static_cast<int>(pages);
  plan.kv_bytes = plan.kv.TotalBytes();
  plan.kv_tokens = pages * plan.kv.page_tokens;
  // A context that was asked for is a promise. The model's own may be longer than the pool:
  // requests that cannot fit are refused, EXCEEDS_KV_POOL, and an answer may end where the pool
  // does.
  if (options.max_context && plan.kv_tokens < plan.limits.max_context) {
    return DoesNotFit(plan, options, info, sequence_bytes,
                      absl::StrCat("one sequence of --max-context ", *options.max_context));
  }
  return absl::OkStatus();
}

// A context that nobody asked for gives way, also in what the workspace needs for it.
absl::Status Fit(const Program& program, const Backend& backend, const PlanOptions& options,
                 MemoryPlan& plan) {
  absl::Status fits;
  do {
    plan.workspace_bytes = backend.WorkspaceBytes(program, plan.limits);
    plan.graphs_bytes = backend.GraphsBytes(program, plan.limits);
    fits = SizeKvPool(options, backend.info(), plan);
    if (fits.ok() || options.max_context) break;
    plan.limits.max_context /= 2;
  } while (plan.limits.max_context >= plan.kv.page_tokens);
  return fits;
}

absl::StatusOr<std::int64_t> ExpandedBytes(const BuiltProgram& built, const WeightFormat& format,
                                           const Backend& backend) {
  std::int64_t bytes = 0;
  for (const LinearId id : TokenLinears(built.program)) {
    const LinearPlan& linear = built.weights.linears[static_cast<std::size_t>(id)];
    ASSIGN_OR_RETURN(const std::vector<LinearSpec> specs, DescribeLinear(format, linear));
    ASSIGN_OR_RETURN(const std::int64_t each, backend.ExpandedBytes(specs));
    bytes += each;
  }
  return bytes;
}

// `wanted` as fits the budget, with an expanded copy of the weights or without.
absl::StatusOr<MemoryPlan> FitWeights(const MemoryPlan& wanted, const BuiltProgram& built,
                                      const WeightFormat& format, const Backend& backend,
                                      const PlanOptions& options) {
  const bool asked = options.prefill_weights == PrefillWeights::kExpanded;
  if (asked && options.deterministic) {
    return absl::InvalidArgumentError(
        "--prefill-weights=expanded: --deterministic multiplies by packed weights; drop one of "
        "them");
  }
  const absl::StatusOr<std::int64_t> bytes = ExpandedBytes(built, format, backend);
  if (asked && !bytes.ok()) {
    return absl::Status(bytes.status().code(),
                        absl::StrCat("--prefill-weights=expanded: ", bytes.status().message()));
  }
  MemoryPlan plan = wanted;
  if (asked) plan.expanded_bytes = *bytes;
  RETURN_IF_ERROR(Fit(built.program, backend, options, plan));
  const bool undecided =
      options.prefill_weights == PrefillWeights::kAuto && !options.deterministic && bytes.ok();
  if (!undecided) return plan;
  MemoryPlan expanded = plan;
  expanded.expanded_bytes = *bytes;
  const bool fits =
      SizeKvPool(options, backend.info(), expanded).ok() &&
      static_cast<double>(expanded.kv_bytes) >= kLeastKvShare * static_cast<double>(plan.kv_bytes);
  return fits ? expanded : plan;
}

}  // namespace

absl::StatusOr<MemoryPlan> PlanMemory(const ModelConfig& config, const Checkpoint& checkpoint,
                                      const WeightFormat& format, const Backend& backend,
                                      const PlanOptions& options) {
  const DeviceInfo& info = backend.info();
  const bool on_host = OnHost(info);
  MemoryPlan plan;
  plan.budget_bytes = options.memory_bytes.value_or(
      static_cast<std::int64_t>(static_cast<double>(info.memory_bytes) * kBudgetShare));
  ASSIGN_OR_RETURN(plan.limits, WantedLimits(config, options, on_host));
  ASSIGN_OR_RETURN(plan.kv, Layout(config, options, backend));
  plan.kv_bytes_per_token =
      KvBytesPerToken(config.layers,
                      std::int64_t{config.kv_heads} * config.head_dim * BitsOf(plan.kv.dtype), 1) /
      8;

  ASSIGN_OR_RETURN(BuiltProgram built,
                   BuildProgram(config, checkpoint, format, plan.limits.max_context));
  ASSIGN_OR_RETURN(WeightTotals weights, CountWeights(built.weights, format, backend));
  plan.weights_bytes = weights.bytes;
  plan.parameters = weights.parameters;
  plan.deterministic = options.deterministic;
  plan.bits_per_weight =
      8.0 * static_cast<double>(weights.bytes) / static_cast<double>(weights.parameters);
  plan.balance_batch = info.memory_bandwidth > 0 && info.flops > 0
                           ? BalanceBatch(info.flops, info.memory_bandwidth, plan.bits_per_weight)
                           : 0.0;
  plan.shared_bytes = on_host ? 0 : kDeviceShared;
  plan.other_bytes = (on_host ? kHostOther : kDeviceShared + kDeviceOther) +
                     config.vocab * kBytesPerVocabularyEntry;

  return FitWeights(plan, built, format, backend, options);
}

Json ToJson(const MemoryPlan& plan) {
  Json json;
  json.Set("weights_bytes", plan.weights_bytes);
  json.Set("expanded_bytes", plan.expanded_bytes);
  json.Set("kv_bytes", plan.kv_bytes);
  json.Set("workspace_bytes", plan.workspace_bytes);
  json.Set("graphs_bytes", plan.graphs_bytes);
  json.Set("other_bytes", plan.other_bytes);
  json.Set("shared_bytes", plan.shared_bytes);
  json.Set("total_bytes", plan.total_bytes());
  json.Set("budget_bytes", plan.budget_bytes);
  json.Set("parameters", plan.parameters);
  json.Set("bits_per_weight", plan.bits_per_weight);
  json.Set("kv_dtype", NameOf(plan.kv.dtype));
  json.Set("kv_bytes_per_token", plan.kv_bytes_per_token);
  json.Set("kv_tokens", plan.kv_tokens);
  json.Set("kv_pages", plan.kv.num_pages);
  json.Set("page_tokens", plan.kv.page_tokens);
  json.Set("max_context", std::int64_t{plan.limits.max_context});
  json.Set("sequences_of_max_context", plan.kv_tokens / plan.limits.max_context);
  json.Set("max_batch", std::int64_t{plan.limits.max_sequences});
  json.Set("max_step_tokens", std::int64_t{plan.limits.max_tokens});
  json.Set("balance_batch", plan.balance_batch);
  json.Set("deterministic", plan.deterministic);
  return json;
}

}  // namespace nibble
