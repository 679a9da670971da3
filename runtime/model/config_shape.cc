#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/model/config_parts.h"
#include "runtime/model/tensor_names.h"

namespace nibble {
namespace {

// Far above any model, far below what would overflow a product of two.
constexpr std::int64_t kMaxHidden = 1 << 17;
constexpr std::int64_t kMaxIntermediate = 1 << 20;
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxHeads = 2048;
constexpr std::int64_t kMaxHeadDim = 1024;
constexpr std::int64_t kMaxVocab = 1 << 22;
constexpr std::int64_t kMaxContext = 1 << 24;
constexpr std::int64_t kMaxExperts = 1024;

// Hugging Face leaves out what the class defaults to; GGUF must say it.
std::optional<std::int64_t> Default(const ConfigSource& source, std::int64_t of_class) {
  if (source.is_gguf() || of_class == 0) return std::nullopt;
  return of_class;
}

absl::Status ReadHeads(const ConfigSource& source, const ClassDefaults& defaults,
                       ModelConfig& config) {
  constexpr ConfigKey kHeads = {"num_attention_heads", "attention.head_count"};
  constexpr ConfigKey kKvHeads = {"num_key_value_heads", "attention.head_count_kv"};
  constexpr ConfigKey kHeadDim = {"head_dim", "attention.key_length"};
  ASSIGN_OR_RETURN(config.heads,
                   source.Size(kHeads, Default(source, defaults.heads), 1, kMaxHeads));
  // A null num_key_value_heads means one for each head, whatever the class defaults to.
  const bool as_heads =
      source.is_gguf() || defaults.kv_heads == 0 || source.IsNull("num_key_value_heads");
  ASSIGN_OR_RETURN(
      config.kv_heads,
      source.Size(kKvHeads, as_heads ? config.heads : defaults.kv_heads, 1, kMaxHeads));
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(source.NameOf(kHeads), " is ", config.heads,
                                                   ", not a multiple of ", source.NameOf(kKvHeads),
                                                   " ", config.kv_heads));
  }
  ASSIGN_OR_RETURN(std::optional<std::int64_t> head_dim, source.Integer(kHeadDim));
  const bool class_default =
      !source.is_gguf() && defaults.head_dim > 0 && !source.IsNull("head_dim");
  if (!head_dim && !class_default && config.hidden % config.heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.NameOf(kHeads), " is ", config.heads, ", which does not divide the hidden size ",
        config.hidden, ", and ", source.NameOf(kHeadDim), " is absent"));
  }
  ASSIGN_OR_RETURN(
      config.head_dim,
      source.Size(kHeadDim, class_default ? defaults.head_dim : config.hidden / config.heads, 1,
                  kMaxHeadDim));
  ASSIGN_OR_RETURN(std::int32_t value_dim, source.Size({nullptr, "attention.value_length"},
                                                       config.head_dim, 1, kMaxHeadDim));
  if (value_dim != config.head_dim) {
    return absl::UnimplementedError(absl::StrCat("values of ", value_dim,
                                                 " entries a head beside keys of ", config.head_dim,
                                                 " are not supported"));
  }
  return absl::OkStatus();
}

absl::Status ReadExperts(const ConfigSource& source, const Architecture& row, ModelConfig& config) {
  if (!row.moe) return absl::OkStatus();
  const ClassDefaults& defaults = row.defaults;
  constexpr ConfigKey kExperts = {"num_local_experts|num_experts", "expert_count"};
  constexpr ConfigKey kUsed = {"num_experts_per_tok", "expert_used_count"};
  ASSIGN_OR_RETURN(config.experts,
                   source.Size(kExperts, Default(source, defaults.experts), 1, kMaxExperts));
  ASSIGN_OR_RETURN(
      config.experts_per_token,
      source.Size(kUsed, Default(source, defaults.experts_per_token), 1, config.experts));
  // Mixtral has experts of intermediate_size; others say moe_intermediate_size.
  const std::int64_t fallback = source.is_gguf() || defaults.expert_intermediate == 0
                                    ? config.intermediate
                                    : defaults.expert_intermediate;
  ASSIGN_OR_RETURN(config.expert_intermediate,
                   source.Size({"moe_intermediate_size", "expert_feed_forward_length"}, fallback, 1,
                               kMaxIntermediate));
  ASSIGN_OR_RETURN(config.renormalize_experts,
                   source.Flag({"norm_topk_prob", "expert_weights_norm"},
                               source.is_gguf() || defaults.renormalize_experts));
  ASSIGN_OR_RETURN(std::optional<std::int64_t> gating,
                   source.Integer({nullptr, "expert_gating_func"}));
  constexpr std::int64_t kSoftmax = 1;
  if (gating && *gating != 0 && *gating != kSoftmax) {
    return absl::UnimplementedError(absl::StrCat(source.NameOf({nullptr, "expert_gating_func"}),
                                                 " is ", *gating,
                                                 "; only 1 (softmax) is supported"));
  }
  return absl::OkStatus();
}

absl::Status ReadActivation(const ConfigSource& source, const Architecture& row,
                            ModelConfig& config) {
  config.activation = row.activation;
  constexpr ConfigKey kActivation = {"hidden_activation|hidden_act", nullptr};
  ASSIGN_OR_RETURN(std::optional<std::string> name, source.String(kActivation));
  if (!name) return absl::OkStatus();
  if (*name == "silu" || *name == "swish") {
    config.activation = Activation::kSilu;
  } else if (*name == "gelu_pytorch_tanh" || *name == "gelu_new") {
    config.activation = Activation::kGeluTanh;
  } else {
    return absl::UnimplementedError(absl::StrCat(source.NameOf(kActivation), " is \"", *name,
                                                 "\"; supported are silu and gelu_pytorch_tanh"));
  }
  return absl::OkStatus();
}

// "bfloat16", "float16", ...; nothing in GGUF.
absl::StatusOr<std::optional<std::string>> TrainedType(const ConfigSource& source,
                                                       const Checkpoint& checkpoint) {
  if (source.is_gguf()) return std::optional<std::string>();
  ASSIGN_OR_RETURN(std::optional<std::string> dtype, source.String({"dtype|torch_dtype", nullptr}));
  if (!dtype && checkpoint.config().is_object()) {  // a multimodal wrapper says it outside
    ASSIGN_OR_RETURN(
        dtype,
        ConfigSource::HuggingFace(checkpoint.config(), "").String({"dtype|torch_dtype", nullptr}));
  }
  return dtype;
}

// Hugging Face multiplies by sqrt(hidden) rounded to the type the weights are stored in; GGUF by
// its f32.
absl::StatusOr<float> EmbeddingScale(const ConfigSource& source, const Checkpoint& checkpoint,
                                     std::int32_t hidden) {
  const float scale = std::sqrt(static_cast<float>(hidden));
  ASSIGN_OR_RETURN(std::optional<std::string> dtype, TrainedType(source, checkpoint));
  if (dtype == "bfloat16") return Bf16ToF32(F32ToBf16(scale));
  if (dtype == "float16") return F16ToF32(F32ToF16(scale));
  return scale;
}

// Models with norms behind attention and MLP (Gemma) let their sums grow beyond f16.
absl::StatusOr<DType> ActivationType(const ConfigSource& source, const Checkpoint& checkpoint,
                                     const ModelConfig& config) {
  ASSIGN_OR_RETURN(std::optional<std::string> dtype, TrainedType(source, checkpoint));
  return dtype == "bfloat16" || config.post_norms ? DType::kBF16 : DType::kF16;
}

absl::Status ReadScales(const ConfigSource& source, const Architecture& row,
                        const Checkpoint& checkpoint, ModelConfig& config) {
  const ClassDefaults& defaults = row.defaults;
  constexpr double kMaxSoftcap = 1e6;
  double scalar = config.head_dim;
  if (row.scale_by_query_scalar) {
    if (source.is_gguf()) {
      // The largest Gemmas scale by hidden / heads, which GGUF does not record.
      if (config.layers == row.gguf_wide_scale_layers)
        scalar = double{1} * config.hidden / config.heads;
    } else {
      ASSIGN_OR_RETURN(scalar, source.Real({"query_pre_attn_scalar", nullptr},
                                           defaults.query_scalar, 1e-3, 1e6));
    }
  }
  ASSIGN_OR_RETURN(double attention_scale,
                   source.Real({nullptr, "attention.scale"}, 1.0 / std::sqrt(scalar), 1e-6, 1e6));
  config.attention_scale = static_cast<float>(attention_scale);

  // An explicit null turns a cap of the class off.
  const auto softcap = [&](ConfigKey key, double of_class) -> absl::StatusOr<float> {
    const double fallback = key.hf != nullptr && source.IsNull(key.hf) ? 0.0 : of_class;
    ASSIGN_OR_RETURN(double cap, source.Real(key, fallback, 0.0, kMaxSoftcap));
    return static_cast<float>(cap);
  };
  ASSIGN_OR_RETURN(
      config.attention_softcap,
      softcap({"attn_logit_softcapping", "attn_logit_softcapping"}, defaults.attention_softcap));
  ASSIGN_OR_RETURN(
      config.final_softcap,
      softcap({"final_logit_softcapping", "final_logit_softcapping"}, defaults.final_softcap));
  if (row.scale_embedding) {
    ASSIGN_OR_RETURN(config.embedding_scale, EmbeddingScale(source, checkpoint, config.hidden));
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const ConfigSource& source, const ClassDefaults& defaults,
                            const Checkpoint& checkpoint, ModelConfig& config) {
  if (!source.is_gguf()) {
    ASSIGN_OR_RETURN(config.vocab,
                     source.Size({"vocab_size", nullptr}, defaults.vocab, 1, kMaxVocab));
    ASSIGN_OR_RETURN(config.tied_head,
                     source.Flag({"tie_word_embeddings", nullptr}, defaults.tied_head));
    return absl::OkStatus();
  }
  // The embedding has the vocabulary's true size: vocab_size is often absent, and padding may not
  // count.
  const std::string embedding = absl::StrCat(GgufNames().embedding, ".weight");
  const TensorInfo* table = checkpoint.Find(embedding);
  if (table == nullptr || table->shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(embedding, " is missing or no matrix"));
  }
  if (table->shape[0] < 1 || table->shape[0] > kMaxVocab) {
    return absl::InvalidArgumentError(absl::StrCat(embedding, " has ", table->shape[0],
                                                   " rows; it must have from 1 to ", kMaxVocab));
  }
  config.vocab = static_cast<std::int32_t>(table->shape[0]);
  config.tied_head = checkpoint.Find(absl::StrCat(GgufNames().head, ".weight")) == nullptr;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadShape(const ConfigSource& source, const Architecture& row,
                       const Checkpoint& checkpoint, ModelConfig& config) {
  const ClassDefaults& defaults = row.defaults;
  ASSIGN_OR_RETURN(config.hidden, source.Size({"hidden_size", "embedding_length"},
                                              Default(source, defaults.hidden), 1, kMaxHidden));
  ASSIGN_OR_RETURN(config.layers, source.Size({"num_hidden_layers", "block_count"},
                                              Default(source, defaults.layers), 1, kMaxLayers));
  ASSIGN_OR_RETURN(config.intermediate,
                   source.Size({"intermediate_size", "feed_forward_length"},
                               Default(source, defaults.intermediate), 1, kMaxIntermediate));
  ASSIGN_OR_RETURN(config.max_context,
                   source.Size({"max_position_embeddings", "context_length"},
                               Default(source, defaults.max_context), 1, kMaxContext));
  ASSIGN_OR_RETURN(
      double eps,
      source.Real({"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
                  source.is_gguf() ? std::nullopt : std::optional<double>(defaults.norm_eps), 0.0,
                  1.0));
  config.norm_eps = static_cast<float>(eps);
  config.qk_norm = row.qk_norm;
  config.post_norms = row.post_norms;
  config.norm_adds_one = row.norm_adds_one && !source.is_gguf();
  config.gguf_interleaved_qk = row.gguf_interleaved_qk && source.is_gguf();
  ASSIGN_OR_RETURN(config.dtype, ActivationType(source, checkpoint, config));
  RETURN_IF_ERROR(ReadHeads(source, defaults, config));
  RETURN_IF_ERROR(ReadVocabulary(source, defaults, checkpoint, config));
  RETURN_IF_ERROR(ReadExperts(source, row, config));
  RETURN_IF_ERROR(ReadActivation(source, row, config));
  return ReadScales(source, row, checkpoint, config);
}

}  // namespace nibble
