// How fast a CUDA device runs the steps of a model, straight through the Runner: decode at several
// numbers of sequences, prefill, a ledger of a decode step, and memory against the plan.
//
//   cuda_steps SHAPE FORMAT [f16|bf16] [FLAG...]      a synthetic model, runtime/model/synthetic.h
//
//   --kv f8|i8             keys and values in 8 bits
//   --prefill-weights W    auto, packed or expanded
//   --deterministic        and whether a sequence has the same bits alone and among 63 others
//   --streams 1,16,64      numbers of sequences that decode; 0: none
//   --no-ledgers
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_runner.h"
#include "runtime/model/loader.h"
#include "runtime/model/plan.h"
#include "runtime/model/synthetic.h"

namespace nibble {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Drives sequences 0 .. count - 1 that hold random prompts, one step ahead of what it collects.
class Driver {
 public:
  Driver(Runner& runner, const MemoryPlan& plan, std::int32_t vocab)
      : runner_(runner), plan_(plan), vocab_(vocab) {}

  // Seconds of prefilling `prompts` prompts of `tokens`, in steps of the plan's size.
  absl::StatusOr<double> Prefill(int prompts, int tokens) {
    const double begin = Now();
    lengths_.assign(static_cast<std::size_t>(prompts), 0);
    pages_per_sequence_ = (tokens + kRoom + plan_.kv.page_tokens - 1) / plan_.kv.page_tokens;
    int s = 0, at = 0;
    while (s < prompts) {
      Clear();
      int room = plan_.limits.max_tokens;
      while (s < prompts && room > 0) {
        const int count = std::min(room, tokens - at);
        if (at == 0) Begin(s);
        Append(s, at, count, /*from_slot=*/false);
        at += count;
        room -= count;
        lengths_[static_cast<std::size_t>(s)] = at;
        if (at < tokens) break;
        Sample(s, 0);
        at = 0;
        ++s;
      }
      RETURN_IF_ERROR(Run(Phase::kPrefill));
    }
    RETURN_IF_ERROR(Finish());
    return Now() - begin;
  }

  // Seconds a step, over `steps` of them, the whole device and host path.
  absl::StatusOr<double> Decode(int steps) {
    double begin = 0.0;
    constexpr int kWarm = 3;
    for (int i = 0; i < steps + kWarm; ++i) {
      if (i == kWarm) {
        RETURN_IF_ERROR(Finish());
        begin = Now();
      }
      Clear();
      for (std::size_t s = 0; s < lengths_.size(); ++s) {
        Append(static_cast<int>(s), lengths_[s]++, 1, /*from_slot=*/true);
        Sample(static_cast<int>(s), i + 1);
      }
      RETURN_IF_ERROR(Run(Phase::kDecode));
    }
    RETURN_IF_ERROR(Finish());
    return (Now() - begin) / steps;
  }
  double device_seconds() const { return device_seconds_; }

  // What sequence 0 answered since this was asked last.
  std::vector<RowResult> TakeWatched() { return std::exchange(watched_, {}); }

 private:
  static constexpr int kRoom = 256;

  void Clear() {
    for (auto* each : {&tokens_, &positions_, &slots_, &queries_, &contexts_, &tables_})
      each->clear();
    offsets_.assign(1, 0);
    rows_.clear();
    inits_.clear();
  }
  void Begin(int s) {
    random_ = static_cast<std::uint32_t>(s) + 1;  // of a sequence always the same prompt
    SlotInit init;
    init.slot = s;
    init.sampling.temperature = 0.0f;
    inits_.push_back(init);
  }
  void Append(int s, int at, int count, bool from_slot) {
    for (int i = 0; i < count; ++i) {
      random_ = random_ * 1664525u + 1013904223u;
      tokens_.push_back(from_slot ? StepInput::kFromSlot
                                  : static_cast<std::int32_t>((random_ >> 8) % vocab_));
      positions_.push_back(at + i);
    }
    slots_.push_back(s);
    queries_.push_back(count);
    contexts_.push_back(at + count);
    const int pages = (at + count + plan_.kv.page_tokens - 1) / plan_.kv.page_tokens;
    for (int p = 0; p < pages; ++p) tables_.push_back(s * pages_per_sequence_ + p);
    offsets_.push_back(static_cast<std::int32_t>(tables_.size()));
  }
  void Sample(int s, int position) {
    rows_.push_back({static_cast<std::int32_t>(tokens_.size()) - 1, s, position, true, -1, -1});
  }
  absl::Status Run(Phase phase) {
    StepInput input;
    input.phase = phase;
    input.id = ++id_;
    input.tokens = tokens_;
    input.positions = positions_;
    input.slots = slots_;
    input.query_lengths = queries_;
    input.context_lengths = contexts_;
    input.block_table_offsets = offsets_;
    input.block_tables = tables_;
    input.slot_inits = inits_;
    input.logit_rows = rows_;
    watches_.push_back(!rows_.empty() && rows_.front().slot == 0);
    RETURN_IF_ERROR(runner_.Launch(input));
    return runner_.in_flight() > runner_.depth() ? Collect() : absl::OkStatus();
  }
  absl::Status Collect() {
    ASSIGN_OR_RETURN(const StepResult result, runner_.Collect());
    device_seconds_ = result.seconds;
    for (const RowResult& row : result.rows) {
      if (row.bad_logits) return absl::InternalError("bad logits");
    }
    if (watches_.front()) watched_.push_back(result.rows.front());
    watches_.pop_front();
    return absl::OkStatus();
  }
  absl::Status Finish() {
    while (runner_.in_flight() > 0) RETURN_IF_ERROR(Collect());
    return absl::OkStatus();
  }

  Runner& runner_;
  const MemoryPlan& plan_;
  const std::int32_t vocab_;
  std::vector<std::int32_t> tokens_, positions_, slots_, queries_, contexts_, tables_, offsets_;
  std::vector<LogitRow> rows_;
  std::vector<SlotInit> inits_;
  std::vector<int> lengths_;
  int pages_per_sequence_ = 0;
  std::uint64_t id_ = 0;
  std::uint32_t random_ = 1;
  std::deque<bool> watches_;  // of steps in flight: whether their first row is of sequence 0
  std::vector<RowResult> watched_;
  double device_seconds_ = 0.0;
};

struct Flags {
  std::string shape, format;
  Compute compute = Compute::kAuto;
  PlanOptions plan{.max_context = 8192};
  std::vector<int> streams{1, 2, 4, 8, 16, 32, 64, 128, 256};
  bool ledgers = true;
};

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 2) return absl::InvalidArgumentError("cuda_steps SHAPE FORMAT [FLAG...]");
  flags.shape = words[0];
  flags.format = words[1];
  for (std::size_t i = 2; i < words.size(); ++i) {
    const std::string& word = words[i];
    const std::string value = i + 1 < words.size() ? words[i + 1] : "";
    if (word == "f16") {
      flags.compute = Compute::kF16;
    } else if (word == "bf16") {
      flags.compute = Compute::kBF16;
    } else if (word == "--deterministic") {
      flags.plan.deterministic = true;
    } else if (word == "--no-ledgers") {
      flags.ledgers = false;
    } else if (word == "--kv" && (value == "f8" || value == "i8")) {
      flags.plan.kv_dtype = value == "f8" ? DType::kF8E4M3 : DType::kI8;
      ++i;
    } else if (word == "--prefill-weights" && !value.empty()) {
      flags.plan.prefill_weights = value == "packed"     ? PrefillWeights::kPacked
                                   : value == "expanded" ? PrefillWeights::kExpanded
                                                         : PrefillWeights::kAuto;
      ++i;
    } else if (word == "--streams" && !value.empty()) {
      flags.streams.clear();
      for (const absl::string_view number : absl::StrSplit(value, ',')) {
        int streams = 0;
        if (absl::SimpleAtoi(number, &streams) && streams > 0) flags.streams.push_back(streams);
      }
      ++i;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("what is ", word, "?"));
    }
  }
  flags.plan.compute = flags.compute;
  return flags;
}

absl::Status PrintLedger(CudaRunner& runner, const CudaRunner::LedgerStep& step,
                         const DeviceInfo& info) {
  ASSIGN_OR_RETURN(const auto costs, runner.Ledger(step, step.queries > 1 ? 5 : 20));
  std::printf("ledger of %d x %d at %d: kind, launches, us, floor us\n", step.sequences,
              step.queries, step.context);
  for (const CudaRunner::Cost& cost : costs) {
    const double floor =
        std::max(static_cast<double>(cost.weight_bytes + cost.key_bytes) / info.memory_bandwidth,
                 cost.flops / info.flops);
    std::printf("  %-22s %5d %9.1f %9.1f\n", cost.kind.c_str(), cost.launches, cost.seconds * 1e6,
                floor * 1e6);
  }
  return absl::OkStatus();
}

// Whether sequence 0 answers the same alone and among others.
absl::Status CheckDeterminism(Driver& driver) {
  std::vector<std::vector<RowResult>> answers;
  for (const int sequences : {1, 7, 64}) {
    driver.TakeWatched();
    RETURN_IF_ERROR(driver.Prefill(sequences, 700).status());
    RETURN_IF_ERROR(driver.Decode(100).status());
    answers.push_back(driver.TakeWatched());
    std::size_t same = 0;
    while (same < answers[0].size() && answers.back()[same].token == answers[0][same].token &&
           answers.back()[same].logprob == answers[0][same].logprob) {
      ++same;
    }
    std::printf("among %d: the first %zu of %zu tokens have the same bits as alone\n",
                sequences - 1, same, answers[0].size());
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  const std::string &shape = flags.shape, &format = flags.format;
  ASSIGN_OR_RETURN(SyntheticModel model, OpenSynthetic({shape, format}));
  ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(*model.checkpoint));
  BackendOptions options;
  options.device = "cuda";
  options.compute = flags.compute;
  options.model_dtype = config.dtype;
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, OpenBackend(options));
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  std::printf("%s %s on %s, %s; %.0f MiB used by the context\n", shape.c_str(), format.c_str(),
              backend->info().description.c_str(), backend->ComputeName().c_str(),
              static_cast<double>(total - free) / 1048576);
  ASSIGN_OR_RETURN(MemoryPlan plan,
                   PlanMemory(config, *model.checkpoint, *model.format, *backend, flags.plan));
  const double begin = Now();
  ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner,
                   LoadRunner(config, *model.checkpoint, *model.format, plan, *backend, nullptr));
  const double loaded = Now() - begin;
  cudaMemGetInfo(&free, &total);
  const RunnerMemory memory = runner->memory();
  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / 1048576; };
  std::printf(
      "loaded in %.2f s\nmemory MiB, plan / actual: weights %.0f / %.0f, expanded %.0f / %.0f, kv "
      "%.0f / "
      "%.0f, "
      "workspace %.0f / %.0f, graphs %.0f / %.0f, other %.0f / %.0f; total %.0f / %.0f\n",
      loaded, mib(plan.weights_bytes), mib(memory.weights_bytes), mib(plan.expanded_bytes),
      mib(memory.expanded_bytes), mib(plan.kv_bytes), mib(memory.kv_bytes),
      mib(plan.workspace_bytes), mib(memory.workspace_bytes), mib(plan.graphs_bytes),
      mib(memory.graphs_bytes), mib(plan.other_bytes),
      mib(static_cast<std::int64_t>(total - free) - memory.weights_bytes - memory.expanded_bytes -
          memory.kv_bytes - memory.workspace_bytes - memory.graphs_bytes),
      mib(plan.total_bytes()), mib(static_cast<std::int64_t>(total - free)));

  Driver driver(*runner, plan, config.vocab);
  RETURN_IF_ERROR(driver.Prefill(1, 2048).status());  // warms up
  for (const int prompts : {1, 8}) {
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
      ASSIGN_OR_RETURN(const double seconds, driver.Prefill(prompts, 2048));
      best = std::min(best, seconds);
    }
    std::printf("prefill %d x 2048: %.2f ms, %.0f tok/s\n", prompts, best * 1e3,
                prompts * 2048 / best);
  }
  for (const int streams : flags.streams) {
    RETURN_IF_ERROR(driver.Prefill(streams, 1000).status());
    ASSIGN_OR_RETURN(const double seconds, driver.Decode(60));
    std::printf("decode %d after 1000: %.1f us a step (device %.1f), %.0f tok/s\n", streams,
                seconds * 1e6, driver.device_seconds() * 1e6, streams / seconds);
  }
  if (flags.plan.deterministic) RETURN_IF_ERROR(CheckDeterminism(driver));
  if (!flags.ledgers) return absl::OkStatus();
  auto& cuda = static_cast<CudaRunner&>(*runner);
  for (const int streams : {1, 16, 64})
    RETURN_IF_ERROR(PrintLedger(cuda, {.sequences = streams}, backend->info()));
  return PrintLedger(cuda, {.queries = 2048, .context = 2048}, backend->info());
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto flags = nibble::ParseFlags(argc, argv);
  const absl::Status status = flags.ok() ? nibble::Run(*flags) : flags.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return flags.ok() ? 1 : 64;
}
