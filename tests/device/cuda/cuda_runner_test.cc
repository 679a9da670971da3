// A whole small model on the GPU: against the CPU's f32, and against itself in other batches.
#include "runtime/device/cuda_runner.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/device/cuda/on_cuda.h"
#include "tests/device/tiny_program.h"

namespace nibble {
namespace {

SamplingParams Greedy(int top = 20) {
  SamplingParams p;
  p.temperature = 0.0f;
  p.top_logprobs = top;
  return p;
}

TinyModel MakeModel(Backend& backend) {
  TinyModel model = MakeTinyModel(backend);
  model.kv.page_tokens = 64;
  model.kv.dtype = backend.DefaultKvDType(Compute::kF32);
  return model;
}

double ToleranceOf(Compute compute) { return compute == Compute::kF16 ? 0.1 : 0.6; }

// Teacher-forced: prefills `prompt` in chunks, then feeds `answer`; what each sampled row reported.
std::vector<RowResult> Follow(Runner& runner, std::int32_t slot,
                              const std::vector<std::int32_t>& prompt, std::size_t chunk,
                              const std::vector<std::int32_t>& answer) {
  std::vector<RowResult> out;
  std::int32_t position = 0;
  for (std::size_t at = 0; at < prompt.size(); at += chunk) {
    StepBuilder step(64);
    if (at == 0) step.Begin(slot, Greedy());
    const std::size_t end = std::min(prompt.size(), at + chunk);
    step.Append(slot, position, {prompt.begin() + at, prompt.begin() + end});
    position = static_cast<std::int32_t>(end);
    if (end == prompt.size()) step.Sample();
    StepResult result = RunStep(runner, step);
    if (end == prompt.size()) out.push_back(std::move(result.rows.at(0)));
  }
  for (std::size_t i = 0; i < answer.size(); ++i) {
    StepBuilder step(64);
    step.Append(slot, position++, {answer[i]});
    step.Sample(static_cast<std::int32_t>(i) + 1);
    StepResult result = RunStep(runner, step);
    out.push_back(std::move(result.rows.at(0)));
  }
  return out;
}

void ExpectNear(const std::vector<RowResult>& expected, const std::vector<RowResult>& got,
                double tolerance) {
  ASSERT_EQ(expected.size(), got.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_FALSE(got[i].bad_logits) << i;
    const double margin = expected[i].top[0].logprob - expected[i].top[1].logprob;
    if (margin > 2 * tolerance) {
      EXPECT_EQ(got[i].token, expected[i].token) << i;
    }
    for (std::size_t j = 0; j < 5; ++j)
      EXPECT_NEAR(got[i].top[j].logprob, expected[i].top[j].logprob, tolerance) << i << " " << j;
  }
}

bool SameBits(const RowResult& a, const RowResult& b) {
  return a.token == b.token && a.logprob == b.logprob &&
         std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(),
                    [](const TopLogprob& x, const TopLogprob& y) {
                      return x.token == y.token && x.logprob == y.logprob;
                    });
}

class CudaRunnerTest : public testing::TestWithParam<Compute> {};

TEST_P(CudaRunnerTest, AgreesWithTheCpu) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto cpu = OpenForTest("cpu", Compute::kF32);
  const auto expected_runner = Compile(*cpu, MakeModel(*cpu));
  const auto runner = Compile(*cuda, MakeModel(*cuda));
  for (const int length : {1, 9, 100, 150}) {
    const auto prompt = Prompt(length, length);
    const auto expected = Follow(*expected_runner, 0, prompt, 150, Prompt(12, 3));
    for (const std::size_t chunk : {150, 33, 1}) {
      SCOPED_TRACE(testing::Message() << "prompt " << length << " chunk " << chunk);
      ExpectNear(expected, Follow(*runner, 0, prompt, chunk, Prompt(12, 3)),
                 ToleranceOf(GetParam()));
    }
  }
}

TEST_P(CudaRunnerTest, RowIsNearTheSameAloneAndAmongThirtyTwoOthers) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto runner = Compile(*cuda, MakeModel(*cuda));
  constexpr int kSequences = 33;
  std::vector<std::vector<RowResult>> alone;
  for (int s = 0; s < kSequences; ++s)
    alone.push_back(Follow(*runner, 3, Prompt(1 + s % 14, s), 100, Prompt(2, s)));

  StepBuilder prefill(64);
  for (int s = 0; s < kSequences; ++s) {
    prefill.Begin(s, Greedy());
    prefill.Append(s, 0, Prompt(1 + s % 14, s));
    prefill.Sample();
  }
  StepResult result = RunStep(*runner, prefill);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(result.rows.size(), kSequences);
    StepBuilder decode(64);
    for (int s = 0; s < kSequences; ++s) {
      SCOPED_TRACE(testing::Message() << "sequence " << s << " token " << i);
      ExpectNear({alone[s][i]}, {result.rows[s]}, ToleranceOf(GetParam()));
      if (i == 2) continue;
      decode.Append(s, 1 + s % 14 + i, {Prompt(2, s)[i]});
      decode.Sample(i + 1);
    }
    if (i < 2) result = RunStep(*runner, decode);
  }
}

// The step that begins these sequences, or the next of each; their pages lie apart.
constexpr std::int32_t kPagesASlot = 5;
struct Member {
  std::int32_t slot = 0, length = 0;  // of its prompt
  std::vector<std::int32_t> prompt() const { return Prompt(length, slot * 7 + length); }
  std::int32_t Answer(std::int32_t i) const { return Prompt(64, length)[i]; }
};
StepResult RunTogether(Runner& runner, const std::vector<Member>& members, std::int32_t token) {
  StepBuilder step(64, kPagesASlot);
  for (const Member& member : members) {
    if (token == 0) {
      step.Begin(member.slot, Greedy());
      step.Append(member.slot, 0, member.prompt());
    } else {
      step.Append(member.slot, member.length + token - 1, {member.Answer(token - 1)});
    }
    step.Sample(token);
  }
  return RunStep(runner, step);
}

TEST_P(CudaRunnerTest, DeterministicRowsAreTheSameAloneAndAmongSixtyThreeOthers) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  TinyModel model = MakeModel(*cuda);
  model.limits = {2048, 64, 64, 64, 64 * kPagesASlot};
  model.kv.num_pages = 64 * kPagesASlot;
  const auto runner = Compile(*cuda, std::move(model), {.deterministic = true});
  constexpr std::int32_t kSteps = 20;
  std::vector<Member> all;
  for (std::int32_t s = 0; s < 64; ++s) all.push_back({s, s == 41 ? 250 : 2 + s * 5 % 26});
  for (const std::int32_t watched : {0, 13, 41, 63}) {
    std::vector<RowResult> alone;
    for (std::int32_t i = 0; i < kSteps; ++i)
      alone.push_back(RunTogether(*runner, {all[watched]}, i).rows.at(0));
    for (const std::size_t company : {2, 9, 17, 33, 64}) {
      std::vector<Member> members(all.begin(), all.begin() + company);
      members[company / 2] = all[watched];
      if (company == 64) members = all;
      const std::size_t row = company == 64 ? watched : company / 2;
      if (company != 64 && watched < static_cast<std::int32_t>(company)) continue;  // there twice
      for (std::int32_t i = 0; i < kSteps; ++i) {
        EXPECT_TRUE(SameBits(RunTogether(*runner, members, i).rows.at(row), alone[i]))
            << "sequence " << watched << " of " << company << ", token " << i;
      }
    }
  }
}

TEST_P(CudaRunnerTest, TokensFromSlotsAreThoseJustSampled) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto runner = Compile(*cuda, MakeModel(*cuda));
  EXPECT_EQ(runner->depth(), 1);
  const auto run = [&](bool ahead) {
    std::vector<RowResult> rows;
    std::int32_t token = StepInput::kFromSlot;
    const auto collect = [&] {
      auto result = runner->Collect();
      ASSERT_TRUE(result.ok()) << result.status();
      token = ahead ? StepInput::kFromSlot : result->rows.at(0).token;
      rows.push_back(std::move(result->rows.at(0)));
    };
    for (int i = 0; i < 6; ++i) {
      StepBuilder step(64);
      if (i == 0) {
        step.Begin(1, Greedy());
        step.Append(1, 0, Prompt(9, 2));
      } else {
        step.Append(1, 8 + i, {token});
      }
      step.Sample(i);
      EXPECT_TRUE(runner->Launch(step.Input(static_cast<std::uint64_t>(i) + 1)).ok());
      if (!ahead || i > 0) collect();
    }
    while (runner->in_flight() > 0) collect();
    return rows;
  };
  const auto expected = run(false), got = run(true);
  ASSERT_EQ(expected.size(), got.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(SameBits(expected[i], got[i])) << i;
}

TEST_P(CudaRunnerTest, RepeatsItsBits) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto runner = Compile(*cuda, MakeModel(*cuda));
  const auto first = Follow(*runner, 0, Prompt(70, 1), 100, Prompt(20, 2));
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto again = Follow(*runner, 5, Prompt(70, 1), 100, Prompt(20, 2));
    for (std::size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(SameBits(first[i], again[i])) << i;
  }
}

TEST_P(CudaRunnerTest, SamplesAsTheCpuDoes) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto cpu = OpenForTest("cpu", Compute::kF32);
  const auto expected_runner = Compile(*cpu, MakeModel(*cpu));
  const auto runner = Compile(*cuda, MakeModel(*cuda));
  std::vector<std::pair<std::int32_t, float>> only_five;
  for (int id = 5; id < TinyModel::kVocab; ++id) only_five.push_back({id, -INFINITY});
  const std::vector<std::int32_t> banned = {0, 1, 2};
  const auto prompt = Prompt(9, 4);
  std::vector<std::int32_t> many(3000, 3);  // token 3 again and again
  const auto run = [&](Runner& on, int kind) {
    StepBuilder step(64);
    SamplingParams params = Greedy();
    if (kind == 1) params.repetition_penalty = 1.5f;
    if (kind == 2) params.frequency_penalty = 0.01f;
    if (kind == 3) params.min_tokens = 4;
    step.Begin(2, params);
    SlotInit& init = step.last_init();
    if (kind == 0 || kind == 3) init.logit_bias = only_five;
    if (kind == 1) init.prompt = prompt;
    if (kind == 2) init.outputs = many;
    if (kind == 3) init.banned_until_min_tokens = banned;
    step.Append(2, 0, prompt);
    step.Sample(3);
    return RunStep(on, step).rows.at(0);
  };
  for (int kind = 0; kind < 4; ++kind) {
    SCOPED_TRACE(kind);
    const RowResult expected = run(*expected_runner, kind), got = run(*runner, kind);
    EXPECT_FALSE(got.bad_logits);
    EXPECT_EQ(got.token, expected.token);
    const std::size_t real = kind == 0 ? 5 : kind == 3 ? 2 : 20;
    for (std::size_t i = 0; i < real; ++i)
      EXPECT_NEAR(got.top.at(i).logprob, expected.top[i].logprob, ToleranceOf(GetParam()));
  }
}

TEST_P(CudaRunnerTest, NanRowIsReportedAndLeavesTheOthersAlone) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  TinyModel broken = MakeModel(*cuda);
  broken.weights.vectors.back()[0] = std::nanf("");
  const auto poisoned = Compile(*cuda, std::move(broken));
  StepBuilder step(64);
  step.Begin(1, Greedy());
  step.Append(1, 0, Prompt(9, 2));
  step.Sample();
  EXPECT_TRUE(RunStep(*poisoned, step).rows[0].bad_logits);

  const auto runner = Compile(*cuda, MakeModel(*cuda));
  const auto run = [&](bool ban) {
    StepBuilder two(64);
    std::vector<std::pair<std::int32_t, float>> ban_all;
    for (int id = 0; ban && id < TinyModel::kVocab; ++id) ban_all.push_back({id, -INFINITY});
    two.Begin(0, Greedy());
    two.last_init().logit_bias = ban_all;
    two.Append(0, 0, Prompt(5, 3));
    two.Sample();
    two.Begin(1, Greedy());
    two.Append(1, 0, Prompt(9, 2));
    two.Sample();
    return RunStep(*runner, two);
  };
  const StepResult clean = run(false), result = run(true);
  EXPECT_TRUE(result.rows[0].bad_logits);
  EXPECT_TRUE(SameBits(result.rows[1], clean.rows[1]));
}

TEST_P(CudaRunnerTest, MemoryIsWhatThePlanSaid) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  TinyModel model = MakeModel(*cuda);
  const std::int64_t planned = cuda->WorkspaceBytes(model.program, model.limits);
  std::int64_t weights = 0;
  for (const auto& linear : model.weights.linears) weights += linear->bytes;
  for (const auto& vector : model.weights.vectors)
    weights += static_cast<std::int64_t>(vector.size()) * 4;
  const std::int64_t kv = model.kv.TotalBytes();
  const auto runner = Compile(*cuda, std::move(model));
  EXPECT_EQ(runner->memory().workspace_bytes, planned);
  EXPECT_EQ(runner->memory().weights_bytes, weights);
  EXPECT_EQ(runner->memory().kv_bytes, kv);
}

TEST_P(CudaRunnerTest, KeepsKeysAndValuesInEightBits) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto expected_runner = Compile(*cuda, MakeModel(*cuda));
  const auto expected = Follow(*expected_runner, 0, Prompt(100, 7), 60, Prompt(12, 3));
  for (const DType dtype : {DType::kF8E4M3, DType::kI8}) {
    TinyModel model = MakeModel(*cuda);
    model.kv.dtype = dtype;
    const std::int64_t kv = model.kv.TotalBytes();
    const auto runner = Compile(*cuda, std::move(model));
    EXPECT_EQ(runner->memory().kv_bytes, kv);
    SCOPED_TRACE(NameOf(dtype));
    ExpectNear(expected, Follow(*runner, 0, Prompt(100, 7), 60, Prompt(12, 3)), 1.0);
  }
}

TEST_P(CudaRunnerTest, RefusesWhatItCannotKeep) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  TinyModel model = MakeModel(*cuda);
  model.kv.dtype = DType::kF32;
  const auto status =
      cuda->Compile(model.program, std::move(model.weights), model.kv, model.limits, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;

  TinyModel narrow = MakeModel(*cuda);
  narrow.program.head_dim = narrow.kv.head_dim = 8;
  narrow.program.num_heads *= 2;
  narrow.program.num_kv_heads *= 2;
  narrow.kv.num_kv_heads *= 2;
  narrow.kv.dtype = DType::kI8;
  for (Op& op : narrow.program.ops) {  // whose vectors are for the heads as they were
    if (auto* rope = std::get_if<RopeAppendOp>(&op)) rope->q_norm = rope->k_norm = kNoVector;
    if (auto* attention = std::get_if<AttentionOp>(&op)) attention->sinks = kNoVector;
  }
  const auto refused =
      cuda->Compile(narrow.program, std::move(narrow.weights), narrow.kv, narrow.limits, {})
          .status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented) << refused;
}

INSTANTIATE_TEST_SUITE_P(All, CudaRunnerTest, testing::Values(Compute::kF16, Compute::kBF16),
                         [](const testing::TestParamInfo<Compute>& of) {
                           return of.param == Compute::kF16 ? "f16" : "bf16";
                         });

}  // namespace
}  // namespace nibble
