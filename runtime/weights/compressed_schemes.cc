#include "runtime/weights/compressed_schemes.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/quant_config.h"

namespace nibble {
namespace {

absl::StatusOr<std::vector<CompressedTarget>> ReadTargets(const Json* list) {
  std::vector<CompressedTarget> out;
  if (list == nullptr || !list->is_array()) return out;
  for (const Json& item : list->AsArray()) {
    if (!item.is_string()) continue;
    CompressedTarget target{item.AsString(), std::nullopt};
    if (absl::StartsWith(target.text, "re:")) {
      ASSIGN_OR_RETURN(target.pattern,
                       ModulePattern::Compile(absl::string_view(target.text).substr(3)));
    }
    out.push_back(std::move(target));
  }
  return out;
}

// How inputs are quantized, or why that is not supported.
absl::StatusOr<ActivationQuant> ReadActivation(const Json* json, std::string& refusal) {
  if (json == nullptr || json->is_null()) return ActivationQuant::kNone;
  const auto refuse = [&](absl::string_view why) {
    refusal = absl::StrCat("input activations ", why);
    return ActivationQuant::kNone;
  };
  ASSIGN_OR_RETURN(const std::int64_t bits, IntegerOr(*json, {"num_bits"}, 8));
  if (bits != 8) return refuse(absl::StrCat("of ", bits, " bits"));
  ASSIGN_OR_RETURN(const bool symmetric, BoolOr(*json, {"symmetric"}, true));
  ASSIGN_OR_RETURN(const std::string strategy, NameOr(*json, {"strategy"}, "tensor"));
  const Json* dynamic = json->Find("dynamic");
  if (dynamic != nullptr && dynamic->is_string()) {
    return refuse(absl::StrCat("with dynamic=\"", dynamic->AsString().substr(0, 32), "\""));
  }
  if (dynamic != nullptr && dynamic->is_bool() && dynamic->AsBool()) {
    if (strategy != "token" && strategy != "tensor") return refuse("with a dynamic scale a group");
    if (!symmetric) return refuse("with dynamic zero points");
    return ActivationQuant::kDynamic;
  }
  if (strategy != "tensor") return refuse("with several static scales");
  return ActivationQuant::kStatic;
}

absl::StatusOr<CompressedScheme> ReadScheme(const Json& json, absl::string_view outer_format) {
  CompressedScheme scheme;
  ASSIGN_OR_RETURN(scheme.targets, ReadTargets(json.Find("targets")));
  ASSIGN_OR_RETURN(const std::string format, NameOr(json, {"format"}, outer_format));
  for (const absl::string_view known :
       {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", ""}) {
    if (format == known) {
      scheme.refusal.clear();
      break;
    }
    scheme.refusal = absl::StrCat("format \"", format.substr(0, 64), "\"");
  }
  const Json* weights = FirstOf(json, {"weights"});
  if (weights == nullptr) return scheme;
  ASSIGN_OR_RETURN(const std::int64_t bits, IntegerOr(*weights, {"num_bits"}, 8));
  ASSIGN_OR_RETURN(const std::int64_t group_size, IntegerOr(*weights, {"group_size"}, -1));
  ASSIGN_OR_RETURN(scheme.symmetric, BoolOr(*weights, {"symmetric"}, true));
  ASSIGN_OR_RETURN(const std::string strategy,
                   NameOr(*weights, {"strategy"}, group_size > 0 ? "group" : "channel"));
  scheme.bits = static_cast<int>(std::clamp<std::int64_t>(bits, 0, 64));
  if (strategy == "group") {
    if (group_size < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("quantization config: strategy group with group_size ", group_size));
    }
    scheme.group_size = group_size;
  } else if (strategy != "channel" && strategy != "tensor") {
    scheme.refusal = absl::StrCat("weights with scales by ", strategy.substr(0, 64));
  }
  if (bits < 2 || bits > 8 || bits == 7)
    scheme.refusal = absl::StrCat("weights of ", bits, " bits");
  std::string refusal;
  ASSIGN_OR_RETURN(scheme.activation, ReadActivation(json.Find("input_activations"), refusal));
  if (!refusal.empty()) scheme.refusal = refusal;
  return scheme;
}

// An object that is present and has members.
bool IsSet(const Json& json, absl::string_view key) {
  const Json* value = json.Find(key);
  return value != nullptr && value->is_object() && !value->AsObject().empty();
}

absl::Status CheckWhole(const Json& config) {
  if (IsSet(config, "sparsity_config")) {
    ASSIGN_OR_RETURN(const std::string format,
                     NameOr(*config.Find("sparsity_config"), {"format"}, "dense"));
    if (format != "dense") {
      return absl::UnimplementedError(
          absl::StrCat("compressed-tensors sparsity format \"", format.substr(0, 64),
                       "\" is not supported: save without sparsity compression"));
    }
  }
  if (const Json* transform = config.Find("transform_config");
      transform != nullptr && IsSet(*transform, "config_groups")) {
    return absl::UnimplementedError(
        "compressed-tensors with transform_config (rotations) is not supported: quantize without "
        "online transforms");
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Names(const CompressedTarget& target, absl::string_view layer) {
  if (target.pattern) return target.pattern->Matches(layer);
  return target.text == layer;
}

}  // namespace

absl::StatusOr<std::vector<CompressedScheme>> ReadCompressedSchemes(const Json& config) {
  RETURN_IF_ERROR(CheckWhole(config));
  ASSIGN_OR_RETURN(const std::string format, NameOr(config, {"format"}, ""));
  std::vector<CompressedScheme> schemes;
  const Json* groups = config.Find("config_groups");
  if (groups == nullptr || !groups->is_object()) return schemes;
  for (const Json::Member& member : groups->AsObject()) {
    if (!member.second.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("quantization config: config_groups \"",
                                                     member.first, "\" is not an object"));
    }
    ASSIGN_OR_RETURN(CompressedScheme scheme,
                     ReadScheme(member.second, format == "mixed-precision" ? "" : format));
    schemes.push_back(std::move(scheme));
  }
  return schemes;
}

absl::StatusOr<const CompressedScheme*> FindScheme(const std::vector<CompressedScheme>& schemes,
                                                   absl::string_view layer) {
  for (const CompressedScheme& scheme : schemes) {
    for (const CompressedTarget& target : scheme.targets) {
      ASSIGN_OR_RETURN(const bool named, Names(target, layer));
      if (named) return &scheme;
    }
  }
  for (const CompressedScheme& scheme : schemes) {
    for (const CompressedTarget& target : scheme.targets) {
      if (target.text == "Linear") return &scheme;
    }
  }
  return nullptr;
}

}  // namespace nibble
