#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/model/config_parts.h"

namespace nibble {
namespace {

using Kind = RopeScaling::Kind;

constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;
constexpr std::int64_t kMaxContext = 1 << 24;
constexpr double kLocalTheta = 1e4;  // gemma3's window layers

absl::StatusOr<std::int32_t> RotatedEntries(const ModelConfig& config, double fraction) {
  const auto dim = static_cast<std::int32_t>(config.head_dim * fraction);
  if (dim < 2 || dim % 2 != 0 || dim > config.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("the rotary embedding covers ", dim, " entries of heads of ", config.head_dim,
                     "; it must be an even number from 2 to ", config.head_dim));
  }
  return dim;
}

absl::Status CheckDivisors(const std::string& name, const std::vector<double>& values,
                           std::int32_t dim) {
  if (values.size() != static_cast<std::size_t>(dim / 2)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", values.size(), " entries; it must have ", dim / 2));
  }
  for (const double value : values) {
    if (!(value > 0 && std::isfinite(value))) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " holds ", value, "; it must be positive"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Kind> ParseKind(const ConfigSource& scaling, const Architecture& row) {
  constexpr ConfigKey kType = {"rope_type|type", nullptr};
  ASSIGN_OR_RETURN(std::optional<std::string> type, scaling.String(kType));
  const std::string name = type.value_or("default");
  if (name == "default" || name == "mrope" || name == "none") return Kind::kNone;
  if (name == "linear") return Kind::kLinear;
  if (name == "dynamic") return Kind::kDynamic;
  if (name == "llama3") return Kind::kLlama3;
  if (name == "longrope" || name == "su") return Kind::kLongRope;
  // Phi-3 files of some date call longrope yarn.
  if (name == "yarn") return row.name == absl::string_view("phi3") ? Kind::kLongRope : Kind::kYarn;
  return absl::UnimplementedError(
      absl::StrCat(scaling.NameOf(kType), " is \"", name,
                   "\"; supported are default, linear, dynamic, llama3, yarn and longrope"));
}

absl::StatusOr<std::vector<double>> Divisors(const ConfigSource& scaling, const char* name,
                                             std::int32_t dim) {
  std::vector<double> values;
  const Json* list = scaling.HuggingFaceValue(name);
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(scaling.NameOf({name, nullptr}), " is missing or no list"));
  }
  for (const Json& value : list->AsArray())
    values.push_back(value.is_number() ? value.AsDouble() : 0.0);
  RETURN_IF_ERROR(CheckDivisors(scaling.NameOf({name, nullptr}), values, dim));
  return values;
}

absl::Status ReadOptional(const ConfigSource& scaling, const char* name,
                          std::optional<double>& out) {
  ASSIGN_OR_RETURN(out, scaling.Number({name, nullptr}));
  if (out && !(*out > 0 && *out <= kMaxFactor)) {
    return absl::InvalidArgumentError(
        absl::StrCat(scaling.NameOf({name, nullptr}), " is ", *out, "; it must be positive"));
  }
  return absl::OkStatus();
}

// The context before scaling: in the scaling object, else beside it, else the model's.
absl::StatusOr<std::int64_t> OriginalContext(const ConfigSource& source,
                                             const ConfigSource& scaling,
                                             const ModelConfig& config) {
  constexpr ConfigKey kOriginal = {"original_max_position_embeddings", nullptr};
  ASSIGN_OR_RETURN(std::int32_t beside, source.Size(kOriginal, config.max_context, 1, kMaxContext));
  return scaling.Size(kOriginal, beside, 1, kMaxContext);
}

// How each kind's fields are read; `factor` and `original_context` are resolved here once and for
// all.
absl::Status ReadScaling(const ConfigSource& source, const ConfigSource& scaling,
                         const ModelConfig& config, RopeConfig& rope) {
  RopeScaling& out = rope.scaling;
  ASSIGN_OR_RETURN(out.original_context, OriginalContext(source, scaling, config));
  const double grown =
      static_cast<double>(config.max_context) / static_cast<double>(out.original_context);
  std::optional<double> derived;
  if (out.kind == Kind::kYarn || out.kind == Kind::kLongRope) derived = grown;
  ASSIGN_OR_RETURN(out.factor, scaling.Real({"factor", nullptr}, derived, 1e-3, kMaxFactor));
  // Phi-3's class takes the ratio of its contexts, whatever the file says.
  if (out.kind == Kind::kLongRope && grown > 1) out.factor = grown;
  RETURN_IF_ERROR(ReadOptional(scaling, "attention_factor", out.attention_factor));

  if (out.kind == Kind::kLlama3) {
    ASSIGN_OR_RETURN(out.low_freq_factor,
                     scaling.Real({"low_freq_factor", nullptr}, std::nullopt, 1e-3, kMaxFactor));
    ASSIGN_OR_RETURN(out.high_freq_factor,
                     scaling.Real({"high_freq_factor", nullptr}, std::nullopt, 1e-3, kMaxFactor));
    if (out.high_freq_factor <= out.low_freq_factor) {
      return absl::InvalidArgumentError(
          absl::StrCat(scaling.NameOf({"high_freq_factor", nullptr}), " is ", out.high_freq_factor,
                       "; it must be above low_freq_factor ", out.low_freq_factor));
    }
  }
  if (out.kind == Kind::kYarn) {
    ASSIGN_OR_RETURN(out.beta_fast, scaling.Real({"beta_fast", nullptr}, 32.0, 1e-3, kMaxFactor));
    ASSIGN_OR_RETURN(out.beta_slow, scaling.Real({"beta_slow", nullptr}, 1.0, 1e-3, kMaxFactor));
    ASSIGN_OR_RETURN(out.truncate, scaling.Flag({"truncate", nullptr}, true));
    RETURN_IF_ERROR(ReadOptional(scaling, "mscale", out.mscale));
    RETURN_IF_ERROR(ReadOptional(scaling, "mscale_all_dim", out.mscale_all_dim));
  }
  if (out.kind == Kind::kLongRope) {
    ASSIGN_OR_RETURN(out.short_factor, Divisors(scaling, "short_factor", rope.dim));
    ASSIGN_OR_RETURN(out.long_factor, Divisors(scaling, "long_factor", rope.dim));
  }
  return absl::OkStatus();
}

// The object that describes one table, and where it lies; null when there is none.
struct RopeObject {
  const Json* json = nullptr;
  std::string path;
};

absl::StatusOr<RopeConfig> ReadHuggingFaceRope(const ConfigSource& source, const Architecture& row,
                                               const ModelConfig& config, const RopeObject& object,
                                               double default_theta) {
  static const Json kEmpty{Json::Object{}};
  if (object.json != nullptr && !object.json->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: ", object.path, " is ", DumpJson(*object.json), "; it must be an object"));
  }
  const ConfigSource scaling = ConfigSource::HuggingFace(
      object.json != nullptr ? *object.json : kEmpty, absl::StrCat(object.path, "."));
  RopeConfig rope;
  ASSIGN_OR_RETURN(rope.theta,
                   scaling.Real({"rope_theta", nullptr}, default_theta, 1.0, kMaxTheta));
  ASSIGN_OR_RETURN(double beside, source.Real({"partial_rotary_factor", nullptr}, 1.0, 0.0, 1.0));
  ASSIGN_OR_RETURN(double fraction,
                   scaling.Real({"partial_rotary_factor", nullptr}, beside, 0.0, 1.0));
  ASSIGN_OR_RETURN(rope.dim, RotatedEntries(config, fraction));
  ASSIGN_OR_RETURN(rope.scaling.kind, ParseKind(scaling, row));
  if (rope.scaling.kind != Kind::kNone) RETURN_IF_ERROR(ReadScaling(source, scaling, config, rope));
  return rope;
}

absl::Status ReadHuggingFaceRopes(const ConfigSource& source, const Architecture& row,
                                  ModelConfig& config) {
  RopeObject global = {source.HuggingFaceValue("rope_parameters"), "rope_parameters"};
  if (global.json == nullptr) global = {source.HuggingFaceValue("rope_scaling"), "rope_scaling"};
  RopeObject local;
  if (global.json != nullptr &&
      global.json->Find("full_attention") != nullptr) {  // a table a layer type
    local = {global.json->Find("sliding_attention"), global.path + ".sliding_attention"};
    global = {global.json->Find("full_attention"), global.path + ".full_attention"};
  }
  ASSIGN_OR_RETURN(double theta,
                   source.Real({"rope_theta", nullptr}, row.defaults.rope_theta, 1.0, kMaxTheta));
  ASSIGN_OR_RETURN(RopeConfig rope, ReadHuggingFaceRope(source, row, config, global, theta));
  config.ropes.push_back(std::move(rope));
  if (!row.local_rope) return absl::OkStatus();
  ASSIGN_OR_RETURN(double local_theta,
                   source.Real({"rope_local_base_freq", nullptr}, kLocalTheta, 1.0, kMaxTheta));
  ASSIGN_OR_RETURN(RopeConfig local_rope,
                   ReadHuggingFaceRope(source, row, config, local, local_theta));
  config.ropes.push_back(std::move(local_rope));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> ReadDivisors(const Checkpoint& checkpoint, const char* name,
                                                 std::int32_t dim) {
  if (checkpoint.Find(name) == nullptr) return std::vector<double>();
  ASSIGN_OR_RETURN(std::vector<float> floats, ReadVector(checkpoint, name));
  std::vector<double> values(floats.begin(), floats.end());
  RETURN_IF_ERROR(CheckDivisors(name, values, dim));
  return values;
}

absl::Status ReadGgufScaling(const ConfigSource& source, const Checkpoint& checkpoint,
                             const ModelConfig& config, RopeConfig& rope) {
  RopeScaling& out = rope.scaling;
  ASSIGN_OR_RETURN(std::optional<std::string> type, source.String({nullptr, "rope.scaling.type"}));
  ASSIGN_OR_RETURN(double legacy,
                   source.Real({nullptr, "rope.scale_linear"}, 1.0, 1e-3, kMaxFactor));
  ASSIGN_OR_RETURN(out.factor,
                   source.Real({nullptr, "rope.scaling.factor"}, legacy, 0.0, kMaxFactor));
  ASSIGN_OR_RETURN(out.original_context,
                   source.Size({nullptr, "rope.scaling.original_context_length"},
                               config.max_context, 1, kMaxContext));
  ASSIGN_OR_RETURN(std::optional<double> attention,
                   source.Number({nullptr, "rope.scaling.attn_factor"}));
  ASSIGN_OR_RETURN(out.frequency_divisors, ReadDivisors(checkpoint, "rope_freqs.weight", rope.dim));
  ASSIGN_OR_RETURN(out.short_factor,
                   ReadDivisors(checkpoint, "rope_factors_short.weight", rope.dim));
  ASSIGN_OR_RETURN(out.long_factor, ReadDivisors(checkpoint, "rope_factors_long.weight", rope.dim));
  if (out.factor == 0.0) out.factor = 1.0;

  if (!out.long_factor.empty() && !out.short_factor.empty()) {
    out.kind = Kind::kLongRope;
    out.factor =
        static_cast<double>(config.max_context) / static_cast<double>(out.original_context);
    out.attention_factor = attention;
  } else if (type == "yarn") {
    out.kind = Kind::kYarn;
    ASSIGN_OR_RETURN(out.beta_fast,
                     source.Real({nullptr, "rope.scaling.yarn_beta_fast"}, 32.0, 1e-3, kMaxFactor));
    ASSIGN_OR_RETURN(out.beta_slow,
                     source.Real({nullptr, "rope.scaling.yarn_beta_slow"}, 1.0, 1e-3, kMaxFactor));
    // Here the factor multiplies yarn's own.
    if (attention)
      out.attention_factor = *attention * (out.factor > 1 ? 0.1 * std::log(out.factor) + 1.0 : 1.0);
  } else if (!type || type == "none" || type == "linear") {
    out.kind = out.factor == 1.0 || type == "none" ? Kind::kNone : Kind::kLinear;
  } else {
    return absl::UnimplementedError(
        absl::StrCat(source.NameOf({nullptr, "rope.scaling.type"}), " is \"", *type,
                     "\"; supported are none, linear and yarn, and longrope with its "
                     "factor tensors"));
  }
  return absl::OkStatus();
}

absl::Status ReadGgufRopes(const ConfigSource& source, const Architecture& row,
                           const Checkpoint& checkpoint, ModelConfig& config) {
  RopeConfig rope;
  ASSIGN_OR_RETURN(rope.theta, source.Real({nullptr, "rope.freq_base"}, 1e4, 1.0, kMaxTheta));
  ASSIGN_OR_RETURN(std::int32_t entries, source.Size({nullptr, "rope.dimension_count"},
                                                     config.head_dim, 1, config.head_dim));
  ASSIGN_OR_RETURN(rope.dim,
                   RotatedEntries(config, static_cast<double>(entries) / config.head_dim));
  RETURN_IF_ERROR(ReadGgufScaling(source, checkpoint, config, rope));
  config.ropes.push_back(rope);
  if (!row.local_rope) return absl::OkStatus();
  RopeConfig local;
  ASSIGN_OR_RETURN(local.theta,
                   source.Real({nullptr, "rope.freq_base_swa"}, kLocalTheta, 1.0, kMaxTheta));
  local.dim = rope.dim;
  config.ropes.push_back(local);
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadRopes(const ConfigSource& source, const Architecture& row,
                       const Checkpoint& checkpoint, ModelConfig& config) {
  RETURN_IF_ERROR(source.is_gguf() ? ReadGgufRopes(source, row, checkpoint, config)
                                   : ReadHuggingFaceRopes(source, row, config));
  // Files that ask for yarn often keep the context it starts from.
  const RopeScaling& scaling = config.ropes.front().scaling;
  if (scaling.kind == Kind::kYarn) {
    const double extended = scaling.factor * static_cast<double>(scaling.original_context);
    config.max_context = static_cast<std::int32_t>(
        std::max<double>(config.max_context, std::min<double>(extended, kMaxContext)));
  }
  return absl::OkStatus();
}

}  // namespace nibble
