// Filters over text and numbers, and the table of all filters.
#include "runtime/text/jinja_filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

using absl::string_view;

// --- text

template <std::string (*convert)(string_view)>
absl::StatusOr<Value> Convert(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "case filter", {}).status());
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(input));
  return runtime.MakeString(convert(text));
}

// Jinja's title: a word starts after white space, a hyphen or an opening bracket.
std::string TitleWords(string_view text) {
  std::string out;
  std::string word;
  const auto flush = [&] {
    out += python::Capitalize(word);
    word.clear();
  };
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = python::Decode(text, &i);
    const bool separates =
        c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || python::IsSpace(c);
    if (separates) {
      flush();
      absl::StrAppend(&out, text.substr(start, i - start));
    } else {
      absl::StrAppend(&word, text.substr(start, i - start));
    }
  }
  flush();
  return out;
}

absl::StatusOr<Value> Trim(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "trim", {"chars"}));
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(input));
  if (!bound.Has(0))
    return runtime.MakeString(std::string(python::Strip(text, python::Side::kBoth)));
  ASSIGN_OR_RETURN(const std::string characters, bound.String(0, ""));
  return runtime.MakeString(std::string(python::Strip(text, characters, python::Side::kBoth)));
}

absl::StatusOr<Value> Replace(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "replace", {"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(input));
  ASSIGN_OR_RETURN(const std::string old, runtime.Str(*bound[0]));
  ASSIGN_OR_RETURN(const std::string replacement, runtime.Str(*bound[1]));
  std::int64_t most = -1;
  if (bound.Has(2)) {
    ASSIGN_OR_RETURN(most, bound.Int(2, -1));
  }
  std::int64_t count = python::Count(text, old);
  if (most >= 0) count = std::min(count, most);
  std::int64_t added = 0;
  if (__builtin_mul_overflow(count, static_cast<std::int64_t>(replacement.size()), &added))
    added = -1;
  RETURN_IF_ERROR(runtime.CheckSize(added));
  RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(text.size()) + added));
  std::string out;
  std::size_t position = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (old.empty()) {  // before every character, and at the end
      out += replacement;
      const std::size_t start = position;
      if (position < text.size()) python::Decode(text, &position);
      out.append(text, start, position - start);
    } else {
      const std::size_t at = python::Find(text, old, position);
      out.append(text, position, at - position);
      out += replacement;
      position = at + old.size();
    }
  }
  out.append(text, position);
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> Indent(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "indent", {"width", "first", "blank"}));
  if (input.is_undefined()) return UndefinedError(input);
  if (!input.is_string())
    return TypeError(absl::StrCat("indent needs a string, not ", input.TypeName()));
  std::string indention;
  if (bound[0] != nullptr && bound[0]->is_string()) {
    indention = bound[0]->AsString();
  } else {
    ASSIGN_OR_RETURN(const std::int64_t width, bound.Int(0, 4));
    RETURN_IF_ERROR(runtime.CheckSize(std::max<std::int64_t>(0, width)));
    indention.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, width)), ' ');
  }
  const bool blank = bound.Flag(2, false);
  const std::string text = input.AsString() + "\n";
  std::string out = bound.Flag(1, false) ? indention : "";
  bool is_first = true;
  for (const string_view line : python::SplitLines(text, /*keep_ends=*/false)) {
    if (!is_first) {
      out += '\n';
      if (blank || !line.empty()) out += indention;
    }
    is_first = false;
    absl::StrAppend(&out, line);
    RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(out.size())));
  }
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> Center(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "center", {"width"}));
  ASSIGN_OR_RETURN(const std::int64_t width, bound.Int(0, 80));
  ASSIGN_OR_RETURN(std::string text, runtime.Str(input));
  const Value string = Value::String(std::move(text));
  return FindMethod(string, "center")(runtime, string, Args{{Value::Int(width)}, {}});
}

absl::StatusOr<Value> Truncate(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, "truncate", {"length", "killwords", "end", "leeway"}));
  ASSIGN_OR_RETURN(const std::int64_t length, bound.Int(0, 255));
  ASSIGN_OR_RETURN(const std::string end, bound.String(2, "..."));
  ASSIGN_OR_RETURN(const std::int64_t leeway,
                   bound.Has(3) ? bound.Int(3, 5) : absl::StatusOr<std::int64_t>(5));
  if (length < python::Length(end) || leeway < 0 || length > (std::int64_t{1} << 40)) {
    return absl::InvalidArgumentError(
        "truncate: length is too small for its end mark, or out of range");
  }
  if (!input.is_string()) return TypeError("truncate needs a string");
  const string_view text = input.AsString();
  if (python::Length(text) <= length + std::min<std::int64_t>(leeway, std::int64_t{1} << 40))
    return input;
  string_view kept = text.substr(0, python::ByteOffset(text, length - python::Length(end)));
  if (!bound.Flag(1, false)) kept = kept.substr(0, std::min(kept.rfind(' '), kept.size()));
  return runtime.MakeString(absl::StrCat(kept, end));
}

absl::StatusOr<Value> WordCount(Runtime& runtime, const Value& input, const Args&) {
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(input));
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = python::Decode(text, &i);
    const bool word = c == '_' || python::IsAlpha(c) || python::IsDecimal(c);
    words += word && !inside ? 1 : 0;
    inside = word;
  }
  return Value::Int(words);
}

absl::StatusOr<Value> Format(Runtime& runtime, const Value& input, const Args& args) {
  if (!args.positional.empty() && !args.named.empty()) {
    return TypeError("format takes positional or named arguments, not both");
  }
  ASSIGN_OR_RETURN(const std::string format, runtime.Str(input));
  std::vector<Dict::Entry> named;
  for (const auto& [name, value] : args.named) named.emplace_back(Value::String(name), value);
  ASSIGN_OR_RETURN(const Value values,
                   named.empty() ? runtime.MakeSequence(args.positional, Sequence::Kind::kTuple)
                                 : runtime.MakeDict(std::move(named)));
  ASSIGN_OR_RETURN(std::string text, PercentFormat(runtime, format, values));
  return runtime.MakeString(std::move(text));
}

absl::StatusOr<Value> Escape(Runtime& runtime, const Value& input, const Args&) {
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(input));
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '\'': out += "&#39;"; break;
      case '"': out += "&#34;"; break;
      default: out += c;
    }
  }
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> UrlEncode(Runtime& runtime, const Value& input, const Args&) {
  if (input.is_dict() || input.is_sequence())
    return absl::UnimplementedError("urlencode of a dict or list");
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(input));
  std::string out;
  for (const char c : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
        string_view("_.-~/").find(c) != string_view::npos) {
      out += c;
    } else {
      absl::StrAppendFormat(&out, "%%%02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
    }
  }
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> String(Runtime& runtime, const Value& input, const Args&) {
  ASSIGN_OR_RETURN(std::string text, runtime.Str(input));
  return runtime.MakeString(std::move(text));
}

// json.dumps as Hugging Face calls it: nothing escaped for HTML, and non-ASCII kept unless asked.
absl::StatusOr<Value> ToJsonFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(
      const Bound bound,
      Bound::Bind(args, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonOptions options;
  options.ascii_only = bound.Flag(0, false);
  options.sort_keys = bound.Flag(3, false);
  if (bound.Has(1)) {
    options.has_indent = true;
    options.item_separator = ",";
    if (bound[1]->is_string()) {
      options.indent = bound[1]->AsString();
    } else {
      ASSIGN_OR_RETURN(const std::int64_t width, bound.Int(1, 0));
      RETURN_IF_ERROR(runtime.CheckSize(std::max<std::int64_t>(0, width)));
      options.indent.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, width)), ' ');
    }
  }
  if (bound.Has(2)) {
    ASSIGN_OR_RETURN(const std::vector<Value> separators, runtime.Iterate(*bound[2]));
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) {
      return TypeError("tojson: separators must be two strings");
    }
    options.item_separator = separators[0].AsString();
    options.key_separator = separators[1].AsString();
  }
  ASSIGN_OR_RETURN(std::string text, ToJson(runtime, input, options));
  return runtime.MakeString(std::move(text));
}

// --- numbers

// Python's int() of a text: white space around it, a sign, underscores between digits.
std::optional<std::int64_t> ParseInt(string_view text, int base) {
  text = python::Strip(text, python::Side::kBoth);
  std::string digits;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    if (text[0] == '-') digits = "-";
    text.remove_prefix(1);
  }
  const auto prefixed = [&](char lower) {
    return text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == lower;
  };
  if ((base == 16 && prefixed('x')) || (base == 8 && prefixed('o')) || (base == 2 && prefixed('b')))
    text.remove_prefix(2);
  if (text.empty() || text[0] == '_' || text.back() == '_' || text[0] == '-' ||
      python::Find(text, "__") != string_view::npos) {
    return std::nullopt;
  }
  std::copy_if(text.begin(), text.end(), std::back_inserter(digits),
               [](char c) { return c != '_'; });
  std::int64_t value = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<double> ParseFloat(string_view text) {
  const std::string stripped(python::Strip(text, python::Side::kBoth));
  const std::string lower = absl::AsciiStrToLower(stripped);
  if (stripped.empty() || stripped.find_first_of("xXpP_(") != std::string::npos)
    return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(lower.c_str(), &end);
  if (*end != '\0' || static_cast<std::size_t>(end - lower.c_str()) != lower.size())
    return std::nullopt;
  return value;
}

absl::StatusOr<Value> TruncateToInt(double value) {
  const double cut = std::trunc(value);
  if (!(cut >= -9223372036854775808.0 && cut < 9223372036854775808.0)) {
    return absl::InvalidArgumentError("int: the number leaves the range of 64 bits");
  }
  return Value::Int(static_cast<std::int64_t>(cut));
}

absl::StatusOr<Value> Int(Runtime&, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "int", {"default", "base"}));
  ASSIGN_OR_RETURN(const std::int64_t base, bound.Int(1, 10));
  if (base < 2 || base > 36)
    return absl::InvalidArgumentError("int: base must be between 2 and 36");
  if (input.is_undefined()) return UndefinedError(input);
  if (const auto integer = input.ToInt()) return Value::Int(*integer);
  if (input.kind() == Value::Kind::kBigInt) return input;
  std::optional<double> number;
  if (input.kind() == Value::Kind::kFloat) number = input.AsFloat();
  if (input.is_string()) {
    if (const auto integer = ParseInt(input.AsString(), static_cast<int>(base)))
      return Value::Int(*integer);
    number = ParseFloat(input.AsString());
    if (number && !std::isfinite(*number)) number.reset();
  }
  if (number && !std::isnan(*number)) return TruncateToInt(*number);
  return bound[0] == nullptr ? Value::Int(0) : *bound[0];
}

absl::StatusOr<Value> Float(Runtime&, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "float", {"default"}));
  if (input.is_undefined()) return UndefinedError(input);
  if (const auto number = input.ToNumber()) return Value::Float(static_cast<double>(*number));
  if (input.is_string()) {
    if (const auto number = ParseFloat(input.AsString())) return Value::Float(*number);
  }
  return bound[0] == nullptr ? Value::Float(0) : *bound[0];
}

absl::StatusOr<Value> Abs(Runtime& runtime, const Value& input, const Args&) {
  if (input.is_undefined()) return UndefinedError(input);
  if (!input.is_number())
    return TypeError(absl::StrCat("bad operand type for abs(): '", input.TypeName(), "'"));
  if (input.kind() == Value::Kind::kFloat) return Value::Float(std::fabs(input.AsFloat()));
  if (input.kind() == Value::Kind::kBigInt) return input;
  return *input.ToInt() < 0 ? runtime.Negate(input, /*keep_sign=*/false)
                            : Value::Int(*input.ToInt());
}

absl::StatusOr<Value> Round(Runtime&, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "round", {"precision", "method"}));
  ASSIGN_OR_RETURN(const std::int64_t precision, bound.Int(0, 0));
  ASSIGN_OR_RETURN(const std::string method, bound.String(1, "common"));
  if (input.is_undefined()) return UndefinedError(input);
  if (!input.is_number())
    return TypeError(absl::StrCat("round needs a number, not ", input.TypeName()));
  if (method != "common" && method != "ceil" && method != "floor") {
    return absl::InvalidArgumentError("method must be common, ceil or floor");
  }
  const bool integral = input.kind() != Value::Kind::kFloat;
  const auto number = static_cast<double>(*input.ToNumber());
  if (method == "common") {
    if (integral && precision >= 0) return input.ToInt() ? Value::Int(*input.ToInt()) : input;
    if (!std::isfinite(number) || precision > 308) return input;
    double rounded = 0;
    if (precision >=
        0) {  // the C library rounds the exact binary value, half to even, as Python does
      char buffer[700];
      std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), number);
      rounded = std::strtod(buffer, nullptr);
    } else {
      const double unit = std::pow(10.0, static_cast<double>(-precision));
      rounded = std::isinf(unit) ? 0 : std::nearbyint(number / unit) * unit;
    }
    return integral ? TruncateToInt(rounded) : Value::Float(rounded);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = method == "ceil" ? std::ceil(number * unit) : std::floor(number * unit);
  if (!std::isfinite(scaled) || unit == 0)
    return absl::InvalidArgumentError("round: the number cannot be rounded so");
  return Value::Float(scaled / unit);
}

absl::StatusOr<Value> Default(Runtime&, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "default", {"default_value", "boolean"}));
  if (!input.is_undefined() && !(bound.Flag(1, false) && !input.Truthy())) return input;
  return bound[0] == nullptr ? Value::String("") : *bound[0];
}

struct Row {
  const char* name;
  Filter filter;
};

constexpr Row kFilters[] = {
    {"abs", Abs},
    {"attr", AttributeFilter},
    {"batch", BatchFilter},
    {"capitalize", Convert<python::Capitalize>},
    {"center", Center},
    {"count", LengthFilter},
    {"d", Default},
    {"default", Default},
    {"dictsort", DictSortFilter},
    {"e", Escape},
    {"escape", Escape},
    {"first", FirstFilter},
    {"float", Float},
    {"forceescape", Escape},
    {"format", Format},
    {"groupby", GroupByFilter},
    {"indent", Indent},
    {"int", Int},
    {"items", ItemsFilter},
    {"join", JoinFilter},
    {"last", LastFilter},
    {"length", LengthFilter},
    {"list", ListFilter},
    {"lower", Convert<python::Lower>},
    {"map", MapFilter},
    {"max", MaxFilter},
    {"min", MinFilter},
    {"reject", RejectFilter},
    {"rejectattr", RejectAttributeFilter},
    {"replace", Replace},
    {"reverse", ReverseFilter},
    {"round", Round},
    {"safe", String},
    {"select", SelectFilter},
    {"selectattr", SelectAttributeFilter},
    {"slice", SliceFilter},
    {"sort", SortFilter},
    {"string", String},
    {"sum", SumFilter},
    {"title", Convert<TitleWords>},
    {"tojson", ToJsonFilter},
    {"trim", Trim},
    {"truncate", Truncate},
    {"unique", UniqueFilter},
    {"upper", Convert<python::Upper>},
    {"urlencode", UrlEncode},
    {"wordcount", WordCount},
};

}  // namespace

Filter FindFilter(absl::string_view name) {
  const Row* row = std::find_if(std::begin(kFilters), std::end(kFilters),
                                [&](const Row& r) { return name == r.name; });
  return row == std::end(kFilters) ? nullptr : row->filter;
}

}  // namespace nibble::jinja
