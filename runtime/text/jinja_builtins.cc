#include "runtime/text/jinja_builtins.h"

#include <algorithm>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

constexpr std::int64_t kMaxRange = 100'000;  // as Jinja's sandbox

absl::StatusOr<Value> Range(Runtime& runtime, const Args& args) {
  std::int64_t bounds[3] = {0, 0, 1};
  const std::size_t count = args.positional.size();
  if (count < 1 || count > 3 || !args.named.empty())
    return TypeError("range expects 1 to 3 integers");
  for (std::size_t i = 0; i < count; ++i) {
    const auto bound = args.positional[i].ToInt();
    if (!bound) {
      return TypeError(absl::StrCat("'", args.positional[i].TypeName(),
                                    "' object cannot be interpreted as an integer"));
    }
    bounds[count == 1 ? 1 : i] = *bound;
  }
  const auto [start, stop, step] = bounds;
  if (step == 0) return absl::InvalidArgumentError("range() arg 3 must not be zero");
  const auto distance = static_cast<__int128>(stop) - start;
  const __int128 length = (distance < 0) != (step < 0) || distance == 0
                              ? 0
                              : (distance + step - (step > 0 ? 1 : -1)) / step;
  if (length > kMaxRange) {
    return absl::ResourceExhaustedError(
        absl::StrCat("range is longer than ", kMaxRange, ", the most a template may make"));
  }
  std::vector<Value> items;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(length); ++i)
    items.push_back(Value::Int(start + i * step));
  return runtime.MakeSequence(std::move(items), Sequence::Kind::kRange);
}

// dict(mapping or pairs, name=value ...), which namespace() takes too.
absl::StatusOr<std::vector<Dict::Entry>> DictEntries(Runtime& runtime, const Args& args) {
  std::vector<Dict::Entry> entries;
  if (args.positional.size() > 1) return TypeError("dict expected at most 1 argument");
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is_dict()) {
      RETURN_IF_ERROR(runtime.ChargeBytes(source.Bytes()));
      entries = source.AsDict().entries();
    } else {
      ASSIGN_OR_RETURN(const std::vector<Value> pairs, runtime.Iterate(source));
      for (const Value& pair : pairs) {
        ASSIGN_OR_RETURN(const std::vector<Value> both, runtime.Iterate(pair));
        if (both.size() != 2) return absl::InvalidArgumentError("dict() needs pairs");
        entries.emplace_back(both[0], both[1]);
      }
    }
  }
  for (const auto& [name, value] : args.named) entries.emplace_back(Value::String(name), value);
  return entries;
}

absl::StatusOr<Value> MakeDictGlobal(Runtime& runtime, const Args& args) {
  ASSIGN_OR_RETURN(std::vector<Dict::Entry> entries, DictEntries(runtime, args));
  return runtime.MakeDict(std::move(entries));
}

absl::StatusOr<Value> MakeNamespace(Runtime& runtime, const Args& args) {
  ASSIGN_OR_RETURN(std::vector<Dict::Entry> entries, DictEntries(runtime, args));
  auto* space = runtime.New<Namespace>();
  for (const auto& [name, value] : entries) {
    if (!name.is_string()) return TypeError("names in a namespace are strings");
    RETURN_IF_ERROR(runtime.Charge(1 + static_cast<std::int64_t>(space->attributes.size()) / 16));
    space->Set(name.AsString(), value);
  }
  return Value::Of(space);
}

absl::StatusOr<Value> MakeCycler(Runtime& runtime, const Args& args) {
  if (args.positional.empty()) return TypeError("cycler needs at least one item");
  return Value::Of(runtime.New<Cycler>(args.positional));
}

absl::StatusOr<Value> MakeJoiner(Runtime& runtime, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "joiner", {"sep"}));
  return Value::Of(runtime.New<Joiner>(bound[0] == nullptr ? Value::String(", ") : *bound[0]));
}

absl::StatusOr<Value> RaiseException(Runtime& runtime, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "raise_exception", {"message"}, 1));
  ASSIGN_OR_RETURN(const std::string message, runtime.Str(*bound[0]));
  return absl::InvalidArgumentError(message.substr(0, 1024));
}

// Local time, as Python's datetime.now().strftime(format): %f are microseconds, %z and %Z empty.
absl::StatusOr<Value> StrftimeNow(Runtime& runtime, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "strftime_now", {"format"}, 1));
  ASSIGN_OR_RETURN(const std::string format, bound.String(0, ""));
  RETURN_IF_ERROR(runtime.ChargeBytes(static_cast<std::int64_t>(format.size()) * 64));
  const absl::TimeZone zone = absl::LocalTimeZone();
  const std::tm tm = absl::ToTM(runtime.now(), zone);
  const auto micros = absl::ToInt64Microseconds(zone.At(runtime.now()).subsecond);
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out += format[i];
      continue;
    }
    std::string one = "%";
    if (format[i + 1] == '-' && i + 2 < format.size())
      one += format[++i];  // no padding: a C library extension
    const char directive = format[++i];
    one += directive;
    if (directive == 'f') {
      absl::StrAppend(&out, absl::Dec(micros, absl::kZeroPad6));
    } else if (directive != 'z' && directive != 'Z') {
      char buffer[128];
      out.append(buffer, std::strftime(buffer, sizeof(buffer), one.c_str(), &tm));
    }
    RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(out.size())));
  }
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<std::optional<Value>> LoopAttribute(Loop* loop, absl::string_view name) {
  const auto index0 = static_cast<std::int64_t>(loop->index0);
  const auto length = static_cast<std::int64_t>(loop->items.size());
  const auto number = [](std::int64_t value) { return std::optional<Value>(Value::Int(value)); };
  if (name == "index") return number(index0 + 1);
  if (name == "index0") return number(index0);
  if (name == "revindex") return number(length - index0);
  if (name == "revindex0") return number(length - index0 - 1);
  if (name == "first") return std::optional<Value>(Value::Bool(index0 == 0));
  if (name == "last") return std::optional<Value>(Value::Bool(index0 + 1 == length));
  if (name == "length") return number(length);
  if (name == "depth") return number(1);  // counts recursive loops only, in Jinja
  if (name == "depth0") return number(0);
  if (name == "previtem") {
    if (index0 == 0) return std::optional<Value>(Value::Undefined("there is no previous item"));
    return std::optional<Value>(loop->items[loop->index0 - 1]);
  }
  if (name == "nextitem") {
    if (index0 + 1 == length)
      return std::optional<Value>(Value::Undefined("there is no next item"));
    return std::optional<Value>(loop->items[loop->index0 + 1]);
  }
  return std::optional<Value>();
}

}  // namespace

absl::Status ChargeArguments(Runtime& runtime, const Value& input, const Args& args) {
  std::int64_t bytes = input.Bytes();
  for (const Value& value : args.positional) bytes += value.Bytes();
  for (const auto& [name, value] : args.named) bytes += value.Bytes();
  return runtime.ChargeBytes(bytes);
}

absl::StatusOr<Value> CallFilter(Runtime& runtime, absl::string_view name, const Value& input,
                                 const Args& args) {
  const Filter filter = FindFilter(name);
  if (filter == nullptr)
    return absl::UnimplementedError(absl::StrCat("no filter named '", name.substr(0, 64), "'"));
  RETURN_IF_ERROR(ChargeArguments(runtime, input, args));
  return filter(runtime, input, args);
}

absl::StatusOr<bool> CallTest(Runtime& runtime, absl::string_view name, const Value& input,
                              const Args& args) {
  const Test test = FindTest(name);
  if (test == nullptr)
    return absl::UnimplementedError(absl::StrCat("no test named '", name.substr(0, 64), "'"));
  return test(runtime, input, args);
}

absl::StatusOr<Value> CallMethod(Runtime& runtime, Method method, const Value& self,
                                 const Args& args) {
  RETURN_IF_ERROR(ChargeArguments(runtime, self, args));
  return method(runtime, self, args);
}

std::vector<std::pair<std::string, Value>> MakeGlobals(Runtime& runtime) {
  static constexpr std::pair<const char*, Global> kGlobals[] = {
      {"range", Range},
      {"dict", MakeDictGlobal},
      {"namespace", MakeNamespace},
      {"cycler", MakeCycler},
      {"joiner", MakeJoiner},
      {"raise_exception", RaiseException},
      {"strftime_now", StrftimeNow},
  };
  std::vector<std::pair<std::string, Value>> globals;
  for (const auto& [name, global] : kGlobals)
    globals.emplace_back(name, Value::Of(runtime.New<Function>(global)));
  return globals;
}

absl::StatusOr<std::optional<Value>> ObjectAttribute(Runtime&, Object* object,
                                                     absl::string_view name) {
  if (auto* space = dynamic_cast<Namespace*>(object)) {
    for (const auto& [attribute, value] : space->attributes) {
      if (attribute == name) return std::optional<Value>(value);
    }
  } else if (auto* loop = dynamic_cast<Loop*>(object)) {
    return LoopAttribute(loop, name);
  } else if (auto* cycler = dynamic_cast<Cycler*>(object)) {
    if (name == "current") return std::optional<Value>(cycler->items[cycler->position]);
  }
  return std::optional<Value>();
}

void Namespace::Set(absl::string_view name, Value value) {
  for (auto& [attribute, old] : attributes) {
    if (attribute == name) {
      old = std::move(value);
      return;
    }
  }
  attributes.emplace_back(std::string(name), std::move(value));
}

absl::StatusOr<Bound> Bound::Bind(const Args& args, absl::string_view callee,
                                  std::initializer_list<const char*> names, std::size_t required) {
  Bound bound;
  bound.callee_ = std::string(callee);
  bound.names_ = names;
  bound.values_.resize(names.size());
  if (args.positional.size() > names.size()) {
    return TypeError(absl::StrCat(callee, " takes at most ", names.size(), " arguments, got ",
                                  args.positional.size()));
  }
  for (std::size_t i = 0; i < args.positional.size(); ++i) bound.values_[i] = &args.positional[i];
  for (const auto& [name, value] : args.named) {
    const auto* found = std::find(names.begin(), names.end(), absl::string_view(name));
    if (found == names.end())
      return TypeError(absl::StrCat(callee, " has no argument '", name.substr(0, 64), "'"));
    const Value*& slot = bound.values_[static_cast<std::size_t>(found - names.begin())];
    if (slot != nullptr)
      return TypeError(absl::StrCat(callee, " got two values for argument '", name, "'"));
    slot = &value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (bound.values_[i] == nullptr)
      return TypeError(absl::StrCat(callee, " needs argument '", bound.names_[i], "'"));
  }
  return bound;
}

absl::StatusOr<std::int64_t> Bound::Int(std::size_t index, std::int64_t absent) const {
  if (values_[index] == nullptr) return absent;
  if (values_[index]->is_undefined()) return UndefinedError(*values_[index]);
  if (const auto integer = values_[index]->ToInt()) return *integer;
  return TypeError(absl::StrCat(callee_, ": '", names_[index], "' must be an integer, not ",
                                values_[index]->TypeName()));
}

absl::StatusOr<std::string> Bound::String(std::size_t index, absl::string_view absent) const {
  if (values_[index] == nullptr) return std::string(absent);
  if (values_[index]->is_undefined()) return UndefinedError(*values_[index]);
  if (values_[index]->is_string()) return values_[index]->AsString();
  return TypeError(absl::StrCat(callee_, ": '", names_[index], "' must be a string, not ",
                                values_[index]->TypeName()));
}

}  // namespace nibble::jinja
