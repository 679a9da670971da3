// Python's arithmetic and comparison operators.
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_runtime.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

const char* Symbol(Op op) {
  switch (op) {
    case Op::kAdd: return "+";
    case Op::kSub: return "-";
    case Op::kMul: return "*";
    case Op::kDiv: return "/";
    case Op::kFloorDiv: return "//";
    case Op::kMod: return "%";
    default: return "**";
  }
}

absl::Status Overflow() {
  return absl::InvalidArgumentError("an integer leaves the range of 64 bits");
}
absl::Status DivisionByZero() { return absl::InvalidArgumentError("division by zero"); }

std::int64_t FloorDivide(std::int64_t a, std::int64_t b) {
  const std::int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

absl::StatusOr<Value> IntegerPower(std::int64_t base, std::int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return DivisionByZero();
    return Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  std::int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return Overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return Overflow();
  }
  return Value::Int(result);
}

absl::StatusOr<Value> IntegerArithmetic(Op op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  switch (op) {
    case Op::kAdd:
      if (__builtin_add_overflow(a, b, &result)) return Overflow();
      return Value::Int(result);
    case Op::kSub:
      if (__builtin_sub_overflow(a, b, &result)) return Overflow();
      return Value::Int(result);
    case Op::kMul:
      if (__builtin_mul_overflow(a, b, &result)) return Overflow();
      return Value::Int(result);
    case Op::kPow: return IntegerPower(a, b);
    default: break;
  }
  if (b == 0) return DivisionByZero();
  if (op == Op::kDiv) return Value::Float(static_cast<double>(static_cast<long double>(a) / b));
  if (b == -1) {  // the quotient of the smallest integer overflows, and the hardware traps
    if (op == Op::kMod) return Value::Int(0);
    if (__builtin_sub_overflow(std::int64_t{0}, a, &result)) return Overflow();
    return Value::Int(result);
  }
  if (op == Op::kFloorDiv) return Value::Int(FloorDivide(a, b));
  const std::int64_t remainder = a % b;
  return Value::Int(remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder);
}

absl::StatusOr<Value> FloatArithmetic(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd: return Value::Float(a + b);
    case Op::kSub: return Value::Float(a - b);
    case Op::kMul: return Value::Float(a * b);
    case Op::kPow: {
      if (a == 0 && b < 0) return DivisionByZero();
      const double power = std::pow(a, b);
      if (std::isnan(power) && !std::isnan(a) && !std::isnan(b))
        return absl::InvalidArgumentError("power is complex");
      if (std::isinf(power) && std::isfinite(a) && std::isfinite(b))
        return absl::InvalidArgumentError("power is too large");
      return Value::Float(power);
    }
    default: break;
  }
  if (b == 0) return DivisionByZero();
  if (op == Op::kDiv) return Value::Float(a / b);
  // As Python: the remainder has the divisor's sign, and the quotient is exact for it.
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder != 0) {
    if ((b < 0) != (remainder < 0)) {
      remainder += b;
      quotient -= 1;
    }
  } else {
    remainder = std::copysign(0.0, b);
  }
  if (op == Op::kMod) return Value::Float(remainder);
  if (quotient == 0) return Value::Float(std::copysign(0.0, a / b));
  const double floor = std::floor(quotient);
  return Value::Float(quotient - floor > 0.5 ? floor + 1 : floor);
}

bool IsListOrTuple(const Value& value) {
  return value.is_sequence() && value.AsSequence().kind <= Sequence::Kind::kTuple;
}

}  // namespace

absl::StatusOr<Value> Runtime::Repeat(const Value& value, std::int64_t times) {
  const std::int64_t unit = value.Bytes();
  std::int64_t bytes = 0;
  if (times < 0) times = 0;
  if (__builtin_mul_overflow(unit, times, &bytes)) bytes = std::numeric_limits<std::int64_t>::max();
  RETURN_IF_ERROR(CheckSize(bytes));
  RETURN_IF_ERROR(ChargeBytes(bytes));
  if (value.is_string()) {
    std::string text;
    text.reserve(static_cast<std::size_t>(bytes));
    for (std::int64_t i = 0; unit > 0 && i < times; ++i) text += value.AsString();
    return Value::String(std::move(text));
  }
  std::vector<Value> items;
  for (std::int64_t i = 0; unit > 0 && i < times; ++i) {
    items.insert(items.end(), value.AsSequence().items.begin(), value.AsSequence().items.end());
  }
  return MakeSequence(std::move(items), value.AsSequence().kind);
}

absl::StatusOr<Value> Runtime::Add(const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    RETURN_IF_ERROR(CheckSize(a.Bytes() + b.Bytes()));
    return MakeString(absl::StrCat(a.AsString(), b.AsString()));
  }
  if (IsListOrTuple(a) && IsListOrTuple(b) && a.AsSequence().kind == b.AsSequence().kind) {
    RETURN_IF_ERROR(CheckSize(a.Bytes() + b.Bytes()));
    std::vector<Value> items = a.AsSequence().items;
    items.insert(items.end(), b.AsSequence().items.begin(), b.AsSequence().items.end());
    return MakeSequence(std::move(items), a.AsSequence().kind);
  }
  if (a.is_string())
    return TypeError(absl::StrCat("can only concatenate str (not \"", b.TypeName(), "\") to str"));
  return TypeError(absl::StrCat("unsupported operand type(s) for +: '", a.TypeName(), "' and '",
                                b.TypeName(), "'"));
}

absl::StatusOr<Value> Runtime::Arithmetic(Op op, const Value& a, const Value& b) {
  if (op == Op::kMod && a.is_string()) {
    ASSIGN_OR_RETURN(std::string text, PercentFormat(*this, a.AsString(), b));
    return MakeString(std::move(text));
  }
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  const auto x = a.ToInt();
  const auto y = b.ToInt();
  if (x && y) return IntegerArithmetic(op, *x, *y);
  if (a.is_number() && b.is_number()) {
    const bool has_float = a.kind() == Value::Kind::kFloat || b.kind() == Value::Kind::kFloat;
    if (!has_float) return Overflow();
    return FloatArithmetic(op, static_cast<double>(*a.ToNumber()),
                           static_cast<double>(*b.ToNumber()));
  }
  if (op == Op::kMul) {
    if (y && (a.is_string() || IsListOrTuple(a))) return Repeat(a, *y);
    if (x && (b.is_string() || IsListOrTuple(b))) return Repeat(b, *x);
  }
  if (op == Op::kAdd) return Add(a, b);
  return TypeError(absl::StrCat("unsupported operand type(s) for ", Symbol(op), ": '", a.TypeName(),
                                "' and '", b.TypeName(), "'"));
}

absl::StatusOr<Value> Runtime::Negate(const Value& value, bool keep_sign) {
  if (value.is_undefined()) return UndefinedError(value);
  if (const auto integer = value.ToInt()) {
    if (keep_sign) return Value::Int(*integer);
    return IntegerArithmetic(Op::kSub, 0, *integer);
  }
  if (value.kind() == Value::Kind::kFloat)
    return Value::Float(keep_sign ? value.AsFloat() : -value.AsFloat());
  return TypeError(absl::StrCat("bad operand type for unary ", keep_sign ? "+" : "-", ": '",
                                value.TypeName(), "'"));
}

absl::StatusOr<bool> Runtime::Contains(const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) {
      return TypeError(
          absl::StrCat("'in <string>' requires string as left operand, not ", item.TypeName()));
    }
    RETURN_IF_ERROR(ChargeBytes(container.Bytes()));
    return python::Find(container.AsString(), item.AsString()) != absl::string_view::npos;
  }
  if (container.is_dict()) {
    if (!IsHashable(item))
      return TypeError(absl::StrCat("unhashable type: '", item.TypeName(), "'"));
    RETURN_IF_ERROR(Charge(item.is_string() ? 0 : container.Bytes() / 512));
    return container.AsDict().Find(item) != nullptr;
  }
  if (!container.is_sequence() && !container.is_undefined()) {
    return TypeError(absl::StrCat("argument of type '", container.TypeName(), "' is not iterable"));
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(container));
  for (const Value& candidate : items) {
    ASSIGN_OR_RETURN(const bool equal, Equal(candidate, item));
    if (equal) return true;
  }
  return false;
}

absl::StatusOr<bool> Runtime::Compare(Op op, const Value& a, const Value& b) {
  absl::StatusOr<bool> result = false;
  const bool unordered = (a.kind() == Value::Kind::kFloat && std::isnan(a.AsFloat())) ||
                         (b.kind() == Value::Kind::kFloat && std::isnan(b.AsFloat()));
  switch (op) {
    case Op::kEq:
    case Op::kNe: result = Equal(a, b); break;
    case Op::kIn:
    case Op::kNotIn: result = Contains(b, a); break;
    case Op::kLt:
    case Op::kGe: result = Less(a, b); break;
    default: result = Less(b, a); break;
  }
  if (!result.ok()) return result;
  const bool negated = op == Op::kNe || op == Op::kNotIn || op == Op::kGe || op == Op::kLe;
  if (unordered && (op == Op::kGe || op == Op::kLe)) return false;
  return *result != negated;
}

}  // namespace nibble::jinja
