#include "runtime/text/jinja_runtime.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxValueDepth = 200;  // of lists in lists: destruction and printing recurse so far

absl::Status NotIterable(const Value& value) {
  if (value.is_undefined()) return UndefinedError(value);
  return TypeError(absl::StrCat("'", value.TypeName(), "' object is not iterable"));
}

}  // namespace

absl::Status TypeError(absl::string_view reason) { return absl::InvalidArgumentError(reason); }

absl::Status UndefinedError(const Value& undefined) {
  return absl::InvalidArgumentError(undefined.reason());
}

absl::Status Runtime::Charge(std::int64_t steps) {
  steps_ += steps;
  if (steps_ > limits_.max_steps) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the template needs more than ", limits_.max_steps, " steps"));
  }
  return absl::OkStatus();
}

absl::Status Runtime::CheckSize(std::int64_t bytes) const {
  if (bytes > limits_.max_output_bytes || bytes < 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the template makes a string or list of more than ", limits_.max_output_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status Runtime::Enter() {
  // A macro that calls itself goes through a dozen levels a call; 4 * 64 is far above what
  // templates need and far below what a thread's stack holds.
  const int most = 4 * limits_.max_nesting;
  if (++depth_ > most) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the template recurses deeper than ", most, " levels"));
  }
  return Charge(1);
}

absl::StatusOr<Value> Runtime::MakeString(std::string text) {
  const auto bytes = static_cast<std::int64_t>(text.size());
  RETURN_IF_ERROR(CheckSize(bytes));
  RETURN_IF_ERROR(ChargeBytes(bytes));
  return Value::String(std::move(text));
}

absl::StatusOr<Value> Runtime::MakeSequence(std::vector<Value> items, Sequence::Kind kind) {
  const auto bytes = static_cast<std::int64_t>(items.size() * sizeof(Value));
  RETURN_IF_ERROR(CheckSize(bytes));
  RETURN_IF_ERROR(ChargeBytes(bytes));
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = kind;
  for (const Value& item : items) sequence->depth = std::max(sequence->depth, item.depth() + 1);
  if (sequence->depth > kMaxValueDepth) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the template nests lists deeper than ", kMaxValueDepth));
  }
  sequence->items = std::move(items);
  return Value::Of(std::move(sequence));
}

absl::StatusOr<Value> Runtime::MakeDict(std::vector<Dict::Entry> entries) {
  const auto bytes = static_cast<std::int64_t>(entries.size() * sizeof(Dict::Entry));
  RETURN_IF_ERROR(CheckSize(bytes));
  std::int64_t other_keys = 0;  // found by scanning
  for (const Dict::Entry& entry : entries) {
    if (!IsHashable(entry.first))
      return TypeError(absl::StrCat("unhashable type: '", entry.first.TypeName(), "'"));
    other_keys += entry.first.is_string() ? 0 : 1;
  }
  RETURN_IF_ERROR(Charge(static_cast<std::int64_t>(entries.size()) + other_keys * other_keys / 8));
  auto dict = std::make_shared<const Dict>(std::move(entries));
  if (dict->depth() > kMaxValueDepth) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the template nests dicts deeper than ", kMaxValueDepth));
  }
  return Value::Of(std::move(dict));
}

absl::StatusOr<std::vector<Value>> Runtime::Iterate(const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Value::Kind::kUndefined: break;
    case Value::Kind::kString: {
      RETURN_IF_ERROR(
          CheckSize(static_cast<std::int64_t>(value.AsString().size() * sizeof(Value))));
      RETURN_IF_ERROR(Charge(static_cast<std::int64_t>(value.AsString().size())));
      for (const absl::string_view c : python::Characters(value.AsString()))
        items.push_back(Value::String(std::string(c)));
      break;
    }
    case Value::Kind::kDict:
      for (const Dict::Entry& entry : value.AsDict().entries()) items.push_back(entry.first);
      break;
    case Value::Kind::kSequence: {
      Sequence& sequence = value.AsSequence();
      items.assign(sequence.items.begin() + static_cast<std::ptrdiff_t>(sequence.consumed),
                   sequence.items.end());
      if (sequence.kind == Sequence::Kind::kGenerator) sequence.consumed = sequence.items.size();
      break;
    }
    default: return NotIterable(value);
  }
  RETURN_IF_ERROR(ChargeBytes(static_cast<std::int64_t>(items.size() * sizeof(Value))));
  return items;
}

absl::StatusOr<std::int64_t> Runtime::Length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) {
    RETURN_IF_ERROR(ChargeBytes(value.Bytes()));
    return python::Length(value.AsString());
  }
  if (value.is_dict()) return static_cast<std::int64_t>(value.AsDict().entries().size());
  if (value.is_sequence() && value.AsSequence().sized()) {
    return static_cast<std::int64_t>(value.AsSequence().items.size());
  }
  return TypeError(absl::StrCat("object of type '", value.TypeName(), "' has no len()"));
}

absl::StatusOr<bool> Runtime::Equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return *a.ToNumber() == *b.ToNumber();
  if (a.kind() != b.kind()) return false;
  if (a.is_undefined() || a.Same(b)) return true;
  if (a.is_string()) {
    if (a.AsString().size() != b.AsString().size()) return false;
    RETURN_IF_ERROR(Charge(a.Bytes() / 128));
    return a.AsString() == b.AsString();
  }
  if (a.is_sequence()) {
    const Sequence& x = a.AsSequence();
    const Sequence& y = b.AsSequence();
    if (x.kind != y.kind || !x.sized() || x.items.size() != y.items.size()) return false;
    RETURN_IF_ERROR(Charge(1));
    for (std::size_t i = 0; i < x.items.size(); ++i) {
      if (i % 16 == 15) RETURN_IF_ERROR(Charge(1));
      ASSIGN_OR_RETURN(const bool equal, Equal(x.items[i], y.items[i]));
      if (!equal) return false;
    }
    return true;
  }
  if (a.is_dict()) {
    if (a.AsDict().entries().size() != b.AsDict().entries().size()) return false;
    for (const Dict::Entry& entry : a.AsDict().entries()) {
      RETURN_IF_ERROR(Charge(1));
      const Value* other = b.AsDict().Find(entry.first);
      if (other == nullptr) return false;
      ASSIGN_OR_RETURN(const bool equal, Equal(entry.second, *other));
      if (!equal) return false;
    }
    return true;
  }
  return false;  // objects that are not the same one
}

absl::StatusOr<bool> Runtime::Less(const Value& a, const Value& b) {
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  if (a.is_number() && b.is_number()) return *a.ToNumber() < *b.ToNumber();
  if (a.is_string() && b.is_string()) {
    RETURN_IF_ERROR(Charge(std::min(a.Bytes(), b.Bytes()) / 128));
    return a.AsString() < b.AsString();  // UTF-8 sorts as its code points do
  }
  if (a.is_sequence() && b.is_sequence() && a.AsSequence().kind == b.AsSequence().kind &&
      a.AsSequence().kind <= Sequence::Kind::kTuple) {
    const std::vector<Value>& x = a.AsSequence().items;
    const std::vector<Value>& y = b.AsSequence().items;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      RETURN_IF_ERROR(Charge(1));
      ASSIGN_OR_RETURN(const bool equal, Equal(x[i], y[i]));
      if (!equal) return Less(x[i], y[i]);
    }
    return x.size() < y.size();
  }
  return TypeError(absl::StrCat("'<' not supported between instances of '", a.TypeName(), "' and '",
                                b.TypeName(), "'"));
}

absl::StatusOr<Value> Runtime::Attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) return UndefinedError(object);
  if (FindMethod(object, name) != nullptr)
    return Value::Of(New<BoundMethod>(object, FindMethod(object, name)));
  if (IsUnsafeAttribute(object, name)) {
    return Value::Undefined(absl::StrCat("access to attribute '", name, "' of '", object.TypeName(),
                                         "' object is unsafe"));
  }
  if (object.is_dict()) {
    if (const Value* found = object.AsDict().Find(name)) return *found;
  }
  if (object.is_sequence() && object.AsSequence().group && (name == "grouper" || name == "list")) {
    return object.AsSequence().items[name == "list" ? 1 : 0];
  }
  if (object.kind() == Value::Kind::kObject) {
    ASSIGN_OR_RETURN(std::optional<Value> found, ObjectAttribute(*this, object.AsObject(), name));
    if (found) return *std::move(found);
  }
  return Value::Undefined(
      absl::StrCat("'", object.TypeName(), " object' has no attribute '", name.substr(0, 64), "'"));
}

absl::StatusOr<Value> Runtime::Item(const Value& object, const Value& key) {
  if (object.is_undefined()) return UndefinedError(object);
  if (object.is_dict()) {
    RETURN_IF_ERROR(Charge(key.is_string() ? 0 : object.Bytes() / 512));
    if (const Value* found = object.AsDict().Find(key)) return *found;
  } else if (const auto index = key.ToInt()) {
    if (object.is_string()) {
      const std::string& text = object.AsString();
      RETURN_IF_ERROR(ChargeBytes(object.Bytes()));
      const std::int64_t length = python::Length(text);
      const std::int64_t at = *index < 0 ? *index + length : *index;
      if (at >= 0 && at < length) {
        const std::size_t start = python::ByteOffset(text, at);
        std::size_t end = start;
        python::Decode(text, &end);
        return MakeString(text.substr(start, end - start));
      }
    } else if (object.is_sequence() && object.AsSequence().indexable()) {
      const std::vector<Value>& items = object.AsSequence().items;
      const auto length = static_cast<std::int64_t>(items.size());
      const std::int64_t at = *index < 0 ? *index + length : *index;
      if (at >= 0 && at < length) return items[static_cast<std::size_t>(at)];
    }
  }
  if (key.is_string()) return Attribute(object, key.AsString());
  ASSIGN_OR_RETURN(const std::string shown, Repr(key));
  return Value::Undefined(
      absl::StrCat("'", object.TypeName(), " object' has no item ", shown.substr(0, 64)));
}

absl::StatusOr<Value> Runtime::Slice(const Value& object, const Value& start, const Value& stop,
                                     const Value& step) {
  if (object.is_undefined()) return UndefinedError(object);
  const bool sliceable =
      object.is_string() || (object.is_sequence() && object.AsSequence().indexable());
  if (!sliceable)
    return TypeError(absl::StrCat("'", object.TypeName(), "' object cannot be sliced"));
  for (const Value* bound : {&start, &stop, &step}) {
    if (!bound->is_none() && !bound->ToInt())
      return TypeError("slice indices must be integers or None");
  }
  ASSIGN_OR_RETURN(const std::int64_t length, Length(object));
  const std::int64_t by = step.ToInt().value_or(1);
  if (by == 0) return absl::InvalidArgumentError("slice step cannot be zero");
  const auto clamp = [&](const Value& bound, std::int64_t absent) {
    if (bound.is_none()) return absent;
    std::int64_t at = *bound.ToInt();
    if (at < 0) at = std::max<std::int64_t>(at + length, by < 0 ? -1 : 0);
    return std::min(at, by < 0 ? length - 1 : length);
  };
  const std::int64_t from = clamp(start, by < 0 ? length - 1 : 0);
  const std::int64_t to = clamp(stop, by < 0 ? -1 : length);
  if (object.is_string() && by == 1) {
    const std::string& text = object.AsString();
    if (from >= to) return MakeString("");
    const std::size_t begin = python::ByteOffset(text, from);
    const std::size_t size = python::ByteOffset(absl::string_view(text).substr(begin), to - from);
    return MakeString(text.substr(begin, size));
  }
  std::vector<absl::string_view> characters;
  if (object.is_string()) {
    RETURN_IF_ERROR(Charge(length / 8));
    characters = python::Characters(object.AsString());
  }
  std::vector<Value> items;
  std::string text;
  for (std::int64_t at = from; by > 0 ? at < to : at > to;) {
    if (object.is_string()) {
      absl::StrAppend(&text, characters[static_cast<std::size_t>(at)]);
    } else {
      items.push_back(object.AsSequence().items[static_cast<std::size_t>(at)]);
    }
    if (__builtin_add_overflow(at, by, &at)) break;
  }
  if (object.is_string()) return MakeString(std::move(text));
  return MakeSequence(std::move(items), object.AsSequence().kind);
}

absl::Status Runtime::Sort(std::vector<std::pair<Value, Value>>* keyed, bool reverse) {
  const auto size = static_cast<double>(keyed->size());
  RETURN_IF_ERROR(Charge(static_cast<std::int64_t>(size * std::log2(size + 1)) / 4));
  absl::Status status;
  std::stable_sort(keyed->begin(), keyed->end(), [&](const auto& a, const auto& b) {
    if (!status.ok()) return false;
    const absl::StatusOr<bool> less = reverse ? Less(b.first, a.first) : Less(a.first, b.first);
    if (!less.ok()) status = less.status();
    return less.ok() && *less;
  });
  return status;
}

}  // namespace nibble::jinja
