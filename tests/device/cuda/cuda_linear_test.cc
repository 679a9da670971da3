// Every encoding through every product size, against the CPU's f32.
#include "runtime/device/cuda_linear.h"

#include <string>
#include <vector>

#include "tests/device/cuda/on_cuda.h"
#include "tests/device/random_weight.h"
#include "tests/device/tiny_program.h"

namespace nibble {
namespace {

constexpr std::int32_t kRows = 80;  // as many logit rows as one step asks for

// embed -> norm -> [gather ->] the weight -> logits. The table has a row a token.
struct OneLinear {
  Program program;
  ModelWeights weights;
  KvLayout kv{1, 64, 1, 8, 64, DType::kF32};
  StepLimits limits{kRows, 1, 1, kRows, 256};
};

OneLinear MakeOneLinear(Backend& backend, std::vector<LinearWeight> parts, PackAxis axis,
                        bool tied) {
  OneLinear m;
  m.kv.dtype = backend.DefaultKvDType(Compute::kF32);
  const std::int64_t k = parts.front().k;
  std::int64_t n = 0;
  for (const LinearWeight& part : parts) n += part.n;
  Program& p = m.program;
  p.num_heads = p.num_kv_heads = 1;
  p.head_dim = 8;
  p.hidden = static_cast<std::int32_t>(k);
  p.vocab = static_cast<std::int32_t>(n);
  p.buffers = {{"residual", k}, {"normed", k}, {"last", k, true}, {"logits", n, true}};
  p.logits = 3;
  WeightMaker make(5);
  const auto pack = [&](std::vector<LinearWeight> weights, PackAxis along) {
    auto packed = backend.Pack(weights, along);
    EXPECT_TRUE(packed.ok()) << packed.status();
    std::vector<LinearSpec> specs;
    for (const LinearWeight& weight : weights) specs.push_back(SpecOf(weight));
    EXPECT_EQ(backend.PackedBytes(specs, along).value(), (*packed)->bytes);
    m.weights.linears.push_back(std::move(packed).value());
  };
  pack(std::move(parts), axis);
  if (!tied) {
    std::vector<LinearWeight> table;
    table.push_back(make.DenseWeight(n, k, DType::kF16, 1.0f));
    pack(std::move(table), PackAxis::kN);
  }
  m.weights.vectors.push_back(std::vector<float>(static_cast<std::size_t>(k), 1.0f));
  p.ops = {EmbedOp{tied ? 0 : 1, 0, 1.5f}, RmsNormOp{0, 0, 1, 1e-5f}, GatherRowsOp{1, 2},
           LinearOp{2, 0, 3}};
  return m;
}

// Of steps of so many rows: their 20 best log-probabilities and that of the scored token.
std::vector<std::vector<RowResult>> Score(Backend& backend, OneLinear model,
                                          const std::vector<int>& counts) {
  auto runner =
      backend.Compile(model.program, std::move(model.weights), model.kv, model.limits, {});
  EXPECT_TRUE(runner.ok()) << runner.status();
  std::vector<std::vector<RowResult>> all;
  for (const int rows : counts) {
    if (!runner.ok()) break;
    StepBuilder step(64);
    step.Begin(0);
    std::vector<std::int32_t> tokens;
    for (int t = 0; t < rows; ++t) tokens.push_back((t * 31 + 7) % model.program.vocab);
    step.Append(0, 0, tokens);
    for (int t = 0; t < rows; ++t) step.Score(t, (t * 17) % model.program.vocab, 20);
    all.push_back(RunStep(**runner, step).rows);
  }
  all.resize(counts.size());
  return all;
}

class CudaLinearTest : public testing::TestWithParam<Compute> {};

TEST_P(CudaLinearTest, EveryEncodingAtEverySize) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto cpu = OpenForTest("cpu", Compute::kF32);
  for (const std::int64_t k : {320, 72}) {
    const std::int64_t n = k == 320 ? 208 : 200;  // whole tiles of 16 rows, and not
    const auto count = EveryEncoding(n, k, 3).size();
    for (std::size_t i = 0; i < count; ++i) {
      auto one = [&] {
        std::vector<LinearWeight> parts;
        parts.push_back(std::move(EveryEncoding(n, k, 3)[i].weight));
        return parts;
      };
      const std::string name = EveryEncoding(n, k, 3)[i].name;
      // Where inputs are rounded to 8 bits too, a code may tip over with its input's own rounding.
      const auto* row8 = std::get_if<Row8>(&one().front().encoding);
      const bool rounds = row8 != nullptr && row8->activation != ActivationQuant::kNone;
      const double tolerance = (GetParam() == Compute::kF16 ? 0.005 : 0.03) + (rounds ? 0.03 : 0.0);
      const std::vector<int> rows = {1, 5, 16, 17, 80};
      const auto expected = Score(*cpu, MakeOneLinear(*cpu, one(), PackAxis::kN, false), rows);
      const auto got = Score(*cuda, MakeOneLinear(*cuda, one(), PackAxis::kN, false), rows);
      for (std::size_t r = 0; r < rows.size(); ++r) {
        EXPECT_LT(Worst(expected[r], got[r]), tolerance)
            << name << ", k " << k << ", rows " << rows[r];
      }
    }
  }
}

TEST_P(CudaLinearTest, PartsThatJoinAndPartsThatDoNot) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto cpu = OpenForTest("cpu", Compute::kF32);
  const auto parts = [](int kind) {
    WeightMaker make(9);
    std::vector<LinearWeight> out;
    for (const std::int64_t n : {64, 32, 32}) {
      switch (kind) {
        case 0:
          out.push_back(make.AffineWeight(n, 256, 4, 128, ScaleKind::kBF16, OffsetKind::kConstant));
          break;
        case 1:
          out.push_back(
              make.AffineWeight(n, 256, 4, 32, ScaleKind::kF16, OffsetKind::kZeroCodes, true));
          break;
        case 2: out.push_back(make.DenseWeight(n, 256, DType::kBF16)); break;
        default:
          out.push_back(
              n == 64
                  ? make.AffineWeight(n, 256, 4, 32, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel)
                  : make.AffineWeight(n, 256, 6, 16, ScaleKind::kTwoLevel, OffsetKind::kConstant));
      }
      if (n == 32 && kind % 2 == 0) make.AddBias(out.back());
    }
    return out;
  };
  for (int kind = 0; kind < 4; ++kind) {
    const std::vector<int> rows = {3, 60};
    const auto expected = Score(*cpu, MakeOneLinear(*cpu, parts(kind), PackAxis::kN, false), rows);
    const auto got = Score(*cuda, MakeOneLinear(*cuda, parts(kind), PackAxis::kN, false), rows);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      EXPECT_LT(Worst(expected[r], got[r]), GetParam() == Compute::kF16 ? 0.005 : 0.03)
          << "kind " << kind << ", rows " << rows[r];
    }
  }
}

TEST_P(CudaLinearTest, TiedTablesStayPacked) {
  NIBBLE_REQUIRE_CUDA(cuda, GetParam());
  const auto cpu = OpenForTest("cpu", Compute::kF32);
  for (std::size_t i = 0; i < EveryEncoding(200, 320, 4).size(); ++i) {
    auto all = EveryEncoding(200, 320, 4);
    const LinearSpec spec = SpecOf(all[i].weight);
    if (spec.permuted || spec.activation != ActivationQuant::kNone) continue;
    auto one = [&] {
      std::vector<LinearWeight> parts;
      parts.push_back(std::move(EveryEncoding(200, 320, 4)[i].weight));
      parts.back().bias.clear();
      return parts;
    };
    const auto expected = Score(*cpu, MakeOneLinear(*cpu, one(), PackAxis::kN, true), {7});
    const auto got = Score(*cuda, MakeOneLinear(*cuda, one(), PackAxis::kN, true), {7});
    EXPECT_LT(Worst(expected[0], got[0]), GetParam() == Compute::kF16 ? 0.005 : 0.03)
        << all[i].name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaLinearTest, testing::Values(Compute::kF16, Compute::kBF16),
                         [](const testing::TestParamInfo<Compute>& of) {
                           return of.param == Compute::kF16 ? "f16" : "bf16";
                         });

}  // namespace
}  // namespace nibble
