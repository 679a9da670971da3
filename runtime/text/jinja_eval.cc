#include "runtime/text/jinja_eval.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_builtins.h"
#include "runtime/text/jinja_expressions.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxJsonDepth = 150;  // of variables; below what values may nest

absl::StatusOr<Value> FromJson(const Json& json, int depth) {
  if (depth > kMaxJsonDepth)
    return absl::InvalidArgumentError(absl::StrCat("variables nest deeper than ", kMaxJsonDepth));
  if (json.is_null()) return Value::None();
  if (json.is_bool()) return Value::Bool(json.AsBool());
  if (json.is_string()) return Value::String(json.AsString());
  if (json.is_integer())
    return json.FitsInt64() ? Value::Int(json.AsInt64()) : Value::BigInt(json.AsUint64());
  if (json.is_number()) return Value::Float(json.AsDouble());
  if (json.is_array()) {
    auto list = std::make_shared<Sequence>();
    list->items.reserve(json.AsArray().size());
    for (const Json& item : json.AsArray()) {
      ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
      list->depth = std::max(list->depth, value.depth() + 1);
      list->items.push_back(std::move(value));
    }
    return Value::Of(std::move(list));
  }
  std::vector<Dict::Entry> entries;
  entries.reserve(json.AsObject().size());
  for (const auto& [key, member] : json.AsObject()) {
    ASSIGN_OR_RETURN(Value value, FromJson(member, depth + 1));
    entries.emplace_back(Value::String(key), std::move(value));
  }
  return Value::Of(std::make_shared<const Dict>(std::move(entries)));
}

enum class Flow { kNext, kBreak, kContinue };

// Statements; expressions are the base class's. One rendering, one thread.
class Renderer final : public Evaluator {
 public:
  explicit Renderer(Runtime& runtime) : Evaluator(runtime) {}

  absl::StatusOr<std::string> Render(const Body& body, const Json& variables) {
    auto root = std::make_shared<Scope>();
    for (auto& [name, value] : MakeGlobals(runtime_)) root->Set(name, std::move(value));
    if (variables.is_object()) {
      for (const auto& [name, json] : variables.AsObject()) {
        ASSIGN_OR_RETURN(Value value, FromJson(json, 0));
        root->Set(name, std::move(value));
      }
    }
    scope_ = root;
    std::string out;
    const absl::StatusOr<Flow> flow = Run(body, &out);
    if (flow.ok()) return out;
    const std::string where = error_line_ > 0 ? absl::StrCat(", line ", error_line_) : "";
    return absl::Status(flow.status().code(),
                        absl::StrCat("chat template", where, ": ", flow.status().message()));
  }

 private:
  absl::StatusOr<Flow> Run(const Body& body, std::string* out) {
    for (const NodePtr& node : body) {
      RETURN_IF_ERROR(runtime_.Enter());
      absl::StatusOr<Flow> flow = RunNode(*node, out);
      runtime_.Leave();
      if (!flow.ok() && error_line_ == 0) error_line_ = node->line;
      if (!flow.ok() || *flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  absl::StatusOr<Flow> RunNode(const Node& node, std::string* out) {
    switch (node.kind) {
      case NodeKind::kText: RETURN_IF_ERROR(Append(node.text, out)); return Flow::kNext;
      case NodeKind::kOutput: {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*node.expr));
        ASSIGN_OR_RETURN(const std::string text, runtime_.Str(value));
        RETURN_IF_ERROR(Append(text, out));
        return Flow::kNext;
      }
      case NodeKind::kIf: return RunIf(node, out);
      case NodeKind::kFor: return RunFor(node, out);
      case NodeKind::kSet: {
        ASSIGN_OR_RETURN(Value value, Evaluate(*node.expr));
        RETURN_IF_ERROR(Assign(node.target, std::move(value)));
        return Flow::kNext;
      }
      case NodeKind::kSetBlock:
      case NodeKind::kFilterBlock: return RunCapture(node, out);
      case NodeKind::kMacro:
        scope_->Set(node.macro.name, Value::Of(runtime_.New<Macro>(&node.macro, scope_)));
        return Flow::kNext;
      case NodeKind::kCallBlock: {
        ASSIGN_OR_RETURN(const Value value,
                         EvaluateCall(*node.expr, runtime_.New<Macro>(&node.macro, scope_)));
        ASSIGN_OR_RETURN(const std::string text, runtime_.Str(value));
        RETURN_IF_ERROR(Append(text, out));
        return Flow::kNext;
      }
      case NodeKind::kWith: return RunWith(node, out);
      case NodeKind::kBreak: return Flow::kBreak;
      case NodeKind::kContinue: return Flow::kContinue;
    }
    return Flow::kNext;
  }

  absl::Status Append(absl::string_view text, std::string* out) {
    RETURN_IF_ERROR(runtime_.CheckSize(static_cast<std::int64_t>(out->size() + text.size())));
    RETURN_IF_ERROR(runtime_.Charge(static_cast<std::int64_t>(text.size()) / 128));
    absl::StrAppend(out, text);
    return absl::OkStatus();
  }

  absl::StatusOr<Flow> RunIf(const Node& node, std::string* out) {
    for (const Branch& branch : node.branches) {
      if (branch.condition != nullptr) {
        ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition));
        if (!condition.Truthy()) continue;
      }
      return Run(branch.body, out);
    }
    return Flow::kNext;
  }

  absl::StatusOr<Flow> RunFor(const Node& node, std::string* out) {
    ASSIGN_OR_RETURN(const Value over, Evaluate(*node.expr));
    ASSIGN_OR_RETURN(std::vector<Value> items, runtime_.Iterate(over));
    if (node.condition != nullptr) {
      std::vector<Value> chosen;
      for (Value& item : items) {
        ASSIGN_OR_RETURN(auto outer, PushScope());
        const absl::Status assigned = Assign(node.target, item);
        const absl::StatusOr<Value> holds = assigned.ok() ? Evaluate(*node.condition) : assigned;
        scope_ = std::move(outer);
        if (!holds.ok()) return holds.status();
        if (holds->Truthy()) chosen.push_back(std::move(item));
      }
      items = std::move(chosen);
    }
    if (items.empty()) {
      ASSIGN_OR_RETURN(auto outer, PushScope());
      absl::StatusOr<Flow> flow = Run(node.else_body, out);
      scope_ = std::move(outer);
      return flow;
    }
    auto* loop = runtime_.New<Loop>(std::move(items));
    absl::StatusOr<Flow> flow = Flow::kNext;
    for (; loop->index0 < loop->items.size(); ++loop->index0) {
      flow = RunIteration(node, loop, out);
      if (!flow.ok() || *flow == Flow::kBreak) break;
    }
    if (!flow.ok()) return flow;
    return Flow::kNext;
  }

  absl::StatusOr<Flow> RunIteration(const Node& node, Loop* loop, std::string* out) {
    RETURN_IF_ERROR(runtime_.Charge(1));
    ASSIGN_OR_RETURN(auto outer, PushScope());
    scope_->Set("loop", Value::Of(loop));
    absl::StatusOr<Flow> flow = Flow::kNext;
    if (const absl::Status assigned = Assign(node.target, loop->items[loop->index0]);
        !assigned.ok()) {
      flow = assigned;
    } else {
      flow = Run(node.body, out);
    }
    scope_ = std::move(outer);
    return flow;
  }

  // {% set x %}body{% endset %} and {% filter f %}body{% endfilter %}.
  absl::StatusOr<Flow> RunCapture(const Node& node, std::string* out) {
    std::string text;
    ASSIGN_OR_RETURN(auto outer, PushScope());
    const absl::StatusOr<Flow> flow = Run(node.body, &text);
    scope_ = std::move(outer);
    if (!flow.ok() || *flow != Flow::kNext) return flow;
    ASSIGN_OR_RETURN(Value value, runtime_.MakeString(std::move(text)));
    if (node.filter != nullptr) {
      ASSIGN_OR_RETURN(value, ApplyFilters(*node.filter, value));
    }
    if (node.kind == NodeKind::kSetBlock) {
      RETURN_IF_ERROR(Assign(node.target, std::move(value)));
      return Flow::kNext;
    }
    ASSIGN_OR_RETURN(const std::string shown, runtime_.Str(value));
    RETURN_IF_ERROR(Append(shown, out));
    return Flow::kNext;
  }

  absl::StatusOr<Flow> RunWith(const Node& node, std::string* out) {
    std::vector<Value> values;
    for (const ExprPtr& expr : node.values) {
      ASSIGN_OR_RETURN(Value value, Evaluate(*expr));
      values.push_back(std::move(value));
    }
    ASSIGN_OR_RETURN(auto outer, PushScope());
    absl::StatusOr<Flow> flow = Flow::kNext;
    for (std::size_t i = 0; i < values.size() && flow.ok(); ++i) {
      if (const absl::Status assigned = Assign(node.targets[i], std::move(values[i]));
          !assigned.ok())
        flow = assigned;
    }
    if (flow.ok()) flow = Run(node.body, out);
    scope_ = std::move(outer);
    return flow;
  }

  absl::StatusOr<Value> CallMacro(const Macro& macro, const Args& args, Macro* caller) override {
    const MacroNode& node = *macro.node;
    std::shared_ptr<Scope> calling = std::exchange(scope_, macro.scope);
    absl::StatusOr<std::string> text = RunMacro(node, args, caller);
    scope_ = std::move(calling);
    if (!text.ok()) return text.status();
    return runtime_.MakeString(*std::move(text));
  }

  // Leaves the scope it pushes for the caller to drop.
  absl::StatusOr<std::string> RunMacro(const MacroNode& node, const Args& args, Macro* caller) {
    RETURN_IF_ERROR(PushScope().status());
    const auto named = [&](absl::string_view name) {
      return std::find_if(args.named.begin(), args.named.end(),
                          [&](const auto& row) { return row.first == name; });
    };
    const std::size_t count = node.parameters.size();
    if (args.positional.size() > count && !node.uses_varargs) {
      return TypeError(
          absl::StrCat("macro '", node.name, "' takes not more than ", count, " argument(s)"));
    }
    for (std::size_t i = 0; i < count; ++i) {
      const MacroNode::Parameter& parameter = node.parameters[i];
      const auto given = named(parameter.name);
      if (i < args.positional.size()) {
        if (given != args.named.end())
          return TypeError(
              absl::StrCat("macro '", node.name, "' got two values for '", parameter.name, "'"));
        scope_->Set(parameter.name, args.positional[i]);
      } else if (given != args.named.end()) {
        scope_->Set(parameter.name, given->second);
      } else if (parameter.default_value != nullptr) {
        ASSIGN_OR_RETURN(Value value, Evaluate(*parameter.default_value));
        scope_->Set(parameter.name, std::move(value));
      } else {
        scope_->Set(parameter.name, Value::Undefined(absl::StrCat("parameter '", parameter.name,
                                                                  "' was not provided")));
      }
    }
    RETURN_IF_ERROR(SetExtraArguments(node, args, caller));
    std::string text;
    RETURN_IF_ERROR(Run(node.body, &text).status());
    return text;
  }

  // varargs, kwargs and caller, for macros that use them; others may not be given any.
  absl::Status SetExtraArguments(const MacroNode& node, const Args& args, Macro* caller) {
    std::vector<Dict::Entry> extra;
    for (const auto& [name, value] : args.named) {
      const bool known = std::any_of(node.parameters.begin(), node.parameters.end(),
                                     [&](const auto& p) { return p.name == name; });
      if (known) continue;
      if (!node.uses_kwargs)
        return TypeError(
            absl::StrCat("macro '", node.name, "' takes no keyword argument '", name, "'"));
      extra.emplace_back(Value::String(name), value);
    }
    if (node.uses_kwargs) {
      ASSIGN_OR_RETURN(Value kwargs, runtime_.MakeDict(std::move(extra)));
      scope_->Set("kwargs", std::move(kwargs));
    }
    if (node.uses_varargs) {
      const std::size_t first = std::min(args.positional.size(), node.parameters.size());
      ASSIGN_OR_RETURN(
          Value varargs,
          runtime_.MakeSequence(
              {args.positional.begin() + static_cast<std::ptrdiff_t>(first), args.positional.end()},
              Sequence::Kind::kTuple));
      scope_->Set("varargs", std::move(varargs));
    }
    if (node.uses_caller) {
      scope_->Set("caller",
                  caller != nullptr ? Value::Of(caller) : Value::Undefined("No caller defined"));
    } else if (caller != nullptr) {
      return TypeError(absl::StrCat(
          "macro '", node.name, "' was invoked with a call block, but does not use its caller"));
    }
    return absl::OkStatus();
  }

  absl::Status Assign(const Target& target, Value value) {
    if (!target.items.empty()) {
      ASSIGN_OR_RETURN(std::vector<Value> values, runtime_.Iterate(value));
      if (values.size() != target.items.size()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "cannot unpack ", values.size(), " values into ", target.items.size(), " names"));
      }
      for (std::size_t i = 0; i < values.size(); ++i) {
        RETURN_IF_ERROR(Assign(target.items[i], std::move(values[i])));
      }
      return absl::OkStatus();
    }
    if (target.attribute.empty()) {
      scope_->Set(target.name, std::move(value));
      return absl::OkStatus();
    }
    auto* space = Lookup(target.name).As<Namespace>();
    if (space == nullptr)
      return TypeError(absl::StrCat("cannot set '", target.attribute, "' of '", target.name,
                                    "': it is no namespace"));
    RETURN_IF_ERROR(runtime_.Charge(static_cast<std::int64_t>(space->attributes.size()) / 16));
    space->Set(target.attribute, std::move(value));
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::string> RenderTemplate(Runtime& runtime, const Body& body,
                                           const Json& variables) {
  return Renderer(runtime).Render(body, variables);
}

}  // namespace nibble::jinja
