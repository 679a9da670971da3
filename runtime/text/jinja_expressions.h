// Evaluates the expressions of a template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_runtime.h"

namespace nibble::jinja {

// The names of a block, looked up outwards. Macros keep the scope they were defined in alive.
struct Scope {
  std::vector<std::pair<std::string, Value>> names;
  std::shared_ptr<Scope> outer;
  int depth = 0;

  void Set(absl::string_view name, Value value);
};

class Macro final : public Object {
 public:
  Macro(const MacroNode* body, std::shared_ptr<Scope> defined_in)
      : node(body), scope(std::move(defined_in)) {}
  const char* TypeName() const override { return "Macro"; }
  bool callable() const override { return true; }
  const MacroNode* const node;
  const std::shared_ptr<Scope> scope;
};

class Evaluator {
 public:
  virtual ~Evaluator() = default;

 protected:
  explicit Evaluator(Runtime& runtime) : runtime_(runtime) {}

  absl::StatusOr<Value> Evaluate(const Expr& expr);
  // `caller`: the body of a call block around this call, or null.
  absl::StatusOr<Value> EvaluateCall(const Expr& call, Macro* caller);
  // Filters of a filter block, the innermost of which takes `input`.
  absl::StatusOr<Value> ApplyFilters(const Expr& filter, const Value& input);
  virtual absl::StatusOr<Value> CallMacro(const Macro& macro, const Args& args, Macro* caller) = 0;

  Value Lookup(absl::string_view name) const;
  // Makes a new innermost scope and returns the one before, to be put back.
  absl::StatusOr<std::shared_ptr<Scope>> PushScope();

  Runtime& runtime_;
  std::shared_ptr<Scope> scope_;
  int error_line_ = 0;  // of the innermost expression or statement that failed

 private:
  absl::StatusOr<Value> EvaluateKind(const Expr& expr);
  absl::StatusOr<std::vector<Value>> EvaluateAll(const std::vector<ExprPtr>& parts);
  absl::StatusOr<Value> EvaluateDict(const Expr& expr);
  absl::StatusOr<Value> EvaluatePrefix(const Expr& expr);
  absl::StatusOr<Value> EvaluateArithmetic(const Expr& expr);
  absl::StatusOr<Value> EvaluateConcat(const Expr& expr);
  absl::StatusOr<Value> EvaluateLogical(const Expr& expr);
  absl::StatusOr<Value> EvaluateCompare(const Expr& expr);
  absl::StatusOr<Value> EvaluateConditional(const Expr& expr);
  absl::StatusOr<Value> EvaluateSlice(const Expr& expr);
  absl::StatusOr<Value> EvaluateTest(const Expr& expr);
  absl::StatusOr<Args> EvaluateArguments(const std::vector<Argument>& arguments);
  absl::StatusOr<Value> Call(const Value& callee, const Args& args, Macro* caller);
};

}  // namespace nibble::jinja
