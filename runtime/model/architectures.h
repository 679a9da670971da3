// The table of architectures: one row a model family, of class defaults, flags and tensor names.
// What the rows do not say, a family does not have; nothing else in the runtime knows a family by
// name.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/strings/string_view.h"
#include "runtime/device/program.h"

namespace nibble {

// Templates: "{layer}" and "{expert}" are numbers; a leading "model." gives way to the prefix that
// the checkpoint uses. Linear layers are module paths (the weight format appends ".weight",
// ".qweight", ...); norms are whole tensor names. Null: the family has no such tensor.
struct TensorNames {
  const char* embedding = nullptr;
  const char* final_norm = nullptr;
  const char* head = nullptr;

  const char* attention_norm = nullptr;
  const char* q = nullptr;
  const char* k = nullptr;
  const char* v = nullptr;
  const char* qkv = nullptr;  // rows [q; k; v]; used where q does not exist
  const char* o = nullptr;
  const char* q_norm = nullptr;
  const char* k_norm = nullptr;
  const char* post_attention_norm = nullptr;  // where ModelConfig::post_norms

  const char* mlp_norm = nullptr;
  const char* gate = nullptr;
  const char* up = nullptr;
  const char* gate_up = nullptr;  // rows [gate; up]; used where gate does not exist
  const char* down = nullptr;
  const char* post_mlp_norm = nullptr;

  const char* router = nullptr;
  const char* expert_gate = nullptr;  // "#{expert}": one matrix of a stack
  const char* expert_up = nullptr;
  const char* expert_down = nullptr;
};

// Which layers attend through the sliding window when the file gives no `layer_types`.
enum class WindowRule : std::uint8_t {
  kAllLayers,    // whenever a window is set
  kEvenLayers,   // layer 0, 2, 4, ...
  kPattern,      // all but every sixth (or `sliding_window_pattern`th)
  kFromMaximum,  // with use_sliding_window, from layer `max_window_layers` on
};

// What a Hugging Face class takes for a key that config.json leaves out. 0: see the comment.
struct ClassDefaults {
  std::int32_t vocab = 32000;
  std::int32_t hidden = 4096;
  std::int32_t intermediate = 11008;
  std::int32_t layers = 32;
  std::int32_t heads = 32;
  std::int32_t kv_heads = 0;  // as many as heads
  std::int32_t head_dim = 0;  // hidden / heads
  double norm_eps = 1e-6;
  double rope_theta = 1e4;
  std::int32_t max_context = 2048;
  bool tied_head = false;
  std::int32_t window = 0;  // none
  double attention_softcap = 0, final_softcap = 0;
  std::int32_t query_scalar = 0;  // head_dim
  std::int32_t bos = -1, eos = -1;
  std::int32_t experts = 0, experts_per_token = 0, expert_intermediate = 0;
  bool renormalize_experts = true;
};

struct Architecture {
  const char* name;        // also Hugging Face's model_type
  const char* hf_class;    // architectures[0]
  const char* hf_wrapper;  // a multimodal class that nests this one under text_config; or null
  const char* gguf_name;   // general.architecture
  ClassDefaults defaults;
  TensorNames hf_names;
  WindowRule window_rule = WindowRule::kAllLayers;
  Activation activation = Activation::kSilu;
  bool moe = false;
  bool qk_norm = false;
  bool qkv_bias = false;  // always there, no switch in the configuration
  bool post_norms = false;
  bool norm_adds_one = false;    // in Hugging Face files
  bool scale_embedding = false;  // by sqrt(hidden)
  bool scale_by_query_scalar = false;
  bool local_rope = false;      // window layers rotate by a table of their own
  bool no_rope_layers = false;  // every fourth layer, or as no_rope_layers says
  bool gguf_interleaved_qk = false;
  std::int32_t gguf_wide_scale_layers =
      0;  // of this depth, GGUF scores are scaled by (hidden / heads)^-1/2
};

std::span<const Architecture> Architectures();

// Null when the table has no such row. GGUF calls dense and mixture models of one family alike.
const Architecture* FindArchitecture(absl::string_view name);
const Architecture* FindHuggingFaceArchitecture(absl::string_view class_or_model_type);
const Architecture* FindGgufArchitecture(absl::string_view gguf_name, bool moe);

// The names of every family in GGUF.
const TensorNames& GgufNames();

}  // namespace nibble
