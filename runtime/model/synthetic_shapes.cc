#include "runtime/model/synthetic_shapes.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

constexpr char kLlama31Rope[] =
    R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
       "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})";
constexpr char kLlama32Rope[] =
    R"("rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
       "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})";
constexpr char kQwen3Moe[] =
    R"("num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
       "norm_topk_prob": true)";
constexpr char kMixtral[] = R"("num_local_experts": 8, "num_experts_per_tok": 2,
                               "sliding_window": null)";

// As the models' publishers give them. `tiny` is for tests, and no model.
constexpr SyntheticShape kShapes[] = {
    // name, architecture, hidden, intermediate, layers, heads, kv heads, head, vocab, context,
    // theta, eps, tied, others
    {"smollm2-135m", "llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e5, 1e-5, true, ""},
    {"smollm2-1.7b", "llama", 2048, 8192, 24, 32, 32, 64, 49152, 8192, 1.3e5, 1e-5, true, ""},
    {"llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 5e5, 1e-5, true,
     kLlama32Rope},
    {"llama-3.2-3b", "llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, 5e5, 1e-5, true,
     kLlama32Rope},
    {"llama-3-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 5e5, 1e-5, false, ""},
    {"llama-3.1-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256, 131072, 5e5, 1e-5, false,
     kLlama31Rope},
    {"llama-3-70b", "llama", 8192, 28672, 80, 64, 8, 128, 128256, 8192, 5e5, 1e-5, false, ""},
    {"llama-3.1-70b", "llama", 8192, 28672, 80, 64, 8, 128, 128256, 131072, 5e5, 1e-5, false,
     kLlama31Rope},
    {"mistral-7b", "mistral", 4096, 14336, 32, 32, 8, 128, 32768, 32768, 1e6, 1e-5, false,
     R"("sliding_window": null)"},
    {"mixtral-8x7b", "mixtral", 4096, 14336, 32, 32, 8, 128, 32000, 32768, 1e6, 1e-5, false,
     kMixtral},
    {"qwen2.5-0.5b", "qwen2", 896, 4864, 24, 14, 2, 64, 151936, 32768, 1e6, 1e-6, true, ""},
    {"qwen2.5-1.5b", "qwen2", 1536, 8960, 28, 12, 2, 128, 151936, 32768, 1e6, 1e-6, true, ""},
    {"qwen2.5-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, 1e6, 1e-6, false, ""},
    {"qwen2.5-32b", "qwen2", 5120, 27648, 64, 40, 8, 128, 152064, 32768, 1e6, 1e-6, false, ""},
    {"qwen2.5-72b", "qwen2", 8192, 29568, 80, 64, 8, 128, 152064, 32768, 1e6, 1e-6, false, ""},
    {"qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 40960, 1e6, 1e-6, true, ""},
    {"qwen3-8b", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 40960, 1e6, 1e-6, false, ""},
    {"qwen3-32b", "qwen3", 5120, 25600, 64, 64, 8, 128, 151936, 40960, 1e6, 1e-6, false, ""},
    {"qwen3-30b-a3b", "qwen3_moe", 2048, 6144, 48, 32, 4, 128, 151936, 40960, 1e6, 1e-6, false,
     kQwen3Moe},
    {"phi-3-mini", "phi3", 3072, 8192, 32, 32, 32, 96, 32064, 4096, 1e4, 1e-5, false,
     R"("sliding_window": 2047)"},
    {"gemma-2-2b", "gemma2", 2304, 9216, 26, 8, 4, 256, 256000, 8192, 1e4, 1e-6, true, ""},
    {"gemma-2-9b", "gemma2", 3584, 14336, 42, 16, 8, 256, 256000, 8192, 1e4, 1e-6, true, ""},
    {"tiny", "llama", 128, 256, 2, 4, 2, 32, 512, 512, 1e4, 1e-5, true, ""},
};

}  // namespace

std::span<const SyntheticShape> SyntheticShapeTable() { return kShapes; }

absl::StatusOr<Json> ConfigOf(const SyntheticShape& shape) {
  ASSIGN_OR_RETURN(Json config, ParseJson(absl::StrCat("{", shape.others, "}")));
  config.Set("model_type", shape.architecture);
  config.Set("hidden_size", shape.hidden);
  config.Set("intermediate_size", shape.intermediate);
  config.Set("num_hidden_layers", shape.layers);
  config.Set("num_attention_heads", shape.heads);
  config.Set("num_key_value_heads", shape.kv_heads);
  config.Set("head_dim", shape.head_dim);
  config.Set("vocab_size", shape.vocab);
  config.Set("max_position_embeddings", shape.context);
  config.Set("rope_theta", shape.rope_theta);
  config.Set("rms_norm_eps", shape.norm_eps);
  config.Set("tie_word_embeddings", shape.tied_head);
  return config;
}

}  // namespace nibble
