#include "runtime/model/program_builder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/model/architectures.h"
#include "runtime/model/tensor_names.h"

namespace nibble {
namespace {

// Rows of `heads` heads in half-split order, taken from GGUF's interleaved one: entry j of a head
// lies at 2j, entry j + dim / 2 at 2j + 1.
std::vector<std::int32_t> HalfSplitOrder(std::int32_t heads, std::int32_t dim) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(heads) * dim);
  for (std::int32_t head = 0; head < heads; ++head) {
    for (std::int32_t j = 0; j < dim / 2; ++j) {
      order[head * dim + j] = head * dim + 2 * j;
      order[head * dim + j + dim / 2] = head * dim + 2 * j + 1;
    }
  }
  return order;
}

LinearSource Source(std::string layer, std::int64_t n, std::int64_t k) {
  LinearSource source;
  source.layer = std::move(layer);
  source.n = n;
  source.k = k;
  return source;
}

// Emits the ops in order; every weight is listed in the plan at the moment an op first names it.
class ProgramBuilder {
 public:
  ProgramBuilder(const ModelConfig& config, const Checkpoint& checkpoint,
                 const WeightFormat& format)
      : config_(config),
        row_(*FindArchitecture(config.architecture)),
        names_(config, checkpoint),
        format_(format) {}

  BuiltProgram Build(std::int64_t max_context) {
    program_.num_layers = config_.layers;
    program_.num_heads = config_.heads;
    program_.num_kv_heads = config_.kv_heads;
    program_.head_dim = config_.head_dim;
    program_.hidden = config_.hidden;
    program_.vocab = config_.vocab;
    AddRopes(max_context);
    AddBuffers();

    const LinearId embedding =
        Linear({Source(names_.Get(names_.table().embedding), config_.vocab, config_.hidden)});
    Emit(EmbedOp{embedding, residual_, config_.embedding_scale});
    for (int layer = 0; layer < config_.layers; ++layer) {
      const VectorId norm = Norm(names_.table().attention_norm, layer);
      if (layer == 0) {
        Emit(RmsNormOp{residual_, norm, normed_, config_.norm_eps});
      } else {
        Emit(AddRmsNormOp{residual_, delta_, norm, normed_, config_.norm_eps});
      }
      AddAttention(layer);
      Emit(AddRmsNormOp{residual_, delta_, Norm(names_.table().mlp_norm, layer), normed_,
                        config_.norm_eps});
      if (config_.layer[layer].moe) {
        AddExperts(layer);
      } else {
        AddMlp(layer);
      }
    }
    Emit(AddOp{residual_, delta_});
    AddHead(embedding);
    return BuiltProgram{std::move(program_), std::move(weights_)};
  }

 private:
  LinearId Linear(std::vector<LinearSource> sources, PackAxis axis = PackAxis::kN, int joined = 1) {
    weights_.linears.push_back({axis, std::move(sources), joined});
    return static_cast<LinearId>(weights_.linears.size()) - 1;
  }

  VectorId Vector(std::string tensor, std::int64_t size) {
    weights_.vectors.push_back({std::move(tensor), size, config_.norm_adds_one ? 1.0f : 0.0f});
    return static_cast<VectorId>(weights_.vectors.size()) - 1;
  }

  VectorId Norm(const char* name, int layer) {
    return Vector(names_.Get(name, layer), config_.hidden);
  }

  bool Has(const char* name, int layer) const {
    return name != nullptr && format_.Has(names_.Get(name, layer));
  }

  // [q; k; v], from three layers or from a fused one.
  LinearId Qkv(int layer) {
    const TensorNames& table = names_.table();
    const std::int64_t q = std::int64_t{config_.heads} * config_.head_dim;
    const std::int64_t kv = std::int64_t{config_.kv_heads} * config_.head_dim;
    std::vector<LinearSource> sources;
    if (!Has(table.q, layer) && Has(table.qkv, layer)) {
      sources.push_back(Source(names_.Get(table.qkv, layer), q + 2 * kv, config_.hidden));
    } else {
      sources.push_back(Source(names_.Get(table.q, layer), q, config_.hidden));
      sources.push_back(Source(names_.Get(table.k, layer), kv, config_.hidden));
      sources.push_back(Source(names_.Get(table.v, layer), kv, config_.hidden));
      if (config_.gguf_interleaved_qk) {
        sources[0].row_order = HalfSplitOrder(config_.heads, config_.head_dim);
        sources[1].row_order = HalfSplitOrder(config_.kv_heads, config_.head_dim);
      }
    }
    for (LinearSource& source : sources) source.needs_bias = row_.qkv_bias;
    return Linear(std::move(sources));
  }

  // [gate; up], likewise.
  LinearId GateUp(int layer) {
    const TensorNames& table = names_.table();
    const std::int64_t dim = config_.intermediate;
    if (!Has(table.gate, layer) && Has(table.gate_up, layer)) {
      return Linear({Source(names_.Get(table.gate_up, layer), 2 * dim, config_.hidden)},
                    PackAxis::kGateUp);
    }
    return Linear({Source(names_.Get(table.gate, layer), dim, config_.hidden),
                   Source(names_.Get(table.up, layer), dim, config_.hidden)},
                  PackAxis::kGateUp);
  }

  LinearId ExpertsGateUp(int layer) {
    const TensorNames& table = names_.table();
    std::vector<LinearSource> sources;
    for (int e = 0; e < config_.experts; ++e) {
      for (const char* name : {table.expert_gate, table.expert_up}) {
        sources.push_back(
            Source(names_.Get(name, layer, e), config_.expert_intermediate, config_.hidden));
      }
    }
    return Linear(std::move(sources), PackAxis::kExperts, /*joined=*/2);
  }

  LinearId ExpertsDown(int layer) {
    std::vector<LinearSource> sources;
    for (int e = 0; e < config_.experts; ++e) {
      sources.push_back(Source(names_.Get(names_.table().expert_down, layer, e), config_.hidden,
                               config_.expert_intermediate));
    }
    return Linear(std::move(sources), PackAxis::kExperts);
  }

  void AddRopes(std::int64_t max_context) {
    for (const RopeConfig& rope : config_.ropes)
      program_.ropes.push_back(BuildRopeTable(rope, max_context));
    // Layers without positions rotate by zero, so that no backend needs a special case.
    no_rope_ = static_cast<std::int32_t>(program_.ropes.size());
    for (const LayerConfig& layer : config_.layer) {
      if (layer.rope >= 0) continue;
      program_.ropes.push_back({std::vector<float>(config_.ropes.front().dim / 2, 0.0f), 1.0f});
      break;
    }
  }

  BufferId Buffer(const char* name, std::int64_t dim) {
    program_.buffers.push_back({name, dim, false, false});
    return static_cast<BufferId>(program_.buffers.size()) - 1;
  }

  void AddBuffers() {
    residual_ = Buffer("residual", config_.hidden);
    normed_ = Buffer("normed", config_.hidden);
    qkv_ = Buffer("qkv", std::int64_t{config_.heads + 2 * config_.kv_heads} * config_.head_dim);
    attention_ = Buffer("attention", std::int64_t{config_.heads} * config_.head_dim);
    delta_ = Buffer("delta", config_.hidden);
    for (const LayerConfig& layer : config_.layer) {
      if (layer.moe) continue;
      gate_up_ = Buffer("gate_up", 2 * std::int64_t{config_.intermediate});
      activated_ = Buffer("activated", config_.intermediate);
      break;
    }
    last_ = Buffer("last", config_.hidden);
    last_normed_ = Buffer("last_normed", config_.hidden);
    logits_ = Buffer("logits", config_.vocab);
    for (const BufferId id : {last_, last_normed_, logits_})
      program_.buffers[id].per_logit_row = true;
    for (const BufferId id : {residual_, last_, logits_})
      program_.buffers[id].full_precision = true;
    program_.logits = logits_;
  }

  void Emit(Op op) { program_.ops.push_back(std::move(op)); }

  // Gemma norms what attention and MLP add, too.
  void PostNorm(const char* name, int layer) {
    if (config_.post_norms) Emit(RmsNormOp{delta_, Norm(name, layer), delta_, config_.norm_eps});
  }

  void AddAttention(int layer) {
    const TensorNames& table = names_.table();
    const LayerConfig& each = config_.layer[layer];
    Emit(LinearOp{normed_, Qkv(layer), qkv_});
    RopeAppendOp rope = {qkv_,      layer,     each.rope >= 0 ? each.rope : no_rope_,
                         kNoVector, kNoVector, config_.norm_eps};
    if (config_.qk_norm) {
      rope.q_norm = Vector(names_.Get(table.q_norm, layer), config_.head_dim);
      rope.k_norm = Vector(names_.Get(table.k_norm, layer), config_.head_dim);
    }
    Emit(rope);
    Emit(AttentionOp{qkv_, layer, attention_, config_.attention_scale, each.window,
                     config_.attention_softcap, kNoVector});
    const std::int64_t heads_dim = std::int64_t{config_.heads} * config_.head_dim;
    Emit(LinearOp{attention_,
                  Linear({Source(names_.Get(table.o, layer), config_.hidden, heads_dim)}), delta_});
    PostNorm(table.post_attention_norm, layer);
  }

  void AddMlp(int layer) {
    const TensorNames& table = names_.table();
    Emit(LinearOp{normed_, GateUp(layer), gate_up_});
    Emit(GluOp{gate_up_, activated_, config_.activation});
    Emit(LinearOp{
        activated_,
        Linear({Source(names_.Get(table.down, layer), config_.hidden, config_.intermediate)}),
        delta_});
    PostNorm(table.post_mlp_norm, layer);
  }

  void AddExperts(int layer) {
    const TensorNames& table = names_.table();
    MoeOp moe;
    moe.in = normed_;
    moe.router = Linear({Source(names_.Get(table.router, layer), config_.experts, config_.hidden)});
    moe.gate_up = ExpertsGateUp(layer);
    moe.down = ExpertsDown(layer);
    moe.out = delta_;
    moe.experts = config_.experts;
    moe.top_k = config_.experts_per_token;
    moe.intermediate = config_.expert_intermediate;
    moe.renormalize = config_.renormalize_experts;
    moe.activation = config_.activation;
    Emit(moe);
    PostNorm(table.post_mlp_norm, layer);
  }

  // Only the rows that somebody asked for pass the final norm and the head.
  void AddHead(LinearId embedding) {
    const TensorNames& table = names_.table();
    Emit(GatherRowsOp{residual_, last_});
    Emit(RmsNormOp{last_, Vector(names_.Get(table.final_norm), config_.hidden), last_normed_,
                   config_.norm_eps});
    const LinearId head =
        config_.tied_head ? embedding
                          : Linear({Source(names_.Get(table.head), config_.vocab, config_.hidden)});
    Emit(LinearOp{last_normed_, head, logits_});
    if (config_.final_softcap > 0) Emit(SoftcapOp{logits_, config_.final_softcap});
  }

  const ModelConfig& config_;
  const Architecture& row_;
  const NameResolver names_;
  const WeightFormat& format_;

  Program program_;
  WeightPlan weights_;
  std::int32_t no_rope_ = -1;
  BufferId residual_ = 0, normed_ = 0, qkv_ = 0, attention_ = 0, delta_ = 0, gate_up_ = 0,
           activated_ = 0;
  BufferId last_ = 0, last_normed_ = 0, logits_ = 0;
};

}  // namespace

absl::StatusOr<BuiltProgram> BuildProgram(const ModelConfig& config, const Checkpoint& checkpoint,
                                          const WeightFormat& format, std::int64_t max_context) {
  BuiltProgram built = ProgramBuilder(config, checkpoint, format).Build(max_context);
  for (const VectorPlan& vector : built.weights.vectors)
    RETURN_IF_ERROR(CheckVector(checkpoint, vector));
  return built;
}

}  // namespace nibble
