// Methods of str, list, tuple and dict, and of loops, cyclers and macros' helpers.
#include <algorithm>
#include <iterator>
#include <limits>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

using absl::string_view;
using python::Side;

absl::StatusOr<Value> StringList(Runtime& runtime, const std::vector<string_view>& parts,
                                 Sequence::Kind kind = Sequence::Kind::kList) {
  std::vector<Value> items;
  RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(parts.size() * sizeof(Value))));
  RETURN_IF_ERROR(runtime.Charge(static_cast<std::int64_t>(parts.size())));
  for (const string_view part : parts) items.push_back(Value::String(std::string(part)));
  return runtime.MakeSequence(std::move(items), kind);
}

template <Side side>
absl::StatusOr<Value> Strip(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "strip", {"chars"}));
  if (!bound.Has(0)) return runtime.MakeString(std::string(python::Strip(self.AsString(), side)));
  ASSIGN_OR_RETURN(const std::string characters, bound.String(0, ""));
  return runtime.MakeString(std::string(python::Strip(self.AsString(), characters, side)));
}

template <bool from_right>
absl::StatusOr<Value> Split(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "split", {"sep", "maxsplit"}));
  ASSIGN_OR_RETURN(const std::int64_t most, bound.Int(1, -1));
  if (!bound.Has(0))
    return StringList(runtime, python::SplitSpace(self.AsString(), most, from_right));
  ASSIGN_OR_RETURN(const std::string separator, bound.String(0, ""));
  if (separator.empty()) return absl::InvalidArgumentError("empty separator");
  return StringList(runtime, python::Split(self.AsString(), separator, most, from_right));
}

absl::StatusOr<Value> SplitLines(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "splitlines", {"keepends"}));
  return StringList(runtime, python::SplitLines(self.AsString(), bound.Flag(0, false)));
}

template <bool from_right>
absl::StatusOr<Value> Partition(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "partition", {"sep"}, 1));
  ASSIGN_OR_RETURN(const std::string separator, bound.String(0, ""));
  if (separator.empty()) return absl::InvalidArgumentError("empty separator");
  const string_view text = self.AsString();
  const std::size_t at =
      from_right ? python::FindLast(text, separator) : python::Find(text, separator);
  std::vector<string_view> parts = {text, "", ""};
  if (at != string_view::npos) {
    parts = {text.substr(0, at), separator, text.substr(at + separator.size())};
  } else if (from_right) {
    parts = {"", "", text};
  }
  return StringList(runtime, parts, Sequence::Kind::kTuple);
}

// text[start:end] in code points, as find, count and startswith take them. `offset`: bytes before
// it.
absl::StatusOr<string_view> Part(const Value& self, const Bound& bound, std::size_t first,
                                 std::size_t* offset) {
  const string_view text = self.AsString();
  *offset = 0;
  if (!bound.Has(first) && !bound.Has(first + 1)) return text;
  const std::int64_t length = python::Length(text);
  std::int64_t start = 0;
  std::int64_t end = length;
  if (bound.Has(first)) {
    ASSIGN_OR_RETURN(start, bound.Int(first, 0));
  }
  if (bound.Has(first + 1)) {
    ASSIGN_OR_RETURN(end, bound.Int(first + 1, 0));
  }
  if (start < 0) start = std::max<std::int64_t>(0, start + length);
  if (end < 0) end = std::max<std::int64_t>(0, end + length);
  end = std::min(end, length);
  if (start > end) return string_view();
  *offset = python::ByteOffset(text, start);
  return text.substr(*offset, python::ByteOffset(text, end) - *offset);
}

template <bool at_end>
absl::StatusOr<Value> HasAffix(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, at_end ? "endswith" : "startswith",
                                                  {"affix", "start", "end"}, 1));
  std::size_t offset = 0;
  ASSIGN_OR_RETURN(const string_view text, Part(self, bound, 1, &offset));
  std::vector<Value> affixes = {*bound[0]};
  if (bound[0]->is_sequence() && bound[0]->AsSequence().kind == Sequence::Kind::kTuple) {
    ASSIGN_OR_RETURN(affixes, runtime.Iterate(*bound[0]));
  }
  for (const Value& affix : affixes) {
    if (!affix.is_string()) {
      if (affix.is_undefined()) return UndefinedError(affix);
      return TypeError(
          absl::StrCat("startswith and endswith need a string or tuple, not ", affix.TypeName()));
    }
    const string_view wanted = affix.AsString();
    RETURN_IF_ERROR(runtime.Charge(affix.Bytes() / 128));
    if (wanted.size() > text.size()) continue;
    if ((at_end ? text.substr(text.size() - wanted.size()) : text.substr(0, wanted.size())) ==
        wanted)
      return Value::Bool(true);
  }
  return Value::Bool(false);
}

template <bool from_right, bool must>
absl::StatusOr<Value> Find(Runtime&, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "find", {"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const std::string wanted, bound.String(0, ""));
  std::size_t offset = 0;
  ASSIGN_OR_RETURN(const string_view text, Part(self, bound, 1, &offset));
  const std::size_t at = from_right ? python::FindLast(text, wanted) : python::Find(text, wanted);
  if (at != string_view::npos)
    return Value::Int(python::Length(string_view(self.AsString()).substr(0, offset + at)));
  if (must) return absl::InvalidArgumentError("substring not found");
  return Value::Int(-1);
}

absl::StatusOr<Value> Count(Runtime&, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "count", {"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const std::string wanted, bound.String(0, ""));
  std::size_t offset = 0;
  ASSIGN_OR_RETURN(const string_view text, Part(self, bound, 1, &offset));
  return Value::Int(python::Count(text, wanted));
}

absl::StatusOr<Value> Replace(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "replace", {"old", "new", "count"}, 2));
  if (!bound[0]->is_string() || !bound[1]->is_string()) {
    return TypeError(absl::StrCat("replace() needs strings, got ", bound[0]->TypeName(), " and ",
                                  bound[1]->TypeName()));
  }
  return FindFilter("replace")(runtime, self, args);
}

template <bool at_end>
absl::StatusOr<Value> RemoveAffix(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, at_end ? "removesuffix" : "removeprefix", {"affix"}, 1));
  ASSIGN_OR_RETURN(const std::string affix, bound.String(0, ""));
  string_view text = self.AsString();
  if (affix.size() <= text.size()) {
    const std::size_t rest = text.size() - affix.size();
    if (at_end && text.substr(rest) == affix)
      text.remove_suffix(affix.size());
    else if (!at_end && text.substr(0, affix.size()) == affix)
      text.remove_prefix(affix.size());
  }
  return runtime.MakeString(std::string(text));
}

absl::StatusOr<Value> Join(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "join", {"iterable"}, 1));
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(*bound[0]));
  std::string out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string()) {
      return TypeError(absl::StrCat("sequence item ", i, ": expected str instance, ",
                                    items[i].TypeName(), " found"));
    }
    RETURN_IF_ERROR(
        runtime.CheckSize(static_cast<std::int64_t>(out.size()) + self.Bytes() + items[i].Bytes()));
    if (i > 0) out += self.AsString();
    out += items[i].AsString();
  }
  return runtime.MakeString(std::move(out));
}

template <std::string (*convert)(string_view)>
absl::StatusOr<Value> Convert(Runtime& runtime, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "case conversion", {}).status());
  return runtime.MakeString(convert(self.AsString()));
}

enum class Align { kLeft, kRight, kCenter };

template <Align align>
absl::StatusOr<Value> Pad(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, "ljust, rjust or center", {"width", "fillchar"}, 1));
  ASSIGN_OR_RETURN(const std::int64_t width, bound.Int(0, 0));
  ASSIGN_OR_RETURN(const std::string fill, bound.String(1, " "));
  if (python::Length(fill) != 1)
    return TypeError("the fill character must be exactly one character long");
  const std::int64_t missing = std::max<std::int64_t>(0, width - python::Length(self.AsString()));
  RETURN_IF_ERROR(runtime.CheckSize(missing));
  RETURN_IF_ERROR(
      runtime.CheckSize(missing * static_cast<std::int64_t>(fill.size()) + self.Bytes()));
  const std::int64_t left = align == Align::kLeft    ? 0
                            : align == Align::kRight ? missing
                                                     : missing / 2 + (missing & width & 1);
  std::string out;
  for (std::int64_t i = 0; i < left; ++i) out += fill;
  out += self.AsString();
  for (std::int64_t i = left; i < missing; ++i) out += fill;
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> ZeroFill(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "zfill", {"width"}, 1));
  ASSIGN_OR_RETURN(const std::int64_t width, bound.Int(0, 0));
  const std::string& text = self.AsString();
  const std::int64_t missing = std::max<std::int64_t>(0, width - python::Length(text));
  RETURN_IF_ERROR(runtime.CheckSize(missing));
  const std::size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return runtime.MakeString(absl::StrCat(text.substr(0, sign),
                                         std::string(static_cast<std::size_t>(missing), '0'),
                                         text.substr(sign)));
}

// Whether the text is not empty and every character satisfies `holds`.
template <bool (*holds)(char32_t)>
absl::StatusOr<Value> All(Runtime&, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "character test", {}).status());
  const std::string& text = self.AsString();
  bool all = !text.empty();
  for (std::size_t i = 0; all && i < text.size();) all = holds(python::Decode(text, &i));
  return Value::Bool(all);
}

bool IsAlphanumeric(char32_t c) { return python::IsAlpha(c) || python::IsDecimal(c); }

absl::StatusOr<Value> IsAscii(Runtime&, const Value& self, const Args&) {
  return Value::Bool(python::IsAscii(self.AsString()));
}

// All cased characters are of that case, and there is one.
template <bool upper>
absl::StatusOr<Value> IsCase(Runtime&, const Value& self, const Args&) {
  bool found = false;
  const std::string& text = self.AsString();
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = python::Decode(text, &i);
    if (upper ? python::IsLower(c) : python::IsUpper(c)) return Value::Bool(false);
    found |= upper ? python::IsUpper(c) : python::IsLower(c);
  }
  return Value::Bool(found);
}

absl::StatusOr<Value> IsTitle(Runtime&, const Value& self, const Args&) {
  bool found = false;
  bool after_letter = false;
  const std::string& text = self.AsString();
  for (std::size_t i = 0; i < text.size();) {
    const char32_t c = python::Decode(text, &i);
    if (python::IsUpper(c) ? after_letter : python::IsLower(c) && !after_letter)
      return Value::Bool(false);
    after_letter = python::IsUpper(c) || python::IsLower(c);
    found |= after_letter;
  }
  return Value::Bool(found);
}

absl::StatusOr<Value> IsIdentifier(Runtime&, const Value& self, const Args&) {
  const std::string& text = self.AsString();
  bool all = !text.empty() && !python::IsDecimal(static_cast<unsigned char>(text[0]));
  for (std::size_t i = 0; all && i < text.size();) {
    const char32_t c = python::Decode(text, &i);
    all = c == '_' || IsAlphanumeric(c);
  }
  return Value::Bool(all);
}

absl::StatusOr<Value> ExpandTabs(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "expandtabs", {"tabsize"}));
  ASSIGN_OR_RETURN(const std::int64_t size, bound.Int(0, 8));
  RETURN_IF_ERROR(runtime.CheckSize(std::max<std::int64_t>(0, size)));
  std::string out;
  std::int64_t column = 0;
  const std::string& text = self.AsString();
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = python::Decode(text, &i);
    if (c == '\t') {
      const std::int64_t blanks = size > 0 ? size - column % size : 0;
      RETURN_IF_ERROR(runtime.CheckSize(static_cast<std::int64_t>(out.size()) + blanks));
      out.append(static_cast<std::size_t>(blanks), ' ');
      column += blanks;
    } else {
      out.append(text, start, i - start);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
  }
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> Format(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(std::string text, BraceFormat(runtime, self.AsString(), args));
  return runtime.MakeString(std::move(text));
}

absl::StatusOr<Value> ListCount(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "count", {"value"}, 1));
  std::int64_t count = 0;
  for (const Value& item : self.AsSequence().items) {
    ASSIGN_OR_RETURN(const bool equal, runtime.Equal(item, *bound[0]));
    count += equal ? 1 : 0;
  }
  return Value::Int(count);
}

absl::StatusOr<Value> ListIndex(Runtime& runtime, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "index", {"value", "start", "stop"}, 1));
  const auto length = static_cast<std::int64_t>(self.AsSequence().items.size());
  ASSIGN_OR_RETURN(std::int64_t start, bound.Int(1, 0));
  ASSIGN_OR_RETURN(std::int64_t stop, bound.Int(2, length));
  if (start < 0) start = std::max<std::int64_t>(0, start + length);
  if (stop < 0) stop += length;
  for (std::int64_t i = start; i < std::min(stop, length); ++i) {
    ASSIGN_OR_RETURN(
        const bool equal,
        runtime.Equal(self.AsSequence().items[static_cast<std::size_t>(i)], *bound[0]));
    if (equal) return Value::Int(i);
  }
  return absl::InvalidArgumentError("value is not in list");
}

absl::StatusOr<Value> Copy(Runtime&, const Value& self, const Args&) {
  return self;
}  // values never change

absl::StatusOr<Value> DictGet(Runtime&, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "get", {"key", "default"}, 1));
  if (!IsHashable(*bound[0]))
    return TypeError(absl::StrCat("unhashable type: '", bound[0]->TypeName(), "'"));
  if (const Value* found = self.AsDict().Find(*bound[0])) return *found;
  return bound[1] == nullptr ? Value::None() : *bound[1];
}

template <Sequence::Kind kind>
absl::StatusOr<Value> DictView(Runtime& runtime, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "dict view", {}).status());
  std::vector<Value> items;
  for (const auto& [key, value] : self.AsDict().entries()) {
    if (kind == Sequence::Kind::kItems) {
      ASSIGN_OR_RETURN(Value pair, runtime.MakeSequence({key, value}, Sequence::Kind::kTuple));
      items.push_back(std::move(pair));
    } else {
      items.push_back(kind == Sequence::Kind::kKeys ? key : value);
    }
  }
  return runtime.MakeSequence(std::move(items), kind);
}

absl::StatusOr<Value> LoopCycle(Runtime&, const Value& self, const Args& args) {
  if (args.positional.empty()) return TypeError("no items for cycling given");
  return args.positional[self.As<Loop>()->index0 % args.positional.size()];
}

absl::StatusOr<Value> LoopChanged(Runtime& runtime, const Value& self, const Args& args) {
  auto* loop = self.As<Loop>();
  bool same = loop->last_changed && loop->last_changed->size() == args.positional.size();
  for (std::size_t i = 0; same && i < args.positional.size(); ++i) {
    ASSIGN_OR_RETURN(same, runtime.Equal((*loop->last_changed)[i], args.positional[i]));
  }
  loop->last_changed = args.positional;
  return Value::Bool(!same);
}

absl::StatusOr<Value> CyclerNext(Runtime&, const Value& self, const Args&) {
  auto* cycler = self.As<Cycler>();
  const Value current = cycler->items[cycler->position];
  cycler->position = (cycler->position + 1) % cycler->items.size();
  return current;
}

absl::StatusOr<Value> CyclerReset(Runtime&, const Value& self, const Args&) {
  self.As<Cycler>()->position = 0;
  return Value::None();
}

struct Row {
  const char* name;
  Method method;
};

constexpr Row kStringMethods[] = {
    {"capitalize", Convert<python::Capitalize>},
    {"casefold", Convert<python::Lower>},
    {"center", Pad<Align::kCenter>},
    {"count", Count},
    {"endswith", HasAffix<true>},
    {"expandtabs", ExpandTabs},
    {"find", Find<false, false>},
    {"format", Format},
    {"index", Find<false, true>},
    {"isalnum", All<IsAlphanumeric>},
    {"isalpha", All<python::IsAlpha>},
    {"isascii", IsAscii},
    {"isdecimal", All<python::IsDecimal>},
    {"isdigit", All<python::IsDecimal>},
    {"isidentifier", IsIdentifier},
    {"islower", IsCase<false>},
    {"isnumeric", All<python::IsDecimal>},
    {"isspace", All<python::IsSpace>},
    {"istitle", IsTitle},
    {"isupper", IsCase<true>},
    {"join", Join},
    {"ljust", Pad<Align::kLeft>},
    {"lower", Convert<python::Lower>},
    {"lstrip", Strip<Side::kLeft>},
    {"partition", Partition<false>},
    {"removeprefix", RemoveAffix<false>},
    {"removesuffix", RemoveAffix<true>},
    {"replace", Replace},
    {"rfind", Find<true, false>},
    {"rindex", Find<true, true>},
    {"rjust", Pad<Align::kRight>},
    {"rpartition", Partition<true>},
    {"rsplit", Split<true>},
    {"rstrip", Strip<Side::kRight>},
    {"split", Split<false>},
    {"splitlines", SplitLines},
    {"startswith", HasAffix<false>},
    {"strip", Strip<Side::kBoth>},
    {"swapcase", Convert<python::SwapCase>},
    {"title", Convert<python::Title>},
    {"upper", Convert<python::Upper>},
    {"zfill", ZeroFill},
};
constexpr Row kListMethods[] = {{"copy", Copy}, {"count", ListCount}, {"index", ListIndex}};
constexpr Row kTupleMethods[] = {{"count", ListCount}, {"index", ListIndex}};
constexpr Row kDictMethods[] = {{"copy", Copy},
                                {"get", DictGet},
                                {"items", DictView<Sequence::Kind::kItems>},
                                {"keys", DictView<Sequence::Kind::kKeys>},
                                {"values", DictView<Sequence::Kind::kValues>}};
constexpr Row kLoopMethods[] = {{"changed", LoopChanged}, {"cycle", LoopCycle}};
constexpr Row kCyclerMethods[] = {{"next", CyclerNext}, {"reset", CyclerReset}};

template <std::size_t n>
Method FindRow(const Row (&rows)[n], string_view name) {
  const Row* row =
      std::find_if(std::begin(rows), std::end(rows), [&](const Row& r) { return name == r.name; });
  return row == std::end(rows) ? nullptr : row->method;
}

}  // namespace

Method FindMethod(const Value& object, string_view name) {
  if (object.is_string()) return FindRow(kStringMethods, name);
  if (object.is_dict()) return FindRow(kDictMethods, name);
  if (object.is_sequence()) {
    const Sequence::Kind kind = object.AsSequence().kind;
    if (kind == Sequence::Kind::kList) return FindRow(kListMethods, name);
    if (kind <= Sequence::Kind::kRange) return FindRow(kTupleMethods, name);
    return nullptr;
  }
  if (object.As<Loop>() != nullptr) return FindRow(kLoopMethods, name);
  if (object.As<Cycler>() != nullptr) return FindRow(kCyclerMethods, name);
  return nullptr;
}

bool IsUnsafeAttribute(const Value& object, string_view name) {
  static constexpr string_view kList[] = {"append", "clear",  "extend",  "insert",
                                          "pop",    "remove", "reverse", "sort"};
  static constexpr string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (name.size() > 4 && name.substr(0, 2) == "__" && name.substr(name.size() - 2) == "__") {
    return !object.is_dict() || object.AsDict().Find(name) == nullptr;
  }
  if (object.is_dict())
    return std::find(std::begin(kDict), std::end(kDict), name) != std::end(kDict);
  return object.is_sequence() && object.AsSequence().kind == Sequence::Kind::kList &&
         std::find(std::begin(kList), std::end(kList), name) != std::end(kList);
}

}  // namespace nibble::jinja
