// What a template parses into. Immutable afterwards; many renderings may read it at once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/text/jinja_value.h"

namespace nibble::jinja {

enum class Op {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kFloorDiv,
  kMod,
  kPow,  // arithmetic
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kIn,
  kNotIn,  // comparisons
  kNot,
  kNeg,
  kPos,  // prefix
};

enum class ExprKind {
  kLiteral,     // value
  kName,        // name
  kList,        // parts
  kTuple,       // parts
  kDict,        // parts: key, value, key, value ...
  kPrefix,      // op, parts[0]
  kArithmetic,  // parts[0] ops[0] parts[1] ops[1] ..., left to right
  kConcat,      // parts, printed and joined (~)
  kAnd,
  kOr,           // parts
  kCompare,      // parts[0] ops[0] parts[1] ..., all must hold
  kConditional,  // parts: condition, then, else (null: undefined)
  kAttribute,    // parts[0].name
  kItem,         // parts[0][parts[1]]
  kSlice,        // parts[0][parts[1] : parts[2] : parts[3]], each bound may be null
  kCall,         // parts[0](arguments)
  kFilter,       // parts[0] | name(arguments); parts[0] is null in a filter block
  kTest,         // parts[0] is name(arguments)
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Argument {
  enum class Kind { kPositional, kNamed, kStar, kDoubleStar };
  Kind kind;
  std::string name;
  ExprPtr value;
};

struct Expr {
  ExprKind kind;
  int line = 0;
  int depth = 1;  // of this tree: evaluation recurses no further
  Op op = Op::kAdd;
  Value value;
  std::string name;
  std::vector<ExprPtr> parts;
  std::vector<Op> ops;
  std::vector<Argument> arguments;
};

// name | name.attribute (of a namespace) | (target, target ...)
struct Target {
  std::string name;
  std::string attribute;
  std::vector<Target> items;
};

enum class NodeKind {
  kText,         // text
  kOutput,       // {{ expr }}
  kIf,           // branches; one without condition is the else
  kFor,          // target in expr [if condition]: body, else_body
  kSet,          // target = expr
  kSetBlock,     // target = rendered body, through filter
  kMacro,        // macro
  kCallBlock,    // expr (a call) with macro as its caller
  kFilterBlock,  // rendered body through filter
  kWith,         // targets = values, seen by body only
  kBreak,
  kContinue,
};

struct Node;
using NodePtr = std::unique_ptr<Node>;
using Body = std::vector<NodePtr>;

struct Branch {
  ExprPtr condition;
  Body body;
};

// A macro, or the body of a call block.
struct MacroNode {
  struct Parameter {
    std::string name;
    ExprPtr default_value;  // null: undefined
  };
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  bool uses_varargs =
      false;  // whether the body names them: others are refused arguments they do not take
  bool uses_kwargs = false;
  bool uses_caller = false;
};

struct Node {
  NodeKind kind;
  int line = 0;
  std::string text;
  ExprPtr expr;
  ExprPtr condition;
  ExprPtr filter;
  Target target;
  std::vector<Target> targets;
  std::vector<ExprPtr> values;
  std::vector<Branch> branches;
  Body body;
  Body else_body;
  MacroNode macro;
};

}  // namespace nibble::jinja
