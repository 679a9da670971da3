#include "runtime/model/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "runtime/base/status.h"
#include "runtime/model/architectures.h"
#include "runtime/model/config.h"
#include "runtime/model/random_weight.h"
#include "runtime/model/synthetic_formats.h"
#include "runtime/model/synthetic_shapes.h"
#include "runtime/model/tensor_names.h"
#include "runtime/weights/fingerprint.h"

namespace nibble {
namespace {

constexpr float kNormSpread = 0.1f;  // of the norms' weights about 1

// What the runtime reads of a Hugging Face directory: configuration, norms and a vocabulary.
class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(absl::string_view name, Json config, std::vector<TensorInfo> tensors,
                      bool norms_add_one)
      : path_(absl::StrCat("synthetic ", name)),
        config_(std::move(config)),
        tensors_(std::move(tensors)),
        norm_mean_(norms_add_one ? 0.0f : 1.0f) {
    std::sort(tensors_.begin(), tensors_.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  }

  CheckpointKind kind() const override { return CheckpointKind::kHuggingFace; }
  const std::string& path() const override { return path_; }
  const Json& config() const override { return config_; }
  const GgufMetadata* gguf() const override { return nullptr; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }

  absl::StatusOr<std::string> ReadSideFile(absl::string_view name) const override {
    if (name == "vocab.json") return Vocabulary();
    if (name == "merges.txt") return std::string();
    return absl::NotFoundError(absl::StrCat(path_, " has no ", name));
  }

  const TensorInfo* Find(absl::string_view name) const override {
    const auto at = std::lower_bound(
        tensors_.begin(), tensors_.end(), name,
        [](const TensorInfo& tensor, absl::string_view wanted) { return tensor.name < wanted; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

  // Only norms are tensors here.
  absl::Status Read(const TensorInfo& tensor, std::span<std::byte> out) const override {
    if (out.size() != tensor.bytes) return absl::InvalidArgumentError("a norm of another size");
    LinearSpec spec;
    spec.n = 1;
    spec.k = tensor.shape[0];
    const LinearWeight noise = RandomWeight(spec, {}, Seed(tensor.name));
    const float to_spread = kNormSpread * std::sqrt(static_cast<float>(spec.k));
    const auto values = std::get<Dense>(noise.encoding).data.As<float>();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float value = norm_mean_ + to_spread * values[i];
      std::memcpy(out.data() + i * sizeof(value), &value, sizeof(value));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Revision() const override {
    Fingerprint fingerprint;
    fingerprint.Add(path_);
    fingerprint.Add(DumpJson(config_));
    return fingerprint.Hex();
  }

 private:
  static std::uint64_t Seed(absl::string_view name) {
    std::uint64_t seed = 0;
    for (const char c : name) seed = seed * 131 + static_cast<unsigned char>(c);
    return seed;
  }

  // Words of letters, one a token: "a", "b", ..., "z", "aa", "ab", ...
  std::string Vocabulary() const {
    std::string json = "{";
    const std::int64_t count = config_.Find("vocab_size")->AsInt64();
    for (std::int64_t id = 0; id < count; ++id) {
      std::string word;
      for (std::int64_t rest = id + 1; rest > 0; rest = (rest - 1) / 26)
        word.push_back(static_cast<char>('a' + (rest - 1) % 26));
      absl::StrAppend(&json, id == 0 ? "\"" : ",\"", word, "\":", id);
    }
    json.push_back('}');
    return json;
  }

  const std::string path_;
  const Json config_;
  std::vector<TensorInfo> tensors_;
  const float norm_mean_;
};

std::vector<TensorInfo> Norms(const Architecture& row, std::int64_t layers, std::int64_t hidden,
                              std::int64_t head_dim) {
  std::vector<TensorInfo> norms;
  const auto add = [&](std::string name, std::int64_t size) {
    TensorInfo info;
    info.name = std::move(name);
    info.shape = {size};
    info.bytes = static_cast<std::uint64_t>(size) * sizeof(float);
    norms.push_back(std::move(info));
  };
  const TensorNames& names = row.hf_names;
  add(names.final_norm, hidden);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const auto in_layer = [&](const char* name, std::int64_t size) {
      add(absl::StrReplaceAll(name, {{"{layer}", absl::StrCat(layer)}}), size);
    };
    in_layer(names.attention_norm, hidden);
    in_layer(names.mlp_norm, hidden);
    if (row.qk_norm) in_layer(names.q_norm, head_dim);
    if (row.qk_norm) in_layer(names.k_norm, head_dim);
    if (row.post_norms) in_layer(names.post_attention_norm, hidden);
    if (row.post_norms) in_layer(names.post_mlp_norm, hidden);
  }
  return norms;
}

// The layers of a configuration, each by the name its architecture gives it.
class SyntheticFormat final : public WeightFormat {
 public:
  SyntheticFormat(const ModelConfig& config, const Checkpoint& checkpoint, bool qkv_bias,
                  const SyntheticFormatRow& row)
      : row_(row), names_(config, checkpoint), tied_head_(config.tied_head) {
    const TensorNames& table = names_.table();
    layers_in_all_ = config.layers;
    Add(names_.Get(table.embedding), SyntheticRole::kEmbedding, 0, config.vocab, config.hidden);
    if (!config.tied_head)
      Add(names_.Get(table.head), SyntheticRole::kHead, 0, config.vocab, config.hidden);
    for (int layer = 0; layer < config.layers; ++layer) {
      AddAttention(config, layer, qkv_bias);
      if (config.layer[static_cast<std::size_t>(layer)].moe) {
        AddExperts(config, layer);
      } else {
        AddMlp(config, layer);
      }
    }
    templates_ = std::vector<Template>(kinds_.size());
  }

  std::string Name() const override { return absl::StrCat("synthetic ", row_.name); }
  bool Has(absl::string_view layer) const override { return layers_.contains(layer); }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    ASSIGN_OR_RETURN(const std::size_t kind, Find(layer));
    return kinds_[kind].spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    ASSIGN_OR_RETURN(const std::size_t kind, Find(layer));
    Template& made = templates_[kind];
    {
      const std::lock_guard lock(made.mutex);
      if (!made.weight)
        made.weight = RandomWeight(kinds_[kind].spec, kinds_[kind].table, /*seed=*/kind + 1);
    }
    return CopyOf(*made.weight);  // never changes again
  }

 private:
  struct Template {
    std::mutex mutex;  // held to make `weight`, and to see that it is made
    std::optional<LinearWeight> weight;
  };

  absl::StatusOr<std::size_t> Find(absl::string_view layer) const {
    const auto found = layers_.find(layer);
    if (found != layers_.end()) return found->second;
    return absl::NotFoundError(absl::StrCat("a synthetic model has no ", layer));
  }

  void Add(std::string name, SyntheticRole role, int layer, std::int64_t n, std::int64_t k,
           bool has_bias = false) {
    SyntheticEncoding encoding = EncodingOf(
        row_,
        {.role = role, .layer = layer, .layers = layers_in_all_, .tied_head = tied_head_, .k = k});
    encoding.spec.n = n;
    encoding.spec.k = k;
    encoding.spec.has_bias = has_bias;
    const auto known = std::find(kinds_.begin(), kinds_.end(), encoding);
    layers_.emplace(std::move(name), static_cast<std::size_t>(known - kinds_.begin()));
    if (known == kinds_.end()) kinds_.push_back(encoding);
  }

  void AddAttention(const ModelConfig& config, int layer, bool bias) {
    const TensorNames& table = names_.table();
    const std::int64_t q = std::int64_t{config.heads} * config.head_dim;
    const std::int64_t kv = std::int64_t{config.kv_heads} * config.head_dim;
    const std::int64_t hidden = config.hidden;
    constexpr auto kBody = SyntheticRole::kBody;
    if (table.qkv != nullptr) {
      Add(names_.Get(table.qkv, layer), kBody, layer, q + 2 * kv, hidden, bias);
    } else {
      Add(names_.Get(table.q, layer), kBody, layer, q, hidden, bias);
      Add(names_.Get(table.k, layer), kBody, layer, kv, hidden, bias);
      Add(names_.Get(table.v, layer), SyntheticRole::kSensitive, layer, kv, hidden, bias);
    }
    Add(names_.Get(table.o, layer), kBody, layer, hidden, q);
  }

  void AddMlp(const ModelConfig& config, int layer) {
    const TensorNames& table = names_.table();
    const std::int64_t dim = config.intermediate, hidden = config.hidden;
    if (table.gate_up != nullptr) {
      Add(names_.Get(table.gate_up, layer), SyntheticRole::kBody, layer, 2 * dim, hidden);
    } else {
      for (const char* name : {table.gate, table.up})
        Add(names_.Get(name, layer), SyntheticRole::kBody, layer, dim, hidden);
    }
    Add(names_.Get(table.down, layer), SyntheticRole::kSensitive, layer, hidden, dim);
  }

  void AddExperts(const ModelConfig& config, int layer) {
    const TensorNames& table = names_.table();
    const std::int64_t dim = config.expert_intermediate, hidden = config.hidden;
    Add(names_.Get(table.router, layer), SyntheticRole::kRouter, layer, config.experts, hidden);
    for (int expert = 0; expert < config.experts; ++expert) {
      for (const char* name : {table.expert_gate, table.expert_up})
        Add(names_.Get(name, layer, expert), SyntheticRole::kBody, layer, dim, hidden);
      Add(names_.Get(table.expert_down, layer, expert), SyntheticRole::kSensitive, layer, hidden,
          dim);
    }
  }

  const SyntheticFormatRow row_;
  const NameResolver names_;
  const bool tied_head_;
  int layers_in_all_ = 0;
  std::map<std::string, std::size_t, std::less<>> layers_;  // by name: index of its kind
  std::vector<SyntheticEncoding> kinds_;
  mutable std::vector<Template> templates_;  // by kind
};

absl::StatusOr<std::int64_t> Member(const Json& config, const char* name) {
  const Json* value = config.Find(name);
  if (value != nullptr && value->is_integer() && value->AsInt64() > 0) return value->AsInt64();
  return absl::InvalidArgumentError(
      absl::StrCat("a synthetic model's configuration must say ", name, ", above 0"));
}

}  // namespace

std::vector<std::string> SyntheticShapes() {
  std::vector<std::string> names;
  for (const SyntheticShape& shape : SyntheticShapeTable()) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<SyntheticModel> OpenSynthetic(const SyntheticSpec& spec) {
  for (const SyntheticShape& shape : SyntheticShapeTable()) {
    if (spec.shape != shape.name) continue;
    ASSIGN_OR_RETURN(const Json config, ConfigOf(shape));
    return OpenSynthetic(config, shape.name, spec.format);
  }
  return absl::NotFoundError(absl::StrCat("there is no synthetic shape \"", spec.shape,
                                          "\"; known are ",
                                          absl::StrJoin(SyntheticShapes(), ", ")));
}

absl::StatusOr<SyntheticModel> OpenSynthetic(const Json& config, absl::string_view name,
                                             absl::string_view format) {
  const SyntheticFormatRow* row = FindSyntheticFormat(format);
  if (row == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no format \"", format,
                                            "\" of synthetic weights; known are ",
                                            absl::StrJoin(SyntheticFormats(), ", ")));
  }
  const Json* type = config.Find("model_type");
  const Architecture* architecture = type != nullptr && type->is_string()
                                         ? FindHuggingFaceArchitecture(type->AsString())
                                         : nullptr;
  if (architecture == nullptr)
    return absl::InvalidArgumentError("a synthetic model's model_type must be a known one");
  ASSIGN_OR_RETURN(const std::int64_t hidden, Member(config, "hidden_size"));
  ASSIGN_OR_RETURN(const std::int64_t layers, Member(config, "num_hidden_layers"));
  ASSIGN_OR_RETURN(const std::int64_t heads, Member(config, "num_attention_heads"));
  RETURN_IF_ERROR(Member(config, "vocab_size").status());
  const Json* head_dim = config.Find("head_dim");
  Json typed = config;
  typed.Set("dtype", row->dtype == DType::kBF16 ? "bfloat16" : "float16");

  SyntheticModel model;
  model.checkpoint = std::make_unique<SyntheticCheckpoint>(
      absl::StrCat(name, " ", format), std::move(typed),
      Norms(*architecture, layers, hidden,
            head_dim != nullptr && head_dim->is_integer() ? head_dim->AsInt64() : hidden / heads),
      architecture->norm_adds_one);
  ASSIGN_OR_RETURN(const ModelConfig read, ReadModelConfig(*model.checkpoint));
  model.format =
      std::make_unique<SyntheticFormat>(read, *model.checkpoint, architecture->qkv_bias, *row);
  return model;
}

}  // namespace nibble
