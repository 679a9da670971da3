#include "tests/mutation/seeds.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/base/json.h"
#include "runtime/weights/bitsandbytes_tables.h"
#include "tests/model/tiny_models.h"
#include "tests/mutation/image.h"
#include "tests/support/conformance.h"
#include "tests/support/safetensors_writer.h"

namespace nibble {
namespace {

constexpr char kTokenizerConfig[] =
    R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"})";

const std::vector<std::string>& Vocabulary() {  // 40 tokens, as the tiny models have
  static const std::vector<std::string> tokens = [] {
    std::vector<std::string> out = {"<unk>", "<s>", "</s>"};
    for (char c = 'a'; c <= 'z'; ++c) out.emplace_back(1, c);
    for (const char* more : {"\xe2\x96\x81", "th", "the", "an", "in", "er", "<0x0A>", ".", ",",
                             "\xe2\x96\x81the", "!"}) {
      out.emplace_back(more);
    }
    return out;
  }();
  return tokens;
}

std::string TokenizerJson() {
  Json vocab{Json::Object{}};
  for (const std::string& token : Vocabulary())
    vocab.Set(token, static_cast<int>(vocab.AsObject().size()));
  Json::Array added;
  for (int id = 0; id < 3; ++id) {
    Json token{Json::Object{}};
    token.Set("id", id);
    token.Set("content", Vocabulary()[id]);
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"})
      token.Set(flag, false);
    token.Set("special", true);
    added.push_back(std::move(token));
  }
  Json json = *ParseJson(R"({"version": "1.0", "truncation": null, "padding": null,
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "\u2581"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
      "merges": ["t h", "th e", "a n", "i n", "e r", "\u2581 the"]}})");
  Json model = *json.Find("model");
  model.Set("vocab", std::move(vocab));
  json.Set("model", std::move(model));
  json.Set("added_tokens", std::move(added));
  return DumpJson(json);
}

void AddVocabulary(GgufImage& image) {
  std::string tokens, scores, types;
  for (std::size_t i = 0; i < Vocabulary().size(); ++i) {
    tokens += GgufImage::Text(Vocabulary()[i]);
    scores += RawBytes(-static_cast<float>(i));
    types += RawBytes<std::int32_t>(i == 0 ? 2 : i < 3 ? 3 : Vocabulary()[i][0] == '<' ? 6 : 1);
  }
  const std::uint64_t count = Vocabulary().size();
  image.keys.push_back({"tokenizer.ggml.model", GgufImage::kText, GgufImage::Text("llama")});
  image.keys.push_back({"tokenizer.ggml.tokens", GgufImage::kArray,
                        GgufImage::Array(GgufImage::kText, count, tokens)});
  image.keys.push_back({"tokenizer.ggml.scores", GgufImage::kArray,
                        GgufImage::Array(GgufImage::kF32, count, scores)});
  image.keys.push_back({"tokenizer.ggml.token_type", GgufImage::kArray,
                        GgufImage::Array(GgufImage::kI32, count, types)});
}

SeedCheckpoint HuggingFaceSeed(std::string name, const Json& config, const std::string& weights) {
  return {std::move(name),
          {{"config.json", DumpJson(config)},
           {"generation_config.json", R"({"eos_token_id": [2], "temperature": 0.7})"},
           {"model.safetensors", weights},
           {"tokenizer.json", TokenizerJson()},
           {"tokenizer_config.json", kTokenizerConfig}}};
}

std::string Slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

GgufImage GgufOf(const TinyModel& model) {
  const TempDir dir;
  GgufImage image = GgufImage::Parse(Slurp(WriteGguf(model, dir)));
  AddVocabulary(image);
  return image;
}

SeedCheckpoint GgufSeed(std::string name, const GgufImage& image) {
  return {std::move(name), {{"model.gguf", image.File()}}, true};
}

// Bytes that look random and are the same every time; none of them a NaN as f8.
std::string Noise(std::size_t count) {
  std::string out(count, '\0');
  std::uint32_t state = 12345;
  for (char& byte : out) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>((state >> 24) & 0xf7);
  }
  return out;
}

std::string Floats(std::size_t count, float value) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) out += RawBytes(value);
  return out;
}

constexpr std::uint16_t kF16Hundredth = 0x211f;
std::string Halves(std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) out += RawBytes(kF16Hundredth);
  return out;
}

// A llama of one or two layers whose dimensions suit quantized blocks.
TinyModel BlockModel(int hidden, int layers) {
  TinyModel model = FindTinyModel("llama");
  model.config.Set("hidden_size", hidden);
  model.config.Set("intermediate_size", hidden);
  model.config.Set("num_hidden_layers", layers);
  std::erase_if(model.tensors, [&](const FloatTensor& tensor) {
    for (int layer = layers; layer < 4; ++layer) {
      if (absl::StrContains(tensor.name, absl::StrCat("layers.", layer, "."))) return true;
    }
    return false;
  });
  for (FloatTensor& tensor : model.tensors) {
    std::size_t count = 1;
    for (std::int64_t& dim : tensor.shape) {
      if (dim == 32 || dim == 48) dim = hidden;
      if (dim == 16) dim = hidden / 2;
      count *= static_cast<std::size_t>(dim);
    }
    const std::vector<float> from = tensor.values;
    tensor.values.resize(count);
    for (std::size_t i = 0; i < count; ++i) tensor.values[i] = from[i % from.size()];
  }
  return model;
}

using AddLinear = std::function<void(SafetensorsImage& image, const std::string& layer,
                                     std::uint64_t n, std::uint64_t k)>;

SeedCheckpoint Quantized(const std::string& name, const std::string& quantization,
                         const AddLinear& add) {
  const TinyModel model = BlockModel(64, 2);
  SafetensorsImage image;
  for (const FloatTensor& tensor : model.tensors) {
    absl::string_view layer = tensor.name;
    if (absl::ConsumeSuffix(&layer, ".weight") && absl::EndsWith(layer, "_proj")) {
      add(image, std::string(layer), tensor.shape[0], tensor.shape[1]);
    } else {
      image.Add(tensor.name, "F32", {tensor.shape.begin(), tensor.shape.end()},
                {reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * 4});
    }
  }
  Json config = model.config;
  config.Set("quantization_config", *ParseJson(quantization));
  return HuggingFaceSeed(name, config, image.File());
}

AddLinear Gptq(std::uint64_t bits, std::uint64_t group, bool shuffled) {
  return [=](SafetensorsImage& image, const std::string& layer, std::uint64_t n, std::uint64_t k) {
    const std::uint64_t groups = k / group;
    image.Add(layer + ".qweight", "I32", {k * bits / 32, n}, Noise(k * bits / 8 * n));
    image.Add(layer + ".qzeros", "I32", {groups, n * bits / 32}, Noise(groups * n * bits / 8));
    image.Add(layer + ".scales", "F16", {groups, n}, Halves(groups * n));
    std::string order;
    for (std::uint64_t i = 0; i < k; ++i)
      order += RawBytes(static_cast<std::int32_t>(shuffled ? i % groups : i / group));
    image.Add(layer + ".g_idx", "I32", {k}, order);
  };
}

void Awq(SafetensorsImage& image, const std::string& layer, std::uint64_t n, std::uint64_t k) {
  image.Add(layer + ".qweight", "I32", {k, n / 8}, Noise(k * n / 2));
  image.Add(layer + ".qzeros", "I32", {k / 32, n / 8}, Noise(k / 32 * n / 2));
  image.Add(layer + ".scales", "F16", {k / 32, n}, Halves(k / 32 * n));
}

AddLinear Blockwise(bool nested) {
  return [=](SafetensorsImage& image, const std::string& layer, std::uint64_t n, std::uint64_t k) {
    const std::string weight = layer + ".weight";
    const std::uint64_t blocks = n * k / 64;
    image.Add(weight, "U8", {n * k / 2, 1}, Noise(n * k / 2));
    image.Add(weight + ".quant_map", "F32", {16},
              {reinterpret_cast<const char*>(kNf4Table.data()), 64});
    std::string state =
        absl::StrCat(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32",)",
                     R"( "shape": [)", n, ", ", k, "]");
    if (nested) {
      absl::StrAppend(&state, R"(, "nested_blocksize": 256, "nested_dtype": "float32",)",
                      R"( "nested_offset": 0.05)");
      image.Add(weight + ".absmax", "U8", {blocks}, Noise(blocks));
      image.Add(weight + ".nested_absmax", "F32", {(blocks + 255) / 256},
                Floats((blocks + 255) / 256, 0.01f));
      image.Add(weight + ".nested_quant_map", "F32", {256}, Floats(256, 0.5f));
    } else {
      image.Add(weight + ".absmax", "F32", {blocks}, Floats(blocks, 0.1f));
    }
    state += "}";
    image.Add(weight + ".quant_state.bitsandbytes__nf4", "U8", {state.size()}, state);
  };
}

// Rows of 8-bit codes with one scale a row under `scales`, in `shape` after the n.
AddLinear Rows(const char* dtype, const char* scales, std::vector<std::uint64_t> shape,
               bool input_scale = false) {
  return [=](SafetensorsImage& image, const std::string& layer, std::uint64_t n, std::uint64_t k) {
    image.Add(layer + ".weight", dtype, {n, k}, Noise(n * k));
    std::vector<std::uint64_t> whole = {n};
    whole.insert(whole.end(), shape.begin(), shape.end());
    image.Add(absl::StrCat(layer, ".", scales), "F32", whole, Floats(n, 0.001f));
    if (input_scale) image.Add(layer + ".input_scale", "F32", {1}, Floats(1, 0.05f));
  };
}

void Packed(SafetensorsImage& image, const std::string& layer, std::uint64_t n, std::uint64_t k) {
  image.Add(layer + ".weight_packed", "I32", {n, k / 8}, Noise(n * k / 2));
  image.Add(layer + ".weight_scale", "F32", {n, k / 32}, Floats(n * k / 32, 0.01f));
  image.Add(layer + ".weight_shape", "I64", {2}, RawBytes(n) + RawBytes(k));
}

std::string CompressedTensors(const char* format, const char* weights, const char* inputs) {
  return absl::StrCat(R"({"quant_method": "compressed-tensors", "format": ")", format,
                      R"(", "ignore": ["lm_head"], "config_groups": {"group_0": {"targets":)",
                      R"( ["Linear"], "weights": )", weights, R"(, "input_activations": )", inputs,
                      "}}}");
}

void AddQuantized(std::vector<SeedCheckpoint>& seeds) {
  seeds.push_back(Quantized("gptq-4",
                            R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true})",
                            Gptq(4, 32, false)));
  seeds.push_back(Quantized("gptq-4-act-order",
                            R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false,
                                "desc_act": true, "checkpoint_format": "gptq_v2"})",
                            Gptq(4, 32, true)));
  seeds.push_back(
      Quantized("gptq-3", R"({"quant_method": "gptq", "bits": 3, "group_size": 32, "dynamic": {}})",
                Gptq(3, 32, false)));
  seeds.push_back(Quantized("gptq-8", R"({"quant_method": "gptq", "bits": 8, "group_size": 64})",
                            Gptq(8, 64, false)));
  seeds.push_back(Quantized("awq", R"({"quant_method": "awq", "bits": 4, "group_size": 32,
                                       "version": "gemm", "zero_point": true})",
                            Awq));
  const std::string nf4 = R"({"quant_method": "bitsandbytes", "load_in_4bit": true,
                              "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"})";
  seeds.push_back(Quantized("bnb-nf4", nf4, Blockwise(false)));
  seeds.push_back(Quantized("bnb-nf4-nested", nf4, Blockwise(true)));
  seeds.push_back(Quantized("bnb-int8", R"({"quant_method": "bitsandbytes", "load_in_8bit": true,
                                            "llm_int8_threshold": 6.0})",
                            Rows("I8", "SCB", {})));
  seeds.push_back(Quantized("fp8-dynamic",
                            R"({"quant_method": "fp8", "activation_scheme": "dynamic"})",
                            Rows("F8_E4M3", "weight_scale", {1})));
  seeds.push_back(Quantized("fp8-static",
                            R"({"quant_method": "fp8", "activation_scheme": "static"})",
                            Rows("F8_E4M3", "weight_scale", {1}, true)));
  const char* token = R"({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true,
                          "symmetric": true})";
  seeds.push_back(Quantized(
      "ct-w4a16",
      CompressedTensors("pack-quantized", R"({"num_bits": 4, "type": "int", "strategy": "group",
                                              "group_size": 32, "symmetric": true})",
                        "null"),
      Packed));
  seeds.push_back(Quantized(
      "ct-w8a8",
      CompressedTensors("int-quantized", R"({"num_bits": 8, "type": "int", "strategy": "channel",
                                             "symmetric": true})",
                        token),
      Rows("I8", "weight_scale", {1})));
}

// The GGUF type and where its blocks hold f16 scales.
struct BlockType {
  const char* name;
  std::uint32_t type;
  std::uint64_t values, bytes;
  std::vector<std::uint64_t> scales;
};

void AddQuantizedGguf(std::vector<SeedCheckpoint>& seeds) {
  const std::vector<BlockType> types = {
      {"q4_0", 2, 32, 18, {0}},       {"q4_1", 3, 32, 20, {0, 2}},
      {"q5_0", 6, 32, 22, {0}},       {"q5_1", 7, 32, 24, {0, 2}},
      {"q8_0", 8, 32, 34, {0}},       {"q2_k", 10, 256, 84, {80, 82}},
      {"q3_k", 11, 256, 110, {108}},  {"q4_k", 12, 256, 144, {0, 2}},
      {"q5_k", 13, 256, 176, {0, 2}}, {"q6_k", 14, 256, 210, {208}}};
  const GgufImage base = GgufOf(BlockModel(256, 1));
  for (const BlockType& type : types) {
    GgufImage image = base;
    for (std::size_t i = 0; i < image.tensors.size(); ++i) {
      const GgufImage::Tensor& tensor = image.tensors[i];
      if (tensor.dims.size() != 2 || !absl::StartsWith(tensor.name, "blk.")) continue;
      std::string bytes = Noise(tensor.dims[0] * tensor.dims[1] / type.values * type.bytes);
      for (std::uint64_t block = 0; block < bytes.size(); block += type.bytes) {
        for (const std::uint64_t at : type.scales)
          bytes.replace(block + at, 2, RawBytes(kF16Hundredth));
      }
      image.SetBytes(i, type.type, bytes);
    }
    seeds.push_back(GgufSeed(absl::StrCat("gguf-", type.name), image));
  }
}

// The checkpoint in two files and an index.
SeedCheckpoint Sharded(const TinyModel& model) {
  const std::size_t half = model.tensors.size() / 2;
  SeedCheckpoint seed = HuggingFaceSeed("sharded", model.config, "");
  seed.files.erase("model.safetensors");
  Json map{Json::Object{}};
  for (int shard = 0; shard < 2; ++shard) {
    const auto begin = model.tensors.begin() + (shard == 0 ? 0 : static_cast<std::ptrdiff_t>(half));
    const auto end = shard == 0 ? model.tensors.begin() + static_cast<std::ptrdiff_t>(half)
                                : model.tensors.end();
    const std::string file = absl::StrCat("model-0000", shard + 1, "-of-00002.safetensors");
    const std::vector<FloatTensor> tensors(begin, end);
    for (const FloatTensor& tensor : tensors) map.Set(tensor.name, file);
    seed.files[file] = SafetensorsFile(tensors);
  }
  Json index{Json::Object{}};
  index.Set("metadata", Json(Json::Object{}));
  index.Set("weight_map", std::move(map));
  seed.files["model.safetensors.index.json"] = DumpJson(index);
  return seed;
}

void AddConformance(std::vector<SeedCheckpoint>& seeds) {
  const auto conformance = ConformanceDir();
  if (!conformance) return;
  std::vector<std::filesystem::path> directories;
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(*conformance / "checkpoints", ignored)) {
    if (entry.is_directory()) directories.push_back(entry.path());
  }
  std::sort(directories.begin(), directories.end());
  for (const std::filesystem::path& directory : directories) {
    SeedCheckpoint seed{directory.filename().string(), {}};
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      const std::string name = entry.path().filename().string();
      if (name != "reference.json") seed.files[name] = Slurp(entry.path());
      if (absl::EndsWith(name, ".gguf")) seed.gguf = true;
    }
    if (seed.gguf) {
      std::erase_if(seed.files,
                    [](const auto& file) { return !absl::EndsWith(file.first, ".gguf"); });
    } else if (seed.files.count("model.safetensors") == 0) {
      continue;  // a recipe over another directory
    }
    seeds.push_back(std::move(seed));
  }
}

}  // namespace

std::vector<SeedCheckpoint> AllSeeds() {
  std::vector<SeedCheckpoint> seeds;
  AddQuantized(seeds);
  AddQuantizedGguf(seeds);
  for (const TinyModel& model : TinyModels()) {
    seeds.push_back(HuggingFaceSeed(model.name, model.config, SafetensorsFile(model.tensors)));
    if (model.has_gguf) seeds.push_back(GgufSeed("gguf-" + model.name, GgufOf(model)));
  }
  seeds.push_back(Sharded(FindTinyModel("mistral")));
  AddConformance(seeds);
  return seeds;
}

}  // namespace nibble
