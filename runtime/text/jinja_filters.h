// Filters over lists and dicts, for the table in jinja_filters.cc.
#pragma once

#include "runtime/text/jinja_builtins.h"

namespace nibble::jinja {

absl::StatusOr<Value> AttributeFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> BatchFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> DictSortFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> FirstFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> GroupByFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> ItemsFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> JoinFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> LastFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> LengthFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> ListFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> MapFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> MaxFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> MinFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> RejectAttributeFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> RejectFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> ReverseFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> SelectAttributeFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> SelectFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> SliceFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> SortFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> SumFilter(Runtime&, const Value& input, const Args&);
absl::StatusOr<Value> UniqueFilter(Runtime&, const Value& input, const Args&);

}  // namespace nibble::jinja
