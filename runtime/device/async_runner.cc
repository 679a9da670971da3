#include "runtime/device/async_runner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

template <typename T>
std::vector<T> Copy(std::span<const T> from) {
  return std::vector<T>(from.begin(), from.end());
}

}  // namespace

AsyncRunner::OwnedStep::OwnedStep(const StepInput& input)
    : tokens_(Copy(input.tokens)),
      positions_(Copy(input.positions)),
      slots_(Copy(input.slots)),
      query_lengths_(Copy(input.query_lengths)),
      context_lengths_(Copy(input.context_lengths)),
      table_offsets_(Copy(input.block_table_offsets)),
      tables_(Copy(input.block_tables)),
      inits_(Copy(input.slot_inits)),
      rows_(Copy(input.logit_rows)),
      input_(input) {
  owned_inits_.reserve(inits_.size());
  for (SlotInit& init : inits_) {
    const OwnedInit& owned = owned_inits_.emplace_back(
        OwnedInit{Copy(init.prompt), Copy(init.outputs), Copy(init.banned_until_min_tokens),
                  Copy(init.logit_bias)});
    init.prompt = owned.prompt;
    init.outputs = owned.outputs;
    init.banned_until_min_tokens = owned.banned;
    init.logit_bias = owned.logit_bias;
  }
  input_.tokens = tokens_;
  input_.positions = positions_;
  input_.slots = slots_;
  input_.query_lengths = query_lengths_;
  input_.context_lengths = context_lengths_;
  input_.block_table_offsets = table_offsets_;
  input_.block_tables = tables_;
  input_.slot_inits = inits_;
  input_.logit_rows = rows_;
}

AsyncRunner::AsyncRunner(std::unique_ptr<Runner> runner, StepChecker checker, Options options)
    : runner_(std::move(runner)),
      memory_(runner_->memory()),
      checker_(std::move(checker)),
      options_(std::move(options)),
      worker_([this] { Work(); }) {}

AsyncRunner::~AsyncRunner() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

absl::Status AsyncRunner::Launch(const StepInput& input) {
  if (in_flight_ > options_.depth) {
    return absl::InternalError(absl::StrCat("step ", input.id, " launched with ", in_flight_,
                                            " in flight; at most ", options_.depth, " may be"));
  }
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(sticky_);
  }
  RETURN_IF_ERROR(checker_.Accept(input));
  auto step = std::make_unique<OwnedStep>(input);
  {
    const std::lock_guard lock(mutex_);
    launched_.push_back(std::move(step));
  }
  ++in_flight_;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<StepResult> AsyncRunner::Collect() {
  if (in_flight_ == 0) return absl::InternalError("nothing was launched");
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !done_.empty(); });
  absl::StatusOr<StepResult> result = std::move(done_.front());
  done_.pop_front();
  --in_flight_;
  return result;
}

void AsyncRunner::Work() {
  for (;;) {
    std::unique_ptr<OwnedStep> step;
    absl::Status status;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !launched_.empty(); });
      if (launched_.empty()) return;
      step = std::move(launched_.front());
      launched_.pop_front();
      status = sticky_;
    }
    if (status.ok() && options_.before_step) options_.before_step(step->input().id);
    if (status.ok()) status = runner_->Launch(step->input());
    absl::StatusOr<StepResult> result =
        status.ok() ? runner_->Collect() : absl::StatusOr<StepResult>(status);
    {
      const std::lock_guard lock(mutex_);
      if (!result.ok()) sticky_ = result.status();
      done_.push_back(std::move(result));
    }
    changed_.notify_all();
  }
}

}  // namespace nibble
