// Values of the template language: Python's, as far as chat templates can see them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"

namespace nibble::jinja {

class Dict;
class Value;
struct Sequence;

// Something with identity: a namespace, loop, macro or function. Owned by the Runtime of one
// rendering, so that values may point at one another in cycles; values never outlive the rendering.
class Object {
 public:
  virtual ~Object() = default;
  virtual const char* TypeName() const = 0;
  virtual bool callable() const { return false; }
};

// Immutable: a list or dict never changes once made (the sandbox refuses append, update and the
// like), which is also why a value cannot contain itself.
class Value {
 public:
  enum class Kind {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kBigInt,
    kFloat,
    kString,
    kSequence,
    kDict,
    kObject
  };

  Value() = default;
  static Value Undefined(std::string reason);  // what using it says: "'x' is undefined"
  static Value None() { return Value(Data(std::in_place_index<1>)); }
  static Value Bool(bool value) { return Value(Data(std::in_place_index<2>, value)); }
  static Value Int(std::int64_t value) { return Value(Data(std::in_place_index<3>, value)); }
  static Value BigInt(std::uint64_t value) {
    return Value(Data(std::in_place_index<4>, value));
  }  // above int64
  static Value Float(double value) { return Value(Data(std::in_place_index<5>, value)); }
  static Value String(std::string value) {
    return Value(
        Data(std::in_place_index<6>, std::make_shared<const std::string>(std::move(value))));
  }
  static Value Of(std::shared_ptr<Sequence> value) {
    return Value(Data(std::in_place_index<7>, std::move(value)));
  }
  static Value Of(std::shared_ptr<const Dict> value) {
    return Value(Data(std::in_place_index<8>, std::move(value)));
  }
  static Value Of(Object* value) { return Value(Data(std::in_place_index<9>, value)); }

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is_undefined() const { return kind() == Kind::kUndefined; }
  bool is_none() const { return kind() == Kind::kNone; }
  bool is_bool() const { return kind() == Kind::kBool; }
  bool is_string() const { return kind() == Kind::kString; }
  bool is_sequence() const { return kind() == Kind::kSequence; }
  bool is_dict() const { return kind() == Kind::kDict; }
  bool is_number() const {
    return kind() >= Kind::kBool && kind() <= Kind::kFloat;
  }  // bool is one, in Python

  // REQUIRE the matching kind.
  bool AsBool() const { return std::get<2>(data_); }
  double AsFloat() const { return std::get<5>(data_); }
  std::uint64_t AsBigInt() const { return std::get<4>(data_); }
  const std::string& AsString() const { return *std::get<6>(data_); }
  Sequence& AsSequence() const { return *std::get<7>(data_); }
  const Dict& AsDict() const { return *std::get<8>(data_); }
  Object* AsObject() const { return std::get<9>(data_); }
  const std::string& reason() const;  // of an undefined value

  // An int or bool as Python counts with it; nothing for other kinds.
  std::optional<std::int64_t> ToInt() const;
  // Any number. A long double holds every int64, uint64 and double exactly.
  std::optional<long double> ToNumber() const;

  template <typename T>
  T* As() const {  // the object if it is a T
    return kind() == Kind::kObject ? dynamic_cast<T*>(AsObject()) : nullptr;
  }

  bool Truthy() const;
  // Python's type name: "str", "dict", "NoneType".
  const char* TypeName() const;
  int depth() const;           // 0 for scalars, else 1 + the deepest item
  std::int64_t Bytes() const;  // about what it holds itself, without items of items
  // Whether the two share storage (or are equal small scalars): a cheap "is".
  bool Same(const Value& other) const { return data_ == other.data_; }

 private:
  using Reason = std::shared_ptr<const std::string>;
  using Data = std::variant<Reason, std::monostate, bool, std::int64_t, std::uint64_t, double,
                            std::shared_ptr<const std::string>, std::shared_ptr<Sequence>,
                            std::shared_ptr<const Dict>, Object*>;
  explicit Value(Data data) : data_(std::move(data)) {}

  Data data_;  // undefined
};

// Lists and everything else that iterates. What differs is how Python prints, counts and indexes
// them.
struct Sequence {
  enum class Kind { kList, kTuple, kRange, kGenerator, kKeys, kValues, kItems };

  Kind kind = Kind::kList;
  std::vector<Value> items;
  int depth = 1;
  bool group = false;        // a pair made by groupby: .grouper and .list
  std::size_t consumed = 0;  // a generator yields each item once

  bool indexable() const { return kind <= Kind::kRange; }
  bool sized() const { return kind != Kind::kGenerator; }
};

// Insertion-ordered. Keys are scalars or tuples; 1, 1.0 and true are one key, as in Python.
class Dict {
 public:
  using Entry = std::pair<Value, Value>;

  explicit Dict(std::vector<Entry>
                    entries);  // of repeated keys the last value wins, in the first one's place
  const std::vector<Entry>& entries() const { return entries_; }
  const Value* Find(absl::string_view key) const;
  const Value* Find(const Value& key) const;
  int depth() const { return depth_; }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<std::string, std::size_t> by_string_;
  std::vector<std::size_t> others_;  // entries whose key is no string
  int depth_ = 1;
};

// Whether scalar keys are equal as Python's dict sees it. Tuples compare item by item.
bool KeysEqual(const Value& a, const Value& b);
// Whether a value may be a key (Python: hashable).
bool IsHashable(const Value& value);

}  // namespace nibble::jinja
