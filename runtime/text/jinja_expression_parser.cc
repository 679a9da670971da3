#include "runtime/text/jinja_expression_parser.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"

namespace nibble::jinja {
namespace {

using absl::string_view;

std::string Shown(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText: return "template text";
    case TokenKind::kOutputBegin: return "'{{'";
    case TokenKind::kOutputEnd: return "'}}'";
    case TokenKind::kBlockBegin: return "'{%'";
    case TokenKind::kBlockEnd: return "'%}'";
    case TokenKind::kEnd: return "the end of the template";
    default: return python::StringRepr(token.text.substr(0, 64));
  }
}

}  // namespace

absl::Status ExpressionParser::Error(string_view reason) const {
  return absl::InvalidArgumentError(
      absl::StrCat("chat template, line ", current().line, ": ", reason));
}

absl::Status ExpressionParser::Unexpected(string_view expected) const {
  return Error(absl::StrCat("expected ", expected, ", got ", Shown(current())));
}

absl::Status ExpressionParser::Enter() {
  if (++nesting_ > max_nesting_)
    return Error(absl::StrCat("expressions nest deeper than ", max_nesting_));
  return absl::OkStatus();
}

bool ExpressionParser::TakeName(string_view name) {
  if (!IsName(name)) return false;
  Advance();
  return true;
}

bool ExpressionParser::TakeOperator(string_view op) {
  if (!IsOperator(op)) return false;
  Advance();
  return true;
}

absl::Status ExpressionParser::ExpectOperator(string_view op) {
  if (!TakeOperator(op)) return Unexpected(absl::StrCat("'", op, "'"));
  return absl::OkStatus();
}

bool ExpressionParser::IsConstantName(string_view name) {
  return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" ||
         name == "None";
}

ExprPtr ExpressionParser::NewExpr(ExprKind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = current().line;
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::Sized(ExprPtr expr) const {
  for (const ExprPtr& part : expr->parts) {
    if (part != nullptr) expr->depth = std::max(expr->depth, part->depth + 1);
  }
  for (const Argument& argument : expr->arguments)
    expr->depth = std::max(expr->depth, argument.value->depth + 1);
  const int most = 4 * max_nesting_;
  if (expr->depth > most)
    return Error(absl::StrCat("expression chains more than ", most, " operations"));
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseExpression(bool conditional) {
  RETURN_IF_ERROR(Enter());
  ASSIGN_OR_RETURN(ExprPtr expr, conditional ? ParseConditional() : ParseOr());
  Leave();
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseConditional() {
  const std::size_t unknown = unknown_.size();
  ASSIGN_OR_RETURN(ExprPtr expr, ParseOr());
  while (IsName("if")) {
    ExprPtr conditional = NewExpr(ExprKind::kConditional);
    Advance();
    ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    ExprPtr otherwise;
    if (TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    unknown_.resize(unknown);
    conditional->parts.push_back(std::move(condition));
    conditional->parts.push_back(std::move(expr));
    conditional->parts.push_back(std::move(otherwise));
    ASSIGN_OR_RETURN(expr, Sized(std::move(conditional)));
  }
  return expr;
}

// operand (word operand)*, as one node.
template <typename ParseOperand>
absl::StatusOr<ExprPtr> ExpressionParser::ParseLogical(string_view word, ExprKind kind,
                                                       ParseOperand operand) {
  ExprPtr all = NewExpr(kind);
  do {
    ASSIGN_OR_RETURN(ExprPtr part, operand());
    all->parts.push_back(std::move(part));
  } while (TakeName(word));
  if (all->parts.size() == 1) return std::move(all->parts[0]);
  return Sized(std::move(all));
}

// operand (op operand)*, as one node that is worked off from left to right.
template <typename ParseOperand>
absl::StatusOr<ExprPtr> ExpressionParser::ParseChain(
    std::initializer_list<std::pair<string_view, Op>> ops, ParseOperand operand) {
  ExprPtr chain = NewExpr(ExprKind::kArithmetic);
  while (true) {
    ASSIGN_OR_RETURN(ExprPtr part, operand());
    chain->parts.push_back(std::move(part));
    const auto* op = std::find_if(ops.begin(), ops.end(),
                                  [&](const auto& row) { return IsOperator(row.first); });
    if (op == ops.end()) break;
    chain->ops.push_back(op->second);
    Advance();
  }
  if (chain->ops.empty()) return std::move(chain->parts[0]);
  return Sized(std::move(chain));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseOr() {
  return ParseLogical("or", ExprKind::kOr, [this] { return ParseAnd(); });
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseAnd() {
  return ParseLogical("and", ExprKind::kAnd, [this] { return ParseNot(); });
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseNot() {
  if (!IsName("not")) return ParseCompare();
  ExprPtr expr = NewExpr(ExprKind::kPrefix);
  expr->op = Op::kNot;
  Advance();
  RETURN_IF_ERROR(Enter());
  ASSIGN_OR_RETURN(ExprPtr operand, ParseNot());
  Leave();
  expr->parts.push_back(std::move(operand));
  return Sized(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseCompare() {
  static constexpr std::pair<string_view, Op> kOps[] = {{"==", Op::kEq}, {"!=", Op::kNe},
                                                        {"<", Op::kLt},  {"<=", Op::kLe},
                                                        {">", Op::kGt},  {">=", Op::kGe}};
  ExprPtr compare = NewExpr(ExprKind::kCompare);
  while (true) {
    ASSIGN_OR_RETURN(ExprPtr part, ParseSum());
    compare->parts.push_back(std::move(part));
    const auto* op = std::find_if(std::begin(kOps), std::end(kOps),
                                  [&](const auto& row) { return IsOperator(row.first); });
    if (op != std::end(kOps)) {
      compare->ops.push_back(op->second);
    } else if (IsName("in")) {
      compare->ops.push_back(Op::kIn);
    } else if (IsName("not") && next().kind == TokenKind::kName && next().text == "in") {
      compare->ops.push_back(Op::kNotIn);
      Advance();
    } else {
      break;
    }
    Advance();
  }
  if (compare->ops.empty()) return std::move(compare->parts[0]);
  return Sized(std::move(compare));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseSum() {
  return ParseChain({{"+", Op::kAdd}, {"-", Op::kSub}}, [this] { return ParseConcat(); });
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseConcat() {
  ExprPtr concat = NewExpr(ExprKind::kConcat);
  do {
    ASSIGN_OR_RETURN(ExprPtr part, ParseProduct());
    concat->parts.push_back(std::move(part));
  } while (TakeOperator("~"));
  if (concat->parts.size() == 1) return std::move(concat->parts[0]);
  return Sized(std::move(concat));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseProduct() {
  return ParseChain({{"*", Op::kMul}, {"/", Op::kDiv}, {"//", Op::kFloorDiv}, {"%", Op::kMod}},
                    [this] { return ParsePower(); });
}

absl::StatusOr<ExprPtr> ExpressionParser::ParsePower() {
  return ParseChain({{"**", Op::kPow}}, [this] { return ParseUnary(/*with_filter=*/true); });
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseUnary(bool with_filter) {
  ExprPtr expr;
  if (IsOperator("-") || IsOperator("+")) {
    ExprPtr prefix = NewExpr(ExprKind::kPrefix);
    prefix->op = IsOperator("-") ? Op::kNeg : Op::kPos;
    Advance();
    RETURN_IF_ERROR(Enter());
    ASSIGN_OR_RETURN(ExprPtr operand, ParseUnary(/*with_filter=*/false));
    Leave();
    prefix->parts.push_back(std::move(operand));
    ASSIGN_OR_RETURN(expr, Sized(std::move(prefix)));
  } else {
    ASSIGN_OR_RETURN(expr, ParsePrimary());
  }
  ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
  return with_filter ? ParseSuffixes(std::move(expr)) : std::move(expr);
}

absl::StatusOr<ExprPtr> ExpressionParser::ParsePrimary() {
  ExprPtr literal = NewExpr(ExprKind::kLiteral);
  switch (current().kind) {
    case TokenKind::kName: return ParseName();
    case TokenKind::kString: {
      std::string text;
      for (; current().kind == TokenKind::kString; Advance()) text += current().text;
      literal->value = Value::String(std::move(text));
      return literal;
    }
    case TokenKind::kInteger:
      literal->value = Value::Int(current().integer);
      Advance();
      return literal;
    case TokenKind::kFloat:
      literal->value = Value::Float(current().number);
      Advance();
      return literal;
    default: break;
  }
  if (TakeOperator("(")) {
    ASSIGN_OR_RETURN(ExprPtr expr, ParseTuple(/*conditional=*/true, /*parenthesized=*/true));
    RETURN_IF_ERROR(ExpectOperator(")"));
    return expr;
  }
  if (IsOperator("[")) return ParseList();
  if (IsOperator("{")) return ParseDict();
  return Unexpected("an expression");
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseName() {
  const std::string& name = current().text;
  ExprPtr expr = NewExpr(IsConstantName(name) ? ExprKind::kLiteral : ExprKind::kName);
  if (expr->kind == ExprKind::kName) {
    expr->name = name;
    for (MacroNode* macro : macros_) {
      macro->uses_varargs |= name == "varargs";
      macro->uses_kwargs |= name == "kwargs";
      macro->uses_caller |= name == "caller";
    }
  } else if (name == "none" || name == "None") {
    expr->value = Value::None();
  } else {
    expr->value = Value::Bool(name == "true" || name == "True");
  }
  Advance();
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseTuple(bool conditional, bool parenthesized) {
  ExprPtr tuple = NewExpr(ExprKind::kTuple);
  bool is_tuple = false;
  while (current().kind != TokenKind::kOutputEnd && current().kind != TokenKind::kBlockEnd &&
         !IsOperator(")")) {
    ASSIGN_OR_RETURN(ExprPtr part, ParseExpression(conditional));
    tuple->parts.push_back(std::move(part));
    if (!TakeOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!tuple->parts.empty()) return std::move(tuple->parts[0]);
    if (!parenthesized) return Unexpected("an expression");
  }
  return Sized(std::move(tuple));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseList() {
  ExprPtr list = NewExpr(ExprKind::kList);
  Advance();
  while (!IsOperator("]")) {
    ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
    list->parts.push_back(std::move(item));
    if (!TakeOperator(",")) break;
  }
  RETURN_IF_ERROR(ExpectOperator("]"));
  return Sized(std::move(list));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseDict() {
  ExprPtr dict = NewExpr(ExprKind::kDict);
  Advance();
  while (!IsOperator("}")) {
    ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
    RETURN_IF_ERROR(ExpectOperator(":"));
    ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    dict->parts.push_back(std::move(key));
    dict->parts.push_back(std::move(value));
    if (!TakeOperator(",")) break;
  }
  RETURN_IF_ERROR(ExpectOperator("}"));
  return Sized(std::move(dict));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParsePostfix(ExprPtr operand) {
  while (true) {
    if (IsOperator(".") || IsOperator("[")) {
      ASSIGN_OR_RETURN(operand, ParseSubscript(std::move(operand)));
    } else if (IsOperator("(")) {
      ASSIGN_OR_RETURN(operand, ParseCall(std::move(operand)));
    } else {
      return operand;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseSuffixes(ExprPtr operand) {
  while (true) {
    if (IsOperator("|")) {
      ASSIGN_OR_RETURN(operand, ParseFilters(std::move(operand)));
    } else if (IsName("is")) {
      ASSIGN_OR_RETURN(operand, ParseTest(std::move(operand)));
    } else if (IsOperator("(")) {
      ASSIGN_OR_RETURN(operand, ParseCall(std::move(operand)));
    } else {
      return operand;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseSubscript(ExprPtr operand) {
  if (TakeOperator("[")) {
    ASSIGN_OR_RETURN(ExprPtr item, ParseSubscribed(std::move(operand)));
    RETURN_IF_ERROR(ExpectOperator("]"));
    return Sized(std::move(item));
  }
  ExprPtr expr = NewExpr(ExprKind::kAttribute);
  Advance();
  expr->parts.push_back(std::move(operand));
  if (current().kind == TokenKind::kName) {
    expr->name = current().text;
  } else if (current().kind == TokenKind::kInteger) {
    expr->kind = ExprKind::kItem;
    ExprPtr index = NewExpr(ExprKind::kLiteral);
    index->value = Value::Int(current().integer);
    expr->parts.push_back(std::move(index));
  } else {
    return Unexpected("name or number");
  }
  Advance();
  return Sized(std::move(expr));
}

// The inside of [...]: an index, or start:stop:step with any of the three left out.
absl::StatusOr<ExprPtr> ExpressionParser::ParseSubscribed(ExprPtr operand) {
  ExprPtr expr = NewExpr(ExprKind::kItem);
  expr->parts.push_back(std::move(operand));
  ExprPtr start;
  if (!IsOperator(":")) {
    ASSIGN_OR_RETURN(start, ParseExpression());
    if (!IsOperator(":")) {
      if (IsOperator(",")) return Error("an index of several values fits no type here");
      expr->parts.push_back(std::move(start));
      return expr;
    }
  }
  Advance();
  expr->kind = ExprKind::kSlice;
  ExprPtr stop;
  ExprPtr step;
  if (!IsOperator(":") && !IsOperator("]")) {
    ASSIGN_OR_RETURN(stop, ParseExpression());
  }
  if (TakeOperator(":") && !IsOperator("]")) {
    ASSIGN_OR_RETURN(step, ParseExpression());
  }
  expr->parts.push_back(std::move(start));
  expr->parts.push_back(std::move(stop));
  expr->parts.push_back(std::move(step));
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseCall(ExprPtr callee) {
  ExprPtr call = NewExpr(ExprKind::kCall);
  call->parts.push_back(std::move(callee));
  RETURN_IF_ERROR(ParseArguments(&call->arguments));
  return Sized(std::move(call));
}

// (value, ..., *list, name=value, ..., **dict), in Python's order.
absl::Status ExpressionParser::ParseArguments(std::vector<Argument>* arguments) {
  using Kind = Argument::Kind;
  RETURN_IF_ERROR(ExpectOperator("("));
  bool named = false;
  bool star = false;
  bool double_star = false;
  while (!IsOperator(")")) {
    Argument argument{Kind::kPositional, "", nullptr};
    if (TakeOperator("*")) {
      argument.kind = Kind::kStar;
    } else if (TakeOperator("**")) {
      argument.kind = Kind::kDoubleStar;
    } else if (current().kind == TokenKind::kName && next().kind == TokenKind::kOperator &&
               next().text == "=") {
      argument.kind = Kind::kNamed;
      argument.name = current().text;
      Advance();
      Advance();
    }
    const bool in_order = !double_star && (argument.kind == Kind::kPositional ? !star && !named
                                           : argument.kind == Kind::kStar     ? !star
                                                                              : true);
    if (!in_order) return Error("arguments of a call are out of order");
    named |= argument.kind == Kind::kNamed;
    star |= argument.kind == Kind::kStar;
    double_star |= argument.kind == Kind::kDoubleStar;
    ASSIGN_OR_RETURN(argument.value, ParseExpression());
    arguments->push_back(std::move(argument));
    if (!TakeOperator(",")) break;
  }
  return ExpectOperator(")");
}

void ExpressionParser::NoteUnknown(string_view what, const Expr& expr) {
  unknown_.push_back(absl::UnimplementedError(absl::StrCat(
      "chat template, line ", expr.line, ": no ", what, " named '", expr.name.substr(0, 64), "'")));
}

absl::StatusOr<std::string> ExpressionParser::ParseDottedName() {
  std::string name;
  do {
    if (current().kind != TokenKind::kName) return Unexpected("name");
    absl::StrAppend(&name, name.empty() ? "" : ".", current().text);
    Advance();
  } while (TakeOperator("."));
  return name;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseFilters(ExprPtr operand, bool start_inline) {
  while (start_inline || TakeOperator("|")) {
    start_inline = false;
    ExprPtr filter = NewExpr(ExprKind::kFilter);
    ASSIGN_OR_RETURN(filter->name, ParseDottedName());
    if (FindFilter(filter->name) == nullptr) NoteUnknown("filter", *filter);
    filter->parts.push_back(std::move(operand));
    if (IsOperator("(")) RETURN_IF_ERROR(ParseArguments(&filter->arguments));
    ASSIGN_OR_RETURN(operand, Sized(std::move(filter)));
  }
  return operand;
}

// operand is [not] name, name(arguments) or name argument.
absl::StatusOr<ExprPtr> ExpressionParser::ParseTest(ExprPtr operand) {
  ExprPtr test = NewExpr(ExprKind::kTest);
  Advance();
  const bool negated = TakeName("not");
  ASSIGN_OR_RETURN(test->name, ParseDottedName());
  if (FindTest(test->name) == nullptr) NoteUnknown("test", *test);
  test->parts.push_back(std::move(operand));
  const TokenKind kind = current().kind;
  const bool is_word = IsName("else") || IsName("or") || IsName("and");
  if (IsOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(&test->arguments));
  } else if (!is_word && (kind == TokenKind::kName || kind == TokenKind::kString ||
                          kind == TokenKind::kInteger || kind == TokenKind::kFloat ||
                          IsOperator("[") || IsOperator("{"))) {
    if (IsName("is")) return Error("tests do not chain");
    RETURN_IF_ERROR(Enter());
    ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    Leave();
    test->arguments.push_back(Argument{Argument::Kind::kPositional, "", std::move(argument)});
  }
  ASSIGN_OR_RETURN(test, Sized(std::move(test)));
  if (!negated) return test;
  ExprPtr expr = NewExpr(ExprKind::kPrefix);
  expr->line = test->line;
  expr->op = Op::kNot;
  expr->parts.push_back(std::move(test));
  return Sized(std::move(expr));
}

}  // namespace nibble::jinja
