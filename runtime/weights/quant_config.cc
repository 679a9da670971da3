#include "runtime/weights/quant_config.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

using Keys = std::initializer_list<absl::string_view>;

absl::Status WrongKind(Keys keys, const char* kind, const Json& value) {
  return absl::InvalidArgumentError(absl::StrCat("quantization config: \"",
                                                 absl::StrJoin(keys, "\" or \""), "\" is not ",
                                                 kind, " but ", DumpJson(value).substr(0, 64)));
}

Json LowerKeys(const Json& json) {
  Json out{Json::Object{}};
  for (const Json::Member& member : json.AsObject()) {
    out.Set(absl::AsciiStrToLower(member.first), member.second);
  }
  return out;
}

struct Source {
  std::string where;
  Json json;
};

absl::StatusOr<std::vector<Source>> FindSources(const Checkpoint& checkpoint) {
  std::vector<Source> sources;
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* config = checkpoint.config().Find(key);
    if (config == nullptr || config->is_null()) continue;
    if (!config->is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: \"", key, "\" is not an object"));
    }
    sources.push_back({"config.json", LowerKeys(*config)});
    break;
  }
  for (const char* file : {"quantize_config.json", "quant_config.json"}) {
    const absl::StatusOr<std::string> text = checkpoint.ReadSideFile(file);
    if (absl::IsNotFound(text.status())) continue;
    RETURN_IF_ERROR(text.status());
    const absl::StatusOr<Json> json = ParseJson(*text);
    if (!json.ok() || !json->is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": ", json.ok() ? "not a JSON object" : json.status().message()));
    }
    sources.push_back({file, LowerKeys(*json)});
  }
  return sources;
}

absl::StatusOr<std::string> MethodOf(const Source& source) {
  ASSIGN_OR_RETURN(std::string method, NameOr(source.json, {"quant_method", "method"}, ""));
  if (!method.empty()) return method;
  for (const char* key : {"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"}) {
    ASSIGN_OR_RETURN(const bool asked, BoolOr(source.json, {key}, false));
    if (asked) return "bitsandbytes";
  }
  if (source.json.Find("zero_point") != nullptr || source.json.Find("w_bit") != nullptr)
    return "awq";
  return "gptq";
}

// Keys whose disagreement would give wrong weights, with their spellings.
absl::Status CheckAgreement(const Source& a, const Source& b) {
  const std::initializer_list<Keys> facts = {{"bits", "w_bit", "wbits"},
                                             {"group_size", "q_group_size"},
                                             {"sym"},
                                             {"desc_act"},
                                             {"zero_point"},
                                             {"checkpoint_format", "format", "version"}};
  for (const Keys& keys : facts) {
    const Json* one = FirstOf(a.json, keys);
    const Json* two = FirstOf(b.json, keys);
    if (one == nullptr || two == nullptr) continue;
    const bool equal = one->is_string() && two->is_string()
                           ? absl::EqualsIgnoreCase(one->AsString(), two->AsString())
                           : DumpJson(*one) == DumpJson(*two);
    if (equal) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(a.where, " says ", *keys.begin(), " ", DumpJson(*one).substr(0, 64), " and ",
                     b.where, " says ", DumpJson(*two).substr(0, 64), ": remove the wrong one"));
  }
  return absl::OkStatus();
}

}  // namespace

const Json* FirstOf(const Json& json, Keys keys) {
  for (const absl::string_view key : keys) {
    const Json* value = json.Find(key);
    if (value != nullptr && !value->is_null()) return value;
  }
  return nullptr;
}

absl::StatusOr<std::int64_t> IntegerOr(const Json& json, Keys keys, std::int64_t fallback) {
  const Json* value = FirstOf(json, keys);
  if (value == nullptr) return fallback;
  if (!value->is_integer() || !value->FitsInt64()) return WrongKind(keys, "an integer", *value);
  return value->AsInt64();
}

absl::StatusOr<bool> BoolOr(const Json& json, Keys keys, bool fallback) {
  const Json* value = FirstOf(json, keys);
  if (value == nullptr) return fallback;
  if (!value->is_bool()) return WrongKind(keys, "true or false", *value);
  return value->AsBool();
}

absl::StatusOr<std::string> NameOr(const Json& json, Keys keys, absl::string_view fallback) {
  const Json* value = FirstOf(json, keys);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return WrongKind(keys, "a string", *value);
  return absl::AsciiStrToLower(value->AsString());
}

absl::StatusOr<QuantConfig> ReadQuantConfig(const Checkpoint& checkpoint) {
  if (checkpoint.kind() == CheckpointKind::kGguf) return QuantConfig{"gguf", Json(Json::Object{})};
  ASSIGN_OR_RETURN(std::vector<Source> sources, FindSources(checkpoint));
  if (sources.empty()) return QuantConfig{"", Json(Json::Object{})};
  for (std::size_t i = 1; i < sources.size(); ++i) {
    RETURN_IF_ERROR(CheckAgreement(sources[0], sources[i]));
  }
  const bool packed =
      std::any_of(checkpoint.tensors().begin(), checkpoint.tensors().end(),
                  [](const TensorInfo& tensor) { return absl::EndsWith(tensor.name, ".qweight"); });
  if (sources[0].where != "config.json" && !packed) {
    LogWarning("a quantization config beside weights that are not packed is ignored",
               {{"file", sources[0].where}, {"checkpoint", checkpoint.path()}});
    return QuantConfig{"", Json(Json::Object{})};
  }
  ASSIGN_OR_RETURN(std::string method, MethodOf(sources[0]));
  return QuantConfig{std::move(method), std::move(sources[0].json)};
}

}  // namespace nibble
