#include "runtime/device/async_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <random>
#include <vector>

#include "runtime/device/cpu_backend.h"
#include "tests/device/tiny_program.h"

namespace nibble {
namespace {

// A gate that holds the worker before each step until the test lets it pass.
class Gate {
 public:
  void Pass(std::uint64_t) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return permits_ > 0; });
    --permits_;
  }
  void Open(int steps) {
    const std::lock_guard lock(mutex_);
    permits_ += steps;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int permits_ = 0;
};

class AsyncRunnerTest : public testing::Test {
 protected:
  std::unique_ptr<AsyncRunner> Make(AsyncRunner::Options options) {
    TinyModel model = MakeTinyModel(*backend_);
    StepChecker checker(model.limits, TinyModel::kVocab, model.kv);
    return std::make_unique<AsyncRunner>(Compile(*backend_, std::move(model)), std::move(checker),
                                         std::move(options));
  }

  std::unique_ptr<CpuBackend> backend_ = CpuBackend::Create(1, Compute::kF32).value();
};

SamplingParams Greedy() {
  SamplingParams p;
  p.temperature = 0.0f;
  return p;
}

StepBuilder Decode(std::int32_t position, std::int32_t token) {
  StepBuilder step;
  step.Append(0, position, {token});
  step.Sample(position - 4);
  return step;
}

TEST_F(AsyncRunnerTest, LaunchesAheadOfTheTokenItNeeds) {
  const auto plain = Compile(*backend_, MakeTinyModel(*backend_));
  std::vector<std::int32_t> expected;
  StepBuilder prompt;
  prompt.Begin(0, Greedy());
  prompt.Append(0, 0, Prompt(5, 1));
  prompt.Sample();
  expected.push_back(RunStep(*plain, prompt).rows[0].token);
  for (int i = 0; i < 6; ++i) {
    StepBuilder step = Decode(5 + i, expected.back());
    expected.push_back(RunStep(*plain, step).rows[0].token);
  }

  Gate gate;
  const auto runner = Make({.depth = 1, .before_step = [&](std::uint64_t id) { gate.Pass(id); }});
  EXPECT_EQ(runner->depth(), 1);
  ASSERT_TRUE(runner->Launch(prompt.Input(1)).ok());
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 6; ++i) {
    StepBuilder step = Decode(5 + i, StepInput::kFromSlot);
    ASSERT_TRUE(runner->Launch(step.Input(i + 2)).ok());  // the step before has not even begun
    EXPECT_EQ(runner->in_flight(), 2);
    EXPECT_EQ(runner->Launch(step.Input(99)).code(), absl::StatusCode::kInternal);  // one too many
    gate.Open(1);
    const absl::StatusOr<StepResult> result = runner->Collect();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->id, i + 1);
    tokens.push_back(result->rows[0].token);
  }
  gate.Open(1);
  tokens.push_back(runner->Collect()->rows[0].token);
  EXPECT_EQ(tokens, expected);
}

TEST_F(AsyncRunnerTest, InputsMayChangeAsSoonAsLaunchReturns) {
  Gate gate;
  const auto runner = Make({.depth = 1, .before_step = [&](std::uint64_t id) { gate.Pass(id); }});
  std::vector<std::int32_t> ids = {1, 2, 3};
  std::vector<std::pair<std::int32_t, float>> bias = {{7, 1000.0f}};
  {
    StepBuilder step;
    step.Begin(0, Greedy());
    step.last_init().prompt = ids;
    step.last_init().logit_bias = bias;
    step.Append(0, 0, Prompt(5, 1));
    step.Sample();
    ASSERT_TRUE(runner->Launch(step.Input()).ok());
  }
  ids.assign(3, 1 << 30);
  bias.assign(1, {1 << 30, 0.0f});
  gate.Open(1);
  EXPECT_EQ(runner->Collect()->rows[0].token, 7);
}

TEST_F(AsyncRunnerTest, RefusesBadInputsInLaunchAndGoesOn) {
  const auto runner = Make({});
  StepBuilder bad;
  bad.Begin(0);
  bad.Append(0, 0, {TinyModel::kVocab});
  EXPECT_EQ(runner->Launch(bad.Input()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(runner->in_flight(), 0);
  StepBuilder good;
  good.Begin(0);
  good.Append(0, 0, {1});
  EXPECT_TRUE(runner->Launch(good.Input()).ok());
  EXPECT_TRUE(runner->Collect().ok());
  EXPECT_EQ(runner->Collect().status().code(), absl::StatusCode::kInternal);
}

// Refuses every step as a lost device does.
class LostRunner final : public Runner {
 public:
  int depth() const override { return 0; }
  absl::Status Launch(const StepInput&) override { return absl::InternalError("device lost"); }
  absl::StatusOr<StepResult> Collect() override { return absl::InternalError("nothing"); }
  int in_flight() const override { return 0; }
};

TEST_F(AsyncRunnerTest, LostDeviceFailsWhatIsInFlightAndEveryLaterCall) {
  Gate gate;
  AsyncRunner runner(std::make_unique<LostRunner>(),
                     StepChecker({}, TinyModel::kVocab, TinyModel().kv),
                     {.depth = 1, .before_step = [&](std::uint64_t id) { gate.Pass(id); }});
  StepBuilder step;
  step.Begin(0);
  step.Append(0, 0, {1});
  ASSERT_TRUE(runner.Launch(step.Input(1)).ok());
  ASSERT_TRUE(runner.Launch(step.Input(2)).ok());
  gate.Open(2);
  EXPECT_EQ(runner.Collect().status().message(), "device lost");
  EXPECT_EQ(runner.Collect().status().message(), "device lost");
  EXPECT_EQ(runner.Launch(step.Input(3)).message(), "device lost");
}

TEST_F(AsyncRunnerTest, DestroyedWithStepsInFlight) {
  const auto runner = Make({});
  StepBuilder step;
  step.Begin(0);
  step.Append(0, 0, {1});
  EXPECT_TRUE(runner->Launch(step.Input()).ok());
}

}  // namespace
}  // namespace nibble
