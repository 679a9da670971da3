// Checkpoints made by other people's tools, against what their libraries compute: see the README
// beside them. Every directory that is there is tested, so that a new one needs no line here.
#include "tests/support/conformance.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "tests/model/loaded_model.h"
#include "tests/support/greedy.h"

namespace nibble {
namespace {

constexpr double kTolerance = 0.02;  // of a gap between logits
constexpr double kNearTie = 0.02;

Json ReadJson(const std::filesystem::path& path) {
  const absl::StatusOr<std::string> text = ReadTextFile(path.string(), 64 << 20);
  if (!text.ok()) return {};
  absl::StatusOr<Json> json = ParseJson(*text);
  return json.ok() ? *std::move(json) : Json();
}

std::vector<std::int32_t> Ids(const Json& list) {
  std::vector<std::int32_t> ids;
  for (const Json& id : list.AsArray()) ids.push_back(static_cast<std::int32_t>(id.AsInt64()));
  return ids;
}

LoadQuantization QuantizeFlag(const Json& reference) {
  const Json* flags = reference.Find("serve_flags");
  if (flags == nullptr) return LoadQuantization::kNone;
  const Json::Array& words = flags->AsArray();
  EXPECT_EQ(words.size(), 2u);
  EXPECT_EQ(words[0].AsString(), "--quantize");
  static const std::map<std::string, LoadQuantization> kinds = {{"nf4", LoadQuantization::kNf4},
                                                                {"fp4", LoadQuantization::kFp4},
                                                                {"int8", LoadQuantization::kInt8},
                                                                {"int4", LoadQuantization::kInt4}};
  const auto kind = kinds.find(words[1].AsString());
  EXPECT_NE(kind, kinds.end()) << words[1].AsString();
  return kind == kinds.end() ? LoadQuantization::kNone : kind->second;
}

// What computes, and what its rounding may do: how far a gap between logits may be from the
// reference's, and how far on average; and where the reference's best two are closer than `tie`,
// either is right. In bf16 a token may go to another expert, which moves gaps by a whole logit.
struct Device {
  const char* label;
  const char* name;
  Compute compute;
  std::optional<DType> kv_dtype;
  double gap, mean, tie;
  double flips;  // part of the steps that near ties may decide
};
constexpr Device kDevices[] = {
    {"cpu", "cpu", Compute::kF32, DType::kF32, kTolerance, kTolerance, kNearTie, 0.03},
    {"cuda_f16", "cuda", Compute::kF16, std::nullopt, 0.2, 0.03, 0.1, 0.03},
    {"cuda_bf16", "cuda", Compute::kBF16, std::nullopt, 1.2, 0.12, 0.35, 0.06},
};

struct Tolerance {
  double gap = kTolerance;
  double first = kTolerance;  // after a prompt of one token
  double tie = kNearTie;
};

// Of all cases of a checkpoint.
struct Score {
  double worst = 0.0, total = 0.0;  // differences of gaps
  int gaps = 0, steps = 0, same_best = 0;
};

// Where activations are quantized too, one code that tips the other way (a difference of 1e-7 is
// enough) moves all that follows by as much as quantizing moved it, which the reference records as
// the distance of a forward that does not. Before any code can tip, after a single token, the
// answer must still be exact, but for LLM.int8(), whose library divides by 127 squared with a
// constant that is 2e-5 off on the CPU.
Tolerance ToleranceOf(const Json& reference, const Device& device) {
  if (const Json* distance = reference.Find("weight_only_forward")) {
    return {std::max(2 * distance->Find("max_abs_diff")->AsDouble(), device.gap), device.gap,
            std::max(0.1, device.tie)};
  }
  if (const Json* distance = reference.Find("dense_forward")) {
    return {std::max(2 * distance->Find("max_abs_diff")->AsDouble(), device.gap),
            std::max(0.1, device.gap), std::max(0.1, device.tie)};
  }
  return {device.gap, device.gap, device.tie};
}

// `step` is [[id, logit], ...], best first. Softmax does not care for a constant: gaps to the best
// are compared. Ids that the 20 best do not hold cannot be compared, but eight of eight always are.
void ExpectStep(const RowResult& row, const Json& step, double tolerance, double tie,
                Score& score) {
  ASSERT_FALSE(row.bad_logits);
  std::map<std::int32_t, double> ours;
  for (const TopLogprob& top : row.top) ours[top.token] = top.logprob;
  const Json::Array& best = step.AsArray();
  const auto best_id = static_cast<std::int32_t>(best[0].AsArray()[0].AsInt64());
  const double best_logit = best[0].AsArray()[1].AsDouble();
  ASSERT_TRUE(ours.count(best_id)) << "token " << best_id << " is not among the 20 best";
  for (const Json& each : best) {
    const auto id = static_cast<std::int32_t>(each.AsArray()[0].AsInt64());
    const double gap = each.AsArray()[1].AsDouble() - best_logit;
    ASSERT_TRUE(ours.count(id)) << "token " << id << " is not among the 20 best";
    const double error = std::abs((ours[id] - ours[best_id]) - gap);
    score.worst = std::max(score.worst, error);
    score.total += error;
    ++score.gaps;
    EXPECT_LT(error, tolerance) << "token " << id << ": gap to the best "
                                << ours[id] - ours[best_id] << ", expected " << gap;
  }
  ++score.steps;
  score.same_best += row.token == best_id ? 1 : 0;
  const double margin = best_logit - best[1].AsArray()[1].AsDouble();
  if (margin > tie) {
    EXPECT_EQ(row.token, best_id) << "margin " << margin;
  }
}

// The prompt in one call, then the reference's tokens one by one, whatever ours would have been.
void CheckCase(const LoadedModel& model, const Json& reference, const Tolerance& tolerance,
               Score& score) {
  const std::vector<std::int32_t> prompt = Ids(*reference.Find("prompt"));
  const std::vector<std::int32_t> tokens = Ids(*reference.Find("tokens"));
  const Json::Array& steps = reference.Find("steps")->AsArray();
  GreedySequence sequence(*model.runner, model.plan.kv);
  absl::StatusOr<RowResult> row = sequence.Append(prompt);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("case ", reference.Find("case")->AsString(), " step ", i));
    ASSERT_TRUE(row.ok()) << row.status();
    const bool first = i == 0 && prompt.size() == 1;
    ExpectStep(*row, steps[i], first ? tolerance.first : tolerance.gap, tolerance.tie, score);
    if (::testing::Test::HasFailure()) return;  // the rest would only repeat it
    if (i + 1 < steps.size()) row = sequence.Append({&tokens[i], 1});
  }
}

class ConformanceTest : public ::testing::TestWithParam<std::tuple<Device, std::string>> {};

TEST_P(ConformanceTest, MatchesReference) {
  NIBBLE_REQUIRE_CONFORMANCE(root);
  const auto& [device, name] = GetParam();
  const std::filesystem::path dir = root / "checkpoints" / name;
  const Json reference = ReadJson(dir / "reference.json");
  ASSERT_TRUE(reference.is_object()) << dir;
  std::filesystem::path path = dir;
  if (const Json* file = reference.Find("file")) path /= file->AsString();
  if (device.name != std::string("cpu")) {
    BackendOptions wanted;
    wanted.device = device.name;
    const absl::Status status = OpenBackend(wanted).status();
    if (!status.ok()) GTEST_SKIP() << "no GPU: " << status.message();
  }
  LoadOptions options;
  options.device = device.name;
  options.compute = device.compute;
  options.kv_dtype = device.kv_dtype;
  options.quantize = QuantizeFlag(reference);
  const absl::StatusOr<LoadedModel> model = LoadForTest(path.string(), options);
  ASSERT_TRUE(model.ok()) << model.status();

  const Tolerance tolerance = ToleranceOf(reference, device);
  Score score;
  CheckCase(*model, reference, tolerance, score);
  if (const Json* more = reference.Find("more")) {
    for (const Json& each : more->AsArray()) CheckCase(*model, each, tolerance, score);
  }
  RecordProperty("worst_logit_gap", absl::StrCat(score.worst));
  const double mean = score.total / std::max(score.gaps, 1);
  if (tolerance.gap == device.gap) {
    EXPECT_LT(mean, device.mean) << "over " << score.gaps << " gaps";
  }
  // Of few steps, two.
  EXPECT_LE(score.steps - score.same_best, std::max(2.0, score.steps * device.flips))
      << "other best tokens in " << score.steps << " steps";
  std::printf("%s %s: worst %.3f mean %.4f, the same best token %d of %d\n", device.label,
              name.c_str(), score.worst, mean, score.same_best, score.steps);
}

std::vector<std::string> Directories() {
  std::vector<std::string> names;
  if (const auto root = ConformanceDir()) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(*root / "checkpoints", ignored)) {
      if (std::filesystem::exists(entry.path() / "reference.json"))
        names.push_back(entry.path().filename());
    }
  }
  if (names.empty()) names.push_back("none");  // skipped with a reason
  std::sort(names.begin(), names.end());
  return names;
}

std::string TestName(const ::testing::TestParamInfo<ConformanceTest::ParamType>& info) {
  std::string name = absl::StrCat(std::get<0>(info.param).label, "_", std::get<1>(info.param));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, ConformanceTest,
                         ::testing::Combine(::testing::ValuesIn(kDevices),
                                            ::testing::ValuesIn(Directories())),
                         TestName);

// SmolLM2-135M-Instruct Q4_1 by llama.cpp, with dequantized weights and f32 activations: token for
// token.
TEST(SmolLm2Test, CompletesAsLlamaCppDoes) {
  NIBBLE_REQUIRE_CONFORMANCE(root);
  std::filesystem::path path =
      std::filesystem::path(NIBBLE_SOURCE_DIR) / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (const char* named = std::getenv("NIBBLE_SMOLLM2")) path = named;
  if (!std::filesystem::exists(path))
    GTEST_SKIP() << "no " << path << ": set NIBBLE_SMOLLM2 to run this test";
  const Json completions = ReadJson(root / "smollm2/completions.json");
  ASSERT_TRUE(completions.is_object());
  LoadOptions options;
  options.max_context = 256;
  const absl::StatusOr<LoadedModel> model = LoadForTest(path.string(), options);
  ASSERT_TRUE(model.ok()) << model.status();

  for (const Json& each : completions.Find("cases")->AsArray()) {
    SCOPED_TRACE(each.Find("prompt")->AsString());
    const std::vector<std::int32_t> prompt = Ids(*each.Find("prompt_ids"));
    const std::vector<std::int32_t> ids = Ids(*each.Find("ids"));
    const Json::Array& probs = each.Find("probs")->AsArray();
    GreedySequence sequence(*model->runner, model->plan.kv);
    absl::StatusOr<RowResult> row = sequence.Append(prompt);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ASSERT_TRUE(row.ok()) << row.status();
      const Json::Array& top = probs[i].Find("top")->AsArray();
      const double margin = top[0].AsArray()[1].AsDouble() - top[1].AsArray()[1].AsDouble();
      if (margin > kNearTie) {
        ASSERT_EQ(row->token, ids[i]) << "token " << i << ", margin " << margin;
      }
      EXPECT_NEAR(row->top[0].logprob, top[0].AsArray()[1].AsDouble(), kTolerance) << "token " << i;
      row = sequence.Append({&ids[i], 1});
    }
  }
}

}  // namespace
}  // namespace nibble
