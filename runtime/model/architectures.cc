#include "runtime/model/architectures.h"

namespace nibble {
namespace {

constexpr TensorNames LlamaNames() {
  TensorNames names;
  names.embedding = "model.embed_tokens";
  names.final_norm = "model.norm.weight";
  names.head = "lm_head";
  names.attention_norm = "model.layers.{layer}.input_layernorm.weight";
  names.q = "model.layers.{layer}.self_attn.q_proj";
  names.k = "model.layers.{layer}.self_attn.k_proj";
  names.v = "model.layers.{layer}.self_attn.v_proj";
  names.o = "model.layers.{layer}.self_attn.o_proj";
  names.q_norm = "model.layers.{layer}.self_attn.q_norm.weight";
  names.k_norm = "model.layers.{layer}.self_attn.k_norm.weight";
  names.mlp_norm = "model.layers.{layer}.post_attention_layernorm.weight";
  names.gate = "model.layers.{layer}.mlp.gate_proj";
  names.up = "model.layers.{layer}.mlp.up_proj";
  names.down = "model.layers.{layer}.mlp.down_proj";
  return names;
}

constexpr TensorNames Phi3Names() {
  TensorNames names = LlamaNames();
  names.qkv = "model.layers.{layer}.self_attn.qkv_proj";
  names.gate_up = "model.layers.{layer}.mlp.gate_up_proj";
  return names;
}

// What llama calls post_attention_layernorm is the norm before the MLP; here it is the one after
// attention.
constexpr TensorNames GemmaNames() {
  TensorNames names = LlamaNames();
  names.post_attention_norm = "model.layers.{layer}.post_attention_layernorm.weight";
  names.mlp_norm = "model.layers.{layer}.pre_feedforward_layernorm.weight";
  names.post_mlp_norm = "model.layers.{layer}.post_feedforward_layernorm.weight";
  return names;
}

constexpr TensorNames MixtralNames() {
  TensorNames names = LlamaNames();
  names.router = "model.layers.{layer}.block_sparse_moe.gate";
  names.expert_gate = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1";
  names.expert_up = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3";
  names.expert_down = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2";
  return names;
}

constexpr TensorNames Qwen3MoeNames() {
  TensorNames names = LlamaNames();
  names.router = "model.layers.{layer}.mlp.gate";
  names.expert_gate = "model.layers.{layer}.mlp.experts.{expert}.gate_proj";
  names.expert_up = "model.layers.{layer}.mlp.experts.{expert}.up_proj";
  names.expert_down = "model.layers.{layer}.mlp.experts.{expert}.down_proj";
  return names;
}

constexpr TensorNames kGgufNames = {
    .embedding = "token_embd",
    .final_norm = "output_norm.weight",
    .head = "output",
    .attention_norm = "blk.{layer}.attn_norm.weight",
    .q = "blk.{layer}.attn_q",
    .k = "blk.{layer}.attn_k",
    .v = "blk.{layer}.attn_v",
    .qkv = "blk.{layer}.attn_qkv",
    .o = "blk.{layer}.attn_output",
    .q_norm = "blk.{layer}.attn_q_norm.weight",
    .k_norm = "blk.{layer}.attn_k_norm.weight",
    .post_attention_norm = "blk.{layer}.post_attention_norm.weight",
    .mlp_norm = "blk.{layer}.ffn_norm.weight",
    .gate = "blk.{layer}.ffn_gate",
    .up = "blk.{layer}.ffn_up",
    .gate_up = "blk.{layer}.ffn_up",
    .down = "blk.{layer}.ffn_down",
    .post_mlp_norm = "blk.{layer}.post_ffw_norm.weight",
    .router = "blk.{layer}.ffn_gate_inp",
    .expert_gate = "blk.{layer}.ffn_gate_exps#{expert}",
    .expert_up = "blk.{layer}.ffn_up_exps#{expert}",
    .expert_down = "blk.{layer}.ffn_down_exps#{expert}",
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .hf_class = "LlamaForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "llama",
     .defaults = {.bos = 1, .eos = 2},
     .hf_names = LlamaNames(),
     .gguf_interleaved_qk = true},
    {.name = "mistral",
     .hf_class = "MistralForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = nullptr,  // exported as llama
     .defaults = {.intermediate = 14336,
                  .kv_heads = 8,
                  .max_context = 131072,
                  .window = 4096,
                  .bos = 1,
                  .eos = 2},
     .hf_names = LlamaNames()},
    {.name = "mixtral",
     .hf_class = "MixtralForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "llama",
     .defaults = {.intermediate = 14336,
                  .kv_heads = 8,
                  .norm_eps = 1e-5,
                  .rope_theta = 1e6,
                  .max_context = 131072,
                  .bos = 1,
                  .eos = 2,
                  .experts = 8,
                  .experts_per_token = 2},
     .hf_names = MixtralNames(),
     .moe = true,
     .gguf_interleaved_qk = true},
    {.name = "qwen2",
     .hf_class = "Qwen2ForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "qwen2",
     .defaults = {.vocab = 151936,
                  .intermediate = 22016,
                  .kv_heads = 32,
                  .max_context = 32768,
                  .window = 4096},
     .hf_names = LlamaNames(),
     .window_rule = WindowRule::kFromMaximum,
     .qkv_bias = true},
    {.name = "qwen3",
     .hf_class = "Qwen3ForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "qwen3",
     .defaults = {.vocab = 151936,
                  .intermediate = 22016,
                  .kv_heads = 32,
                  .head_dim = 128,
                  .max_context = 32768,
                  .window = 4096},
     .hf_names = LlamaNames(),
     .window_rule = WindowRule::kFromMaximum,
     .qk_norm = true},
    {.name = "qwen3_moe",
     .hf_class = "Qwen3MoeForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "qwen3moe",
     .defaults = {.vocab = 151936,
                  .hidden = 2048,
                  .intermediate = 6144,
                  .layers = 24,
                  .kv_heads = 4,
                  .max_context = 32768,
                  .window = 4096,
                  .experts = 128,
                  .experts_per_token = 8,
                  .expert_intermediate = 768,
                  .renormalize_experts = false},
     .hf_names = Qwen3MoeNames(),
     .window_rule = WindowRule::kFromMaximum,
     .moe = true,
     .qk_norm = true},
    {.name = "phi3",
     .hf_class = "Phi3ForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "phi3",
     .defaults = {.vocab = 32064,
                  .hidden = 3072,
                  .intermediate = 8192,
                  .norm_eps = 1e-5,
                  .max_context = 4096,
                  .bos = 1,
                  .eos = 32000},
     .hf_names = Phi3Names()},
    {.name = "gemma2",
     .hf_class = "Gemma2ForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "gemma2",
     .defaults = {.vocab = 256000,
                  .hidden = 2304,
                  .intermediate = 9216,
                  .layers = 26,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 256,
                  .max_context = 8192,
                  .tied_head = true,
                  .window = 4096,
                  .attention_softcap = 50,
                  .final_softcap = 30,
                  .query_scalar = 256,
                  .bos = 2,
                  .eos = 1},
     .hf_names = GemmaNames(),
     .window_rule = WindowRule::kEvenLayers,
     .activation = Activation::kGeluTanh,
     .post_norms = true,
     .norm_adds_one = true,
     .scale_embedding = true,
     .scale_by_query_scalar = true,
     .gguf_wide_scale_layers = 46},
    {.name = "gemma3_text",
     .hf_class = "Gemma3ForCausalLM",
     .hf_wrapper = "Gemma3ForConditionalGeneration",
     .gguf_name = "gemma3",
     .defaults = {.vocab = 262208,
                  .hidden = 2304,
                  .intermediate = 9216,
                  .layers = 26,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 256,
                  .rope_theta = 1e6,
                  .max_context = 131072,
                  .tied_head = true,
                  .window = 4096,
                  .query_scalar = 256,
                  .bos = 2,
                  .eos = 1},
     .hf_names = GemmaNames(),
     .window_rule = WindowRule::kPattern,
     .activation = Activation::kGeluTanh,
     .qk_norm = true,
     .post_norms = true,
     .norm_adds_one = true,
     .scale_embedding = true,
     .scale_by_query_scalar = true,
     .local_rope = true,
     .gguf_wide_scale_layers = 62},
    {.name = "smollm3",
     .hf_class = "SmolLM3ForCausalLM",
     .hf_wrapper = nullptr,
     .gguf_name = "smollm3",
     .defaults = {.vocab = 128256,
                  .hidden = 2048,
                  .layers = 36,
                  .heads = 16,
                  .kv_heads = 4,
                  .rope_theta = 2e6,
                  .max_context = 32768,
                  .tied_head = true,
                  .bos = 128000,
                  .eos = 128001},
     .hf_names = LlamaNames(),
     .window_rule = WindowRule::kFromMaximum,
     .no_rope_layers = true,
     .gguf_interleaved_qk = true},
};

bool Is(const char* name, absl::string_view wanted) { return name != nullptr && wanted == name; }

}  // namespace

std::span<const Architecture> Architectures() { return kArchitectures; }

const Architecture* FindArchitecture(absl::string_view name) {
  for (const Architecture& row : kArchitectures) {
    if (Is(row.name, name)) return &row;
  }
  return nullptr;
}

const Architecture* FindHuggingFaceArchitecture(absl::string_view class_or_model_type) {
  for (const Architecture& row : kArchitectures) {
    if (Is(row.hf_class, class_or_model_type) || Is(row.hf_wrapper, class_or_model_type) ||
        Is(row.name, class_or_model_type)) {
      return &row;
    }
  }
  return nullptr;
}

const Architecture* FindGgufArchitecture(absl::string_view gguf_name, bool moe) {
  for (const Architecture& row : kArchitectures) {
    if (Is(row.gguf_name, gguf_name) && row.moe == moe) return &row;
  }
  return nullptr;
}

const TensorNames& GgufNames() { return kGgufNames; }

}  // namespace nibble
