// Renders a parsed template.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/base/json.h"
#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_runtime.h"

namespace nibble::jinja {

// The members of `variables` are the template's variables. Errors name the line they come from.
absl::StatusOr<std::string> RenderTemplate(Runtime& runtime, const Body& body,
                                           const Json& variables);

}  // namespace nibble::jinja
