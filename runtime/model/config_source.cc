#include "runtime/model/config_source.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

absl::Status WrongKind(const std::string& name, const std::string& value, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be ", wanted));
}

std::string Show(const GgufMetadata::Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return absl::StrCat("\"", *text, "\"");
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return absl::StrCat(*integer);
  if (const auto* integer = std::get_if<std::uint64_t>(&value)) return absl::StrCat(*integer);
  if (const auto* number = std::get_if<double>(&value)) return absl::StrCat(*number);
  return "an array";
}

// A scalar, or an array of one value repeated (GGUF writes some scalars once a layer).
template <typename T>
std::optional<T> OneValue(const std::vector<T>& values) {
  if (values.empty()) return std::nullopt;
  for (const T& value : values) {
    if (value != values.front()) return std::nullopt;
  }
  return values.front();
}

std::optional<double> AsNumber(const GgufMetadata::Value& value) {
  if (const auto* number = std::get_if<double>(&value)) return *number;
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return static_cast<double>(*integer);
  if (const auto* integer = std::get_if<std::uint64_t>(&value))
    return static_cast<double>(*integer);
  if (const auto* numbers = std::get_if<std::vector<double>>(&value)) return OneValue(*numbers);
  return std::nullopt;
}

std::optional<std::int64_t> AsInteger(const GgufMetadata::Value& value) {
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return *integer;
  if (const auto* integer = std::get_if<std::uint64_t>(&value)) {
    if (*integer > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<std::int64_t>(*integer);
  }
  if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&value))
    return OneValue(*integers);
  return std::nullopt;
}

}  // namespace

std::string ConfigSource::NameOf(ConfigKey key) const {
  if (is_gguf()) return absl::StrCat(prefix_, key.gguf != nullptr ? key.gguf : "?");
  if (key.hf == nullptr) return "config.json";
  std::string first;
  for (absl::string_view alias : absl::StrSplit(key.hf, '|')) {
    if (first.empty()) first = std::string(alias);
    if (json_->Find(alias) != nullptr) return absl::StrCat("config.json: ", prefix_, alias);
  }
  return absl::StrCat("config.json: ", prefix_, first);
}

const GgufMetadata::Value* ConfigSource::GgufValue(ConfigKey key) const {
  return key.gguf == nullptr ? nullptr : metadata_->Find(absl::StrCat(prefix_, key.gguf));
}

const Json* ConfigSource::JsonValue(ConfigKey key) const {
  if (key.hf == nullptr) return nullptr;
  for (absl::string_view alias : absl::StrSplit(key.hf, '|')) {
    const Json* value = json_->Find(alias);
    if (value != nullptr && !value->is_null()) return value;
  }
  return nullptr;
}

const Json* ConfigSource::HuggingFaceValue(const char* name) const {
  return is_gguf() ? nullptr : JsonValue({name, nullptr});
}

bool ConfigSource::IsNull(const char* hf_name) const {
  if (is_gguf()) return false;
  const Json* value = json_->Find(hf_name);
  return value != nullptr && value->is_null();
}

absl::StatusOr<std::optional<std::int64_t>> ConfigSource::Integer(ConfigKey key) const {
  if (is_gguf()) {
    const GgufMetadata::Value* value = GgufValue(key);
    if (value == nullptr) return std::nullopt;
    if (std::optional<std::int64_t> integer = AsInteger(*value)) return integer;
    const bool array = std::holds_alternative<std::vector<std::int64_t>>(*value);
    if (array) {
      return absl::UnimplementedError(absl::StrCat(
          NameOf(key), " differs from layer to layer, which no supported architecture does"));
    }
    return WrongKind(NameOf(key), Show(*value), "an integer");
  }
  const Json* value = JsonValue(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_integer() && value->FitsInt64()) return value->AsInt64();
  return WrongKind(NameOf(key), DumpJson(*value), "an integer");
}

absl::StatusOr<std::optional<double>> ConfigSource::Number(ConfigKey key) const {
  std::optional<double> number;
  std::string shown;
  if (is_gguf()) {
    const GgufMetadata::Value* value = GgufValue(key);
    if (value == nullptr) return std::nullopt;
    number = AsNumber(*value);
    shown = Show(*value);
  } else {
    const Json* value = JsonValue(key);
    if (value == nullptr) return std::nullopt;
    if (value->is_number()) number = value->AsDouble();
    shown = DumpJson(*value);
  }
  if (!number || !std::isfinite(*number)) return WrongKind(NameOf(key), shown, "a finite number");
  return number;
}

absl::StatusOr<std::optional<bool>> ConfigSource::Bool(ConfigKey key) const {
  if (is_gguf()) {
    const GgufMetadata::Value* value = GgufValue(key);
    if (value == nullptr) return std::nullopt;
    if (const bool* flag = std::get_if<bool>(value)) return *flag;
    return WrongKind(NameOf(key), Show(*value), "true or false");
  }
  const Json* value = JsonValue(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_bool()) return value->AsBool();
  return WrongKind(NameOf(key), DumpJson(*value), "true or false");
}

absl::StatusOr<std::optional<std::string>> ConfigSource::String(ConfigKey key) const {
  if (is_gguf()) {
    const GgufMetadata::Value* value = GgufValue(key);
    if (value == nullptr) return std::nullopt;
    if (const auto* text = std::get_if<std::string>(value)) return *text;
    return WrongKind(NameOf(key), Show(*value), "a string");
  }
  const Json* value = JsonValue(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->AsString();
  return WrongKind(NameOf(key), DumpJson(*value), "a string");
}

absl::StatusOr<std::int32_t> ConfigSource::Size(ConfigKey key, std::optional<std::int64_t> fallback,
                                                std::int64_t minimum, std::int64_t maximum) const {
  ASSIGN_OR_RETURN(std::optional<std::int64_t> value, Integer(key));
  if (!value) value = fallback;
  if (!value) return absl::InvalidArgumentError(absl::StrCat(NameOf(key), " is missing"));
  if (*value < minimum || *value > maximum) {
    return absl::InvalidArgumentError(
        absl::StrCat(NameOf(key), " is ", *value, "; it must be from ", minimum, " to ", maximum));
  }
  return static_cast<std::int32_t>(*value);
}

absl::StatusOr<double> ConfigSource::Real(ConfigKey key, std::optional<double> fallback,
                                          double minimum, double maximum) const {
  ASSIGN_OR_RETURN(std::optional<double> value, Number(key));
  if (!value) value = fallback;
  if (!value) return absl::InvalidArgumentError(absl::StrCat(NameOf(key), " is missing"));
  if (!(*value >= minimum && *value <= maximum)) {  // written so that NaN fails
    return absl::InvalidArgumentError(
        absl::StrCat(NameOf(key), " is ", *value, "; it must be from ", minimum, " to ", maximum));
  }
  return *value;
}

absl::StatusOr<bool> ConfigSource::Flag(ConfigKey key, bool fallback) const {
  ASSIGN_OR_RETURN(std::optional<bool> value, Bool(key));
  return value.value_or(fallback);
}

}  // namespace nibble
