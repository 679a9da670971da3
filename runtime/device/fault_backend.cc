#include "runtime/device/fault_backend.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

constexpr char kVariable[] = "NIBBLE_FAULT_AT_STEP";

class FaultRunner final : public Runner {
 public:
  FaultRunner(std::unique_ptr<Runner> runner, std::uint64_t step)
      : runner_(std::move(runner)), step_(step) {}

  int depth() const override { return runner_->depth(); }
  int in_flight() const override { return runner_->in_flight(); }
  RunnerMemory memory() const override { return runner_->memory(); }

  absl::Status Launch(const StepInput& input) override {
    RETURN_IF_ERROR(lost_);
    if (input.id >= step_) fails_ = true;  // found out when it is collected
    return runner_->Launch(input);
  }
  absl::StatusOr<StepResult> Collect() override {
    RETURN_IF_ERROR(lost_);
    ASSIGN_OR_RETURN(StepResult result, runner_->Collect());
    if (!fails_ || result.id < step_) return result;
    lost_ = absl::InternalError(
        absl::StrCat("step ", result.id, ": the device was lost (", kVariable, ")"));
    return lost_;
  }

 private:
  const std::unique_ptr<Runner> runner_;
  const std::uint64_t step_;
  bool fails_ = false;
  absl::Status lost_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Runner>> FaultBackend::Compile(const Program& program,
                                                              ModelWeights weights,
                                                              const KvLayout& kv,
                                                              const StepLimits& limits,
                                                              const CompileOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner,
                   backend_->Compile(program, std::move(weights), kv, limits, options));
  return std::unique_ptr<Runner>(std::make_unique<FaultRunner>(std::move(runner), step_));
}

absl::StatusOr<std::unique_ptr<Backend>> WithFaultFromEnvironment(
    std::unique_ptr<Backend> backend) {
  const char* value = std::getenv(kVariable);
  if (value == nullptr) return backend;
  std::uint64_t step = 0;
  if (!absl::SimpleAtoi(value, &step)) {
    return absl::InvalidArgumentError(
        absl::StrCat(kVariable, " is '", value, "'; it must be the number of a step"));
  }
  LogWarning("a drill: the device will be lost", {{"step", absl::StrCat(step)}});
  return std::unique_ptr<Backend>(std::make_unique<FaultBackend>(std::move(backend), step));
}

}  // namespace nibble
