#include "runtime/text/jinja_expressions.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxScopeDepth =
    1024;  // of scopes that macros keep alive: destruction recurses so far

}  // namespace

void Scope::Set(absl::string_view name, Value value) {
  for (auto& [known, old] : names) {
    if (known == name) {
      old = std::move(value);
      return;
    }
  }
  names.emplace_back(std::string(name), std::move(value));
}

Value Evaluator::Lookup(absl::string_view name) const {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->outer.get()) {
    for (const auto& [known, value] : scope->names) {
      if (known == name) return value;
    }
  }
  return Value::Undefined(absl::StrCat("'", name.substr(0, 64), "' is undefined"));
}

absl::StatusOr<std::shared_ptr<Scope>> Evaluator::PushScope() {
  auto inner = std::make_shared<Scope>();
  inner->outer = scope_;
  inner->depth = scope_->depth + 1;
  if (inner->depth > kMaxScopeDepth) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the template nests scopes deeper than ", kMaxScopeDepth));
  }
  return std::exchange(scope_, std::move(inner));
}

absl::StatusOr<Value> Evaluator::Evaluate(const Expr& expr) {
  if (expr.kind == ExprKind::kLiteral) return expr.value;
  RETURN_IF_ERROR(runtime_.Enter());
  absl::StatusOr<Value> value = EvaluateKind(expr);
  runtime_.Leave();
  if (!value.ok() && error_line_ == 0) error_line_ = expr.line;
  return value;
}

absl::StatusOr<Value> Evaluator::EvaluateKind(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kLiteral: return expr.value;
    case ExprKind::kName: return Lookup(expr.name);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      ASSIGN_OR_RETURN(std::vector<Value> items, EvaluateAll(expr.parts));
      return runtime_.MakeSequence(std::move(items), expr.kind == ExprKind::kList
                                                         ? Sequence::Kind::kList
                                                         : Sequence::Kind::kTuple);
    }
    case ExprKind::kDict: return EvaluateDict(expr);
    case ExprKind::kPrefix: return EvaluatePrefix(expr);
    case ExprKind::kArithmetic: return EvaluateArithmetic(expr);
    case ExprKind::kConcat: return EvaluateConcat(expr);
    case ExprKind::kAnd:
    case ExprKind::kOr: return EvaluateLogical(expr);
    case ExprKind::kCompare: return EvaluateCompare(expr);
    case ExprKind::kConditional: return EvaluateConditional(expr);
    case ExprKind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*expr.parts[0]));
      return runtime_.Attribute(object, expr.name);
    }
    case ExprKind::kItem: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*expr.parts[0]));
      ASSIGN_OR_RETURN(const Value key, Evaluate(*expr.parts[1]));
      return runtime_.Item(object, key);
    }
    case ExprKind::kSlice: return EvaluateSlice(expr);
    case ExprKind::kCall: return EvaluateCall(expr, nullptr);
    case ExprKind::kFilter: return ApplyFilters(expr, Value());
    case ExprKind::kTest: return EvaluateTest(expr);
  }
  return Value();
}

absl::StatusOr<std::vector<Value>> Evaluator::EvaluateAll(const std::vector<ExprPtr>& parts) {
  std::vector<Value> values;
  values.reserve(parts.size());
  for (const ExprPtr& part : parts) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*part));
    values.push_back(std::move(value));
  }
  return values;
}

absl::StatusOr<Value> Evaluator::EvaluateDict(const Expr& expr) {
  ASSIGN_OR_RETURN(std::vector<Value> values, EvaluateAll(expr.parts));
  std::vector<Dict::Entry> entries;
  for (std::size_t i = 0; i + 1 < values.size(); i += 2)
    entries.emplace_back(std::move(values[i]), std::move(values[i + 1]));
  return runtime_.MakeDict(std::move(entries));
}

absl::StatusOr<Value> Evaluator::EvaluatePrefix(const Expr& expr) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.parts[0]));
  if (expr.op == Op::kNot) return Value::Bool(!value.Truthy());
  return runtime_.Negate(value, /*keep_sign=*/expr.op == Op::kPos);
}

absl::StatusOr<Value> Evaluator::EvaluateArithmetic(const Expr& expr) {
  ASSIGN_OR_RETURN(Value value, Evaluate(*expr.parts[0]));
  for (std::size_t i = 0; i < expr.ops.size(); ++i) {
    ASSIGN_OR_RETURN(const Value operand, Evaluate(*expr.parts[i + 1]));
    ASSIGN_OR_RETURN(value, runtime_.Arithmetic(expr.ops[i], value, operand));
  }
  return value;
}

absl::StatusOr<Value> Evaluator::EvaluateConcat(const Expr& expr) {
  std::string text;
  for (const ExprPtr& part : expr.parts) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*part));
    ASSIGN_OR_RETURN(const std::string shown, runtime_.Str(value));
    RETURN_IF_ERROR(runtime_.CheckSize(static_cast<std::int64_t>(text.size() + shown.size())));
    text += shown;
  }
  return runtime_.MakeString(std::move(text));
}

// Python's: the first operand that decides, as it is.
absl::StatusOr<Value> Evaluator::EvaluateLogical(const Expr& expr) {
  Value value;
  for (const ExprPtr& part : expr.parts) {
    ASSIGN_OR_RETURN(value, Evaluate(*part));
    if (value.Truthy() == (expr.kind == ExprKind::kOr)) break;
  }
  return value;
}

absl::StatusOr<Value> Evaluator::EvaluateCompare(const Expr& expr) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expr.parts[0]));
  for (std::size_t i = 0; i < expr.ops.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*expr.parts[i + 1]));
    ASSIGN_OR_RETURN(const bool holds, runtime_.Compare(expr.ops[i], left, right));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Evaluator::EvaluateConditional(const Expr& expr) {
  ASSIGN_OR_RETURN(const Value condition, Evaluate(*expr.parts[0]));
  if (condition.Truthy()) return Evaluate(*expr.parts[1]);
  if (expr.parts[2] != nullptr) return Evaluate(*expr.parts[2]);
  return Value::Undefined(
      "the inline if-expression evaluated to false and no else section was defined");
}

absl::StatusOr<Value> Evaluator::EvaluateSlice(const Expr& expr) {
  Value parts[4] = {Value::None(), Value::None(), Value::None(), Value::None()};
  for (int i = 0; i < 4; ++i) {
    if (expr.parts[static_cast<std::size_t>(i)] == nullptr) continue;
    ASSIGN_OR_RETURN(parts[i], Evaluate(*expr.parts[static_cast<std::size_t>(i)]));
  }
  return runtime_.Slice(parts[0], parts[1], parts[2], parts[3]);
}

absl::StatusOr<Value> Evaluator::EvaluateTest(const Expr& expr) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.parts[0]));
  ASSIGN_OR_RETURN(const Args args, EvaluateArguments(expr.arguments));
  RETURN_IF_ERROR(ChargeArguments(runtime_, value, args));
  ASSIGN_OR_RETURN(const bool holds, CallTest(runtime_, expr.name, value, args));
  return Value::Bool(holds);
}

absl::StatusOr<Value> Evaluator::ApplyFilters(const Expr& filter, const Value& input) {
  Value value = input;
  if (filter.parts[0] != nullptr) {
    // In a filter block the chain ends in a filter without operand; in an expression, in any other
    // operand.
    if (filter.parts[0]->kind == ExprKind::kFilter) {
      RETURN_IF_ERROR(runtime_.Enter());
      ASSIGN_OR_RETURN(value, ApplyFilters(*filter.parts[0], input));
      runtime_.Leave();
    } else {
      ASSIGN_OR_RETURN(value, Evaluate(*filter.parts[0]));
    }
  }
  ASSIGN_OR_RETURN(const Args args, EvaluateArguments(filter.arguments));
  return CallFilter(runtime_, filter.name, value, args);
}

absl::StatusOr<Args> Evaluator::EvaluateArguments(const std::vector<Argument>& arguments) {
  Args args;
  for (const Argument& argument : arguments) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*argument.value));
    switch (argument.kind) {
      case Argument::Kind::kPositional: args.positional.push_back(std::move(value)); break;
      case Argument::Kind::kNamed: args.named.emplace_back(argument.name, std::move(value)); break;
      case Argument::Kind::kStar: {
        ASSIGN_OR_RETURN(std::vector<Value> items, runtime_.Iterate(value));
        for (Value& item : items) args.positional.push_back(std::move(item));
        break;
      }
      case Argument::Kind::kDoubleStar:
        if (!value.is_dict()) return TypeError("argument after ** must be a mapping");
        RETURN_IF_ERROR(runtime_.ChargeBytes(value.Bytes()));
        for (const auto& [key, item] : value.AsDict().entries()) {
          if (!key.is_string()) return TypeError("keywords must be strings");
          args.named.emplace_back(key.AsString(), item);
        }
        break;
    }
  }
  return args;
}

absl::StatusOr<Value> Evaluator::EvaluateCall(const Expr& call, Macro* caller) {
  const Expr& callee = *call.parts[0];
  if (callee.kind ==
      ExprKind::kAttribute) {  // a method is called without making a value of it first
    ASSIGN_OR_RETURN(const Value self, Evaluate(*callee.parts[0]));
    if (self.is_undefined()) return UndefinedError(self);
    const Method method = FindMethod(self, callee.name);
    ASSIGN_OR_RETURN(const Value function,
                     method != nullptr ? Value() : runtime_.Attribute(self, callee.name));
    ASSIGN_OR_RETURN(const Args args, EvaluateArguments(call.arguments));
    if (method != nullptr) return CallMethod(runtime_, method, self, args);
    return Call(function, args, caller);
  }
  ASSIGN_OR_RETURN(const Value function, Evaluate(callee));
  ASSIGN_OR_RETURN(const Args args, EvaluateArguments(call.arguments));
  return Call(function, args, caller);
}

absl::StatusOr<Value> Evaluator::Call(const Value& callee, const Args& args, Macro* caller) {
  if (callee.is_undefined()) return UndefinedError(callee);
  RETURN_IF_ERROR(ChargeArguments(runtime_, callee, args));
  if (const auto* macro = callee.As<Macro>()) return CallMacro(*macro, args, caller);
  if (const auto* function = callee.As<Function>()) return function->global(runtime_, args);
  if (const auto* method = callee.As<BoundMethod>())
    return CallMethod(runtime_, method->method, method->self, args);
  if (auto* joiner = callee.As<Joiner>())
    return std::exchange(joiner->used, true) ? joiner->separator : Value::String("");
  if (callee.As<Loop>() != nullptr) return absl::UnimplementedError("recursive loops");
  return TypeError(absl::StrCat("'", callee.TypeName(), "' object is not callable"));
}

}  // namespace nibble::jinja
