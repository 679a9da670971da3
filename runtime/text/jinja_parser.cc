#include "runtime/text/jinja_parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_expression_parser.h"

namespace nibble::jinja {
namespace {

using absl::string_view;

// Statements; expressions are the base class's.
class Parser : public ExpressionParser {
 public:
  Parser(std::vector<Token> tokens, const ParseLimits& limits)
      : ExpressionParser(std::move(tokens), limits.max_nesting) {}

  absl::StatusOr<Body> Run() {
    ASSIGN_OR_RETURN(Body body, ParseBody({}));
    if (!unknown_.empty()) return unknown_.front();
    return body;
  }

 private:
  NodePtr NewNode(NodeKind kind) const {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = current().line;
    return node;
  }

  // Nodes up to a block tag named in `ends`, which stays current; without `ends`, to the end of the
  // template.
  absl::StatusOr<Body> ParseBody(std::initializer_list<string_view> ends) {
    Body body;
    while (current().kind != TokenKind::kEnd) {
      if (current().kind == TokenKind::kText) {
        NodePtr node = NewNode(NodeKind::kText);
        node->text = current().text;
        Advance();
        body.push_back(std::move(node));
      } else if (current().kind == TokenKind::kOutputBegin) {
        Advance();
        NodePtr node = NewNode(NodeKind::kOutput);
        ASSIGN_OR_RETURN(node->expr, ParseTuple());
        if (current().kind != TokenKind::kOutputEnd) return Unexpected("end of print statement");
        Advance();
        body.push_back(std::move(node));
      } else {
        Advance();
        for (const string_view end : ends) {
          if (IsName(end)) return body;
        }
        ASSIGN_OR_RETURN(NodePtr node, ParseStatement());
        body.push_back(std::move(node));
        RETURN_IF_ERROR(ExpectBlockEnd());
      }
    }
    if (ends.size() != 0)
      return Error(absl::StrCat("template ends where {% ", *(ends.end() - 1), " %} is due"));
    return body;
  }

  absl::Status ExpectBlockEnd() {
    if (current().kind != TokenKind::kBlockEnd) return Unexpected("end of statement block");
    Advance();
    return absl::OkStatus();
  }

  // What follows an opening tag: its end, the body, and (consumed) the name of the closing tag.
  absl::StatusOr<Body> ParseBlock(string_view end) {
    ASSIGN_OR_RETURN(Body body, ParseBlockUntil({end}));
    Advance();
    return body;
  }

  absl::StatusOr<Body> ParseBlockUntil(std::initializer_list<string_view> ends) {
    TakeOperator(":");  // Jinja tolerates Python's colon
    RETURN_IF_ERROR(ExpectBlockEnd());
    return ParseBody(ends);
  }

  absl::StatusOr<NodePtr> ParseStatement() {
    if (current().kind != TokenKind::kName) return Error("tag name expected");
    if (blocks_ >= max_nesting())
      return Error(absl::StrCat("blocks nest deeper than ", max_nesting()));
    ++blocks_;
    absl::StatusOr<NodePtr> node = ParseTag();
    --blocks_;
    return node;
  }

  absl::StatusOr<NodePtr> ParseTag() {
    const std::string tag = current().text;
    if (tag == "if") return ParseIf();
    if (tag == "for") return ParseFor();
    if (tag == "set") return ParseSet();
    if (tag == "macro") return ParseMacro();
    if (tag == "call") return ParseCallBlock();
    if (tag == "filter") return ParseFilterBlock();
    if (tag == "with") return ParseWith();
    if (tag == "print") return ParsePrint();
    if (tag == "generation") {  // marks the assistant's text for training; here it is only a scope
      NodePtr node = NewNode(NodeKind::kWith);
      Advance();
      const int loops = std::exchange(loops_, 0);
      ASSIGN_OR_RETURN(node->body, ParseBlock("endgeneration"));
      loops_ = loops;
      return node;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) return Error(absl::StrCat("{% ", tag, " %} outside a loop"));
      NodePtr node = NewNode(tag == "break" ? NodeKind::kBreak : NodeKind::kContinue);
      Advance();
      return node;
    }
    static constexpr string_view kKnown[] = {"include", "import", "from",
                                             "extends", "block",  "autoescape"};
    if (std::find(std::begin(kKnown), std::end(kKnown), tag) != std::end(kKnown)) {
      return absl::UnimplementedError(
          absl::StrCat("chat template, line ", current().line, ": tag {% ", tag, " %}"));
    }
    return Error(absl::StrCat("unknown or misplaced tag ", python::StringRepr(tag)));
  }

  absl::StatusOr<NodePtr> ParseIf() {
    NodePtr node = NewNode(NodeKind::kIf);
    const std::size_t unknown = unknown_.size();
    Advance();
    while (true) {
      Branch branch;
      ASSIGN_OR_RETURN(branch.condition, ParseTuple(/*conditional=*/false));
      ASSIGN_OR_RETURN(branch.body, ParseBlockUntil({"elif", "else", "endif"}));
      node->branches.push_back(std::move(branch));
      if (TakeName("elif")) continue;
      if (TakeName("else")) {
        ASSIGN_OR_RETURN(Body body, ParseBlock("endif"));
        node->branches.push_back(Branch{nullptr, std::move(body)});
      } else {
        Advance();
      }
      break;
    }
    unknown_.resize(unknown);
    return node;
  }

  absl::StatusOr<NodePtr> ParseFor() {
    NodePtr node = NewNode(NodeKind::kFor);
    Advance();
    ASSIGN_OR_RETURN(node->target, ParseTargets(/*allow_attribute=*/false));
    if (!TakeName("in")) return Unexpected("in");
    ASSIGN_OR_RETURN(node->expr, ParseTuple(/*conditional=*/false));
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(node->condition, ParseExpression());
    }
    if (IsName("recursive")) {
      return absl::UnimplementedError(
          absl::StrCat("chat template, line ", current().line, ": recursive loops"));
    }
    ++loops_;
    ASSIGN_OR_RETURN(node->body, ParseBlockUntil({"endfor", "else"}));
    --loops_;
    if (TakeName("else")) {
      ASSIGN_OR_RETURN(node->else_body, ParseBlock("endfor"));
    } else {
      Advance();
    }
    return node;
  }

  absl::StatusOr<NodePtr> ParseSet() {
    NodePtr node = NewNode(NodeKind::kSet);
    Advance();
    ASSIGN_OR_RETURN(node->target, ParseTargets(/*allow_attribute=*/true));
    if (TakeOperator("=")) {
      ASSIGN_OR_RETURN(node->expr, ParseTuple());
      return node;
    }
    node->kind = NodeKind::kSetBlock;
    if (IsOperator("|")) {
      ASSIGN_OR_RETURN(node->filter, ParseFilters(nullptr));
    }
    ASSIGN_OR_RETURN(node->body, ParseBlock("endset"));
    return node;
  }

  absl::StatusOr<NodePtr> ParseMacro() {
    NodePtr node = NewNode(NodeKind::kMacro);
    Advance();
    ASSIGN_OR_RETURN(node->macro.name, ExpectIdentifier());
    RETURN_IF_ERROR(ParseSignature(&node->macro));
    RETURN_IF_ERROR(ParseMacroBody("endmacro", &node->macro));
    return node;
  }

  // A macro's body can neither break the loop around it nor be skipped as part of an if.
  absl::Status ParseMacroBody(string_view end, MacroNode* macro) {
    const int loops = std::exchange(loops_, 0);
    macros_.push_back(macro);
    ASSIGN_OR_RETURN(macro->body, ParseBlock(end));
    macros_.pop_back();
    loops_ = loops;
    return absl::OkStatus();
  }

  absl::Status ParseSignature(MacroNode* macro) {
    RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      if (!macro->parameters.empty()) RETURN_IF_ERROR(ExpectOperator(","));
      MacroNode::Parameter parameter;
      ASSIGN_OR_RETURN(parameter.name, ExpectIdentifier());
      if (TakeOperator("=")) {
        ASSIGN_OR_RETURN(parameter.default_value, ParseExpression());
      } else if (!macro->parameters.empty() && macro->parameters.back().default_value != nullptr) {
        return Error("a parameter without default follows one with a default");
      }
      macro->parameters.push_back(std::move(parameter));
    }
    return ExpectOperator(")");
  }

  absl::StatusOr<NodePtr> ParseCallBlock() {
    NodePtr node = NewNode(NodeKind::kCallBlock);
    Advance();
    if (IsOperator("(")) RETURN_IF_ERROR(ParseSignature(&node->macro));
    ASSIGN_OR_RETURN(node->expr, ParseExpression());
    if (node->expr->kind != ExprKind::kCall) return Error("{% call %} needs a call");
    node->macro.name = "caller";
    RETURN_IF_ERROR(ParseMacroBody("endcall", &node->macro));
    return node;
  }

  absl::StatusOr<NodePtr> ParseFilterBlock() {
    NodePtr node = NewNode(NodeKind::kFilterBlock);
    Advance();
    ASSIGN_OR_RETURN(node->filter, ParseFilters(nullptr, /*start_inline=*/true));
    ASSIGN_OR_RETURN(node->body, ParseBlock("endfilter"));
    return node;
  }

  absl::StatusOr<NodePtr> ParseWith() {
    NodePtr node = NewNode(NodeKind::kWith);
    Advance();
    while (current().kind != TokenKind::kBlockEnd) {
      if (!node->targets.empty()) RETURN_IF_ERROR(ExpectOperator(","));
      ASSIGN_OR_RETURN(Target target, ParseTargets(/*allow_attribute=*/false));
      RETURN_IF_ERROR(ExpectOperator("="));
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      node->targets.push_back(std::move(target));
      node->values.push_back(std::move(value));
    }
    ASSIGN_OR_RETURN(node->body, ParseBlock("endwith"));
    return node;
  }

  absl::StatusOr<NodePtr> ParsePrint() {
    NodePtr node = NewNode(NodeKind::kOutput);
    Advance();
    ExprPtr printed = NewExpr(ExprKind::kConcat);
    do {
      ASSIGN_OR_RETURN(ExprPtr part, ParseExpression());
      printed->parts.push_back(std::move(part));
    } while (TakeOperator(","));
    ASSIGN_OR_RETURN(node->expr, Sized(std::move(printed)));
    return node;
  }

  absl::StatusOr<std::string> ExpectIdentifier() {
    if (current().kind != TokenKind::kName || IsConstantName(current().text))
      return Unexpected("name");
    std::string name = current().text;
    Advance();
    return name;
  }

  // name, name.attribute (in set), (targets), and such separated by commas.
  absl::StatusOr<Target> ParseTargets(bool allow_attribute) {
    std::vector<Target> targets;
    bool is_tuple = false;
    while (!(IsName("in") && !allow_attribute) && !IsOperator("=") && !IsOperator(")") &&
           current().kind != TokenKind::kBlockEnd) {
      ASSIGN_OR_RETURN(Target target, ParseTarget(allow_attribute));
      targets.push_back(std::move(target));
      if (!TakeOperator(",")) break;
      is_tuple = true;
    }
    if (targets.empty()) return Unexpected("assignment target");
    if (!is_tuple) return std::move(targets[0]);
    Target tuple;
    tuple.items = std::move(targets);
    return tuple;
  }

  absl::StatusOr<Target> ParseTarget(bool allow_attribute) {
    Target target;
    if (TakeOperator("(")) {
      RETURN_IF_ERROR(Enter());
      ASSIGN_OR_RETURN(target, ParseTargets(allow_attribute));
      Leave();
      RETURN_IF_ERROR(ExpectOperator(")"));
      return target;
    }
    ASSIGN_OR_RETURN(target.name, ExpectIdentifier());
    if (allow_attribute && TakeOperator(".")) {
      ASSIGN_OR_RETURN(target.attribute, ExpectIdentifier());
    }
    return target;
  }

  int blocks_ = 0;
  int loops_ = 0;
};

}  // namespace

absl::StatusOr<Body> ParseTemplate(absl::string_view source, const ParseLimits& limits) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens), limits).Run();
}

}  // namespace nibble::jinja
