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
#include "runtime/base/file.h"
#include "runtime/weights/tensor.h"

namespace nibble {

// The key-values of a GGUF file; integers of any width are widened. Arrays are homogeneous.
class GgufMetadata {
 public:
  using Value = std::variant<bool, std::int64_t, std::uint64_t, double, std::string,
                             std::vector<std::int64_t>, std::vector<double>,
                             std::vector<std::string>, std::vector<bool>>;

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

// One element type of ggml: blocks of `elements` consecutive elements in `bytes` bytes.
struct GgmlType {
  int id = 0;
  const char* name = "";
  std::int64_t elements = 1;
  std::int64_t bytes = 0;
  DType dtype = DType::kU8;  // the equivalent where elements == 1
};

// Null for unknown, removed and run-time-only ids. A type that is here need not be one that can be
// served.
const GgmlType* FindGgmlType(std::int64_t id);

// One GGUF file: key-values, and tensors in file order with absolute offsets that lie inside the
// file.
struct GgufFile {
  GgufMetadata metadata;
  std::vector<TensorInfo> tensors;
};

// Reads the header and checks all that llama.cpp's reader checks. Memory stays below a small
// multiple of the file's size whatever the header claims. InvalidArgument names the key or tensor,
// the value and the limit.
absl::StatusOr<GgufFile> ReadGguf(const RandomAccessFile& file);

}  // namespace nibble
