// Python's two ways to format: "%5.1f" % values and "{:>8}".format(values).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_runtime.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

using absl::string_view;

constexpr int kMaxWidth = 10'000;     // of a formatted field
constexpr int kMaxPrecision = 1'000;  // digits; Python has no limit, a buffer has

struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '=' or none
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  bool commas = false;
  int width = 0;
  int precision = -1;
  char type = 0;
};

// Takes digits off the front of text; nothing taken leaves the value. False when the number is
// above `most`.
bool TakeNumber(string_view* text, int most, int* value) {
  std::int64_t number = 0;
  bool any = false;
  while (!text->empty() && absl::ascii_isdigit(static_cast<unsigned char>((*text)[0]))) {
    number = std::min<std::int64_t>(number * 10 + ((*text)[0] - '0'), most + 1);
    text->remove_prefix(1);
    any = true;
  }
  if (any) *value = static_cast<int>(number);
  return number <= most;
}

std::string Padded(const std::string& text, const Spec& spec, char default_align) {
  const int missing =
      spec.width - static_cast<int>(std::min<std::int64_t>(python::Length(text), kMaxWidth));
  if (missing <= 0) return text;
  const char align = spec.align != 0 ? spec.align : default_align;
  const int left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  std::string before;
  std::string after;
  for (int i = 0; i < left; ++i) before += spec.fill;
  for (int i = left; i < missing; ++i) after += spec.fill;
  if (align != '=') return absl::StrCat(before, text, after);
  const std::size_t sign =
      !text.empty() && (text[0] == '-' || text[0] == '+' || text[0] == ' ') ? 1 : 0;
  return absl::StrCat(text.substr(0, sign), before, text.substr(sign));
}

std::string Grouped(const std::string& digits) {
  std::size_t whole = 0;
  while (whole < digits.size() && absl::ascii_isdigit(static_cast<unsigned char>(digits[whole])))
    ++whole;
  std::string out;
  for (std::size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out + digits.substr(whole);
}

// Sign, digits and padding of a number whose magnitude reads `digits`.
std::string Signed(bool negative, const std::string& digits, const Spec& spec) {
  const std::string sign = negative ? "-" : spec.sign == '+' ? "+" : spec.sign == ' ' ? " " : "";
  Spec padding = spec;
  if (spec.zero && spec.align == 0) {
    padding.fill = "0";
    padding.align = '=';
  }
  return Padded(sign + (spec.commas ? Grouped(digits) : digits), padding, '>');
}

std::string BaseDigits(std::uint64_t value, char type, bool alternate) {
  std::string digits;
  if (type == 'b') {
    do {
      digits.insert(digits.begin(), static_cast<char>('0' + (value & 1)));
      value >>= 1;
    } while (value != 0);
    return alternate ? "0b" + digits : digits;
  }
  if (type == 'o') return absl::StrCat(alternate ? "0o" : "", absl::StrFormat("%o", value));
  if (type == 'x') return absl::StrCat(alternate ? "0x" : "", absl::StrFormat("%x", value));
  if (type == 'X') return absl::StrCat(alternate ? "0X" : "", absl::StrFormat("%X", value));
  return absl::StrCat(value);
}

absl::StatusOr<std::string> FloatDigits(double magnitude, const Spec& spec) {
  const int precision = spec.precision < 0 ? 6 : spec.precision;
  if (!std::isfinite(magnitude)) return std::string(std::isnan(magnitude) ? "nan" : "inf");
  char buffer[kMaxPrecision + 400];
  int size = 0;
  switch (spec.type) {
    case 'e': size = std::snprintf(buffer, sizeof(buffer), "%.*e", precision, magnitude); break;
    case 'E': size = std::snprintf(buffer, sizeof(buffer), "%.*E", precision, magnitude); break;
    case 'f':
    case 'F': size = std::snprintf(buffer, sizeof(buffer), "%.*f", precision, magnitude); break;
    case 'g': size = std::snprintf(buffer, sizeof(buffer), "%.*g", precision, magnitude); break;
    case 'G': size = std::snprintf(buffer, sizeof(buffer), "%.*G", precision, magnitude); break;
    case '%':
      size = std::snprintf(buffer, sizeof(buffer), "%.*f%%", precision, magnitude * 100);
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("format code '", string_view(&spec.type, 1), "' fits no number"));
  }
  return std::string(buffer, static_cast<std::size_t>(size));
}

absl::StatusOr<std::string> FormatNumber(const Value& value, Spec spec) {
  const bool integral = value.kind() != Value::Kind::kFloat;
  if (spec.type == 0 || spec.type == 'n')
    spec.type = integral ? 'd' : spec.precision >= 0 ? 'g' : 'r';
  if (spec.type == 'c') {
    const auto code = value.ToInt();
    if (!code || *code < 0 || *code > 0x10FFFF || (*code >= 0xD800 && *code < 0xE000)) {
      return absl::InvalidArgumentError("%c needs a character's code");
    }
    std::string text;
    python::Encode(static_cast<char32_t>(*code), &text);
    return Padded(text, spec, '<');
  }
  if (string_view("dboxX").find(spec.type) != string_view::npos) {
    if (!integral)
      return absl::InvalidArgumentError(
          absl::StrCat("format code '", string_view(&spec.type, 1), "' needs an integer"));
    const bool negative = value.ToInt().value_or(0) < 0;
    const std::uint64_t magnitude = value.kind() == Value::Kind::kBigInt ? value.AsBigInt()
                                    : negative ? ~static_cast<std::uint64_t>(*value.ToInt()) + 1
                                               : static_cast<std::uint64_t>(*value.ToInt());
    std::string digits = BaseDigits(magnitude, spec.type, spec.alternate);
    if (spec.precision > static_cast<int>(digits.size())) {
      digits.insert(0, static_cast<std::size_t>(spec.precision) - digits.size(), '0');
    }
    return Signed(negative, digits, spec);
  }
  const auto number = static_cast<double>(*value.ToNumber());
  if (spec.type == 'r')
    return Signed(std::signbit(number), python::FloatRepr(std::fabs(number)), spec);
  ASSIGN_OR_RETURN(const std::string digits, FloatDigits(std::fabs(number), spec));
  return Signed(std::signbit(number) && !std::isnan(number), digits, spec);
}

std::string FormatString(const std::string& text, const Spec& spec) {
  const std::string cut =
      spec.precision < 0 ? text : text.substr(0, python::ByteOffset(text, spec.precision));
  return Padded(cut, spec, '<');
}

// [[fill]align][sign][#][0][width][,][.precision][type]
absl::StatusOr<Spec> ParseSpec(string_view text) {
  Spec spec;
  const string_view whole = text;
  const auto is_align = [](string_view s) {
    return !s.empty() && string_view("<>^=").find(s[0]) != string_view::npos;
  };
  std::size_t first = 0;
  if (!text.empty()) python::Decode(text, &first);
  if (first > 0 && is_align(text.substr(first))) {
    spec.fill = std::string(text.substr(0, first));
    text.remove_prefix(first);
  }
  const auto take = [&](char c) {
    if (text.empty() || text[0] != c) return false;
    text.remove_prefix(1);
    return true;
  };
  if (is_align(text)) {
    spec.align = text[0];
    text.remove_prefix(1);
  }
  if (!text.empty() && string_view("+- ").find(text[0]) != string_view::npos) {
    spec.sign = text[0];
    text.remove_prefix(1);
  }
  spec.alternate = take('#');
  spec.zero = take('0');
  bool ok = TakeNumber(&text, kMaxWidth, &spec.width);
  spec.commas = take(',');
  if (take('.'))
    ok = ok && TakeNumber(&text, kMaxPrecision, &spec.precision) && spec.precision >= 0;
  if (!text.empty()) {
    spec.type = text[0];
    text.remove_prefix(1);
  }
  if (!ok || !text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("format specifier '", whole.substr(0, 64), "' is invalid or too wide"));
  }
  return spec;
}

absl::StatusOr<std::string> FormatField(Runtime& runtime, const Value& value,
                                        string_view spec_text) {
  ASSIGN_OR_RETURN(const Spec spec, ParseSpec(spec_text));
  if (value.is_number() && !(value.is_bool() && spec_text.empty()))
    return FormatNumber(value, spec);
  if (spec.type != 0 && spec.type != 's') {
    return absl::InvalidArgumentError(absl::StrCat("format code '", string_view(&spec.type, 1),
                                                   "' does not fit a ", value.TypeName()));
  }
  ASSIGN_OR_RETURN(const std::string text, runtime.Str(value));
  return FormatString(text, spec);
}

// The values of a % expression: a tuple's items one by one, a dict's by %(name)s, else the value
// itself.
class PercentValues {
 public:
  explicit PercentValues(const Value& values) : values_(values) {
    is_tuple_ = values.is_sequence() && values.AsSequence().kind == Sequence::Kind::kTuple;
  }
  absl::StatusOr<Value> Next() {
    if (is_tuple_ && used_ < values_.AsSequence().items.size())
      return values_.AsSequence().items[used_++];
    if (!is_tuple_ && used_++ == 0) return values_;
    return TypeError("not enough arguments for format string");
  }
  absl::StatusOr<Value> Named(string_view name) {
    used_ = 1;
    if (!values_.is_dict()) return TypeError("format requires a mapping");
    if (const Value* found = values_.AsDict().Find(name)) return *found;
    return absl::InvalidArgumentError(
        absl::StrCat("format: no value named '", name.substr(0, 64), "'"));
  }
  bool AllUsed() const {
    return is_tuple_ ? used_ == values_.AsSequence().items.size() : used_ > 0 || values_.is_dict();
  }

 private:
  const Value& values_;
  bool is_tuple_ = false;
  std::size_t used_ = 0;
};

absl::StatusOr<std::string> PercentField(Runtime& runtime, const Value& value, Spec spec) {
  if (string_view("srac").find(spec.type) != string_view::npos &&
      !(spec.type == 'c' && value.is_number())) {
    absl::StatusOr<std::string> text =
        spec.type == 's' || spec.type == 'c' ? runtime.Str(value) : runtime.Repr(value);
    if (!text.ok()) return text;
    if (spec.align == 0) spec.align = '>';
    return FormatString(*text, spec);
  }
  if (value.is_undefined()) return UndefinedError(value);
  if (!value.is_number()) {
    return TypeError(absl::StrCat("%", string_view(&spec.type, 1),
                                  " format: a real number is required, not ", value.TypeName()));
  }
  if (spec.type == 'i' || spec.type == 'u') spec.type = 'd';
  if (spec.align == '<') spec.zero = false;
  if (spec.type == 'd' && value.kind() == Value::Kind::kFloat) {  // cut off, as Python does
    const double cut = std::trunc(value.AsFloat());
    if (!(cut >= -9.2e18 && cut <= 9.2e18))
      return absl::InvalidArgumentError("%d format: the number leaves 64 bits");
    return FormatNumber(Value::Int(static_cast<std::int64_t>(cut)), spec);
  }
  return FormatNumber(value, spec);
}

// field[.attribute | [item]]*
absl::StatusOr<Value> BraceValue(Runtime& runtime, string_view field, const Args& args,
                                 std::size_t* automatic) {
  const std::size_t end = std::min(field.find_first_of(".["), field.size());
  const string_view name = field.substr(0, end);
  string_view rest = field.substr(end);
  std::size_t index = 0;
  Value value;
  const bool numbered = name.empty() || absl::SimpleAtoi(name, &index);
  if (numbered) {
    if (name.empty()) index = (*automatic)++;
    if (index >= args.positional.size())
      return absl::InvalidArgumentError("format: a replacement index is out of range");
    value = args.positional[index];
  } else {
    const auto found = std::find_if(args.named.begin(), args.named.end(),
                                    [&](const auto& row) { return row.first == name; });
    if (found == args.named.end())
      return absl::InvalidArgumentError(
          absl::StrCat("format: no argument '", name.substr(0, 64), "'"));
    value = found->second;
  }
  while (!rest.empty()) {
    const bool item = rest[0] == '[';
    rest.remove_prefix(1);
    const std::size_t stop =
        item ? rest.find(']') : std::min(rest.find_first_of(".["), rest.size());
    if (stop == string_view::npos)
      return absl::InvalidArgumentError("format: missing ']' in format string");
    const std::string key(rest.substr(0, stop));
    std::int64_t number = 0;
    absl::StatusOr<Value> next = !item ? runtime.Attribute(value, key)
                                 : absl::SimpleAtoi(key, &number)
                                     ? runtime.Item(value, Value::Int(number))
                                     : runtime.Item(value, Value::String(key));
    if (!next.ok()) return next;
    if (next->is_undefined()) return UndefinedError(*next);
    value = *std::move(next);
    rest.remove_prefix(item ? stop + 1 : stop);
  }
  return value;
}

}  // namespace

absl::StatusOr<std::string> PercentFormat(Runtime& runtime, string_view format,
                                          const Value& values) {
  PercentValues source(values);
  std::string out;
  while (!format.empty()) {
    const std::size_t at = std::min(format.find('%'), format.size());
    absl::StrAppend(&out, format.substr(0, at));
    RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(out.size())));
    format.remove_prefix(at);
    if (format.empty()) break;
    format.remove_prefix(1);
    Spec spec;
    string_view name;
    bool named = false;
    if (!format.empty() && format[0] == '(') {
      const std::size_t close = format.find(')');
      if (close == string_view::npos) return absl::InvalidArgumentError("incomplete format key");
      name = format.substr(1, close - 1);
      named = true;
      format.remove_prefix(close + 1);
    }
    for (; !format.empty() && string_view("#0- +").find(format[0]) != string_view::npos;
         format.remove_prefix(1)) {
      if (format[0] == '#') spec.alternate = true;
      if (format[0] == '0') spec.zero = true;
      if (format[0] == '-') spec.align = '<';
      if (format[0] == '+' || (format[0] == ' ' && spec.sign != '+')) spec.sign = format[0];
    }
    bool ok = TakeNumber(&format, kMaxWidth, &spec.width);
    if (!format.empty() && format[0] == '.') {
      format.remove_prefix(1);
      spec.precision = 0;
      ok = ok && TakeNumber(&format, kMaxPrecision, &spec.precision);
    }
    if (!ok || format.empty())
      return absl::InvalidArgumentError("format string is incomplete or a field too wide");
    spec.type = format[0];
    format.remove_prefix(1);
    if (spec.type == '%') {
      out += '%';
      continue;
    }
    if (string_view("diouxXeEfFgGcrsa").find(spec.type) == string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("unsupported format character '", string_view(&spec.type, 1), "'"));
    }
    ASSIGN_OR_RETURN(const Value value, named ? source.Named(name) : source.Next());
    ASSIGN_OR_RETURN(const std::string text, PercentField(runtime, value, spec));
    RETURN_IF_ERROR(runtime.ChargeBytes(static_cast<std::int64_t>(text.size())));
    out += text;
  }
  if (!source.AllUsed()) return TypeError("not all arguments converted during string formatting");
  return out;
}

absl::StatusOr<std::string> BraceFormat(Runtime& runtime, string_view format, const Args& args) {
  std::size_t automatic = 0;
  std::string out;
  for (std::size_t i = 0; i < format.size();) {
    const char c = format[i++];
    if (c != '{' && c != '}') {
      out += c;
      continue;
    }
    if (i < format.size() && format[i] == c) {
      out += c;
      ++i;
      continue;
    }
    const std::size_t close = format.find('}', i);
    if (c == '}' || close == string_view::npos)
      return absl::InvalidArgumentError("single '{' or '}' in format string");
    string_view field = format.substr(i, close - i);
    if (field.find('{') != string_view::npos)
      return absl::UnimplementedError("format fields inside format specifiers");
    i = close + 1;
    string_view spec;
    if (const std::size_t colon = field.find(':'); colon != string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    bool repr = false;
    if (field.size() >= 2 && field[field.size() - 2] == '!') {
      repr = field.back() == 'r' || field.back() == 'a';
      field.remove_suffix(2);
    }
    ASSIGN_OR_RETURN(Value value, BraceValue(runtime, field, args, &automatic));
    if (repr) {
      ASSIGN_OR_RETURN(std::string shown, runtime.Repr(value));
      value = Value::String(std::move(shown));
    }
    ASSIGN_OR_RETURN(const std::string text, FormatField(runtime, value, spec));
    RETURN_IF_ERROR(runtime.ChargeBytes(static_cast<std::int64_t>(text.size())));
    out += text;
    RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(out.size())));
  }
  return out;
}

}  // namespace nibble::jinja
