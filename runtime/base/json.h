// JSON values and a parser for untrusted text: depth and size are bounded, duplicate keys are
// refused, integers stay integers. Objects keep the order of the text, which chat templates and
// `tojson` show.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;  // in text order; keys are unique

  Json() = default;
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(std::int64_t value) : value_(value) {}
  Json(int value) : value_(std::int64_t{value}) {}
  Json(std::uint64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(absl::string_view value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const;  // written without fraction or exponent
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // REQUIRE the matching is_*(); a wrong kind aborts.
  bool AsBool() const;
  std::int64_t AsInt64() const;    // REQUIRES: is_integer() and in range, else saturates
  std::uint64_t AsUint64() const;  // likewise; negative saturates to 0
  double AsDouble() const;         // any number
  const std::string& AsString() const;
  const Array& AsArray() const;
  Array& AsArray();
  const Object& AsObject() const;
  Object& AsObject();
  // Whether an integer value is a non-negative one that fits uint64 (safetensors offsets).
  bool FitsUint64() const;
  bool FitsInt64() const;

  // Member of an object; null pointer when absent or when this is no object.
  const Json* Find(absl::string_view key) const;
  // Sets or replaces a member. REQUIRES: is_object() or is_null(), which becomes an empty object.
  void Set(absl::string_view key, Json value);

  bool operator==(const Json&) const = default;

 private:
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      value_;
};

struct JsonLimits {
  int max_depth = 64;
  std::int64_t max_values = 20'000'000;  // scalars, arrays and objects together
};

// One JSON text, whitespace around it allowed. InvalidArgument names the byte offset and the
// reason.
absl::StatusOr<Json> ParseJson(absl::string_view text, const JsonLimits& limits = {});

struct JsonStyle {
  int indent = -1;                    // -1: one line
  std::string item_separator = ", ";  // Python's json.dumps defaults, which templates expect
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ascii_only = false;
};

std::string DumpJson(const Json& value, const JsonStyle& style = {});

}  // namespace nibble
