// GGUF v2/v3 container: key-values and tensor table, and the block types (ggml).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nibble {

// The key-values of a GGUF file; integers of any width are widened. Arrays are homogeneous.
class GgufMetadata {
 public:
  using Value = std::variant<bool, std::int64_t, std::uint64_t, double, std::string, std::vector<std::int64_t>,
                             std::vector<double>, std::vector<std::string>, std::vector<bool>>;

  const Value* Find(absl::string_view key) const;
  std::optional<std::int64_t> Integer(absl::string_view key) const;  // any integer type that fits
  std::optional<double> Number(absl::string_view key) const;         // any number
  std::optional<bool> Bool(absl::string_view key) const;
  const std::string* String(absl::string_view key) const;
  const std::vector<std::string>* Strings(absl::string_view key) const;
  const std::vector<double>* Numbers(absl::string_view key) const;
  const std::vector<std::int64_t>* Integers(absl::string_view key) const;

  std::map<std::string, Value, std::less<>>& values() { return values_; }
  const std::map<std::string, Value, std::less<>>& values() const { return values_; }

 private:
  std::map<std::string, Value, std::less<>> values_;
};

}  // namespace nibble
