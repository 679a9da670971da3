// A small transformer with random weights and every kind of op, and a hand on its Runner.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "runtime/device/backend.h"
#include "runtime/device/program.h"
#include "runtime/device/step.h"
#include "tests/device/random_weight.h"
#include "tests/kernels/reference.h"

namespace nibble {

struct TinyModel {
  static constexpr std::int32_t kHidden = 72, kHeads = 9, kKvHeads = 3, kHeadDim = 16, kDim = 80,
                                kVocab = 301;
  static constexpr std::int32_t kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
  static constexpr std::int32_t kExperts = 5;

  Program program;
  ModelWeights weights;
  KvLayout kv{3, 64, kKvHeads, kHeadDim, 16, DType::kF32};
  StepLimits limits{256, 34, 40, 64, 512};

  LinearId Add(Backend& backend, std::vector<LinearWeight> parts, PackAxis axis = PackAxis::kN) {
    auto packed = backend.Pack(parts, axis);
    EXPECT_TRUE(packed.ok()) << packed.status();
    weights.linears.push_back(std::move(packed).value());
    return static_cast<LinearId>(weights.linears.size()) - 1;
  }
  LinearId Add(Backend& backend, LinearWeight weight) {
    std::vector<LinearWeight> one;
    one.push_back(std::move(weight));
    return Add(backend, std::move(one));
  }
  VectorId AddNorm(std::int32_t dim, std::uint32_t seed) {
    weights.vectors.push_back(reference::Random(dim, seed, 0.1f));
    for (float& w : weights.vectors.back()) w += 1.0f;
    return static_cast<VectorId>(weights.vectors.size()) - 1;
  }
};

// Layer 0: int4, plain. Layer 1: window, soft cap, q/k norms, partial rope, LLM.int8. Layer 2:
// experts, sinks.
inline TinyModel MakeTinyModel(Backend& backend) {
  using M = TinyModel;
  M m;
  WeightMaker make(21);
  Program& p = m.program;
  p.num_layers = 3;
  p.num_heads = M::kHeads;
  p.num_kv_heads = M::kKvHeads;
  p.head_dim = M::kHeadDim;
  p.hidden = M::kHidden;
  p.vocab = M::kVocab;
  p.ropes = {{{1.0f, 0.3f, 0.1f, 0.03f}, 1.0f}, {{1.0f, 0.2f}, 1.1f}};
  const auto buffer = [&](const char* name, std::int64_t dim, bool logit_row = false) {
    p.buffers.push_back({name, dim, logit_row, false});
    return static_cast<BufferId>(p.buffers.size()) - 1;
  };
  const BufferId residual = buffer("residual", M::kHidden), normed = buffer("normed", M::kHidden),
                 qkv = buffer("qkv", M::kQkv),
                 attended = buffer("attended", M::kHeads * M::kHeadDim),
                 delta = buffer("delta", M::kHidden), gate_up = buffer("gate_up", 2 * M::kDim),
                 activated = buffer("activated", M::kDim), last = buffer("last", M::kHidden, true);
  p.logits = buffer("logits", M::kVocab, true);

  const LinearId table = m.Add(backend, make.AffineWeight(M::kVocab, M::kHidden, 8, 32,
                                                          ScaleKind::kF16, OffsetKind::kConstant));
  p.ops.push_back(EmbedOp{table, residual, 3.0f});
  p.ops.push_back(RmsNormOp{residual, m.AddNorm(M::kHidden, 1), normed, 1e-5f});
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    std::vector<LinearWeight> parts;
    for (const std::int32_t heads : {M::kHeads, M::kKvHeads, M::kKvHeads}) {
      parts.push_back(layer == 1 ? make.Row8Weight(heads * M::kHeadDim, M::kHidden, DType::kI8,
                                                   ActivationQuant::kOutlierSplit)
                                 : make.AffineWeight(heads * M::kHeadDim, M::kHidden, 4, 32,
                                                     ScaleKind::kF16, OffsetKind::kZeroCodes,
                                                     /*permuted=*/layer == 2));
    }
    p.ops.push_back(LinearOp{normed, m.Add(backend, std::move(parts)), qkv});
    const bool second = layer == 1;
    p.ops.push_back(RopeAppendOp{qkv, layer, second ? 1 : 0,
                                 second ? m.AddNorm(M::kHeadDim, 2) : kNoVector,
                                 second ? m.AddNorm(M::kHeadDim, 3) : kNoVector, 1e-6f});
    VectorId sinks = kNoVector;
    if (layer == 2) sinks = m.AddNorm(M::kHeads, 4);
    p.ops.push_back(
        AttentionOp{qkv, layer, attended, 0.35f, second ? 20 : 0, second ? 5.0f : 0.0f, sinks});
    p.ops.push_back(LinearOp{
        attended,
        m.Add(backend, make.DenseWeight(M::kHidden, M::kHeads * M::kHeadDim, DType::kF16)), delta});
    p.ops.push_back(AddRmsNormOp{residual, delta, m.AddNorm(M::kHidden, 5), normed, 1e-5f});
    if (layer < 2) {
      std::vector<LinearWeight> two;
      two.push_back(
          make.AffineWeight(M::kDim, M::kHidden, 4, 32, ScaleKind::kF16, OffsetKind::kBias));
      two.push_back(make.AffineWeight(M::kDim, M::kHidden, 6, 16, ScaleKind::kTwoLevel,
                                      OffsetKind::kConstant));
      p.ops.push_back(LinearOp{normed, m.Add(backend, std::move(two)), gate_up});
      p.ops.push_back(
          GluOp{gate_up, activated, second ? Activation::kGeluTanh : Activation::kSilu});
      p.ops.push_back(LinearOp{
          activated, m.Add(backend, make.CodebookWeight(M::kHidden, M::kDim, 16, ScaleKind::kF32)),
          delta});
    } else {
      MoeOp moe{normed,
                m.Add(backend, make.DenseWeight(M::kExperts, M::kHidden, DType::kF32)),
                0,
                0,
                delta,
                M::kExperts,
                2,
                true,
                Activation::kSilu,
                M::kDim};
      std::vector<LinearWeight> up, down;
      for (int e = 0; e < M::kExperts; ++e) {
        up.push_back(make.AffineWeight(2 * M::kDim, M::kHidden, 4, 32, ScaleKind::kF16,
                                       OffsetKind::kConstant));
        down.push_back(make.AffineWeight(M::kHidden, M::kDim, 4, 16, ScaleKind::kF16,
                                         OffsetKind::kConstant, e == 3));
      }
      moe.gate_up = m.Add(backend, std::move(up), PackAxis::kExperts);
      moe.down = m.Add(backend, std::move(down), PackAxis::kExperts);
      p.ops.push_back(moe);
    }
    if (layer < 2)
      p.ops.push_back(AddRmsNormOp{residual, delta, m.AddNorm(M::kHidden, 6), normed, 1e-5f});
  }
  p.ops.push_back(AddOp{residual, delta});
  p.ops.push_back(GatherRowsOp{residual, last});
  p.ops.push_back(RmsNormOp{last, m.AddNorm(M::kHidden, 7), last, 1e-5f});
  p.ops.push_back(LinearOp{last, table, p.logits});
  p.ops.push_back(SoftcapOp{p.logits, 30.0f});
  return m;
}

inline std::unique_ptr<Runner> Compile(Backend& backend, TinyModel model,
                                       const CompileOptions& options = {}) {
  auto runner =
      backend.Compile(model.program, std::move(model.weights), model.kv, model.limits, options);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return std::move(runner).value();
}

// Builds step inputs; its vectors back the spans of the last one.
class StepBuilder {
 public:
  // `pages_a_slot` 0: pages scattered over the pool of 64 so that two slots never share one (up to
  // 34 slots of one page, or few of many).
  explicit StepBuilder(std::int32_t page_tokens = 16, std::int32_t pages_a_slot = 0)
      : page_tokens_(page_tokens), pages_a_slot_(pages_a_slot) {}

  // Appends `tokens` at `position` for the sequence in `slot`.
  void Append(std::int32_t slot, std::int32_t position, const std::vector<std::int32_t>& tokens) {
    const auto count = static_cast<std::int32_t>(tokens.size());
    for (std::int32_t i = 0; i < count; ++i) {
      tokens_.push_back(tokens[static_cast<std::size_t>(i)]);
      positions_.push_back(position + i);
    }
    slots_.push_back(slot);
    query_.push_back(count);
    context_.push_back(position + count);
    for (std::int32_t page = 0; page * page_tokens_ < position + count; ++page)
      tables_.push_back(Page(slot, page));
    offsets_.push_back(static_cast<std::int32_t>(tables_.size()));
  }
  // Samples after the token appended last.
  void Sample(std::int32_t output_position = 0) {
    rows_.push_back({static_cast<std::int32_t>(tokens_.size()) - 1, slots_.back(), output_position,
                     true, -1, -1});
  }
  void Score(std::int32_t token_index, std::int32_t token, std::int32_t top = -1) {
    rows_.push_back({token_index, slots_.back(), 0, false, token, top});
  }
  void Begin(std::int32_t slot, const SamplingParams& sampling = {}) {
    inits_.push_back({slot, sampling, {}, {}, {}, {}});
  }
  SlotInit& last_init() { return inits_.back(); }
  LogitRow& last_row() { return rows_.back(); }

  StepInput Input(std::uint64_t id = 1) {
    StepInput input;
    input.id = id;
    input.phase = tokens_.size() == slots_.size() ? Phase::kDecode : Phase::kPrefill;
    input.tokens = tokens_;
    input.positions = positions_;
    input.slots = slots_;
    input.query_lengths = query_;
    input.context_lengths = context_;
    input.block_table_offsets = offsets_;
    input.block_tables = tables_;
    input.slot_inits = inits_;
    input.logit_rows = rows_;
    return input;
  }

  std::int32_t Page(std::int32_t slot, std::int32_t page) const {
    return pages_a_slot_ > 0 ? slot * pages_a_slot_ + page : (slot * 11 + page * 5) % 64;
  }

 private:
  const std::int32_t page_tokens_, pages_a_slot_;
  std::vector<std::int32_t> tokens_, positions_, slots_, query_, context_, offsets_ = {0}, tables_;
  std::vector<SlotInit> inits_;
  std::vector<LogitRow> rows_;
};

inline StepResult RunStep(Runner& runner, StepBuilder& step, std::uint64_t id = 1) {
  const absl::Status launched = runner.Launch(step.Input(id));
  EXPECT_TRUE(launched.ok()) << launched;
  if (!launched.ok()) return {};
  absl::StatusOr<StepResult> result = runner.Collect();
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : StepResult{};
}

// Some prompt, different for each seed.
inline std::vector<std::int32_t> Prompt(int length, int seed) {
  std::vector<std::int32_t> out;
  for (int i = 0; i < length; ++i) out.push_back((i * 37 + seed * 101 + i * i) % TinyModel::kVocab);
  return out;
}

}  // namespace nibble
