// Feed-forward layers between norms, of the weights whose products the compiler treats apart: rows
// of 8 bits with rounded inputs, and mixtures of experts. Against the CPU's f32, in prefill and in
// decode.
#include <string>
#include <utility>
#include <vector>

#include "tests/device/cuda/on_cuda.h"
#include "tests/device/random_weight.h"
#include "tests/device/tiny_program.h"

namespace nibble {
namespace {

constexpr std::int32_t kHidden = 320, kDim = 192, kVocab = 200, kExperts = 12;
constexpr std::int32_t kRows = 80, kSequences = 16;
enum Buffers : std::int32_t { kResidual, kNormed, kWide, kActivated, kDelta, kLast, kLogits };

struct Layer {
  std::string name;
  bool mixture;
  std::vector<LinearWeight> wide, narrow;  // gate and up, or an expert each; down
};

struct Model {
  Program program;
  ModelWeights weights;
  KvLayout kv{1, 64, 1, 8, 64, DType::kF32};
  StepLimits limits{kRows, kSequences, kSequences, kRows, 256};
};

// embed -> norm -> the layer -> add and norm -> head.
Model MakeModel(Backend& backend, Layer layer) {
  Model m;
  m.kv.dtype = backend.DefaultKvDType(Compute::kF32);
  Program& p = m.program;
  p.num_heads = p.num_kv_heads = 1;
  p.head_dim = 8;
  p.hidden = kHidden;
  p.vocab = kVocab;
  p.buffers = {{"residual", kHidden},   {"normed", kHidden}, {"wide", 2 * kDim},
               {"activated", kDim},     {"delta", kHidden},  {"last", kHidden, true},
               {"logits", kVocab, true}};
  p.logits = kLogits;
  WeightMaker make(5);
  const auto add = [&](std::vector<LinearWeight> parts, PackAxis axis) {
    auto packed = backend.Pack(parts, axis);
    EXPECT_TRUE(packed.ok()) << packed.status();
    m.weights.linears.push_back(std::move(packed).value());
    return static_cast<LinearId>(m.weights.linears.size()) - 1;
  };
  const auto dense = [&](std::int64_t n, float scale) {
    std::vector<LinearWeight> one;
    one.push_back(make.DenseWeight(n, kHidden, DType::kBF16, scale));
    return add(std::move(one), PackAxis::kN);
  };
  const LinearId table = dense(kVocab, 1.0f), head = dense(kVocab, 0.1f);
  // Some columns are large, as in real models. Small inputs keep mixtures of 8 bits within f16.
  const float size = layer.mixture ? 0.05f : 1.0f;
  std::vector<float> norm(kHidden, size);
  for (const std::size_t i : {7, 100, 101, 319}) norm[i] = 9.0f * size;
  m.weights.vectors = {norm, std::vector<float>(kHidden, 1.0f)};
  p.ops = {EmbedOp{table, kResidual, 1.0f}, RmsNormOp{kResidual, 0, kNormed, 1e-5f}};
  if (layer.mixture) {
    const LinearId router = dense(kExperts, 0.05f);
    const LinearId wide = add(std::move(layer.wide), PackAxis::kExperts);
    const LinearId narrow = add(std::move(layer.narrow), PackAxis::kExperts);
    p.ops.push_back(
        MoeOp{kNormed, router, wide, narrow, kDelta, kExperts, 3, true, Activation::kSilu, kDim});
  } else {
    p.ops.push_back(LinearOp{kNormed, add(std::move(layer.wide), PackAxis::kGateUp), kWide});
    p.ops.push_back(GluOp{kWide, kActivated, Activation::kSilu});
    p.ops.push_back(LinearOp{kActivated, add(std::move(layer.narrow), PackAxis::kN), kDelta});
  }
  p.ops.push_back(AddOp{kResidual, kDelta});
  p.ops.push_back(GatherRowsOp{kResidual, kLast});
  p.ops.push_back(RmsNormOp{kLast, 1, kLast, 1e-5f});
  p.ops.push_back(LinearOp{kLast, head, kLogits});
  return m;
}

// A step of `tokens` tokens: of one sequence, or one each.
std::vector<RowResult> Score(Runner& runner, int tokens, bool decode) {
  StepBuilder step(64);
  for (int s = 0; s < (decode ? tokens : 1); ++s) {
    step.Begin(s);
    std::vector<std::int32_t> ids;
    for (int t = 0; t < (decode ? 1 : tokens); ++t) ids.push_back((t * 31 + s * 17 + 7) % kVocab);
    step.Append(s, 0, ids);
    if (decode) step.Score(s, (s * 17) % kVocab, 20);
  }
  for (int t = 0; !decode && t < tokens; ++t) step.Score(t, (t * 17) % kVocab, 20);
  return RunStep(runner, step).rows;
}

Layer RowLayer(std::string name, DType dtype, ActivationQuant activation) {
  WeightMaker make(9);
  Layer layer{std::move(name), false, {}, {}};
  for (int i = 0; i < 2; ++i)
    layer.wide.push_back(make.Row8Weight(kDim, kHidden, dtype, activation));
  layer.narrow.push_back(make.Row8Weight(kHidden, kDim, dtype, activation));
  make.AddBias(layer.narrow.back());
  return layer;
}

Layer Mixture(std::string name, int bits, std::int64_t group, OffsetKind offset) {
  WeightMaker make(9);
  Layer layer{std::move(name), true, {}, {}};
  for (int e = 0; e < kExperts; ++e) {
    layer.wide.push_back(
        make.AffineWeight(2 * kDim, kHidden, bits, group, ScaleKind::kF16, offset));
    layer.narrow.push_back(make.AffineWeight(kHidden, kDim, bits, group, ScaleKind::kF16, offset));
  }
  return layer;
}

Layer RowMixture() {
  WeightMaker make(9);
  Layer layer{"mixture of fp8 rows", true, {}, {}};
  for (int e = 0; e < kExperts; ++e) {
    layer.wide.push_back(
        make.Row8Weight(2 * kDim, kHidden, DType::kF8E4M3, ActivationQuant::kDynamic));
    layer.narrow.push_back(
        make.Row8Weight(kHidden, kDim, DType::kF8E4M3, ActivationQuant::kDynamic));
  }
  return layer;
}

std::vector<Layer> Layers() {
  std::vector<Layer> all;
  all.push_back(RowLayer("int8 dynamic", DType::kI8, ActivationQuant::kDynamic));
  all.push_back(RowLayer("int8 static", DType::kI8, ActivationQuant::kStatic));
  all.push_back(RowLayer("int8 outliers", DType::kI8, ActivationQuant::kOutlierSplit));
  all.push_back(RowLayer("fp8 dynamic", DType::kF8E4M3, ActivationQuant::kDynamic));
  all.push_back(RowLayer("fp8 static", DType::kF8E4M3, ActivationQuant::kStatic));
  all.push_back(Mixture("mixture of int4 g64", 4, 64, OffsetKind::kConstant));
  all.push_back(Mixture("mixture of int4 g32 zeros", 4, 32, OffsetKind::kZeroCodes));
  all.push_back(Mixture("mixture of int8 g64", 8, 64, OffsetKind::kConstant));
  all.push_back(RowMixture());
  return all;
}

class CudaLayersTest : public testing::TestWithParam<Compute> {};

TEST_P(CudaLayersTest, AgreeWithTheCpu) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto cpu = OpenForTest("cpu", Compute::kF32);
  const std::size_t count = Layers().size();
  for (std::size_t i = 0; i < count; ++i) {
    const std::string name = Layers()[i].name;
    const auto compile = [&](Backend& backend) {
      Model model = MakeModel(backend, std::move(Layers()[i]));
      auto runner =
          backend.Compile(model.program, std::move(model.weights), model.kv, model.limits, {});
      EXPECT_TRUE(runner.ok()) << name << ": " << runner.status();
      return std::move(runner).value();
    };
    const auto reference = compile(*cpu), runner = compile(*cuda);
    // Inputs that round to the next of 8-bit codes are most of it.
    const double tolerance = GetParam() == Compute::kF16 ? 0.04 : 0.05;
    for (const bool decode : {false, true}) {
      for (const int tokens : {1, 5, 16, 64, 80}) {
        if (decode && tokens > kSequences) continue;
        EXPECT_LT(Worst(Score(*reference, tokens, decode), Score(*runner, tokens, decode)),
                  tolerance)
            << name << (decode ? ", decode of " : ", prefill of ") << tokens;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaLayersTest, testing::Values(Compute::kF16, Compute::kBF16),
                         [](const testing::TestParamInfo<Compute>& of) {
                           return of.param == Compute::kF16 ? "f16" : "bf16";
                         });

}  // namespace
}  // namespace nibble
