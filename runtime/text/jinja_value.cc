#include "runtime/text/jinja_value.h"

#include <algorithm>

namespace nibble::jinja {

Value Value::Undefined(std::string reason) {
  return Value(
      Data(std::in_place_index<0>, std::make_shared<const std::string>(std::move(reason))));
}

const std::string& Value::reason() const {
  static const std::string* const kUnnamed = new std::string("value is undefined");
  const Reason& reason = std::get<0>(data_);
  return reason ? *reason : *kUnnamed;
}

std::optional<std::int64_t> Value::ToInt() const {
  if (kind() == Kind::kInt) return std::get<3>(data_);
  if (kind() == Kind::kBool) return AsBool() ? 1 : 0;
  return std::nullopt;
}

std::optional<long double> Value::ToNumber() const {
  if (kind() == Kind::kFloat) return AsFloat();
  if (kind() == Kind::kBigInt) return AsBigInt();
  if (const auto integer = ToInt()) return *integer;
  return std::nullopt;
}

bool Value::Truthy() const {
  switch (kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool: return AsBool();
    case Kind::kInt: return std::get<3>(data_) != 0;
    case Kind::kFloat: return AsFloat() != 0;
    case Kind::kString: return !AsString().empty();
    case Kind::kSequence: return !AsSequence().sized() || !AsSequence().items.empty();
    case Kind::kDict: return !AsDict().entries().empty();
    case Kind::kBigInt:
    case Kind::kObject: return true;
  }
  return true;
}

const char* Value::TypeName() const {
  switch (kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt:
    case Kind::kBigInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return "str";
    case Kind::kDict: return "dict";
    case Kind::kObject: return AsObject()->TypeName();
    case Kind::kSequence: break;
  }
  switch (AsSequence().kind) {
    case Sequence::Kind::kList: return "list";
    case Sequence::Kind::kTuple: return "tuple";
    case Sequence::Kind::kRange: return "range";
    case Sequence::Kind::kGenerator: return "generator";
    case Sequence::Kind::kKeys: return "dict_keys";
    case Sequence::Kind::kValues: return "dict_values";
    case Sequence::Kind::kItems: return "dict_items";
  }
  return "list";
}

int Value::depth() const {
  if (is_sequence()) return AsSequence().depth;
  if (is_dict()) return AsDict().depth();
  return 0;
}

std::int64_t Value::Bytes() const {
  if (is_string()) return static_cast<std::int64_t>(AsString().size());
  if (is_sequence()) return static_cast<std::int64_t>(AsSequence().items.size() * sizeof(Value));
  if (is_dict()) return static_cast<std::int64_t>(AsDict().entries().size() * sizeof(Dict::Entry));
  return 0;
}

bool IsHashable(const Value& value) {
  if (value.is_dict()) return false;
  if (!value.is_sequence()) return true;
  const Sequence& sequence = value.AsSequence();
  if (sequence.kind == Sequence::Kind::kRange) return true;
  return sequence.kind == Sequence::Kind::kTuple &&
         std::all_of(sequence.items.begin(), sequence.items.end(), IsHashable);
}

bool KeysEqual(const Value& a, const Value& b) {
  if (a.Same(b)) return true;
  if (a.is_string() && b.is_string()) return a.AsString() == b.AsString();
  if (a.is_number() && b.is_number()) return *a.ToNumber() == *b.ToNumber();
  if (a.is_undefined() && b.is_undefined()) return true;
  if (!a.is_sequence() || !b.is_sequence()) return false;
  const Sequence& x = a.AsSequence();
  const Sequence& y = b.AsSequence();
  return x.kind == y.kind && x.kind != Sequence::Kind::kGenerator &&
         std::equal(x.items.begin(), x.items.end(), y.items.begin(), y.items.end(), KeysEqual);
}

Dict::Dict(std::vector<Entry> entries) {
  entries_.reserve(entries.size());
  for (Entry& entry : entries) {
    depth_ = std::max({depth_, entry.first.depth() + 1, entry.second.depth() + 1});
    if (const Value* found = Find(entry.first)) {
      const_cast<Value&>(*found) = std::move(entry.second);
      continue;
    }
    if (entry.first.is_string()) {
      by_string_.emplace(entry.first.AsString(), entries_.size());
    } else {
      others_.push_back(entries_.size());
    }
    entries_.push_back(std::move(entry));
  }
}

const Value* Dict::Find(absl::string_view key) const {
  const auto found = by_string_.find(std::string(key));
  return found == by_string_.end() ? nullptr : &entries_[found->second].second;
}

const Value* Dict::Find(const Value& key) const {
  if (key.is_string()) return Find(key.AsString());
  for (const std::size_t index : others_) {
    if (KeysEqual(entries_[index].first, key)) return &entries_[index].second;
  }
  return nullptr;
}

}  // namespace nibble::jinja
