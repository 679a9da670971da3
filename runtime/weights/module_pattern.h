// Regular expressions over module paths, as quantization configs write them.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

// Python's re.match: anchored at the start of the path, not at its end. Bounded in size and in
// matching steps. Immutable; thread-safe.
class ModulePattern {
 public:
  static absl::StatusOr<ModulePattern> Compile(absl::string_view pattern);

  absl::StatusOr<bool> Matches(absl::string_view path) const;

 private:
  struct Code;
  explicit ModulePattern(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace nibble
