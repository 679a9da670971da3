// Chat templates: a sandboxed subset of Jinja, rendered as Hugging Face renders them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/json.h"

namespace nibble {

struct TemplateLimits {
  std::int64_t max_source_bytes = 1 << 20;
  int max_nesting = 64;                      // of blocks and of expressions
  std::int64_t max_steps = 2'000'000;        // evaluated nodes
  std::int64_t max_output_bytes = 16 << 20;  // output and every intermediate string or list
};

// Immutable once parsed; Render is thread-safe. No I/O, no reflection: a fixed set of filters,
// tests, methods and the globals raise_exception, strftime_now, range, namespace, dict,
// joiner/cycler where templates use them.
class ChatTemplate {
 public:
  // InvalidArgument with line and reason; Unimplemented names a tag, filter, test or method it does
  // not know.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view source,
                                                             const TemplateLimits& limits = {});
  virtual ~ChatTemplate() = default;

  // `variables` is an object: messages, tools, add_generation_prompt, bos_token, ... `now` feeds
  // strftime_now. InvalidArgument carries raise_exception's message; ResourceExhausted names the
  // budget that ran out.
  virtual absl::StatusOr<std::string> Render(const Json& variables, absl::Time now) const = 0;
};

}  // namespace nibble
