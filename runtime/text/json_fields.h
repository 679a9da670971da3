// Members of tokenizer files, with the member's name in every error.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"

namespace nibble {

inline absl::Status FieldError(absl::string_view owner, absl::string_view key,
                               absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer: ", owner, ": \"", key, "\" must be ", wanted));
}

// The JSON text of the file called `name`.
inline absl::StatusOr<Json> ParseFile(absl::string_view text, absl::string_view name) {
  absl::StatusOr<Json> json = ParseJson(text);
  if (json.ok()) return json;
  return absl::Status(json.status().code(), absl::StrCat(name, ": ", json.status().message()));
}

inline absl::StatusOr<std::string> StringField(const Json& json, absl::string_view key,
                                               absl::string_view owner) {
  const Json* value = json.Find(key);
  if (value == nullptr || !value->is_string()) return FieldError(owner, key, "a string");
  return value->AsString();
}

// Absent or null: `fallback`.
inline absl::StatusOr<bool> BoolField(const Json& json, absl::string_view key, bool fallback,
                                      absl::string_view owner) {
  const Json* value = json.Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  if (!value->is_bool()) return FieldError(owner, key, "true or false");
  return value->AsBool();
}

// Absent or null: empty.
inline absl::StatusOr<std::string> OptionalString(const Json& json, absl::string_view key,
                                                  absl::string_view owner) {
  const Json* value = json.Find(key);
  if (value == nullptr || value->is_null()) return std::string();
  if (!value->is_string()) return FieldError(owner, key, "a string or null");
  return value->AsString();
}

inline absl::StatusOr<const Json::Array*> ArrayField(const Json& json, absl::string_view key,
                                                     absl::string_view owner) {
  const Json* value = json.Find(key);
  if (value == nullptr || !value->is_array()) return FieldError(owner, key, "an array");
  return &value->AsArray();
}

// A token id: 0 .. 2^31 - 1.
inline absl::StatusOr<std::int32_t> IdOf(const Json* value, absl::string_view owner) {
  if (value == nullptr || !value->is_integer() || !value->FitsInt64() || value->AsInt64() < 0 ||
      value->AsInt64() > INT32_MAX) {
    return FieldError(owner, "id", "an integer from 0 to 2147483647");
  }
  return static_cast<std::int32_t>(value->AsInt64());
}

}  // namespace nibble
