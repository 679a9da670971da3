// One rendering's budgets and heap, and Python's operations on values within them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_value.h"

namespace nibble::jinja {

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Not thread-safe; lives for one rendering on its thread. Every value is made through it, so that
// no loop, string or list outgrows its limits: work is charged in steps, about one an operation and
// one per 128 bytes it touches, which also bounds all memory ever made to 128 * max_steps bytes and
// some.
class Runtime {
 public:
  Runtime(const TemplateLimits& limits, absl::Time now) : limits_(limits), now_(now) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  absl::Time now() const { return now_; }
  const TemplateLimits& limits() const { return limits_; }

  absl::Status Charge(std::int64_t steps);
  absl::Status ChargeBytes(std::int64_t bytes) { return Charge(1 + bytes / 128); }
  // Whether a string or list of that many bytes may be made at all; ask before making a long one.
  absl::Status CheckSize(std::int64_t bytes) const;
  // Counted recursion, over everything that a template can nest at run time.
  absl::Status Enter();
  void Leave() { --depth_; }

  absl::StatusOr<Value> MakeString(std::string text);
  absl::StatusOr<Value> MakeSequence(std::vector<Value> items,
                                     Sequence::Kind kind = Sequence::Kind::kList);
  absl::StatusOr<Value> MakeDict(std::vector<Dict::Entry> entries);
  template <typename T, typename... A>
  T* New(A&&... args) {  // lives as long as the rendering
    auto object = std::make_unique<T>(std::forward<A>(args)...);
    T* const result = object.get();
    objects_.push_back(std::move(object));
    return result;
  }

  // str(value), repr(value) and json.dumps(value, ...).
  absl::StatusOr<std::string> Str(const Value& value);
  absl::StatusOr<std::string> Repr(const Value& value);

  // Items as Python's iter() gives them; a generator is used up.
  absl::StatusOr<std::vector<Value>> Iterate(const Value& value);
  absl::StatusOr<std::int64_t> Length(const Value& value);

  absl::StatusOr<bool> Equal(const Value& a, const Value& b);
  absl::StatusOr<bool> Less(const Value& a,
                            const Value& b);  // InvalidArgument where Python has no order
  absl::StatusOr<bool> Contains(const Value& container, const Value& item);
  absl::StatusOr<bool> Compare(Op op, const Value& a, const Value& b);
  absl::StatusOr<Value> Arithmetic(Op op, const Value& a, const Value& b);
  absl::StatusOr<Value> Negate(const Value& value, bool keep_sign);

  // object.name, object[key], object[start:stop:step]; undefined where Jinja says so.
  absl::StatusOr<Value> Attribute(const Value& object, const std::string& name);
  absl::StatusOr<Value> Item(const Value& object, const Value& key);
  absl::StatusOr<Value> Slice(const Value& object, const Value& start, const Value& stop,
                              const Value& step);

  // Stable; REQUIRES nothing of the keys but an order.
  absl::Status Sort(std::vector<std::pair<Value, Value>>* keyed, bool reverse);

 private:
  absl::StatusOr<Value> Repeat(const Value& value, std::int64_t times);
  absl::StatusOr<Value> Add(const Value& a, const Value& b);

  const TemplateLimits limits_;
  const absl::Time now_;
  std::int64_t steps_ = 0;
  int depth_ = 0;
  std::vector<std::unique_ptr<Object>> objects_;
};

// Python's errors, as statuses.
absl::Status TypeError(absl::string_view reason);
absl::Status UndefinedError(const Value& undefined);

struct JsonOptions {
  bool has_indent = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ascii_only = false;
};
absl::StatusOr<std::string> ToJson(Runtime& runtime, const Value& value,
                                   const JsonOptions& options);

// "%s is %d" % values, and "{} is {name:>5}".format(...).
absl::StatusOr<std::string> PercentFormat(Runtime& runtime, absl::string_view format,
                                          const Value& values);
absl::StatusOr<std::string> BraceFormat(Runtime& runtime, absl::string_view format,
                                        const Args& args);

}  // namespace nibble::jinja
