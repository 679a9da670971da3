// `is` tests.
#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

using Kind = Value::Kind;

absl::StatusOr<bool> Defined(Runtime&, const Value& value, const Args&) {
  return !value.is_undefined();
}
absl::StatusOr<bool> IsUndefined(Runtime&, const Value& value, const Args&) {
  return value.is_undefined();
}
absl::StatusOr<bool> None(Runtime&, const Value& value, const Args&) { return value.is_none(); }
absl::StatusOr<bool> String(Runtime&, const Value& value, const Args&) { return value.is_string(); }
absl::StatusOr<bool> Number(Runtime&, const Value& value, const Args&) { return value.is_number(); }
absl::StatusOr<bool> Boolean(Runtime&, const Value& value, const Args&) { return value.is_bool(); }
absl::StatusOr<bool> Float(Runtime&, const Value& value, const Args&) {
  return value.kind() == Kind::kFloat;
}
absl::StatusOr<bool> Mapping(Runtime&, const Value& value, const Args&) { return value.is_dict(); }
absl::StatusOr<bool> True(Runtime&, const Value& value, const Args&) {
  return value.is_bool() && value.AsBool();
}
absl::StatusOr<bool> False(Runtime&, const Value& value, const Args&) {
  return value.is_bool() && !value.AsBool();
}
absl::StatusOr<bool> Escaped(Runtime&, const Value&, const Args&) { return false; }

absl::StatusOr<bool> Integer(Runtime&, const Value& value, const Args&) {
  return value.kind() == Kind::kInt || value.kind() == Kind::kBigInt;
}

// An undefined value iterates as nothing and counts as empty, so it passes both of these, as in
// Jinja.
absl::StatusOr<bool> Iterable(Runtime&, const Value& value, const Args&) {
  return value.is_undefined() || value.is_string() || value.is_sequence() || value.is_dict();
}

absl::StatusOr<bool> IsSequence(Runtime&, const Value& value, const Args&) {
  return value.is_undefined() || value.is_string() || value.is_dict() ||
         (value.is_sequence() && value.AsSequence().indexable());
}

absl::StatusOr<bool> Callable(Runtime&, const Value& value, const Args&) {
  return value.is_undefined() || (value.kind() == Kind::kObject && value.AsObject()->callable());
}

template <bool upper>
absl::StatusOr<bool> Case(Runtime& runtime, const Value& value, const Args&) {
  ASSIGN_OR_RETURN(std::string text, runtime.Str(value));
  const Value string = Value::String(std::move(text));
  ASSIGN_OR_RETURN(
      const Value result,
      CallMethod(runtime, FindMethod(string, upper ? "isupper" : "islower"), string, {}));
  return result.AsBool();
}

template <Op op>
absl::StatusOr<bool> Compared(Runtime& runtime, const Value& value, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "comparison test", {"other"}, 1));
  return runtime.Compare(op, value, *bound[0]);
}

absl::StatusOr<bool> SameAs(Runtime&, const Value& value, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "sameas", {"other"}, 1));
  return value.Same(*bound[0]);
}

absl::StatusOr<bool> Remainder(Runtime& runtime, const Value& value, const Value& divisor,
                               std::int64_t wanted) {
  ASSIGN_OR_RETURN(const Value remainder, runtime.Arithmetic(Op::kMod, value, divisor));
  return runtime.Equal(remainder, Value::Int(wanted));
}

absl::StatusOr<bool> Even(Runtime& runtime, const Value& value, const Args&) {
  return Remainder(runtime, value, Value::Int(2), 0);
}
absl::StatusOr<bool> Odd(Runtime& runtime, const Value& value, const Args&) {
  return Remainder(runtime, value, Value::Int(2), 1);
}
absl::StatusOr<bool> DivisibleBy(Runtime& runtime, const Value& value, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "divisibleby", {"num"}, 1));
  return Remainder(runtime, value, *bound[0], 0);
}

absl::StatusOr<bool> IsFilter(Runtime&, const Value& value, const Args&) {
  return value.is_string() && FindFilter(value.AsString()) != nullptr;
}
absl::StatusOr<bool> IsTest(Runtime&, const Value& value, const Args&) {
  return value.is_string() && FindTest(value.AsString()) != nullptr;
}

struct Row {
  const char* name;
  Test test;
};

constexpr Row kTests[] = {
    {"!=", Compared<Op::kNe>},
    {"<", Compared<Op::kLt>},
    {"<=", Compared<Op::kLe>},
    {"==", Compared<Op::kEq>},
    {">", Compared<Op::kGt>},
    {">=", Compared<Op::kGe>},
    {"boolean", Boolean},
    {"callable", Callable},
    {"defined", Defined},
    {"divisibleby", DivisibleBy},
    {"eq", Compared<Op::kEq>},
    {"equalto", Compared<Op::kEq>},
    {"escaped", Escaped},
    {"even", Even},
    {"false", False},
    {"filter", IsFilter},
    {"float", Float},
    {"ge", Compared<Op::kGe>},
    {"greaterthan", Compared<Op::kGt>},
    {"gt", Compared<Op::kGt>},
    {"in", Compared<Op::kIn>},
    {"integer", Integer},
    {"iterable", Iterable},
    {"le", Compared<Op::kLe>},
    {"lessthan", Compared<Op::kLt>},
    {"lower", Case<false>},
    {"lt", Compared<Op::kLt>},
    {"mapping", Mapping},
    {"ne", Compared<Op::kNe>},
    {"none", None},
    {"number", Number},
    {"odd", Odd},
    {"sameas", SameAs},
    {"sequence", IsSequence},
    {"string", String},
    {"test", IsTest},
    {"true", True},
    {"undefined", IsUndefined},
    {"upper", Case<true>},
};

}  // namespace

Test FindTest(absl::string_view name) {
  const Row* row = std::find_if(std::begin(kTests), std::end(kTests),
                                [&](const Row& r) { return name == r.name; });
  return row == std::end(kTests) ? nullptr : row->test;
}

}  // namespace nibble::jinja
