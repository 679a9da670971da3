// Checkpoints that a test writes byte by byte: valid ones, and ones broken in exactly one place.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

// A directory that goes away with the test.
class TempDir {
 public:
  TempDir() {
    std::string pattern = testing::TempDir() + "nibble_weights_XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string Write(const std::string& name, absl::string_view bytes) const {
    const std::filesystem::path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file.string();
  }

 private:
  std::filesystem::path path_;
};

template <typename T>
std::string Raw(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}
template <typename T>
std::string Raw(T value)
  requires std::is_arithmetic_v<T>
{
  return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}

inline std::string RawF16(const std::vector<float>& values) {
  std::string out;
  for (const float value : values) out += Raw(F32ToF16(value));
  return out;
}
inline std::string RawBf16(const std::vector<float>& values) {
  std::string out;
  for (const float value : values) out += Raw(F32ToBf16(value));
  return out;
}

// One tensor of a safetensors file under construction.
struct TestTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

// The length of `header` and `header`, as a file begins.
inline std::string WithLength(absl::string_view header) {
  return absl::StrCat(Raw(static_cast<std::uint64_t>(header.size())), header);
}

inline std::string Safetensors(const std::vector<TestTensor>& tensors) {
  std::string header = "{";
  std::string data;
  for (const TestTensor& tensor : tensors) {
    absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", tensor.name, "\":{\"dtype\":\"",
                    tensor.dtype, "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                    "],\"data_offsets\":[", data.size(), ",", data.size() + tensor.bytes.size(),
                    "]}");
    data += tensor.bytes;
  }
  return WithLength(header + "}") + data;
}

// A GGUF file under construction. Every part can be made wrong.
class GgufWriter {
 public:
  static std::string String(absl::string_view text) {
    return absl::StrCat(Raw(static_cast<std::uint64_t>(text.size())), text);
  }

  // `value` is raw, as the type lays it out.
  GgufWriter& Key(absl::string_view key, std::uint32_t type, const std::string& value) {
    ++keys;
    metadata += String(key) + Raw(type) + value;
    return *this;
  }
  GgufWriter& U32(absl::string_view key, std::uint32_t value) { return Key(key, 4, Raw(value)); }
  GgufWriter& Text(absl::string_view key, absl::string_view value) {
    return Key(key, 8, String(value));
  }

  // `dims` in ggml's order, the fastest first; the offset follows the previous tensor.
  GgufWriter& Tensor(absl::string_view name, const std::vector<std::int64_t>& dims,
                     std::uint32_t type, const std::string& bytes) {
    return TensorAt(name, dims, type, data.size(), bytes);
  }
  GgufWriter& TensorAt(absl::string_view name, const std::vector<std::int64_t>& dims,
                       std::uint32_t type, std::uint64_t offset, const std::string& bytes) {
    ++tensors;
    table += String(name) + Raw(static_cast<std::uint32_t>(dims.size())) + Raw(dims) + Raw(type) +
             Raw(offset);
    data += bytes;
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    return *this;
  }

  std::string Build() const {
    std::string out = magic + Raw(version) + Raw(tensors) + Raw(keys) + metadata + table;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }

  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t tensors = 0;
  std::uint64_t keys = 0;
  std::uint64_t alignment = 32;
  std::string metadata;
  std::string table;
  std::string data;
};

}  // namespace nibble

#define NIBBLE_ASSERT_OK_AND_ASSIGN(target, expression) \
  NIBBLE_ASSERT_OK_AND_ASSIGN_INNER(NIBBLE_CONCAT(statusor_, __LINE__), target, expression)
#define NIBBLE_ASSERT_OK_AND_ASSIGN_INNER(statusor, target, expression) \
  auto statusor = (expression);                                         \
  ASSERT_TRUE(statusor.ok()) << statusor.status();                      \
  target = *std::move(statusor)
