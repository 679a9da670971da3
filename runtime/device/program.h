// The forward pass of one model as data: flat ops over numbered buffers, built once from the
// configuration and compiled by each backend. No op holds data; weights are named by index into
// ModelWeights.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace nibble {

using BufferId = std::int32_t;  // index into Program::buffers
using LinearId = std::int32_t;  // index into ModelWeights::linears
using VectorId = std::int32_t;  // index into ModelWeights::vectors; kNoVector: absent
inline constexpr VectorId kNoVector = -1;

enum class Activation : std::uint8_t { kSilu, kGeluTanh };

// out[t, :] = table[token[t], :] * scale. `table` may be the tied lm_head.
struct EmbedOp {
  LinearId table;
  BufferId out;
  float scale;
};

// out = in / rms(in) * weight, mean of squares in f32 over `dim`; in == out allowed.
struct RmsNormOp {
  BufferId in;
  VectorId weight;
  BufferId out;
  float eps;
};

// residual += delta; out = RmsNorm(residual).
struct AddRmsNormOp {
  BufferId residual;
  BufferId delta;
  VectorId weight;
  BufferId out;
  float eps;
};

// residual += delta.
struct AddOp {
  BufferId residual;
  BufferId delta;
};

// out[t, n] = in[t, k] * W^T + bias.
struct LinearOp {
  BufferId in;
  LinearId weight;
  BufferId out;
};

// qkv[t, (heads + 2 * kv_heads) * head_dim] as [q | k | v]: optional RMS norm of each q and k head,
// rotary embedding of the first `rope_dim` of each (half-split pairs) from rope table `rope`, then
// k and v are appended to layer `layer` of the KV pool at the token's position.
struct RopeAppendOp {
  BufferId qkv;
  std::int32_t layer;
  std::int32_t rope;  // index into Program::ropes
  VectorId q_norm;    // [head_dim] or kNoVector
  VectorId k_norm;
  float norm_eps;
};

// out[t, heads * head_dim]: causal attention of the q part of `qkv` over the KV pool. A key at p is
// visible from position t iff p <= t and (window == 0 or t - p < window). scores = scale * q.k,
// then softcap * tanh(scores / softcap) when softcap > 0. `sinks` [heads]: one more logit a row,
// dropped after softmax.
struct AttentionOp {
  BufferId qkv;
  std::int32_t layer;
  BufferId out;
  float scale;
  std::int32_t window;
  float softcap;
  VectorId sinks;
};

// out[t, i] = act(in[t, i]) * in[t, dim + i], i < dim: `in` is [gate | up].
struct GluOp {
  BufferId in;
  BufferId out;
  Activation activation;
};

// Mixture of experts: logits = router * in; softmax over all experts in f32; the top_k best,
// renormalised to sum 1 if `renormalize`; out = sum of weight * down(act(gate) * up). Expert stacks
// are one PackedLinear each.
struct MoeOp {
  BufferId in;
  LinearId router;
  LinearId gate_up;  // experts of [2 * intermediate, hidden], rows [gate | up]
  LinearId down;
  BufferId out;
  std::int32_t experts;
  std::int32_t top_k;
  bool renormalize;
  Activation activation;
  std::int32_t intermediate = 0;  // of one expert
};

// Keeps only the rows of StepInput::logit_rows; everything after it has logit_rows.size() rows.
struct GatherRowsOp {
  BufferId in;
  BufferId out;
};

// logits = softcap * tanh(logits / softcap).
struct SoftcapOp {
  BufferId logits;
  float softcap;
};

using Op = std::variant<EmbedOp, RmsNormOp, AddRmsNormOp, AddOp, LinearOp, RopeAppendOp,
                        AttentionOp, GluOp, MoeOp, GatherRowsOp, SoftcapOp>;

// cos/sin of angle position * inv_freq[j], both times `attention_factor`; f32.
struct RopeTable {
  std::vector<float> inv_freq;  // [rope_dim / 2]
  float attention_factor = 1.0f;
};

struct BufferSpec {
  std::string name;            // for errors and dumps
  std::int64_t dim = 0;        // elements a row
  bool per_logit_row = false;  // rows: logit rows instead of tokens
  bool full_precision =
      false;  // residual stream and logits stay f32 where the backend would narrow
};

struct Program {
  std::vector<BufferSpec> buffers;
  std::vector<Op> ops;
  std::vector<RopeTable> ropes;
  BufferId logits = 0;  // what sampling reads: [logit rows, vocab]
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t hidden = 0;
  std::int32_t vocab = 0;
};

// The linears that multiply a row a token and serve nothing else, in order: where steps of many
// tokens spend their time. Heads, embeddings and experts are not among them.
std::vector<LinearId> TokenLinears(const Program& program);

}  // namespace nibble
