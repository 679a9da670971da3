// Everything about a model's shape that the forward pass depends on, from config.json or GGUF keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "runtime/device/program.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

struct RopeScaling {
  enum class Kind : std::uint8_t {
    kNone,
    kLinear,
    kDynamic,
    kLlama3,
    kYarn,
    kLongRope
  } kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  std::optional<double> attention_factor, mscale, mscale_all_dim;
  bool truncate = true;
  std::int64_t original_context = 0;
  std::vector<double> short_factor, long_factor;  // longrope
  std::vector<double> frequency_divisors;         // GGUF rope_freqs
};

struct RopeConfig {
  double theta = 10000.0;
  std::int32_t dim = 0;  // rotated entries of each head
  RopeScaling scaling;
};

struct LayerConfig {
  std::int32_t window = 0;  // 0: full attention
  std::int32_t rope = 0;    // index into ModelConfig::ropes; -1: none (SmolLM3's NoPE layers)
  bool moe = false;
};

struct ModelConfig {
  std::string architecture;  // the row of the architecture table: "llama", "qwen2", ...
  std::int32_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0,
               vocab = 0;
  std::int32_t max_context = 0;
  float norm_eps = 1e-6f;
  // What activations are rounded to where nothing else is asked for and the device computes in 16
  // bits: the type the model was trained in, kF16 or kBF16.
  DType dtype = DType::kF16;
  bool tied_head = false;
  bool qk_norm = false;
  bool post_norms = false;           // gemma: norms after attention and MLP too
  bool norm_adds_one = false;        // HF gemma weights are w - 1; GGUF's are not
  bool gguf_interleaved_qk = false;  // rows of q and k to be put back in half-split order at load
  float embedding_scale = 1.0f;
  float attention_scale = 0.0f;
  float attention_softcap = 0.0f, final_softcap = 0.0f;
  Activation activation = Activation::kSilu;
  std::int32_t experts = 0, experts_per_token = 0, expert_intermediate = 0;
  bool renormalize_experts = true;
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layer;  // [layers]
  std::vector<std::int32_t> eos_ids;
  std::optional<std::int32_t> bos_id;
};

// Reads and checks; every error names the key, its value and the limit. Unimplemented names an
// unknown architecture and lists the known ones.
absl::StatusOr<ModelConfig> ReadModelConfig(const Checkpoint& checkpoint);

// inv_freq of one rotary table for a context of at most `max_context` tokens (formats.md 6.3 names
// the papers).
RopeTable BuildRopeTable(const RopeConfig& rope, std::int64_t max_context);

// Every known architecture, for errors and `inspect`.
std::vector<std::string> KnownArchitectures();

}  // namespace nibble
