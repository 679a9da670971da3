// Two matrices of one encoding, one below the other: how the gate and up of an expert become one
// matrix.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// [top; bottom]. Unimplemented, naming `layer`, when the two differ in more than their rows:
// encodings, groups, code tables or input permutations.
absl::StatusOr<LinearWeight> JoinRows(const LinearWeight& top, const LinearWeight& bottom,
                                      absl::string_view layer);
absl::StatusOr<LinearSpec> JoinedSpec(const LinearSpec& top, const LinearSpec& bottom,
                                      absl::string_view layer);

}  // namespace nibble
