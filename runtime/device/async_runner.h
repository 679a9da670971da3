// A Runner that answers later, as an asynchronous device does, over one that answers at once.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/device/backend.h"
#include "runtime/device/step_check.h"

namespace nibble {

// Steps run on a worker thread in launch order, so one step may be in flight while the next is
// launched, and kFromSlot tokens are read when their step runs, not when it is launched. Tests put
// delays in front of steps to visit every interleaving without a GPU. One thread calls it.
class AsyncRunner final : public Runner {
 public:
  struct Options {
    int depth = 1;
    // On the worker, before each step; may sleep or block.
    std::function<void(std::uint64_t id)> before_step;
  };

  // `checker` refuses inconsistent inputs in Launch, where the caller can still see them.
  AsyncRunner(std::unique_ptr<Runner> runner, StepChecker checker, Options options);
  ~AsyncRunner() override;  // finishes what was launched

  int depth() const override { return options_.depth; }
  absl::Status Launch(const StepInput& input) override;
  absl::StatusOr<StepResult> Collect() override;
  int in_flight() const override { return in_flight_; }
  RunnerMemory memory() const override { return memory_; }

 private:
  // A StepInput and all that it points at.
  class OwnedStep {
   public:
    explicit OwnedStep(const StepInput& input);
    OwnedStep(const OwnedStep&) = delete;
    OwnedStep& operator=(const OwnedStep&) = delete;
    const StepInput& input() const { return input_; }

   private:
    struct OwnedInit {
      std::vector<std::int32_t> prompt, outputs, banned;
      std::vector<std::pair<std::int32_t, float>> logit_bias;
    };
    std::vector<std::int32_t> tokens_, positions_, slots_, query_lengths_, context_lengths_,
        table_offsets_, tables_;
    std::vector<OwnedInit> owned_inits_;
    std::vector<SlotInit> inits_;
    std::vector<LogitRow> rows_;
    StepInput input_;
  };

  void Work();

  const std::unique_ptr<Runner> runner_;  // the worker's
  const RunnerMemory memory_;
  StepChecker checker_;  // the caller's, as are the two below
  const Options options_;
  int in_flight_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::unique_ptr<OwnedStep>> launched_;
  std::deque<absl::StatusOr<StepResult>> done_;
  absl::Status sticky_;  // a step that failed ends the device
  bool stop_ = false;

  std::thread worker_;
};

}  // namespace nibble
