#include "runtime/base/json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

[[noreturn]] void WrongKind(const char* wanted) {
  std::fprintf(stderr, "Json: value is not %s\n", wanted);
  std::abort();
}

// Builds a Json from nlohmann's SAX events, within limits. Errors are kept in `error`.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(Json()); }
  bool boolean(bool value) override { return Add(Json(value)); }
  bool number_integer(number_integer_t value) override { return Add(Json(std::int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) override { return Add(Json(std::uint64_t{value})); }
  bool number_float(number_float_t value, const string_t&) override { return Add(Json(value)); }
  bool string(string_t& value) override { return Add(Json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }

  bool start_object(std::size_t) override { return Open(Json(Json::Object{})); }
  bool start_array(std::size_t) override { return Open(Json(Json::Array{})); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    Frame& frame = stack_.back();
    if (!frame.keys.insert(value).second)
      return Fail(absl::StrCat("duplicate key \"", Shown(value), "\""));
    frame.key = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // nlohmann's text repeats the input around the error; only its reason is of use, and it is
    // bounded.
    error = absl::StrCat("invalid JSON at byte ", position, ": ", Shown(e.what()));
    return false;
  }

  Json result;
  std::string error;

 private:
  struct Frame {
    Json value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  static std::string Shown(absl::string_view text) { return std::string(text.substr(0, 200)); }

  bool Fail(std::string reason) {
    error = std::move(reason);
    return false;
  }

  bool Count() {
    if (++values_ > limits_.max_values) {
      return Fail(absl::StrCat("JSON text has more than ", limits_.max_values, " values"));
    }
    return true;
  }

  bool Open(Json value) {
    if (!Count()) return false;
    if (static_cast<int>(stack_.size()) >= limits_.max_depth) {
      return Fail(absl::StrCat("JSON text is nested deeper than ", limits_.max_depth));
    }
    stack_.push_back(Frame{std::move(value), {}, {}});
    return true;
  }

  bool Add(Json value) { return Count() && Place(std::move(value)); }

  bool Place(Json value) {
    if (stack_.empty()) {
      result = std::move(value);
    } else if (Frame& frame = stack_.back(); frame.value.is_object()) {
      frame.value.AsObject().emplace_back(std::move(frame.key), std::move(value));
    } else {
      frame.value.AsArray().push_back(std::move(value));
    }
    return true;
  }

  bool Close() {
    Json value = std::move(stack_.back().value);
    stack_.pop_back();
    return Place(std::move(value));
  }

  const JsonLimits& limits_;
  std::vector<Frame> stack_;
  std::int64_t values_ = 0;
};

void AppendEscaped(const std::string& text, bool ascii_only, std::string* out) {
  // nlohmann escapes exactly as Python's json does, given the same ensure_ascii.
  *out += nlohmann::json(text).dump(-1, ' ', ascii_only, nlohmann::json::error_handler_t::replace);
}

// Python's repr of a double: the shortest digits that read back, ".0" kept, exponent outside [1e-4,
// 1e16).
std::string DoubleText(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char digits[40];
  for (int precision = 1; precision <= 17; ++precision) {
    std::snprintf(digits, sizeof(digits), "%.*e", precision - 1, value);
    if (std::strtod(digits, nullptr) == value) break;
  }
  std::string text = digits;
  const std::size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) {
    return absl::StrCat(text.substr(0, e), "e", exponent < 0 ? "-" : "+",
                        std::abs(exponent) < 10 ? "0" : "", std::abs(exponent));
  }
  const int significant =
      static_cast<int>(std::count_if(text.begin(), text.begin() + static_cast<long>(e),
                                     [](char c) { return c >= '0' && c <= '9'; }));
  const int decimals = std::max(1, significant - 1 - exponent);
  std::snprintf(digits, sizeof(digits), "%.*f", decimals, value);
  return digits;
}

void Dump(const Json& value, const JsonStyle& style, int depth, std::string* out) {
  const auto newline = [&](int level) {
    if (style.indent < 0) return;
    *out += '\n';
    out->append(static_cast<std::size_t>(style.indent) * static_cast<std::size_t>(level), ' ');
  };
  // With an indent the line break replaces the blank after an item.
  const std::string separator =
      style.indent >= 0 && style.item_separator == ", " ? "," : style.item_separator;
  if (value.is_null()) {
    *out += "null";
  } else if (value.is_bool()) {
    *out += value.AsBool() ? "true" : "false";
  } else if (value.is_integer()) {
    if (value.FitsInt64()) {
      absl::StrAppend(out, value.AsInt64());
    } else {
      absl::StrAppend(out, value.AsUint64());
    }
  } else if (value.is_number()) {
    *out += DoubleText(value.AsDouble());
  } else if (value.is_string()) {
    AppendEscaped(value.AsString(), style.ascii_only, out);
  } else if (value.is_array()) {
    *out += '[';
    bool first = true;
    for (const Json& item : value.AsArray()) {
      if (!first) *out += separator;
      first = false;
      newline(depth + 1);
      Dump(item, style, depth + 1, out);
    }
    if (!first) newline(depth);
    *out += ']';
  } else {
    std::vector<const Json::Member*> members;
    for (const Json::Member& member : value.AsObject()) members.push_back(&member);
    if (style.sort_keys) {
      std::sort(members.begin(), members.end(),
                [](auto* a, auto* b) { return a->first < b->first; });
    }
    *out += '{';
    bool first = true;
    for (const Json::Member* member : members) {
      if (!first) *out += separator;
      first = false;
      newline(depth + 1);
      AppendEscaped(member->first, style.ascii_only, out);
      *out += style.key_separator;
      Dump(member->second, style, depth + 1, out);
    }
    if (!first) newline(depth);
    *out += '}';
  }
}

}  // namespace

bool Json::is_integer() const {
  return std::holds_alternative<std::int64_t>(value_) ||
         std::holds_alternative<std::uint64_t>(value_);
}

bool Json::AsBool() const {
  if (const bool* value = std::get_if<bool>(&value_)) return *value;
  WrongKind("a boolean");
}

std::int64_t Json::AsInt64() const {
  if (const auto* value = std::get_if<std::int64_t>(&value_)) return *value;
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) {
    constexpr std::uint64_t kMax = std::numeric_limits<std::int64_t>::max();
    return static_cast<std::int64_t>(std::min(*value, kMax));
  }
  WrongKind("an integer");
}

std::uint64_t Json::AsUint64() const {
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return *value;
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, AsInt64()));
}

bool Json::FitsUint64() const {
  if (const auto* value = std::get_if<std::int64_t>(&value_)) return *value >= 0;
  return std::holds_alternative<std::uint64_t>(value_);
}

bool Json::FitsInt64() const {
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) {
    return *value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  }
  return std::holds_alternative<std::int64_t>(value_);
}

double Json::AsDouble() const {
  if (const auto* value = std::get_if<double>(&value_)) return *value;
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return static_cast<double>(*value);
  return static_cast<double>(AsInt64());
}

const std::string& Json::AsString() const {
  if (const auto* value = std::get_if<std::string>(&value_)) return *value;
  WrongKind("a string");
}

const Json::Array& Json::AsArray() const {
  if (const auto* value = std::get_if<Array>(&value_)) return *value;
  WrongKind("an array");
}

Json::Array& Json::AsArray() { return const_cast<Array&>(std::as_const(*this).AsArray()); }

const Json::Object& Json::AsObject() const {
  if (const auto* value = std::get_if<Object>(&value_)) return *value;
  WrongKind("an object");
}

Json::Object& Json::AsObject() { return const_cast<Object&>(std::as_const(*this).AsObject()); }

const Json* Json::Find(absl::string_view key) const {
  const auto* object = std::get_if<Object>(&value_);
  if (object == nullptr) return nullptr;
  for (const Member& member : *object) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

void Json::Set(absl::string_view key, Json value) {
  if (is_null()) value_ = Object{};
  for (Member& member : AsObject()) {
    if (member.first == key) {
      member.second = std::move(value);
      return;
    }
  }
  AsObject().emplace_back(std::string(key), std::move(value));
}

absl::StatusOr<Json> ParseJson(absl::string_view text, const JsonLimits& limits) {
  // nlohmann takes a NUL for the end of the text and would ignore whatever follows.
  if (const std::size_t nul = text.find('\0'); nul != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("invalid JSON at byte ", nul, ": a NUL byte"));
  }
  Builder builder(limits);
  bool complete = false;
  try {
    complete = nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const std::exception& e) {  // nlohmann throws for numbers out of range of a double
    builder.error = std::string(e.what()).substr(0, 200);
  }
  if (!complete)
    return absl::InvalidArgumentError(builder.error.empty() ? "invalid JSON" : builder.error);
  return std::move(builder.result);
}

std::string DumpJson(const Json& value, const JsonStyle& style) {
  std::string out;
  Dump(value, style, 0, &out);
  return out;
}

}  // namespace nibble
