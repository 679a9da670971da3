#include "runtime/model/config.h"

#include <limits>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/model/architectures.h"
#include "runtime/model/config_parts.h"
#include "runtime/model/config_source.h"
#include "runtime/model/tensor_names.h"

namespace nibble {
namespace {

absl::Status UnknownArchitecture(absl::string_view name) {
  return absl::UnimplementedError(absl::StrCat("architecture \"", name,
                                               "\" is not supported; known are ",
                                               absl::StrJoin(KnownArchitectures(), ", ")));
}

absl::Status CheckTensor(const Checkpoint& checkpoint, const std::string& name,
                         const std::vector<std::int64_t>& shape, absl::string_view why) {
  const TensorInfo* tensor = checkpoint.Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is missing from the checkpoint; ", why, " needs it"));
  }
  if (tensor->shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has shape [", absl::StrJoin(tensor->shape, ", "), "], but ", why,
                     " makes it [", absl::StrJoin(shape, ", "), "]"));
  }
  return absl::OkStatus();
}

// The configuration must describe the tensors that are there; linear layers are checked when the
// plan meets their formats.
absl::Status CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint) {
  const NameResolver names(config, checkpoint);
  const std::int64_t hidden = config.hidden;
  RETURN_IF_ERROR(CheckTensor(checkpoint, names.Get(names.table().final_norm), {hidden},
                              absl::StrCat("hidden size ", hidden)));
  const std::string embedding = names.Get(names.table().embedding) + ".weight";
  if (checkpoint.Find(embedding) != nullptr) {
    RETURN_IF_ERROR(
        CheckTensor(checkpoint, embedding, {config.vocab, hidden},
                    absl::StrCat("vocabulary ", config.vocab, " with hidden size ", hidden)));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    RETURN_IF_ERROR(CheckTensor(checkpoint, names.Get(names.table().attention_norm, layer),
                                {hidden}, absl::StrCat("layer ", layer, " of ", config.layers)));
  }
  return absl::OkStatus();
}

void AddIds(const Json* ids, std::vector<std::int32_t>& out) {
  const auto add = [&](const Json& id) {
    if (!id.is_integer()) return;
    const std::int64_t value = id.AsInt64();
    const bool fits = value >= 0 && value <= std::numeric_limits<std::int32_t>::max();
    out.push_back(fits ? static_cast<std::int32_t>(value) : -1);  // -1: no token at all
  };
  if (ids == nullptr) return;
  if (!ids->is_array()) return add(*ids);
  for (const Json& id : ids->AsArray()) add(id);
}

// generation_config.json goes before config.json, which goes before the class.
absl::Status ReadHuggingFaceTokens(const Checkpoint& checkpoint, const Json& text,
                                   const Architecture& row, ModelConfig& config) {
  const Json& outer = checkpoint.config();
  Json generation;
  if (absl::StatusOr<std::string> file = checkpoint.ReadSideFile("generation_config.json");
      file.ok()) {
    absl::StatusOr<Json> parsed = ParseJson(*file);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("generation_config.json: ", parsed.status().message()));
    }
    generation = *std::move(parsed);
  } else if (!absl::IsNotFound(file.status())) {
    return file.status();
  }
  std::vector<std::int32_t> bos;
  for (const Json* source : {&std::as_const(generation), &outer, &text}) {
    if (config.eos_ids.empty()) AddIds(source->Find("eos_token_id"), config.eos_ids);
    if (bos.empty()) AddIds(source->Find("bos_token_id"), bos);
  }
  if (config.eos_ids.empty() && row.defaults.eos >= 0 && text.Find("eos_token_id") == nullptr) {
    config.eos_ids.push_back(row.defaults.eos);
  }
  if (bos.empty() && row.defaults.bos >= 0 && text.Find("bos_token_id") == nullptr)
    bos.push_back(row.defaults.bos);
  if (!bos.empty()) config.bos_id = bos.front();
  return absl::OkStatus();
}

void ReadGgufTokens(const GgufMetadata& metadata, ModelConfig& config) {
  for (const char* key : {"eos", "eot", "eom"}) {
    const auto id = metadata.Integer(absl::StrCat("tokenizer.ggml.", key, "_token_id"));
    if (!id || absl::c_linear_search(config.eos_ids, *id)) continue;
    config.eos_ids.push_back(static_cast<std::int32_t>(*id));
  }
  if (const auto id = metadata.Integer("tokenizer.ggml.bos_token_id")) {
    config.bos_id = static_cast<std::int32_t>(*id);
  }
}

// Ids that the model has no row for can never be sampled: they are dropped, as other servers do,
// but said.
void DropImpossibleTokens(const std::string& path, ModelConfig& config) {
  const auto impossible = [&](std::int32_t id) {
    if (id >= 0 && id < config.vocab) return false;
    LogWarning(
        "a special token lies outside the vocabulary and is ignored",
        {{"path", path}, {"id", absl::StrCat(id)}, {"vocabulary", absl::StrCat(config.vocab)}});
    return true;
  };
  std::erase_if(config.eos_ids, impossible);
  if (config.bos_id && impossible(*config.bos_id)) config.bos_id.reset();
}

absl::Status ReadAll(const ConfigSource& source, const Architecture& row,
                     const Checkpoint& checkpoint, ModelConfig& config) {
  config.architecture = row.name;
  RETURN_IF_ERROR(ReadShape(source, row, checkpoint, config));
  RETURN_IF_ERROR(ReadRopes(source, row, checkpoint, config));
  return ReadLayers(source, row, checkpoint, config);
}

absl::StatusOr<ModelConfig> ReadHuggingFace(const Checkpoint& checkpoint) {
  const Json& json = checkpoint.config();
  std::string name;
  if (const Json* classes = json.Find("architectures"); classes != nullptr && classes->is_array() &&
                                                        !classes->AsArray().empty() &&
                                                        classes->AsArray().front().is_string()) {
    name = classes->AsArray().front().AsString();
  } else if (const Json* type = json.Find("model_type"); type != nullptr && type->is_string()) {
    name = type->AsString();
  } else {
    return absl::InvalidArgumentError("config.json names neither `architectures` nor `model_type`");
  }
  const Architecture* row = FindHuggingFaceArchitecture(name);
  if (row == nullptr) return UnknownArchitecture(name);

  const Json* text = json.Find("text_config");
  const bool nested = text != nullptr && text->is_object();
  if (!nested) text = &json;
  ModelConfig config;
  RETURN_IF_ERROR(ReadAll(ConfigSource::HuggingFace(*text, nested ? "text_config." : ""), *row,
                          checkpoint, config));
  RETURN_IF_ERROR(ReadHuggingFaceTokens(checkpoint, *text, *row, config));
  if (config.tied_head && checkpoint.Find("lm_head.weight") != nullptr) {
    LogWarning("lm_head.weight is ignored: the configuration ties the head to the embedding",
               {{"path", checkpoint.path()}});
  }
  return config;
}

absl::StatusOr<ModelConfig> ReadGguf(const Checkpoint& checkpoint) {
  const GgufMetadata& metadata = *checkpoint.gguf();
  const std::string* name = metadata.String("general.architecture");
  if (name == nullptr)
    return absl::InvalidArgumentError("general.architecture is missing or no string");
  const bool moe = metadata.Integer(absl::StrCat(*name, ".expert_count")).value_or(0) > 0;
  const Architecture* row = FindGgufArchitecture(*name, moe);
  if (row == nullptr) return UnknownArchitecture(*name);

  ModelConfig config;
  RETURN_IF_ERROR(ReadAll(ConfigSource::Gguf(metadata, *name), *row, checkpoint, config));
  ReadGgufTokens(metadata, config);
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(ModelConfig config, checkpoint.kind() == CheckpointKind::kGguf
                                           ? ReadGguf(checkpoint)
                                           : ReadHuggingFace(checkpoint));
  RETURN_IF_ERROR(CheckTensors(config, checkpoint));
  DropImpossibleTokens(checkpoint.path(), config);
  return config;
}

std::vector<std::string> KnownArchitectures() {
  std::vector<std::string> names;
  for (const Architecture& row : Architectures()) names.push_back(row.name);
  return names;
}

}  // namespace nibble
