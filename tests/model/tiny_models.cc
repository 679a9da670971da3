#include "tests/model/tiny_models.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/safetensors_writer.h"

namespace nibble {
namespace {

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "tiny models: %s\n", why.c_str());
  std::abort();
}

std::uint64_t Fnv1a(const std::string& name) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

// splitmix64 of hash + index, as 24 bits in [-1/2, 1/2); exact in f32, as
// make_architecture_cases.py has it.
float ValueAt(std::uint64_t hash, std::uint64_t index) {
  std::uint64_t z = hash + index * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  z = z ^ (z >> 31);
  return static_cast<float>(z >> 40) / 16777216.0f - 0.5f;
}

FloatTensor MakeTensor(const std::string& name, const Json& shape, bool gemma) {
  FloatTensor tensor;
  tensor.name = name;
  std::int64_t count = 1;
  for (const Json& dim : shape.AsArray()) {
    tensor.shape.push_back(dim.AsInt64());
    count *= dim.AsInt64();
  }
  const std::uint64_t hash = Fnv1a(name);
  for (std::int64_t i = 0; i < count; ++i) {
    float value = ValueAt(hash, static_cast<std::uint64_t>(i));
    if (absl::EndsWith(name, "norm.weight")) value = value * 0.5f + (gemma ? 0.0f : 1.0f);
    tensor.values.push_back(value);
  }
  return tensor;
}

std::string Family(const TinyModel& model) { return model.config.Find("model_type")->AsString(); }

std::int64_t Int(const TinyModel& model, const char* key, std::int64_t fallback = 0) {
  const Json* value = model.config.Find(key);
  return value != nullptr && !value->is_null() ? value->AsInt64() : fallback;
}

double Number(const TinyModel& model, const char* key, double fallback = 0) {
  const Json* value = model.config.Find(key);
  return value != nullptr && !value->is_null() ? value->AsDouble() : fallback;
}

std::int64_t HeadDim(const TinyModel& model) {
  return Int(model, "head_dim", Int(model, "hidden_size") / Int(model, "num_attention_heads"));
}

const std::map<std::string, std::string>& GgufArchitectures() {
  static const std::map<std::string, std::string> names = {
      {"llama", "llama"},    {"mistral", "llama"}, {"mixtral", "llama"},
      {"qwen2", "qwen2"},    {"qwen3", "qwen3"},   {"qwen3_moe", "qwen3moe"},
      {"phi3", "phi3"},      {"gemma2", "gemma2"}, {"gemma3_text", "gemma3"},
      {"smollm3", "smollm3"}};
  return names;
}

std::string GgufName(const std::string& name, bool gemma) {
  std::vector<std::pair<std::string, std::string>> rules = {
      {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},
      {"lm_head", "output"},
      {"model.layers.", "blk."},
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", gemma ? "post_attention_norm" : "ffn_norm"},
      {"pre_feedforward_layernorm", "ffn_norm"},
      {"post_feedforward_layernorm", "post_ffw_norm"},
      {"self_attn.qkv_proj", "attn_qkv"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"mlp.gate_up_proj", "ffn_up"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
      {"block_sparse_moe.gate.", "ffn_gate_inp."},
      {"mlp.gate.", "ffn_gate_inp."}};
  return absl::StrReplaceAll(name, rules);
}

// Row 2j of a head is its row j, row 2j + 1 its row j + dim / 2.
FloatTensor Interleave(FloatTensor tensor, std::int64_t dim) {
  const std::int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
  const std::vector<float> from = tensor.values;
  for (std::int64_t row = 0; row < tensor.shape[0]; ++row) {
    const std::int64_t head = row / dim, i = row % dim;
    const std::int64_t source = head * dim + i / 2 + (i % 2) * (dim / 2);
    std::copy_n(from.begin() + source * columns, columns, tensor.values.begin() + row * columns);
  }
  return tensor;
}

// "experts.3.w1.weight" and its kin grow the stack that they belong to; false for all other
// tensors.
bool Stack(const FloatTensor& tensor, std::map<std::string, FloatTensor>& stacks) {
  const std::vector<std::string> halves = absl::StrSplit(tensor.name, ".experts.");
  if (halves.size() != 2) return false;
  const std::vector<std::string> rest = absl::StrSplit(halves[1], '.');
  static const std::map<std::string, std::string> kinds = {
      {"w1", "gate"},        {"w3", "up"},      {"w2", "down"},
      {"gate_proj", "gate"}, {"up_proj", "up"}, {"down_proj", "down"}};
  const std::vector<std::string> path = absl::StrSplit(halves[0], '.');  // model.layers.N.mlp
  const std::string name =
      absl::StrCat("blk.", path[2], ".ffn_", kinds.at(rest[1]), "_exps.weight");
  FloatTensor& stack = stacks[name];
  stack.name = name;
  if (stack.shape.empty()) stack.shape = {0, tensor.shape[0], tensor.shape[1]};
  ++stack.shape[0];  // experts come in order
  stack.values.insert(stack.values.end(), tensor.values.begin(), tensor.values.end());
  return true;
}

void SetShape(const TinyModel& model, const std::string& arch, GgufWriter& gguf) {
  const auto size = [&](const char* key, std::int64_t value) {
    gguf.SetUint32(absl::StrCat(arch, ".", key), static_cast<std::uint32_t>(value));
  };
  size("context_length", Int(model, "max_position_embeddings"));
  size("embedding_length", Int(model, "hidden_size"));
  size("block_count", Int(model, "num_hidden_layers"));
  size("feed_forward_length", Int(model, "intermediate_size"));
  size("attention.head_count", Int(model, "num_attention_heads"));
  size("attention.head_count_kv", Int(model, "num_key_value_heads"));
  size("attention.key_length", HeadDim(model));
  size("attention.value_length", HeadDim(model));
  size("rope.dimension_count",
       static_cast<std::int64_t>(HeadDim(model) * Number(model, "partial_rotary_factor", 1.0)));
  const std::int64_t experts = Int(model, "num_local_experts", Int(model, "num_experts"));
  if (experts > 0) {
    size("expert_count", experts);
    size("expert_used_count", Int(model, "num_experts_per_tok"));
  }
  if (const Json* renormalize = model.config.Find("norm_topk_prob")) {
    gguf.SetBool(absl::StrCat(arch, ".expert_weights_norm"), renormalize->AsBool());
  }
  if (Int(model, "moe_intermediate_size") > 0)
    size("expert_feed_forward_length", Int(model, "moe_intermediate_size"));
  if (Int(model, "sliding_window") > 0)
    size("attention.sliding_window", Int(model, "sliding_window"));
}

void SetNumbers(const TinyModel& model, const std::string& arch, GgufWriter& gguf) {
  const auto number = [&](const char* key, double value) {
    gguf.SetFloat32(absl::StrCat(arch, ".", key), static_cast<float>(value));
  };
  number("attention.layer_norm_rms_epsilon", Number(model, "rms_norm_eps"));
  number("rope.freq_base", Number(model, "rope_theta"));
  if (const double cap = Number(model, "attn_logit_softcapping"); cap > 0)
    number("attn_logit_softcapping", cap);
  if (const double cap = Number(model, "final_logit_softcapping"); cap > 0)
    number("final_logit_softcapping", cap);
}

void AddVector(GgufWriter& gguf, const std::string& name, const Json& values) {
  FloatTensor tensor;
  tensor.name = name;
  for (const Json& value : values.AsArray())
    tensor.values.push_back(static_cast<float>(value.AsDouble()));
  tensor.shape = {static_cast<std::int64_t>(tensor.values.size())};
  gguf.Add(std::move(tensor));
}

// Llama 3's scaling as the converter bakes it: one divisor for each frequency.
void AddLlama3Divisors(const TinyModel& model, const Json& scaling, GgufWriter& gguf) {
  const double context = scaling.Find("original_max_position_embeddings")->AsDouble();
  const double low = scaling.Find("low_freq_factor")->AsDouble(),
               high = scaling.Find("high_freq_factor")->AsDouble();
  const double factor = scaling.Find("factor")->AsDouble();
  FloatTensor tensor;
  tensor.name = "rope_freqs.weight";
  const std::int64_t dim = HeadDim(model);
  for (std::int64_t j = 0; j < dim / 2; ++j) {
    const double wavelength =
        2 * M_PI * std::pow(Number(model, "rope_theta"), 2.0 * static_cast<double>(j) / dim);
    double divisor = 1.0;
    if (wavelength > context / low) {
      divisor = factor;
    } else if (wavelength >= context / high) {
      const double s = (context / wavelength - low) / (high - low);
      divisor = 1.0 / ((1.0 - s) / factor + s);
    }
    tensor.values.push_back(static_cast<float>(divisor));
  }
  tensor.shape = {dim / 2};
  gguf.Add(std::move(tensor));
}

void SetScaling(const TinyModel& model, const std::string& arch, GgufWriter& gguf) {
  const Json* scaling = model.config.Find("rope_scaling");
  if (scaling == nullptr || !scaling->is_object()) return;
  const Json* type =
      scaling->Find("rope_type") != nullptr ? scaling->Find("rope_type") : scaling->Find("type");
  if (type->AsString() == "llama3") return AddLlama3Divisors(model, *scaling, gguf);
  if (type->AsString() == "longrope") {
    AddVector(gguf, "rope_factors_short.weight", *scaling->Find("short_factor"));
    AddVector(gguf, "rope_factors_long.weight", *scaling->Find("long_factor"));
    gguf.SetUint32(absl::StrCat(arch, ".rope.scaling.original_context_length"),
                   static_cast<std::uint32_t>(Int(model, "original_max_position_embeddings")));
    return;
  }
  gguf.SetString(absl::StrCat(arch, ".rope.scaling.type"), type->AsString());
  gguf.SetFloat32(absl::StrCat(arch, ".rope.scaling.factor"),
                  static_cast<float>(scaling->Find("factor")->AsDouble()));
  if (const Json* original = scaling->Find("original_max_position_embeddings")) {
    gguf.SetUint32(absl::StrCat(arch, ".rope.scaling.original_context_length"),
                   static_cast<std::uint32_t>(original->AsInt64()));
  }
}

}  // namespace

std::vector<TinyModel> TinyModels() {
  const absl::StatusOr<std::string> text = ReadTextFile(
      absl::StrCat(NIBBLE_SOURCE_DIR, "/tests/model/architecture_cases.json"), 16 << 20);
  if (!text.ok()) Die(std::string(text.status().message()));
  const absl::StatusOr<Json> cases = ParseJson(*text);
  if (!cases.ok()) Die(std::string(cases.status().message()));
  std::vector<TinyModel> models;
  for (const Json& each : cases->AsArray()) {
    TinyModel model;
    model.name = each.Find("name")->AsString();
    model.has_gguf = each.Find("gguf")->AsBool();
    model.config = *each.Find("config");
    for (const Json& id : each.Find("prompt")->AsArray()) {
      model.prompt.push_back(static_cast<std::int32_t>(id.AsInt64()));
    }
    for (const auto& [name, shape] : each.Find("tensors")->AsObject()) {
      model.tensors.push_back(MakeTensor(name, shape, absl::StartsWith(Family(model), "gemma")));
    }
    for (const auto& [row, values] : each.Find("logprobs")->AsObject()) {
      std::vector<float>& out = model.logprobs[std::stoi(row)];
      for (const Json& value : values.AsArray())
        out.push_back(static_cast<float>(value.AsDouble()));
    }
    models.push_back(std::move(model));
  }
  return models;
}

TinyModel FindTinyModel(const std::string& name) {
  for (TinyModel& model : TinyModels()) {
    if (model.name == name) return std::move(model);
  }
  Die("no case named " + name);
}

std::string WriteHuggingFace(const TinyModel& model, const TempDir& dir) {
  dir.Write("config.json", DumpJson(model.config));
  dir.Write("model.safetensors", SafetensorsFile(model.tensors));
  return dir.path();
}

std::string WriteGguf(const TinyModel& model, const TempDir& dir) {
  const std::string family = Family(model);
  const std::string arch = GgufArchitectures().at(family);
  const bool gemma = absl::StartsWith(family, "gemma");
  const bool interleaved = arch == "llama" || arch == "smollm3";
  GgufWriter gguf;
  gguf.SetString("general.architecture", arch);
  SetShape(model, arch, gguf);
  SetNumbers(model, arch, gguf);
  SetScaling(model, arch, gguf);
  gguf.SetUint32("tokenizer.ggml.bos_token_id", 1);
  gguf.SetUint32("tokenizer.ggml.eos_token_id", 2);
  std::map<std::string, FloatTensor> stacks;
  for (FloatTensor tensor : model.tensors) {
    if (Stack(tensor, stacks)) continue;
    if (interleaved &&
        (absl::StrContains(tensor.name, "q_proj") || absl::StrContains(tensor.name, "k_proj"))) {
      tensor = Interleave(std::move(tensor), HeadDim(model));
    }
    if (gemma && absl::EndsWith(tensor.name, "norm.weight")) {
      for (float& value : tensor.values) value += 1.0f;
    }
    tensor.name = GgufName(tensor.name, gemma);
    gguf.Add(std::move(tensor));
  }
  for (auto& [name, stack] : stacks) gguf.Add(std::move(stack));
  dir.Write("model.gguf", gguf.File());
  return dir.File("model.gguf");
}

}  // namespace nibble
