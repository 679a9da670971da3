#include "server/option_sources.h"

#include <algorithm>
#include <array>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/values.h"
#include "yaml-cpp/yaml.h"

namespace nibble {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;

const FlagName* FindFlag(const std::vector<FlagName>& flags, absl::string_view name) {
  const auto found = std::find_if(flags.begin(), flags.end(),
                                  [&](const FlagName& flag) { return flag.name == name; });
  return found == flags.end() ? nullptr : &*found;
}

std::string DidYouMean(absl::string_view name, absl::string_view prefix,
                       std::vector<std::string> names) {
  const std::string nearest = Nearest(name, names);
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", prefix, nearest, "?");
}

std::vector<std::string> Names(const std::vector<FlagName>& flags) {
  std::vector<std::string> names;
  for (const FlagName& flag : flags) names.push_back(flag.name);
  return names;
}

// One entry of `models:` as a MODEL of the command line.
absl::StatusOr<std::string> ModelText(const YAML::Node& node, const std::string& where) {
  if (node.IsScalar()) return node.Scalar();
  if (!node.IsMap())
    return absl::InvalidArgumentError(absl::StrCat(where, ": must be text or a mapping"));
  static const std::vector<std::string> kKeys{"path", "name", "device", "kv-memory", "max-context"};
  std::map<std::string, std::string> values;
  for (const auto& entry : node) {
    const std::string key = entry.first.Scalar();
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": there is no setting ", Quote(key), DidYouMean(key, "", kKeys)));
    }
    if (!entry.second.IsScalar() || !values.emplace(key, entry.second.Scalar()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ".", key, ": must be one value, given once"));
    }
  }
  if (values["path"].empty())
    return absl::InvalidArgumentError(absl::StrCat(where, ".path: must be set"));
  std::string text =
      values["name"].empty() ? values["path"] : absl::StrCat(values["name"], "=", values["path"]);
  for (const char* key : {"device", "kv-memory", "max-context"}) {
    if (!values[key].empty()) absl::StrAppend(&text, ",", key, "=", values[key]);
  }
  return text;
}

absl::StatusOr<RawOptions> FromYaml(const YAML::Node& root, const std::string& path,
                                    const std::vector<FlagName>& flags) {
  RawOptions raw;
  if (root.IsNull()) return raw;  // an empty file
  if (!root.IsMap())
    return absl::InvalidArgumentError(absl::StrCat(path, ": must be a mapping of settings"));
  for (const auto& entry : root) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "?";
    const std::string where = absl::StrCat(path, ":", entry.first.Mark().line + 1, ": ", key);
    if (key == "models") {
      if (!entry.second.IsSequence() || raw.models.has_value()) {
        return absl::InvalidArgumentError(absl::StrCat(where, ": must be a list, given once"));
      }
      raw.models.emplace();
      raw.models_source = path;
      for (std::size_t i = 0; i < entry.second.size(); ++i) {
        ASSIGN_OR_RETURN(std::string model,
                         ModelText(entry.second[i], absl::StrCat(where, "[", i, "]")));
        raw.models->push_back(std::move(model));
      }
      continue;
    }
    if (FindFlag(flags, key) == nullptr || key == "config") {
      std::vector<std::string> names = Names(flags);
      names.push_back("models");
      return absl::InvalidArgumentError(absl::StrCat(path, ":", entry.first.Mark().line + 1,
                                                     ": there is no setting ", Quote(key),
                                                     DidYouMean(key, "", names)));
    }
    if (!entry.second.IsScalar())
      return absl::InvalidArgumentError(absl::StrCat(where, ": must be one value"));
    if (!raw.values.emplace(key, RawOptions::Value{entry.second.Scalar(), path}).second) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": is given twice"));
    }
  }
  return raw;
}

}  // namespace

std::string EnvironmentName(const std::string& flag) {
  return absl::StrCat("NIBBLE_", absl::AsciiStrToUpper(absl::StrReplaceAll(flag, {{"-", "_"}})));
}

absl::StatusOr<RawOptions> ReadCommandLine(const std::vector<std::string>& arguments,
                                           const std::vector<FlagName>& flags) {
  RawOptions raw;
  bool only_models = false;  // after "--"
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view argument = arguments[i];
    if (only_models || !absl::StartsWith(argument, "-") || argument == "-") {
      if (!raw.models.has_value()) raw.models.emplace();
      raw.models->push_back(arguments[i]);
      raw.models_source = "command line";
      continue;
    }
    if (argument == "--") {
      only_models = true;
      continue;
    }
    if (argument == "-h") argument = "--help";
    const bool is_long = absl::ConsumePrefix(&argument, "--");
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(argument, absl::MaxSplits('=', 1));
    const bool has_value = absl::StrContains(argument, '=');
    const FlagName* flag = is_long ? FindFlag(flags, parts.first) : nullptr;
    if (flag == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("there is no flag ", Quote(arguments[i]),
                                                     DidYouMean(parts.first, "--", Names(flags))));
    }
    std::string text;
    if (has_value) {
      text = std::string(parts.second);
    } else if (flag->is_switch) {
      text = "true";
    } else if (i + 1 < arguments.size()) {
      text = arguments[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--", flag->name, " needs a value"));
    }
    raw.values[flag->name] = {text, "command line"};
  }
  return raw;
}

absl::StatusOr<RawOptions> ReadEnvironment(const std::vector<std::string>& environment,
                                           const std::vector<FlagName>& flags,
                                           std::vector<std::string>* warnings) {
  RawOptions raw;
  std::map<std::string, std::string> known;  // variable to flag
  std::vector<std::string> names{"NIBBLE_MODELS"};
  for (const FlagName& flag : flags) {
    known[EnvironmentName(flag.name)] = flag.name;
    names.push_back(EnvironmentName(flag.name));
  }
  for (const std::string& entry : environment) {
    if (!absl::StartsWith(entry, "NIBBLE_")) continue;
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    if (variable.first == "NIBBLE_MODELS") {
      raw.models =
          std::vector<std::string>(absl::StrSplit(variable.second, ' ', absl::SkipEmpty()));
      raw.models_source = "NIBBLE_MODELS";
    } else if (const auto found = known.find(variable.first); found != known.end()) {
      raw.values[found->second] = {variable.second, variable.first};
    } else if (variable.first !=
                   "NIBBLE_FAULT_AT_STEP" &&  // a drill, runtime/device/fault_backend.h
               !absl::StartsWith(variable.first, "NIBBLE_PORT") &&
               !absl::StartsWith(variable.first, "NIBBLE_SERVICE_")) {
      warnings->push_back(absl::StrCat("the environment variable ", Quote(variable.first),
                                       " means nothing here",
                                       DidYouMean(variable.first, "", names)));
    }
  }
  return raw;
}

absl::StatusOr<RawOptions> ReadConfigFile(const std::string& path,
                                          const std::vector<FlagName>& flags) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  try {
    return FromYaml(YAML::Load(text), path, flags);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace nibble
