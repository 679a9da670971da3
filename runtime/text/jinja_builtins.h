// The fixed set of filters, tests, methods and globals that templates may use.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/text/jinja_runtime.h"
#include "runtime/text/jinja_value.h"

namespace nibble::jinja {

using Filter = absl::StatusOr<Value> (*)(Runtime&, const Value& input, const Args&);
using Test = absl::StatusOr<bool> (*)(Runtime&, const Value& input, const Args&);
using Method = absl::StatusOr<Value> (*)(Runtime&, const Value& self, const Args&);
using Global = absl::StatusOr<Value> (*)(Runtime&, const Args&);

// Null when there is none of that name (and, for methods, of that type).
Filter FindFilter(absl::string_view name);
Test FindTest(absl::string_view name);
Method FindMethod(const Value& object, absl::string_view name);
// Attributes that the sandbox hides: methods that would change a list or dict, and Python's
// internals.
bool IsUnsafeAttribute(const Value& object, absl::string_view name);

// As the names above, with work charged for what the callee may read. `what` is "filter", "test"
// ... in errors.
absl::StatusOr<Value> CallFilter(Runtime& runtime, absl::string_view name, const Value& input,
                                 const Args& args);
absl::StatusOr<bool> CallTest(Runtime& runtime, absl::string_view name, const Value& input,
                              const Args& args);
absl::StatusOr<Value> CallMethod(Runtime& runtime, Method method, const Value& self,
                                 const Args& args);
absl::Status ChargeArguments(Runtime& runtime, const Value& input, const Args& args);

// range, dict, namespace, cycler, joiner, raise_exception, strftime_now: made once a rendering.
std::vector<std::pair<std::string, Value>> MakeGlobals(Runtime& runtime);

// Attribute of a namespace, loop, cycler or the like; nothing when it has none of that name.
absl::StatusOr<std::optional<Value>> ObjectAttribute(Runtime& runtime, Object* object,
                                                     absl::string_view name);

// Arguments by parameter, as Python binds them. An absent optional one is a null pointer.
class Bound {
 public:
  // The first `required` names must be given. InvalidArgument names the callee and the argument at
  // fault.
  static absl::StatusOr<Bound> Bind(const Args& args, absl::string_view callee,
                                    std::initializer_list<const char*> names,
                                    std::size_t required = 0);
  const Value* operator[](std::size_t index) const { return values_[index]; }
  bool Has(std::size_t index) const {
    return values_[index] != nullptr && !values_[index]->is_none();
  }
  absl::StatusOr<std::int64_t> Int(std::size_t index, std::int64_t absent) const;
  absl::StatusOr<std::string> String(std::size_t index,
                                     absl::string_view absent) const;  // must be a string
  bool Flag(std::size_t index, bool absent) const {
    return values_[index] == nullptr ? absent : values_[index]->Truthy();
  }

 private:
  std::vector<const Value*> values_;
  std::vector<const char*> names_;
  std::string callee_;
};

class BoundMethod final : public Object {
 public:
  BoundMethod(Value of, Method called) : self(std::move(of)), method(called) {}
  const char* TypeName() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  const Value self;
  const Method method;
};

class Function final : public Object {
 public:
  explicit Function(Global called) : global(called) {}
  const char* TypeName() const override { return "function"; }
  bool callable() const override { return true; }
  const Global global;
};

// The one thing that templates may change: {% set ns.x = ... %}.
class Namespace final : public Object {
 public:
  const char* TypeName() const override { return "Namespace"; }
  void Set(absl::string_view name, Value value);
  std::vector<std::pair<std::string, Value>> attributes;
};

// `loop` inside a for.
class Loop final : public Object {
 public:
  explicit Loop(std::vector<Value> over) : items(std::move(over)) {}
  const char* TypeName() const override { return "LoopContext"; }
  const std::vector<Value> items;
  std::size_t index0 = 0;
  std::optional<std::vector<Value>> last_changed;  // what loop.changed saw last
};

class Cycler final : public Object {
 public:
  explicit Cycler(std::vector<Value> over) : items(std::move(over)) {}
  const char* TypeName() const override { return "Cycler"; }
  const std::vector<Value> items;
  std::size_t position = 0;
};

class Joiner final : public Object {
 public:
  explicit Joiner(Value between) : separator(std::move(between)) {}
  const char* TypeName() const override { return "Joiner"; }
  bool callable() const override { return true; }
  const Value separator;
  bool used = false;
};

}  // namespace nibble::jinja
