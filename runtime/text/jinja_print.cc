// Printing values: Python's str and repr, and json.dumps.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"
#include "runtime/text/jinja_runtime.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxPrintDepth = 256;  // namespaces may hold themselves

// Text under the size limit of the runtime.
class Writer {
 public:
  explicit Writer(Runtime& runtime) : runtime_(runtime) {}

  absl::Status Append(absl::string_view text) {
    RETURN_IF_ERROR(runtime_.CheckSize(static_cast<std::int64_t>(text_.size() + text.size())));
    absl::StrAppend(&text_, text);
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Finish() {
    RETURN_IF_ERROR(runtime_.Charge(static_cast<std::int64_t>(text_.size()) / 128));
    return std::move(text_);
  }

 private:
  Runtime& runtime_;
  std::string text_;
};

class ReprPrinter {
 public:
  explicit ReprPrinter(Runtime& runtime) : out_(runtime) {}
  absl::StatusOr<std::string> Finish() { return out_.Finish(); }

  absl::Status Print(const Value& value, int depth) {
    if (depth > kMaxPrintDepth)
      return absl::ResourceExhaustedError("the template prints a value that holds itself");
    switch (value.kind()) {
      case Value::Kind::kUndefined: return out_.Append("Undefined");
      case Value::Kind::kNone: return out_.Append("None");
      case Value::Kind::kBool: return out_.Append(value.AsBool() ? "True" : "False");
      case Value::Kind::kInt: return out_.Append(absl::StrCat(*value.ToInt()));
      case Value::Kind::kBigInt: return out_.Append(absl::StrCat(value.AsBigInt()));
      case Value::Kind::kFloat: return out_.Append(python::FloatRepr(value.AsFloat()));
      case Value::Kind::kString: return out_.Append(python::StringRepr(value.AsString()));
      case Value::Kind::kSequence: return PrintSequence(value.AsSequence(), depth);
      case Value::Kind::kDict: return PrintDict(value.AsDict().entries(), depth);
      case Value::Kind::kObject: break;
    }
    if (const auto* space = value.As<Namespace>()) {
      RETURN_IF_ERROR(out_.Append("<Namespace "));
      std::vector<Dict::Entry> entries;
      for (const auto& [name, item] : space->attributes)
        entries.emplace_back(Value::String(name), item);
      RETURN_IF_ERROR(PrintDict(entries, depth));
      return out_.Append(">");
    }
    return out_.Append(absl::StrCat("<", value.TypeName(), ">"));
  }

 private:
  absl::Status PrintSequence(const Sequence& sequence, int depth) {
    using Kind = Sequence::Kind;
    if (sequence.kind == Kind::kGenerator) return out_.Append("<generator object>");
    if (sequence.kind == Kind::kRange) return PrintRange(sequence);
    const bool tuple = sequence.kind == Kind::kTuple;
    const char* name = sequence.kind == Kind::kKeys     ? "dict_keys"
                       : sequence.kind == Kind::kValues ? "dict_values"
                       : sequence.kind == Kind::kItems  ? "dict_items"
                                                        : "";
    RETURN_IF_ERROR(out_.Append(absl::StrCat(name, *name ? "(" : "", tuple ? "(" : "[")));
    for (std::size_t i = 0; i < sequence.items.size(); ++i) {
      if (i > 0) RETURN_IF_ERROR(out_.Append(", "));
      RETURN_IF_ERROR(Print(sequence.items[i], depth + 1));
    }
    if (tuple && sequence.items.size() == 1) RETURN_IF_ERROR(out_.Append(","));
    return out_.Append(absl::StrCat(tuple ? ")" : "]", *name ? ")" : ""));
  }

  absl::Status PrintRange(const Sequence& range) {
    if (range.items.empty()) return out_.Append("range(0, 0)");
    const std::int64_t first = *range.items[0].ToInt();
    const std::int64_t step = range.items.size() > 1 ? *range.items[1].ToInt() - first : 1;
    const std::int64_t stop = *range.items.back().ToInt() + step;
    return out_.Append(step == 1 ? absl::StrCat("range(", first, ", ", stop, ")")
                                 : absl::StrCat("range(", first, ", ", stop, ", ", step, ")"));
  }

  absl::Status PrintDict(const std::vector<Dict::Entry>& entries, int depth) {
    RETURN_IF_ERROR(out_.Append("{"));
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) RETURN_IF_ERROR(out_.Append(", "));
      RETURN_IF_ERROR(Print(entries[i].first, depth + 1));
      RETURN_IF_ERROR(out_.Append(": "));
      RETURN_IF_ERROR(Print(entries[i].second, depth + 1));
    }
    return out_.Append("}");
  }

  Writer out_;
};

std::string JsonString(absl::string_view text, bool ascii_only) {
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = python::Decode(text, &i);
    static constexpr absl::string_view kNamed = "\"\\\n\r\t\f\b";
    static constexpr absl::string_view kLetters = "\"\\nrtfb";
    const std::size_t named =
        c < 0x80 ? kNamed.find(static_cast<char>(c)) : absl::string_view::npos;
    if (named != absl::string_view::npos) {
      out += '\\';
      out += kLetters[named];
    } else if (c < 0x20 || (ascii_only && c > 0x7E && c < 0x10000)) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned>(c));
    } else if (ascii_only && c >= 0x10000) {
      absl::StrAppendFormat(&out, "\\u%04x\\u%04x",
                            0xD800u + ((static_cast<unsigned>(c) - 0x10000u) >> 10),
                            0xDC00u + (static_cast<unsigned>(c) & 0x3FFu));
    } else {
      absl::StrAppend(&out, text.substr(start, i - start));
    }
  }
  out += '"';
  return out;
}

std::string JsonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return python::FloatRepr(value);
}

class JsonPrinter {
 public:
  JsonPrinter(Runtime& runtime, const JsonOptions& options)
      : runtime_(runtime), options_(options), out_(runtime) {}
  absl::StatusOr<std::string> Finish() { return out_.Finish(); }

  absl::Status Print(const Value& value, int depth) {
    switch (value.kind()) {
      case Value::Kind::kNone:
      case Value::Kind::kBool:
      case Value::Kind::kInt:
      case Value::Kind::kBigInt:
      case Value::Kind::kFloat: return out_.Append(Scalar(value));
      case Value::Kind::kString:
        return out_.Append(JsonString(value.AsString(), options_.ascii_only));
      case Value::Kind::kDict: return PrintDict(value.AsDict().entries(), depth);
      case Value::Kind::kSequence:
        if (value.AsSequence().kind <= Sequence::Kind::kTuple)
          return PrintList(value.AsSequence().items, depth);
        break;
      default: break;
    }
    return TypeError(
        absl::StrCat("Object of type ", value.TypeName(), " is not JSON serializable"));
  }

 private:
  static std::string Scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (value.is_bool()) return value.AsBool() ? "true" : "false";
    if (value.kind() == Value::Kind::kFloat) return JsonFloat(value.AsFloat());
    if (value.kind() == Value::Kind::kBigInt) return absl::StrCat(value.AsBigInt());
    return absl::StrCat(*value.ToInt());
  }

  absl::Status NewLine(int depth) {
    if (!options_.has_indent) return absl::OkStatus();
    RETURN_IF_ERROR(out_.Append("\n"));
    for (int i = 0; i < depth; ++i) RETURN_IF_ERROR(out_.Append(options_.indent));
    return absl::OkStatus();
  }

  absl::Status Separate(std::size_t index, int depth) {
    if (index > 0) RETURN_IF_ERROR(out_.Append(options_.item_separator));
    return NewLine(depth);
  }

  absl::Status PrintList(const std::vector<Value>& items, int depth) {
    if (items.empty()) return out_.Append("[]");
    RETURN_IF_ERROR(out_.Append("["));
    for (std::size_t i = 0; i < items.size(); ++i) {
      RETURN_IF_ERROR(Separate(i, depth + 1));
      RETURN_IF_ERROR(Print(items[i], depth + 1));
    }
    RETURN_IF_ERROR(NewLine(depth));
    return out_.Append("]");
  }

  absl::Status PrintDict(const std::vector<Dict::Entry>& entries, int depth) {
    if (entries.empty()) return out_.Append("{}");
    std::vector<std::pair<Value, Value>> members(entries.begin(), entries.end());
    if (options_.sort_keys) RETURN_IF_ERROR(runtime_.Sort(&members, /*reverse=*/false));
    RETURN_IF_ERROR(out_.Append("{"));
    for (std::size_t i = 0; i < members.size(); ++i) {
      const Value& key = members[i].first;
      RETURN_IF_ERROR(Separate(i, depth + 1));
      if (key.is_string()) {
        RETURN_IF_ERROR(out_.Append(JsonString(key.AsString(), options_.ascii_only)));
      } else if (key.is_none() || key.is_number()) {
        RETURN_IF_ERROR(out_.Append(absl::StrCat("\"", Scalar(key), "\"")));
      } else {
        return TypeError(
            absl::StrCat("keys must be str, int, float, bool or None, not ", key.TypeName()));
      }
      RETURN_IF_ERROR(out_.Append(options_.key_separator));
      RETURN_IF_ERROR(Print(members[i].second, depth + 1));
    }
    RETURN_IF_ERROR(NewLine(depth));
    return out_.Append("}");
  }

  Runtime& runtime_;
  const JsonOptions& options_;
  Writer out_;
};

}  // namespace

absl::StatusOr<std::string> Runtime::Str(const Value& value) {
  if (value.is_string()) return value.AsString();
  if (value.is_undefined()) return std::string();
  return Repr(value);
}

absl::StatusOr<std::string> Runtime::Repr(const Value& value) {
  ReprPrinter printer(*this);
  RETURN_IF_ERROR(printer.Print(value, 0));
  return printer.Finish();
}

absl::StatusOr<std::string> ToJson(Runtime& runtime, const Value& value,
                                   const JsonOptions& options) {
  JsonPrinter printer(runtime, options);
  RETURN_IF_ERROR(printer.Print(value, 0));
  return printer.Finish();
}

}  // namespace nibble::jinja
