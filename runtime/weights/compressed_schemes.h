// What a compressed-tensors configuration says of the layers it quantizes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/weights/linear_weight.h"
#include "runtime/weights/module_pattern.h"

namespace nibble {

// A target: a module path, a class name ("Linear"), or "re:" and a pattern.
struct CompressedTarget {
  std::string text;
  std::optional<ModulePattern> pattern;
};

// One entry of config_groups.
struct CompressedScheme {
  std::vector<CompressedTarget> targets;
  int bits = 4;
  std::int64_t group_size = -1;  // -1: a scale a row or tensor
  bool symmetric = true;
  ActivationQuant activation = ActivationQuant::kNone;
  std::string refusal;  // why layers of this scheme cannot be served; empty: they can
};

// The schemes of `config_groups`, in order. Unimplemented where the whole checkpoint cannot be
// served (sparsity, rotations).
absl::StatusOr<std::vector<CompressedScheme>> ReadCompressedSchemes(const Json& config);

// The scheme that targets the layer, null when none does: a path or pattern goes before a class
// name, as in the library.
absl::StatusOr<const CompressedScheme*> FindScheme(const std::vector<CompressedScheme>& schemes,
                                                   absl::string_view layer);

}  // namespace nibble
