#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/model/config_parts.h"
#include "runtime/model/tensor_names.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxWindow = 1 << 30;
constexpr std::int32_t kGlobalRope = 0, kLocalRope = 1, kNoRope = -1;

bool IsInteger(const Json& value, std::int64_t wanted) {
  return value.is_integer() && value.AsInt64() == wanted;
}

// A list with one entry a layer, or null when the file has none.
absl::StatusOr<const Json::Array*> LayerList(const ConfigSource& source, const char* name,
                                             std::int32_t layers) {
  const Json* value = source.HuggingFaceValue(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array() || value->AsArray().size() < static_cast<std::size_t>(layers)) {
    return absl::InvalidArgumentError(absl::StrCat(source.NameOf({name, nullptr}),
                                                   " must be a list with an entry for each of ",
                                                   layers, " layers"));
  }
  return &value->AsArray();
}

// 0: every layer sees everything.
absl::StatusOr<std::int32_t> WindowSize(const ConfigSource& source, const Architecture& row) {
  constexpr ConfigKey kWindow = {"sliding_window", "attention.sliding_window"};
  if (source.is_gguf()) {
    // Dense Qwens record a window that they do not use.
    if (row.window_rule == WindowRule::kFromMaximum) return 0;
    // Early Gemma 2 files leave it out.
    const std::int32_t fallback =
        row.window_rule == WindowRule::kEvenLayers ? row.defaults.window : 0;
    return source.Size(kWindow, fallback, 0, kMaxWindow);
  }
  if (row.window_rule == WindowRule::kFromMaximum) {
    ASSIGN_OR_RETURN(bool used, source.Flag({"use_sliding_window", nullptr}, false));
    if (!used) return 0;
  }
  if (source.IsNull("sliding_window")) return 0;
  return source.Size(kWindow, row.defaults.window, 0, kMaxWindow);
}

absl::StatusOr<bool> SlidesByType(const Json& type, int layer) {
  if (type.is_string() && type.AsString() == "sliding_attention") return true;
  if (type.is_string() && type.AsString() == "full_attention") return false;
  return absl::UnimplementedError(
      absl::StrCat("config.json: layer_types[", layer, "] is ", DumpJson(type),
                   "; supported are \"full_attention\" and \"sliding_attention\""));
}

absl::Status ReadWindows(const ConfigSource& source, const Architecture& row, ModelConfig& config) {
  ASSIGN_OR_RETURN(std::int32_t window, WindowSize(source, row));
  ASSIGN_OR_RETURN(const Json::Array* types, LayerList(source, "layer_types", config.layers));
  ASSIGN_OR_RETURN(std::int32_t pattern,
                   source.Size({"sliding_window_pattern|_sliding_window_pattern",
                                "attention.sliding_window_pattern"},
                               6, 1, 1024));
  ASSIGN_OR_RETURN(std::int32_t first,
                   source.Size({"max_window_layers", nullptr}, 28, 0, kMaxWindow));
  for (int i = 0; i < config.layers; ++i) {
    bool slides = false;
    if (types != nullptr) {
      ASSIGN_OR_RETURN(slides, SlidesByType((*types)[i], i));
    } else {
      switch (row.window_rule) {
        case WindowRule::kAllLayers: slides = true; break;
        case WindowRule::kEvenLayers: slides = i % 2 == 0; break;
        case WindowRule::kPattern: slides = (i + 1) % pattern != 0; break;
        case WindowRule::kFromMaximum: slides = i >= first; break;
      }
    }
    LayerConfig& layer = config.layer[i];
    layer.window = slides ? window : 0;
    layer.rope = row.local_rope && slides ? kLocalRope : kGlobalRope;
  }
  return absl::OkStatus();
}

absl::Status ReadNoRopeLayers(const ConfigSource& source, const Architecture& row,
                              ModelConfig& config) {
  if (!row.no_rope_layers) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Json::Array* rotates, LayerList(source, "no_rope_layers", config.layers));
  ASSIGN_OR_RETURN(std::int32_t interval,
                   source.Size({"no_rope_layer_interval", nullptr}, 4, 1, 1024));
  for (int i = 0; i < config.layers; ++i) {
    // In spite of its name, 1 in the list means that the layer rotates.
    const bool rotated =
        rotates != nullptr ? !IsInteger((*rotates)[i], 0) : (i + 1) % interval != 0;
    if (!rotated) config.layer[i].rope = kNoRope;
  }
  return absl::OkStatus();
}

absl::Status ReadExpertLayers(const ConfigSource& source, const Architecture& row,
                              const Checkpoint& checkpoint, ModelConfig& config) {
  if (!row.moe) return absl::OkStatus();
  if (source.is_gguf()) {
    const NameResolver names(config, checkpoint);
    for (int i = 0; i < config.layers; ++i) {
      config.layer[i].moe =
          checkpoint.Find(names.Get(GgufNames().router, i) + ".weight") != nullptr;
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::int32_t step, source.Size({"decoder_sparse_step", nullptr}, 1, 1, 1024));
  const Json* dense = source.HuggingFaceValue("mlp_only_layers");
  for (int i = 0; i < config.layers; ++i) {
    const bool listed =
        dense != nullptr && dense->is_array() &&
        absl::c_any_of(dense->AsArray(), [i](const Json& v) { return IsInteger(v, i); });
    config.layer[i].moe = !listed && (i + 1) % step == 0;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadLayers(const ConfigSource& source, const Architecture& row,
                        const Checkpoint& checkpoint, ModelConfig& config) {
  config.layer.assign(config.layers, LayerConfig{});
  RETURN_IF_ERROR(ReadWindows(source, row, config));
  RETURN_IF_ERROR(ReadNoRopeLayers(source, row, config));
  return ReadExpertLayers(source, row, checkpoint, config);
}

}  // namespace nibble
