// A Llama checkpoint of two layers with random weights and a byte vocabulary, small enough to make
// in a test.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/json.h"
#include "tests/support/safetensors_writer.h"

namespace nibble {

inline constexpr int kTinyVocab =
    260;  // 256 bytes, then <s>, </s>, <|turn|> and one that is not used
inline constexpr int kTinyContext = 16384;

// How a byte-level vocabulary spells a byte: printable Latin-1 as itself, the others from U+0100
// on.
inline std::string SpellByte(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

inline Json TinyTokenizer() {
  Json vocab(Json::Object{});
  for (int byte = 0; byte < 256; ++byte) vocab.Set(SpellByte(byte), byte);
  Json::Array added;
  int id = 256;
  for (const char* content : {"<s>", "</s>", "<|turn|>", "<|unused|>"}) {
    Json token;
    token.Set("id", id++);
    token.Set("content", content);
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"})
      token.Set(flag, false);
    token.Set("special", true);
    added.push_back(std::move(token));
  }
  Json byte_level;
  byte_level.Set("type", "ByteLevel");
  byte_level.Set("add_prefix_space", false);
  byte_level.Set("trim_offsets", true);
  byte_level.Set("use_regex", true);
  Json model;
  model.Set("type", "BPE");
  for (const char* absent :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    model.Set(absent, nullptr);
  }
  for (const char* flag : {"fuse_unk", "byte_fallback", "ignore_merges"}) model.Set(flag, false);
  model.Set("vocab", std::move(vocab));
  model.Set("merges", Json::Array{});
  Json root;
  root.Set("version", "1.0");
  root.Set("truncation", nullptr);
  root.Set("padding", nullptr);
  root.Set("added_tokens", std::move(added));
  root.Set("normalizer", nullptr);
  root.Set("pre_tokenizer", byte_level);
  root.Set("post_processor", nullptr);
  root.Set("decoder", byte_level);
  root.Set("model", std::move(model));
  return root;
}

struct TinyModelOptions {
  bool chat_template = true;
  std::uint32_t seed = 1;
};

// Writes config.json, tokenizer.json, tokenizer_config.json and model.safetensors into `directory`.
inline void WriteTinyModel(const std::filesystem::path& directory,
                           const TinyModelOptions& options = {}) {
  constexpr int kHidden = 64, kLayers = 2, kHeads = 4, kKvHeads = 2, kHeadDim = 16,
                kIntermediate = 96;
  std::filesystem::create_directories(directory);
  const auto write = [&](const char* name, const std::string& content) {
    std::ofstream(directory / name, std::ios::binary) << content;
  };

  Json config;
  config.Set("architectures", Json::Array{"LlamaForCausalLM"});
  config.Set("model_type", "llama");
  config.Set("hidden_size", kHidden);
  config.Set("intermediate_size", kIntermediate);
  config.Set("num_hidden_layers", kLayers);
  config.Set("num_attention_heads", kHeads);
  config.Set("num_key_value_heads", kKvHeads);
  config.Set("head_dim", kHeadDim);
  config.Set("vocab_size", kTinyVocab);
  config.Set("max_position_embeddings", kTinyContext);
  config.Set("rms_norm_eps", 1e-5);
  config.Set("rope_theta", 10000.0);
  config.Set("hidden_act", "silu");
  config.Set("tie_word_embeddings", true);
  config.Set("bos_token_id", 256);
  config.Set("eos_token_id", 257);
  config.Set("torch_dtype", "float32");
  write("config.json", DumpJson(config));
  write("tokenizer.json", DumpJson(TinyTokenizer()));

  Json tokenizer_config;
  tokenizer_config.Set("tokenizer_class", "PreTrainedTokenizerFast");
  tokenizer_config.Set("bos_token", "<s>");
  tokenizer_config.Set("eos_token", "</s>");
  if (options.chat_template) {
    tokenizer_config.Set(
        "chat_template",
        "{% for m in messages %}{% if m.role == 'refuse' %}{{ raise_exception('no such role') }}"
        "{% endif %}<|turn|>{{ m.role }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}");
  }
  write("tokenizer_config.json", DumpJson(tokenizer_config));

  std::mt19937 random(options.seed);
  std::normal_distribution<float> normal(0.0f, 0.08f);
  std::vector<FloatTensor> tensors;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t size = 1;
    for (const std::int64_t dim : shape) size *= dim;
    FloatTensor tensor{name, std::move(shape),
                       std::vector<float>(static_cast<std::size_t>(size), 1.0f)};
    if (tensor.shape.size() == 2) {
      for (float& value : tensor.values) value = normal(random);
    }
    tensors.push_back(std::move(tensor));
  };
  add("model.embed_tokens.weight", {kTinyVocab, kHidden});
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    add(prefix + "input_layernorm.weight", {kHidden});
    add(prefix + "self_attn.q_proj.weight", {kHeads * kHeadDim, kHidden});
    add(prefix + "self_attn.k_proj.weight", {kKvHeads * kHeadDim, kHidden});
    add(prefix + "self_attn.v_proj.weight", {kKvHeads * kHeadDim, kHidden});
    add(prefix + "self_attn.o_proj.weight", {kHidden, kHeads * kHeadDim});
    add(prefix + "post_attention_layernorm.weight", {kHidden});
    add(prefix + "mlp.gate_proj.weight", {kIntermediate, kHidden});
    add(prefix + "mlp.up_proj.weight", {kIntermediate, kHidden});
    add(prefix + "mlp.down_proj.weight", {kHidden, kIntermediate});
  }
  add("model.norm.weight", {kHidden});
  write("model.safetensors", SafetensorsFile(tensors));
}

}  // namespace nibble
