#include "runtime/device/cpu_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/device/cpu_backend.h"
#include "tests/device/tiny_program.h"
#include "tests/kernels/isa_test.h"

namespace nibble {
namespace {

std::unique_ptr<CpuBackend> Open(Compute compute, int threads = 1, cpu::Isa isa = cpu::BestIsa()) {
  return CpuBackend::Create(threads, compute, isa).value();
}

SamplingParams Greedy(int top = 20) {
  SamplingParams p;
  p.temperature = 0.0f;
  p.top_logprobs = top;
  return p;
}

// Everything a row reports, for exact comparison.
std::vector<float> Bits(const RowResult& row) {
  std::vector<float> out = {static_cast<float>(row.token), row.logprob,
                            row.bad_logits ? 1.0f : 0.0f};
  for (const TopLogprob& t : row.top) {
    out.push_back(static_cast<float>(t.token));
    out.push_back(t.logprob);
  }
  return out;
}

// Prefills `prompt` in chunks, then decodes greedily; what every sampled row reported.
std::vector<std::vector<float>> Generate(Runner& runner, std::int32_t slot,
                                         const std::vector<std::int32_t>& prompt, std::size_t chunk,
                                         int count, SamplingParams params = Greedy()) {
  std::vector<std::vector<float>> out;
  std::int32_t position = 0, token = 0;
  for (std::size_t at = 0; at < prompt.size(); at += chunk) {
    StepBuilder step;
    if (at == 0) step.Begin(slot, params);
    const std::size_t end = std::min(prompt.size(), at + chunk);
    step.Append(slot, position, {prompt.begin() + at, prompt.begin() + end});
    position = static_cast<std::int32_t>(end);
    if (end == prompt.size()) step.Sample();
    const StepResult result = RunStep(runner, step);
    if (end == prompt.size()) out.push_back(Bits(result.rows[0])), token = result.rows[0].token;
  }
  for (int i = 1; i < count; ++i) {
    StepBuilder step;
    step.Append(slot, position++, {token});
    step.Sample(i);
    const StepResult result = RunStep(runner, step);
    out.push_back(Bits(result.rows[0]));
    token = result.rows[0].token;
  }
  return out;
}

class CpuRunnerTest : public testing::TestWithParam<Compute> {};

TEST_P(CpuRunnerTest, ChunkedPrefillGivesTheSameBitsAsOneChunk) {
  const auto backend = Open(GetParam(), 2);
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  const auto prompt = Prompt(150, 1);
  const auto whole = Generate(*runner, 0, prompt, 150, 12);
  for (const std::size_t chunk : {1, 7, 64})
    EXPECT_EQ(Generate(*runner, 0, prompt, chunk, 12), whole) << chunk;
}

TEST_P(CpuRunnerTest, RowIsTheSameBitsAloneAndAmongThirtyTwoOthers) {
  const auto backend = Open(GetParam(), 2);
  const auto single = Open(GetParam(), 1);
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  const auto other = Compile(*single, MakeTinyModel(*single));

  constexpr int kSequences = 33;
  std::vector<std::vector<std::vector<float>>> alone;
  for (int s = 0; s < kSequences; ++s)
    alone.push_back(Generate(*other, 3, Prompt(1 + s % 14, s), 100, 3));

  // All prompts in one step, then all decode together. One page each, so none overlap.
  StepBuilder prefill;
  std::vector<std::int32_t> position(kSequences), token(kSequences);
  for (int s = 0; s < kSequences; ++s) {
    prefill.Begin(s, Greedy());
    position[s] = 1 + s % 14;
    prefill.Append(s, 0, Prompt(position[s], s));
    prefill.Sample();
  }
  StepResult result = RunStep(*runner, prefill);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(result.rows.size(), kSequences);
    StepBuilder decode;
    for (int s = 0; s < kSequences; ++s) {
      EXPECT_EQ(Bits(result.rows[s]), alone[s][i]) << "sequence " << s << " token " << i;
      decode.Append(s, position[s]++, {result.rows[s].token});
      decode.Sample(i + 1);
    }
    if (i < 2) result = RunStep(*runner, decode);
  }
}

TEST_P(CpuRunnerTest, ThreadsDoNotChangeTheBits) {
  const auto prompt =
      Prompt(300, 7);  // three chunks of keys: shared out among threads when there are several
  std::vector<std::vector<std::vector<float>>> all;
  for (const int threads : {1, 2, 5}) {
    const auto backend = Open(GetParam(), threads);
    const auto runner = Compile(*backend, MakeTinyModel(*backend));
    all.push_back(Generate(*runner, 0, prompt, 250, 6));
  }
  EXPECT_EQ(all[0], all[1]);
  EXPECT_EQ(all[0], all[2]);
}

TEST_P(CpuRunnerTest, SeededSamplingDoesNotDependOnTheBatch) {
  const auto backend = Open(GetParam(), 2);
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  SamplingParams params;
  params.top_p = 0.95f;
  params.seed = 1234;
  params.repetition_penalty = 1.3f;
  const auto expected = Generate(*runner, 5, Prompt(9, 4), 100, 4, params);
  StepBuilder step;
  step.Begin(0, Greedy());
  step.Append(0, 0, Prompt(12, 8));
  step.Sample();
  step.Begin(5, params);
  step.Append(5, 0, Prompt(9, 4));
  step.Sample();
  EXPECT_EQ(Bits(RunStep(*runner, step).rows[1]), expected[0]);
}

TEST_P(CpuRunnerTest, TokensFromSlotsAreThoseJustSampled) {
  const auto backend = Open(GetParam());
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  const auto expected = Generate(*runner, 0, Prompt(9, 2), 100, 4);
  StepBuilder first;
  first.Begin(1, Greedy());
  first.Append(1, 0, Prompt(9, 2));
  first.Sample();
  EXPECT_EQ(Bits(RunStep(*runner, first).rows[0]), expected[0]);
  for (int i = 1; i < 4; ++i) {
    StepBuilder step;
    step.Append(1, 8 + i, {StepInput::kFromSlot});
    step.Sample(i);
    EXPECT_EQ(Bits(RunStep(*runner, step).rows[0]), expected[i]);
  }
}

TEST_P(CpuRunnerTest, WorkspaceIsWhatThePlanSaid) {
  const auto backend = Open(GetParam(), 3);
  TinyModel model = MakeTinyModel(*backend);
  const std::int64_t planned = backend->WorkspaceBytes(model.program, model.limits);
  const auto runner = Compile(*backend, std::move(model));
  EXPECT_EQ(static_cast<CpuRunner&>(*runner).workspace_bytes(), planned);
}

TEST_P(CpuRunnerTest, NanRowIsReportedAndLeavesTheOthersAlone) {
  const auto backend = Open(GetParam());
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  const auto expected = Generate(*runner, 1, Prompt(9, 2), 100, 1);
  // A NaN norm poisons all; a NaN bias on one slot only that row.
  TinyModel broken = MakeTinyModel(*backend);
  broken.weights.vectors.back()[0] = std::nanf("");
  const auto poisoned = Compile(*backend, std::move(broken));
  StepBuilder step;
  step.Begin(1, Greedy());
  step.Append(1, 0, Prompt(9, 2));
  step.Sample();
  EXPECT_TRUE(RunStep(*poisoned, step).rows[0].bad_logits);

  StepBuilder two;
  two.Begin(0, Greedy());
  std::vector<std::pair<std::int32_t, float>> ban_all;
  for (int id = 0; id < TinyModel::kVocab; ++id) ban_all.push_back({id, -INFINITY});
  two.last_init().logit_bias = ban_all;
  two.Append(0, 0, Prompt(5, 3));
  two.Sample();
  two.Begin(1, Greedy());
  two.Append(1, 0, Prompt(9, 2));
  two.Sample();
  const StepResult result = RunStep(*runner, two);
  EXPECT_TRUE(result.rows[0].bad_logits);
  EXPECT_EQ(Bits(result.rows[1]), expected[0]);
}

TEST_P(CpuRunnerTest, ScoredRowsReportTheNamedToken) {
  const auto backend = Open(GetParam());
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  const auto prompt = Prompt(6, 5);
  StepBuilder step;
  step.Begin(0, Greedy());
  step.Append(0, 0, prompt);
  for (int i = 0; i + 1 < 6; ++i) step.Score(i, prompt[i + 1], 20);
  const StepResult result = RunStep(*runner, step);
  for (int i = 0; i + 1 < 6; ++i) {
    EXPECT_EQ(result.rows[i].token, prompt[i + 1]);
    EXPECT_LT(result.rows[i].logprob, 0.0f);
    ASSERT_EQ(result.rows[i].top.size(), 20u);
    EXPECT_GE(result.rows[i].top[0].logprob, result.rows[i].logprob);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CpuRunnerTest, testing::Values(Compute::kF32, Compute::kAuto),
                         [](const testing::TestParamInfo<Compute>& of) {
                           return of.param == Compute::kF32 ? "f32" : "auto";
                         });

class CpuIsaTest : public IsaTest {};

TEST_P(CpuIsaTest, AgreesWithTheBaseline) {
  const auto plain = Open(Compute::kF32, 1, cpu::Isa::kBaseline),
             fast = Open(Compute::kF32, 1, GetParam());
  const auto expected = Compile(*plain, MakeTinyModel(*plain)),
             runner = Compile(*fast, MakeTinyModel(*fast));
  const auto prompt = Prompt(140, 6);
  StepBuilder a, b;
  for (StepBuilder* step : {&a, &b}) {
    step->Begin(0, Greedy());
    step->Append(0, 0, prompt);
    for (int i = 100; i + 1 < 140; ++i) step->Score(i, prompt[i + 1]);
  }
  const StepResult x = RunStep(*expected, a), y = RunStep(*runner, b);
  for (std::size_t i = 0; i < x.rows.size(); ++i)
    EXPECT_NEAR(x.rows[i].logprob, y.rows[i].logprob, 2e-3);
}

INSTANTIATE_TEST_SUITE_P(All, CpuIsaTest, testing::ValuesIn(cpu::kAllIsas), IsaName);

TEST(CpuRunnerStateTest, OneStepAtATime) {
  const auto backend = Open(Compute::kF32);
  const auto runner = Compile(*backend, MakeTinyModel(*backend));
  EXPECT_EQ(runner->Collect().status().code(), absl::StatusCode::kInternal);
  StepBuilder step;
  step.Begin(0);
  step.Append(0, 0, {1});
  ASSERT_TRUE(runner->Launch(step.Input()).ok());
  EXPECT_EQ(runner->in_flight(), 1);
  EXPECT_EQ(runner->Launch(step.Input()).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(runner->Collect().ok());
  EXPECT_EQ(runner->in_flight(), 0);
}

TEST(CpuRunnerStateTest, ProgramsThatDisagreeWithTheirWeightsAreRefused) {
  const auto backend = Open(Compute::kF32);
  TinyModel model = MakeTinyModel(*backend);
  model.program.buffers[2].dim += 8;
  EXPECT_EQ(backend->Compile(model.program, std::move(model.weights), model.kv, model.limits, {})
                .status()
                .code(),
            absl::StatusCode::kInternal);
  TinyModel fp8 = MakeTinyModel(*backend);
  fp8.kv.dtype = DType::kF8E4M3;
  EXPECT_EQ(
      backend->Compile(fp8.program, std::move(fp8.weights), fp8.kv, fp8.limits, {}).status().code(),
      absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace nibble
