// The expression half of the template parser.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_lexer.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {

// Recursive descent over the tokens. Recursion is counted (Enter, Leave), and so is the depth of
// every tree made: chains such as a.b.c.d or a + b + c nest without recursion here, but evaluation
// would recurse.
class ExpressionParser {
 protected:
  ExpressionParser(std::vector<Token> tokens, int max_nesting)
      : max_nesting_(max_nesting), tokens_(std::move(tokens)) {}

  // With `conditional`, "a if b else c" is allowed at the top.
  absl::StatusOr<ExprPtr> ParseExpression(bool conditional = true);
  // One expression, or a tuple of those that commas separate. `parenthesized` allows the empty
  // tuple.
  absl::StatusOr<ExprPtr> ParseTuple(bool conditional = true, bool parenthesized = false);
  // operand | filter | filter ... `start_inline`: the first filter comes without a bar.
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr operand, bool start_inline = false);

  const Token& current() const { return tokens_[position_]; }
  const Token& next() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  void Advance() { position_ = std::min(position_ + 1, tokens_.size() - 1); }
  bool IsName(absl::string_view name) const {
    return current().kind == TokenKind::kName && current().text == name;
  }
  bool IsOperator(absl::string_view op) const {
    return current().kind == TokenKind::kOperator && current().text == op;
  }
  bool TakeName(absl::string_view name);
  bool TakeOperator(absl::string_view op);
  absl::Status ExpectOperator(absl::string_view op);
  static bool IsConstantName(absl::string_view name);

  absl::Status Error(absl::string_view reason) const;
  absl::Status Unexpected(absl::string_view expected) const;
  absl::Status Enter();
  void Leave() { --nesting_; }
  int max_nesting() const { return max_nesting_; }

  ExprPtr NewExpr(ExprKind kind) const;
  // Records the depth of a finished tree; an error when it is too deep.
  absl::StatusOr<ExprPtr> Sized(ExprPtr expr) const;

  std::vector<MacroNode*> macros_;  // being parsed, outermost first
  // Unknown filters and tests met so far, but for those inside an if: they fail when they are
  // reached, as in Jinja.
  std::vector<absl::Status> unknown_;

 private:
  absl::StatusOr<ExprPtr> ParseConditional();
  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseSum();
  absl::StatusOr<ExprPtr> ParseConcat();
  absl::StatusOr<ExprPtr> ParseProduct();
  absl::StatusOr<ExprPtr> ParsePower();
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filter);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParseName();
  absl::StatusOr<ExprPtr> ParseList();
  absl::StatusOr<ExprPtr> ParseDict();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr operand);
  absl::StatusOr<ExprPtr> ParseSuffixes(ExprPtr operand);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr operand);
  absl::StatusOr<ExprPtr> ParseSubscribed(ExprPtr operand);
  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr operand);
  absl::Status ParseArguments(std::vector<Argument>* arguments);
  absl::StatusOr<std::string> ParseDottedName();
  void NoteUnknown(absl::string_view what, const Expr& expr);
  template <typename ParseOperand>
  absl::StatusOr<ExprPtr> ParseChain(std::initializer_list<std::pair<absl::string_view, Op>> ops,
                                     ParseOperand operand);
  template <typename ParseOperand>
  absl::StatusOr<ExprPtr> ParseLogical(absl::string_view word, ExprKind kind, ParseOperand operand);

  const int max_nesting_;
  const std::vector<Token> tokens_;
  std::size_t position_ = 0;
  int nesting_ = 0;
};

}  // namespace nibble::jinja
