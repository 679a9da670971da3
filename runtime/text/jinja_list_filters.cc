#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_filters.h"
#include "runtime/text/python_text.h"

namespace nibble::jinja {
namespace {

using absl::string_view;
using Keyed = std::vector<std::pair<Value, Value>>;

// item.a.b for the path "a.b", digits being indices; `fallback` (if any) replaces what is undefined
// on the way.
absl::StatusOr<Value> AtPath(Runtime& runtime, Value item, string_view path,
                             const Value* fallback) {
  for (const string_view part : absl::StrSplit(path, '.')) {
    std::int64_t index = 0;
    const bool digits = !part.empty() &&
                        part.find_first_not_of("0123456789") == string_view::npos &&
                        absl::SimpleAtoi(part, &index);
    RETURN_IF_ERROR(runtime.Charge(1));
    ASSIGN_OR_RETURN(
        item, runtime.Item(item, digits ? Value::Int(index) : Value::String(std::string(part))));
    if (fallback != nullptr && item.is_undefined()) item = *fallback;
  }
  return item;
}

absl::StatusOr<Value> AtAttribute(Runtime& runtime, const Value& item, const Value& attribute,
                                  const Value* fallback) {
  if (attribute.is_none()) return item;
  if (attribute.is_string()) return AtPath(runtime, item, attribute.AsString(), fallback);
  ASSIGN_OR_RETURN(Value found, runtime.Item(item, attribute));
  return found.is_undefined() && fallback != nullptr ? *fallback : found;
}

Value IgnoreCase(const Value& value, bool case_sensitive) {
  return case_sensitive || !value.is_string() ? value
                                              : Value::String(python::Lower(value.AsString()));
}

// Items with what they are ordered or grouped by.
absl::StatusOr<Keyed> KeyedItems(Runtime& runtime, const Value& input, const Value* attribute,
                                 const Value* fallback, bool case_sensitive) {
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.Iterate(input));
  Keyed keyed;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(
        const Value key,
        AtAttribute(runtime, item, attribute == nullptr ? Value::None() : *attribute, fallback));
    RETURN_IF_ERROR(runtime.ChargeBytes(key.Bytes()));
    keyed.emplace_back(IgnoreCase(key, case_sensitive), std::move(item));
  }
  return keyed;
}

std::vector<Value> Items(Keyed keyed) {
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return items;
}

absl::StatusOr<Value> Extreme(Runtime& runtime, const Value& input, const Args& args,
                              bool largest) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, largest ? "max" : "min", {"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const Keyed keyed,
                   KeyedItems(runtime, input, bound[1], nullptr, bound.Flag(0, false)));
  if (keyed.empty()) return Value::Undefined("No aggregated item, sequence was empty.");
  std::size_t best = 0;
  for (std::size_t i = 1; i < keyed.size(); ++i) {
    ASSIGN_OR_RETURN(const bool better, largest ? runtime.Less(keyed[best].first, keyed[i].first)
                                                : runtime.Less(keyed[i].first, keyed[best].first));
    if (better) best = i;
  }
  return keyed[best].second;
}

// select, reject, selectattr, rejectattr: by truth, or by the named test and its arguments.
absl::StatusOr<Value> Choose(Runtime& runtime, const Value& input, const Args& args,
                             bool by_attribute, bool wanted) {
  const std::size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && args.positional.empty())
    return TypeError("missing parameter for attribute name");
  std::vector<Value> chosen;
  if (!input.Truthy()) return runtime.MakeSequence({}, Sequence::Kind::kGenerator);
  Args rest;
  std::string test;
  if (args.positional.size() > test_at) {
    if (!args.positional[test_at].is_string()) return TypeError("the name of a test is a string");
    test = args.positional[test_at].AsString();
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(test_at) + 1,
                           args.positional.end());
    rest.named = args.named;
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.Iterate(input));
  for (Value& item : items) {
    RETURN_IF_ERROR(runtime.Charge(1));
    Value examined = item;
    if (by_attribute) {
      ASSIGN_OR_RETURN(examined, AtAttribute(runtime, item, args.positional[0], nullptr));
    }
    bool holds = examined.Truthy();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(holds, CallTest(runtime, test, examined, rest));
    }
    if (holds == wanted) chosen.push_back(std::move(item));
  }
  return runtime.MakeSequence(std::move(chosen), Sequence::Kind::kGenerator);
}

}  // namespace

absl::StatusOr<Value> SelectFilter(Runtime& runtime, const Value& input, const Args& args) {
  return Choose(runtime, input, args, /*by_attribute=*/false, /*wanted=*/true);
}
absl::StatusOr<Value> RejectFilter(Runtime& runtime, const Value& input, const Args& args) {
  return Choose(runtime, input, args, /*by_attribute=*/false, /*wanted=*/false);
}
absl::StatusOr<Value> SelectAttributeFilter(Runtime& runtime, const Value& input,
                                            const Args& args) {
  return Choose(runtime, input, args, /*by_attribute=*/true, /*wanted=*/true);
}
absl::StatusOr<Value> RejectAttributeFilter(Runtime& runtime, const Value& input,
                                            const Args& args) {
  return Choose(runtime, input, args, /*by_attribute=*/true, /*wanted=*/false);
}
absl::StatusOr<Value> MinFilter(Runtime& runtime, const Value& input, const Args& args) {
  return Extreme(runtime, input, args, /*largest=*/false);
}
absl::StatusOr<Value> MaxFilter(Runtime& runtime, const Value& input, const Args& args) {
  return Extreme(runtime, input, args, /*largest=*/true);
}

// map(attribute=path, default=value), or map("filter", arguments ...).
absl::StatusOr<Value> MapFilter(Runtime& runtime, const Value& input, const Args& args) {
  if (!input.Truthy()) return runtime.MakeSequence({}, Sequence::Kind::kGenerator);
  std::vector<Value> mapped;
  if (args.positional.empty()) {
    ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "map", {"attribute", "default"}, 1));
    const Value* fallback = bound.Has(1) ? bound[1] : nullptr;
    ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value value, AtAttribute(runtime, item, *bound[0], fallback));
      mapped.push_back(std::move(value));
    }
    return runtime.MakeSequence(std::move(mapped), Sequence::Kind::kGenerator);
  }
  if (!args.positional[0].is_string()) return TypeError("the name of a filter is a string");
  const Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  for (const Value& item : items) {
    // A filter may map others in turn, so this recurses by way of the name.
    RETURN_IF_ERROR(runtime.Enter());
    ASSIGN_OR_RETURN(Value value, CallFilter(runtime, args.positional[0].AsString(), item, rest));
    runtime.Leave();
    mapped.push_back(std::move(value));
  }
  return runtime.MakeSequence(std::move(mapped), Sequence::Kind::kGenerator);
}

absl::StatusOr<Value> LengthFilter(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "length", {}).status());
  ASSIGN_OR_RETURN(const std::int64_t length, runtime.Length(input));
  return Value::Int(length);
}

absl::StatusOr<Value> ListFilter(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "list", {}).status());
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.Iterate(input));
  return runtime.MakeSequence(std::move(items));
}

absl::StatusOr<Value> FirstFilter(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "first", {}).status());
  if (input.is_sequence() && input.AsSequence().kind == Sequence::Kind::kGenerator) {
    Sequence& generator = input.AsSequence();
    if (generator.consumed < generator.items.size()) return generator.items[generator.consumed++];
    return Value::Undefined("No first item, sequence was empty.");
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  return items.empty() ? Value::Undefined("No first item, sequence was empty.") : items.front();
}

absl::StatusOr<Value> LastFilter(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "last", {}).status());
  if (input.is_sequence() && input.AsSequence().kind == Sequence::Kind::kGenerator) {
    return TypeError("'generator' object is not reversible");
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  return items.empty() ? Value::Undefined("No last item, sequence was empty.") : items.back();
}

absl::StatusOr<Value> ReverseFilter(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "reverse", {}).status());
  if (input.is_string()) return runtime.Slice(input, Value::None(), Value::None(), Value::Int(-1));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.Iterate(input));
  std::reverse(items.begin(), items.end());
  const bool listed = input.is_undefined() || (input.is_sequence() && !input.AsSequence().sized());
  return runtime.MakeSequence(std::move(items),
                              listed ? Sequence::Kind::kList : Sequence::Kind::kGenerator);
}

absl::StatusOr<Value> JoinFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "join", {"d", "attribute"}));
  std::string separator;
  if (bound[0] != nullptr) {
    ASSIGN_OR_RETURN(separator, runtime.Str(*bound[0]));
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  std::string out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (bound.Has(1)) {
      ASSIGN_OR_RETURN(item, AtAttribute(runtime, item, *bound[1], nullptr));
    }
    ASSIGN_OR_RETURN(const std::string text, runtime.Str(item));
    RETURN_IF_ERROR(
        runtime.CheckSize(static_cast<std::int64_t>(out.size() + separator.size() + text.size())));
    if (i > 0) out += separator;
    out += text;
  }
  return runtime.MakeString(std::move(out));
}

absl::StatusOr<Value> ItemsFilter(Runtime& runtime, const Value& input, const Args& args) {
  RETURN_IF_ERROR(Bound::Bind(args, "items", {}).status());
  std::vector<Value> items;
  if (!input.is_undefined()) {
    if (!input.is_dict()) return TypeError("Can only get item pairs from a mapping.");
    for (const auto& [key, value] : input.AsDict().entries()) {
      ASSIGN_OR_RETURN(Value pair, runtime.MakeSequence({key, value}, Sequence::Kind::kTuple));
      items.push_back(std::move(pair));
    }
  }
  return runtime.MakeSequence(std::move(items), Sequence::Kind::kGenerator);
}

absl::StatusOr<Value> DictSortFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, "dictsort", {"case_sensitive", "by", "reverse"}));
  ASSIGN_OR_RETURN(const std::string by, bound.String(1, "key"));
  if (by != "key" && by != "value")
    return TypeError("You can only sort by either \"key\" or \"value\"");
  if (input.is_undefined()) return UndefinedError(input);
  if (!input.is_dict())
    return TypeError(absl::StrCat("dictsort needs a mapping, not ", input.TypeName()));
  Keyed keyed;
  for (const auto& [key, value] : input.AsDict().entries()) {
    ASSIGN_OR_RETURN(Value pair, runtime.MakeSequence({key, value}, Sequence::Kind::kTuple));
    keyed.emplace_back(IgnoreCase(by == "key" ? key : value, bound.Flag(0, false)),
                       std::move(pair));
  }
  RETURN_IF_ERROR(runtime.Sort(&keyed, bound.Flag(2, false)));
  return runtime.MakeSequence(Items(std::move(keyed)));
}

absl::StatusOr<Value> SortFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, "sort", {"reverse", "case_sensitive", "attribute"}));
  const bool case_sensitive = bound.Flag(1, false);
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.Iterate(input));
  Keyed keyed;
  for (Value& item : items) {
    std::vector<Value> parts;  // the key is a list, even of one: equal ones need no order
    if (bound.Has(2) && bound[2]->is_string()) {
      for (const string_view path : absl::StrSplit(bound[2]->AsString(), ',')) {
        ASSIGN_OR_RETURN(const Value part, AtPath(runtime, item, path, nullptr));
        parts.push_back(IgnoreCase(part, case_sensitive));
      }
    } else {
      ASSIGN_OR_RETURN(
          const Value part,
          AtAttribute(runtime, item, bound.Has(2) ? *bound[2] : Value::None(), nullptr));
      parts.push_back(IgnoreCase(part, case_sensitive));
    }
    ASSIGN_OR_RETURN(Value key, runtime.MakeSequence(std::move(parts)));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  RETURN_IF_ERROR(runtime.Sort(&keyed, bound.Flag(0, false)));
  return runtime.MakeSequence(Items(std::move(keyed)));
}

absl::StatusOr<Value> UniqueFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "unique", {"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(Keyed keyed,
                   KeyedItems(runtime, input, bound[1], nullptr, bound.Flag(0, false)));
  Keyed kept;
  for (auto& entry : keyed) {
    if (!IsHashable(entry.first))
      return TypeError(absl::StrCat("unhashable type: '", entry.first.TypeName(), "'"));
    RETURN_IF_ERROR(runtime.Charge(1 + static_cast<std::int64_t>(kept.size()) / 8));
    bool seen = false;
    for (std::size_t i = 0; i < kept.size() && !seen; ++i) {
      ASSIGN_OR_RETURN(seen, runtime.Equal(kept[i].first, entry.first));
    }
    if (!seen) kept.push_back(std::move(entry));
  }
  return runtime.MakeSequence(Items(std::move(kept)), Sequence::Kind::kGenerator);
}

absl::StatusOr<Value> GroupByFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound,
                   Bound::Bind(args, "groupby", {"attribute", "default", "case_sensitive"}, 1));
  const Value* fallback = bound.Has(1) ? bound[1] : nullptr;
  ASSIGN_OR_RETURN(Keyed keyed,
                   KeyedItems(runtime, input, bound[0], fallback, bound.Flag(2, false)));
  RETURN_IF_ERROR(runtime.Sort(&keyed, /*reverse=*/false));
  std::vector<Value> groups;
  for (std::size_t begin = 0; begin < keyed.size();) {
    std::vector<Value> members;
    std::size_t end = begin;
    for (; end < keyed.size(); ++end) {
      ASSIGN_OR_RETURN(const bool same, runtime.Equal(keyed[begin].first, keyed[end].first));
      if (!same) break;
      members.push_back(keyed[end].second);
    }
    ASSIGN_OR_RETURN(Value key, AtAttribute(runtime, members[0], *bound[0], fallback));
    ASSIGN_OR_RETURN(Value list, runtime.MakeSequence(std::move(members)));
    ASSIGN_OR_RETURN(Value group, runtime.MakeSequence({std::move(key), std::move(list)},
                                                       Sequence::Kind::kTuple));
    group.AsSequence().group = true;
    groups.push_back(std::move(group));
    begin = end;
  }
  return runtime.MakeSequence(std::move(groups));
}

absl::StatusOr<Value> SumFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "sum", {"attribute", "start"}));
  Value sum = bound[1] == nullptr ? Value::Int(0) : *bound[1];
  if (sum.is_string()) return TypeError("sum() can't sum strings");
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const Value addend,
                     AtAttribute(runtime, item, bound.Has(0) ? *bound[0] : Value::None(), nullptr));
    ASSIGN_OR_RETURN(sum, runtime.Arithmetic(Op::kAdd, sum, addend));
  }
  return sum;
}

absl::StatusOr<Value> AttributeFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "attr", {"name"}, 1));
  ASSIGN_OR_RETURN(const std::string name, bound.String(0, ""));
  if (input.is_dict() &&
      FindMethod(input, name) == nullptr) {  // attributes only: keys are not found
    return Value::Undefined(
        absl::StrCat("'dict object' has no attribute '", name.substr(0, 64), "'"));
  }
  return runtime.Attribute(input, name);
}

absl::StatusOr<Value> BatchFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "batch", {"linecount", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const std::int64_t size, bound.Int(0, 0));
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  if (size <= 0) return absl::InvalidArgumentError("batch: linecount must be positive");
  RETURN_IF_ERROR(runtime.CheckSize(bound.Has(1) ? std::min(size, std::int64_t{1} << 50) * 16 : 0));
  std::vector<Value> batches;
  for (std::size_t begin = 0; begin < items.size();) {
    const std::size_t end =
        begin + std::min<std::size_t>(static_cast<std::size_t>(size), items.size() - begin);
    std::vector<Value> batch(items.begin() + static_cast<std::ptrdiff_t>(begin),
                             items.begin() + static_cast<std::ptrdiff_t>(end));
    if (bound.Has(1)) batch.resize(static_cast<std::size_t>(size), *bound[1]);
    ASSIGN_OR_RETURN(Value list, runtime.MakeSequence(std::move(batch)));
    batches.push_back(std::move(list));
    begin = end;
  }
  return runtime.MakeSequence(std::move(batches), Sequence::Kind::kGenerator);
}

absl::StatusOr<Value> SliceFilter(Runtime& runtime, const Value& input, const Args& args) {
  ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(args, "slice", {"slices", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const std::int64_t slices, bound.Int(0, 0));
  ASSIGN_OR_RETURN(const std::vector<Value> items, runtime.Iterate(input));
  if (slices <= 0) return absl::InvalidArgumentError("slice: slices must be positive");
  RETURN_IF_ERROR(runtime.CheckSize(std::min(slices, std::int64_t{1} << 50) * 16));
  RETURN_IF_ERROR(runtime.Charge(slices));
  const auto count = static_cast<std::size_t>(slices);
  const std::size_t longer = items.size() % count;  // the first ones take one item more
  std::vector<Value> parts;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t end = begin + items.size() / count + (i < longer ? 1 : 0);
    std::vector<Value> part(items.begin() + static_cast<std::ptrdiff_t>(begin),
                            items.begin() + static_cast<std::ptrdiff_t>(end));
    if (bound.Has(1) && i >= longer) part.push_back(*bound[1]);
    ASSIGN_OR_RETURN(Value list, runtime.MakeSequence(std::move(part)));
    parts.push_back(std::move(list));
    begin = end;
  }
  return runtime.MakeSequence(std::move(parts), Sequence::Kind::kGenerator);
}

}  // namespace nibble::jinja
