// Parses a template by Jinja's grammar (version 3.1), with loop controls and the `generation` tag.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/text/jinja_ast.h"

namespace nibble::jinja {

struct ParseLimits {
  int max_nesting = 64;  // of blocks, and of expressions
};

// InvalidArgument carries line and reason; Unimplemented names a tag, filter or test that does not
// exist here. A filter or test inside an if may be unknown, as in Jinja: it fails when it is
// reached.
absl::StatusOr<Body> ParseTemplate(absl::string_view source, const ParseLimits& limits);

}  // namespace nibble::jinja
