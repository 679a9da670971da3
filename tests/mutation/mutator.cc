#include "tests/mutation/mutator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/json.h"
#include "tests/mutation/image.h"

namespace nibble {
namespace {

constexpr char kNaN[] = "@NaN@";  // stands for a bare NaN, which Json cannot hold

const std::vector<Json>& JsonNonsense() {
  static const std::vector<Json> values = {Json(),
                                           Json(0),
                                           Json(-1),
                                           Json(1),
                                           Json(2),
                                           Json(7),
                                           Json(64),
                                           Json(std::int64_t{1} << 31),
                                           Json((std::int64_t{1} << 31) - 1),
                                           Json(std::int64_t{1} << 40),
                                           Json(INT64_MIN),
                                           Json(INT64_MAX),
                                           Json(std::uint64_t{1} << 63),
                                           Json(0.5),
                                           Json(-1e-3),
                                           Json(1e-300),
                                           Json(1e300),
                                           Json(kNaN),
                                           Json(true),
                                           Json(false),
                                           Json(""),
                                           Json("nonsense"),
                                           Json("\xef\xbf\xbf\xe2\x96\x81"),
                                           Json(std::string(5000, 'a')),
                                           Json(Json::Array{}),
                                           Json(Json::Array{1, Json(), "x"}),
                                           Json(Json::Object{})};
  return values;
}

// Keys that some family or format reads, for checkpoints that do not have them.
constexpr const char* kConfigKeys[] = {"head_dim",
                                       "sliding_window",
                                       "num_key_value_heads",
                                       "rope_scaling",
                                       "rope_parameters",
                                       "partial_rotary_factor",
                                       "layer_types",
                                       "tie_word_embeddings",
                                       "num_local_experts",
                                       "num_experts",
                                       "num_experts_per_tok",
                                       "attention_bias",
                                       "attn_logit_softcapping",
                                       "final_logit_softcapping",
                                       "query_pre_attn_scalar",
                                       "max_position_embeddings",
                                       "quantization_config",
                                       "text_config",
                                       "eos_token_id",
                                       "hidden_act",
                                       "norm_topk_prob",
                                       "architectures",
                                       "dtype"};

constexpr const char* kQuantKeys[] = {"bits",
                                      "group_size",
                                      "sym",
                                      "desc_act",
                                      "checkpoint_format",
                                      "version",
                                      "zero_point",
                                      "dynamic",
                                      "config_groups",
                                      "ignore",
                                      "format",
                                      "quant_method",
                                      "meta",
                                      "load_in_4bit",
                                      "llm_int8_threshold",
                                      "backend",
                                      "lm_head",
                                      "packing_format",
                                      "modules_to_not_convert",
                                      "extra_config",
                                      "activation_scheme",
                                      "weight_block_size",
                                      "transform_config"};

constexpr const char* kMethods[] = {
    "gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "compressed-tensors", "auto-round", "hqq"};

std::string DumpConfig(const Json& json) {
  return absl::StrReplaceAll(DumpJson(json), {{absl::StrCat("\"", kNaN, "\""), "NaN"}});
}

std::string Short(const Json& value) { return DumpJson(value).substr(0, 60); }

}  // namespace

std::string Mutator::Mutate(SeedCheckpoint& checkpoint) {
  std::string what;
  const int count = Chance(75) ? 1 : Chance(60) ? 2 : 3;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&what, i == 0 ? "" : "; ", MutateOnce(checkpoint));
  }
  return what;
}

std::string Mutator::MutateOnce(SeedCheckpoint& checkpoint) {
  if (checkpoint.gguf) {
    std::string& file = checkpoint.files.begin()->second;
    if (!broken_ && Chance(45)) return MutateGgufKey(file);
    if (!broken_ && Chance(92)) return MutateGguf(file);
    return Break(file);
  }
  const std::size_t part = Below(100);
  std::string& config = checkpoint.files["config.json"];
  if (part < 16) return "config.json " + MutateJson(config);
  if (part < 26) return "config.json " + AddConfigKey(config);
  if (part < 42) return "config.json " + MutateQuantization(config);
  if (part < 58) return MutateText(checkpoint);
  std::vector<std::string> weights, all;
  for (const auto& [name, content] : checkpoint.files) {
    all.push_back(name);
    if (absl::EndsWith(name, ".safetensors")) weights.push_back(name);
  }
  if (part < 62 || weights.empty()) {
    std::string& name = Pick(all);
    if (Chance(30)) {
      checkpoint.files.erase(name);
      return "without " + name;
    }
    return absl::StrCat(name, " ", Break(checkpoint.files[name]));
  }
  if (broken_) return "nothing more";
  std::string& name = Pick(weights);
  return absl::StrCat(name, " ", MutateSafetensors(checkpoint.files[name]));
}

// A walk from the root ends at some value: replaced, removed, moved or doubled.
std::string Mutator::MutateJson(std::string& text) {
  absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok()) return Break(text);
  Json* at = &*json;
  std::string path;
  while (true) {
    Json* child = nullptr;
    std::size_t index = 0;
    if (at->is_object() && !at->AsObject().empty()) {
      index = Below(at->AsObject().size());
      absl::StrAppend(&path, "/", at->AsObject()[index].first.substr(0, 40));
      child = &at->AsObject()[index].second;
    } else if (at->is_array() && !at->AsArray().empty()) {
      index = Below(at->AsArray().size());
      absl::StrAppend(&path, "/", index);
      child = &at->AsArray()[index];
    } else {
      *at = Pick(JsonNonsense());
      break;
    }
    if ((child->is_object() || child->is_array()) && Chance(80)) {
      at = child;
      continue;
    }
    const std::size_t how = Below(10);
    if (how == 0 && at->is_array()) {
      at->AsArray().push_back(*child);
      path += " again";
    } else if (how == 1 && at->is_object()) {
      at->AsObject().push_back(at->AsObject()[index]);
      path += " twice";
    } else if (how == 2) {
      if (at->is_object())
        at->AsObject().erase(at->AsObject().begin() + static_cast<std::ptrdiff_t>(index));
      else
        at->AsArray().erase(at->AsArray().begin() + static_cast<std::ptrdiff_t>(index));
      path += " removed";
    } else if (how < 6 && child->is_integer()) {
      const std::int64_t value = child->AsInt64();
      const std::int64_t near[] = {value / 2, value + 1, value > 0 ? value - 1 : 0};
      *child = Chance(30) && std::abs(value) < (1 << 29) ? value * 2 : Pick(near);
      absl::StrAppend(&path, " = ", Short(*child));
    } else {
      *child = Pick(JsonNonsense());
      absl::StrAppend(&path, " = ", Short(*child));
    }
    break;
  }
  text = DumpConfig(*json);
  return path;
}

std::string Mutator::AddConfigKey(std::string& config) {
  absl::StatusOr<Json> json = ParseJson(config);
  if (!json.ok() || !json->is_object()) return Break(config);
  const char* key = Pick(kConfigKeys);
  Json value = Pick(JsonNonsense());
  if (absl::StartsWith(key, "rope_") && Chance(70)) {
    const char* types[] = {"linear", "dynamic", "llama3", "yarn", "longrope", "default"};
    value = Json(Json::Object{});
    value.Set("rope_type", Pick(types));
    for (const char* name : {"factor", "low_freq_factor", "original_max_position_embeddings",
                             "short_factor", "long_factor", "rope_theta", "attention_factor"}) {
      if (Chance(50)) value.Set(name, Pick(JsonNonsense()));
    }
  } else if (absl::EqualsIgnoreCase(key, "text_config") && Chance(50)) {
    value = *json;
  }
  json->Set(key, value);
  config = DumpConfig(*json);
  return absl::StrCat("/", key, " = ", Short(value));
}

std::string Mutator::MutateQuantization(std::string& config) {
  absl::StatusOr<Json> json = ParseJson(config);
  if (!json.ok() || !json->is_object()) return Break(config);
  const Json* held = json->Find("quantization_config");
  Json quant = held != nullptr && held->is_object() ? *held : Json(Json::Object{});
  std::string what = "/quantization_config";
  if (quant.AsObject().empty()) quant.Set("quant_method", Pick(kMethods));
  const std::size_t how = Below(10);
  if (how == 0) {
    quant.Set("quant_method", Pick(kMethods));
    absl::StrAppend(&what, "/quant_method = ", Short(*quant.Find("quant_method")));
  } else if (how < 4) {
    const char* key = Pick(kQuantKeys);
    quant.Set(key, Pick(JsonNonsense()));
    absl::StrAppend(&what, "/", key, " = ", Short(*quant.Find(key)));
  } else {
    std::string text = DumpJson(quant);
    what += MutateJson(text);
    const absl::StatusOr<Json> changed = ParseJson(text);
    if (changed.ok()) quant = *changed;  // a key twice, or NaN, would end the whole file
  }
  json->Set("quantization_config", quant);
  config = DumpConfig(*json);
  return what;
}

std::string Mutator::MutateText(SeedCheckpoint& checkpoint) {
  const char* names[] = {"tokenizer.json",         "tokenizer.json",
                         "tokenizer.json",         "tokenizer_config.json",
                         "generation_config.json", "model.safetensors.index.json"};
  std::string name = Pick(names);
  if (checkpoint.files.count(name) == 0) name = "tokenizer.json";
  if (checkpoint.files.count(name) == 0) return "nothing: no tokenizer.json";
  return absl::StrCat(name, " ", MutateJson(checkpoint.files[name]));
}

std::string Mutator::Break(std::string& file) {
  broken_ = true;
  const std::size_t at = Below(Chance(60) ? std::min<std::size_t>(file.size(), 4096) : file.size());
  switch (Below(4)) {
    case 0: file.resize(at); return absl::StrCat("cut to ", at, " bytes");
    case 1: file.insert(at, 1 + Below(64), '\xff'); return absl::StrCat("with 0xff put in at ", at);
    case 2: file += std::string(1 + Below(9), '{'); return "with junk at its end";
    default:
      if (!file.empty()) file[at] = static_cast<char>(random_());
      return absl::StrCat("with byte ", at, " changed");
  }
}

std::string Mutator::MutateBytes(std::string& data, std::uint64_t begin, std::uint64_t end,
                                 const std::string& type) {
  if (begin >= end || end > data.size()) return "no bytes";
  const std::uint64_t size = end - begin;
  // A text (quant_state) is changed as what it is where its length allows.
  if (data[begin] == '{' && Chance(80)) {
    std::string text = data.substr(begin, size);
    const std::string what = MutateJson(text);
    text.resize(size, ' ');
    data.replace(begin, size, text);
    return "text " + what;
  }
  const auto put = [&](auto value, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) {
      if (size < sizeof(value)) return;
      const std::uint64_t at = begin + Below(size / sizeof(value)) * sizeof(value);
      std::memcpy(data.data() + at, &value, sizeof(value));
    }
  };
  const std::uint64_t count = Chance(50) ? 1 : 1 + Below(200);
  switch (Below(6)) {
    case 0:
      for (std::uint64_t i = 0; i < count; ++i)
        data[begin + Below(size)] ^= static_cast<char>(1 << Below(8));
      return "bits flipped";
    case 1:
      std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(begin), size, '\0');
      return "all zero";
    case 2:
      std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(begin), size, '\xff');
      return "all ones";
    case 3: {
      const std::uint16_t halves[] = {0x7e00, 0x7c00, 0xfc00, 0x7bff, 0xffff, 0x7f80, 0x8000};
      put(Pick(halves), count);
      return "f16 infinities";
    }
    default: {
      if (absl::StrContains(type, "I")) {
        const std::int32_t integers[] = {-1, INT32_MIN, INT32_MAX, 1 << 20, 2, 64, -2};
        put(Pick(integers), count);
        return "integers out of range";
      }
      const float floats[] = {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              3e38f,
                              1e-42f,
                              -1.0f};
      put(Pick(floats), count);
      return "NaN and infinities";
    }
  }
}

std::string Mutator::MutateSafetensors(std::string& file) {
  SafetensorsImage image = SafetensorsImage::Parse(file);
  if (image.tensors.empty()) return "holds nothing";
  const std::size_t index = Below(image.tensors.size());
  SafetensorsImage::Tensor& tensor = image.tensors[index];
  SafetensorsImage::Tensor& other = Pick(image.tensors);
  const std::string name = tensor.name;
  std::string what;
  switch (Below(16)) {
    case 0:
      std::swap(tensor.name, other.name);
      what = "swapped with " + tensor.name;
      break;
    case 1:  // dropped, its bytes too
      image.SetBytes(index, "");
      image.tensors.erase(image.tensors.begin() + static_cast<std::ptrdiff_t>(index));
      what = "dropped";
      break;
    case 2:
      tensor.name = Chance(20) ? other.name : absl::StrCat(name, Chance(50) ? "x" : ".weight");
      broken_ = true;  // should the name be there already
      what = "renamed " + tensor.name;
      break;
    case 3: {
      const SafetensorsImage::Tensor copy = tensor;
      image.Add(Chance(30) ? name : name + ".copy", copy.dtype, copy.shape,
                image.data.substr(copy.begin, copy.end - copy.begin));
      broken_ = true;
      what = "twice";
      break;
    }
    case 4: {  // another shape of the same size
      std::vector<std::uint64_t>& shape = tensor.shape;
      if (shape.size() > 1 && Chance(40)) {
        std::reverse(shape.begin(), shape.end());
      } else if (!shape.empty() && shape.front() % 2 == 0 && Chance(50)) {
        shape.front() /= 2;
        shape.size() > 1 ? void(shape.back() *= 2) : shape.push_back(2);
      } else {
        Chance(50) ? shape.insert(shape.begin(), 1) : shape.insert(shape.end(), 1);
      }
      what = absl::StrCat("shape [", absl::StrJoin(shape, ","), "]");
      break;
    }
    case 5:
    case 6: {  // another type of the same width
      const std::vector<std::vector<std::string>> widths = {
          {"F32", "I32", "U32"},
          {"F16", "BF16", "I16"},
          {"U8", "I8", "F8_E4M3", "F8_E5M2", "BOOL"},
          {"F64", "I64", "U64"}};
      for (const std::vector<std::string>& same : widths) {
        if (std::find(same.begin(), same.end(), tensor.dtype) != same.end())
          tensor.dtype = same[Below(same.size())];
      }
      what = "as " + tensor.dtype;
      break;
    }
    case 7:
    case 8: {  // honestly of another size
      if (tensor.shape.empty() || tensor.shape[0] == 0) return "nothing: no rows";
      const std::uint64_t row = (tensor.end - tensor.begin) / tensor.shape[0];
      const std::uint64_t counts[] = {0, 1, tensor.shape[0] - 1, tensor.shape[0] + 1,
                                      tensor.shape[0] * 2};
      tensor.shape[0] = Pick(counts);
      std::string bytes = image.data.substr(tensor.begin, tensor.end - tensor.begin);
      bytes.resize(tensor.shape[0] * row, '\x11');
      image.SetBytes(index, bytes);
      what = absl::StrCat("with ", tensor.shape[0], " rows");
      break;
    }
    case 9: {
      const std::uint64_t dims[] = {0, 1, ~std::uint64_t{0}, std::uint64_t{1} << 62,
                                    std::uint64_t{1} << 32};
      tensor.shape.empty() ? tensor.shape.push_back(Pick(dims))
                           : void(Pick(tensor.shape) = Pick(dims));
      broken_ = true;
      what = absl::StrCat("claims shape [", absl::StrJoin(tensor.shape, ","), "]");
      break;
    }
    case 10: {
      std::uint64_t& offset = Chance(50) ? tensor.begin : tensor.end;
      const std::uint64_t offsets[] = {
          0, offset + 4, offset - 4, ~std::uint64_t{0}, image.data.size() + 1, other.begin};
      offset = Pick(offsets);
      broken_ = true;
      what = absl::StrCat("claims bytes ", tensor.begin, " to ", tensor.end);
      break;
    }
    case 11: {
      const std::int64_t lies[] = {-1, 1, 8, -8, std::int64_t{1} << 40, 100'000'000};
      image.header_lie = Pick(lies);
      broken_ = true;
      what = absl::StrCat("(all) header length off by ", image.header_lie);
      break;
    }
    default: what = MutateBytes(image.data, tensor.begin, tensor.end, tensor.dtype); break;
  }
  file = image.File();
  return absl::StrCat(name, " ", what);
}

// A value of a random type, as a GGUF file stores it.
std::string Mutator::Nonsense(std::string* kind) {
  broken_ = true;  // types and counts that no Parse should be asked to read
  const std::uint64_t words[] = {0,
                                 1,
                                 2,
                                 7,
                                 13,
                                 64,
                                 ~std::uint64_t{0},
                                 std::uint64_t{1} << 31,
                                 std::uint64_t{1} << 40,
                                 std::uint64_t{1} << 63};
  const double numbers[] = {0, -1, 1e300, 1e-300, NAN, INFINITY};
  const std::uint32_t type = static_cast<std::uint32_t>(Below(14));  // 13 is unknown
  std::string raw;
  switch (type) {
    case 6: raw = RawBytes(static_cast<float>(Pick(numbers))); break;
    case 12: raw = RawBytes(Pick(numbers)); break;
    case GgufImage::kText: raw = GgufImage::Text(Chance(50) ? "nonsense" : "gpt2"); break;
    case GgufImage::kArray: {
      const std::uint32_t inner = Chance(30) ? 8 : Chance(50) ? 5 : 6;
      const std::uint64_t count = Chance(20) ? Pick(words) : 3;
      std::string values;
      for (int i = 0; i < 3; ++i)
        values +=
            inner == 8 ? GgufImage::Text("x") : RawBytes(static_cast<std::int32_t>(random_()));
      raw = GgufImage::Array(inner, count, values);
      break;
    }
    default: {
      constexpr std::size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8, 4};
      raw = RawBytes(Pick(words)).substr(0, kSizes[type]);
    }
  }
  *kind = std::string(reinterpret_cast<const char*>(&type), sizeof(type));
  return raw;
}

std::string Mutator::MutateGgufKey(std::string& file) {
  GgufImage image = GgufImage::Parse(file);
  const std::size_t index = Below(image.keys.size());
  GgufImage::KeyValue& value = image.keys[index];
  const std::string key = value.key;
  std::string what, kind;
  switch (Below(8)) {
    case 0:
      image.keys.erase(image.keys.begin() + static_cast<std::ptrdiff_t>(index));
      what = "dropped";
      break;
    case 1:
      value.raw = Nonsense(&kind);
      std::memcpy(&value.type, kind.data(), sizeof(value.type));
      what = absl::StrCat("as value type ", value.type);
      break;
    case 2: {
      const char* added[] = {"general.alignment", "split.count", "tokenizer.ggml.merges",
                             "llama.rope.scaling.type", "tokenizer.ggml.pre"};
      GgufImage::KeyValue extra{Chance(20) ? key : Pick(added), 0, Nonsense(&kind)};
      std::memcpy(&extra.type, kind.data(), sizeof(extra.type));
      what = absl::StrCat("beside ", extra.key, " of type ", extra.type);
      image.keys.push_back(std::move(extra));
      break;
    }
    case 3:
      value.key += Chance(50) ? "x" : "";
      std::swap(value.key, Pick(image.keys).key);
      what = "renamed";
      break;
    default: {  // the same type, another value
      if (value.type == GgufImage::kText) {
        const char* texts[] = {"", "llama", "gemma3", "qwen2", "gpt2", "nonsense", "linear"};
        value.raw = GgufImage::Text(Pick(texts));
      } else if (value.type == GgufImage::kArray && value.raw.size() >= 12) {
        broken_ = true;
        // An element, or the count and the bytes with it.
        if (Chance(60) && value.raw.size() > 12)
          value.raw[12 + Below(value.raw.size() - 12)] ^= static_cast<char>(1 << Below(8));
        else if (value.raw[0] == GgufImage::kText)
          value.raw =
              GgufImage::Array(GgufImage::kText, 2, GgufImage::Text("a") + GgufImage::Text("\xff"));
        else
          value.raw = GgufImage::Array(5, 3, std::string(12, static_cast<char>(Below(256))));
      } else if (value.type == GgufImage::kF32) {
        const float floats[] = {0, -1, NAN, INFINITY, 1e-30f, 1e30f, 0.5f};
        value.raw = RawBytes(Pick(floats));
      } else if (value.type == GgufImage::kU32) {
        std::uint32_t now;
        std::memcpy(&now, value.raw.data(), sizeof(now));
        const std::uint32_t integers[] = {0,       1,   2,        3,        now + 1, now * 2,
                                          now / 2, ~0u, 1u << 31, 1u << 20, now - 1, 255};
        value.raw = RawBytes(Pick(integers));
      } else {
        for (char& byte : value.raw) byte = static_cast<char>(random_());
      }
      what = "with another value";
    }
  }
  file = image.File();
  return absl::StrCat(key, " ", what);
}

std::string Mutator::MutateGguf(std::string& file) {
  GgufImage image = GgufImage::Parse(file);
  const std::size_t index = Below(image.tensors.size());
  GgufImage::Tensor& tensor = image.tensors[index];
  GgufImage::Tensor& other = Pick(image.tensors);
  const std::string name = tensor.name;
  const std::uint64_t huge[] = {
      0, 1, ~std::uint64_t{0}, std::uint64_t{1} << 63, 0x7FFFFFFFFFFFFFC0, std::uint64_t{1} << 32};
  std::string what;
  switch (Below(13)) {
    case 0:
      std::swap(tensor.name, other.name);
      what = "swapped with " + tensor.name;
      break;
    case 1:
      tensor.name = Chance(20) ? other.name : absl::StrCat(name, Chance(50) ? "x" : ".weight");
      what = "renamed " + tensor.name;
      break;
    case 2:
      image.tensors.erase(image.tensors.begin() + static_cast<std::ptrdiff_t>(index));
      what = "dropped";
      break;
    case 3: {
      const std::uint32_t types[] = {0, 1, 2, 8, 12, 16, 24, 26, 30, 39, 4, 200};
      tensor.type = Pick(types);
      what = absl::StrCat("as type ", tensor.type);
      break;
    }
    case 4:
      if (Chance(50)) {
        std::reverse(tensor.dims.begin(), tensor.dims.end());
      } else if (tensor.dims.size() < 4) {
        tensor.dims.push_back(1);
      }
      what = absl::StrCat("dims ", absl::StrJoin(tensor.dims, " by "));
      break;
    case 5: {
      std::uint64_t& dim = Pick(tensor.dims);
      const std::uint64_t dims[] = {dim / 2, dim + 1, Pick(huge)};
      dim = Pick(dims);
      what = absl::StrCat("dims ", absl::StrJoin(tensor.dims, " by "));
      break;
    }
    case 6: {
      const std::uint64_t offsets[] = {
          0, tensor.offset + 32, tensor.offset + 1, other.offset, image.data.size(), Pick(huge)};
      tensor.offset = Pick(offsets);
      what = absl::StrCat("at ", tensor.offset);
      break;
    }
    case 7:
      if (Chance(50)) {
        image.version = static_cast<std::uint32_t>(Below(5));
      } else {
        const std::int64_t lies[] = {-1, 1, std::int64_t{1} << 40, -100};
        (Chance(50) ? image.keys_lie : image.tensors_lie) = Pick(lies);
      }
      broken_ = true;
      what = "(all) counts or version changed";
      break;
    default:
      what = MutateBytes(image.data, tensor.offset, image.End(index),
                         tensor.type >= 24 && tensor.type <= 27 ? "I" : "F");
  }
  file = image.File();
  return absl::StrCat(name, " ", what);
}

}  // namespace nibble
