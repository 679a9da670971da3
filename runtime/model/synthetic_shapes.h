// The table behind synthetic models' shapes.
#pragma once

#include <span>

#include "absl/status/statusor.h"
#include "runtime/base/json.h"

namespace nibble {

struct SyntheticShape {
  const char* name;
  const char* architecture;  // of the architecture table
  int hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context;
  double rope_theta, norm_eps;
  bool tied_head;
  const char* others;  // more members of config.json, or ""
};

std::span<const SyntheticShape> SyntheticShapeTable();

// The model's config.json, as far as it shapes the forward pass.
absl::StatusOr<Json> ConfigOf(const SyntheticShape& shape);

}  // namespace nibble
