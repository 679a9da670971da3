// Weight files taken apart into fields, so that each can be made wrong alone and the file written
// again with everything else as it was.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace nibble {

template <typename T>
std::string RawBytes(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

struct SafetensorsImage {
  struct Tensor {
    std::string name;
    std::string dtype;
    std::vector<std::uint64_t> shape;
    std::uint64_t begin = 0, end = 0;  // in `data`
  };

  // REQUIRES: a valid file.
  static SafetensorsImage Parse(absl::string_view file);
  // The tensor's bytes come after all others.
  void Add(std::string name, std::string dtype, std::vector<std::uint64_t> shape,
           absl::string_view bytes);
  // Puts other bytes in the place of tensor `index`'s and moves what lies behind them.
  void SetBytes(std::size_t index, absl::string_view bytes);
  std::string File() const;

  std::vector<Tensor> tensors;
  std::string data;
  std::int64_t header_lie = 0;  // added to the length of the header
};

struct GgufImage {
  struct KeyValue {
    std::string key;
    std::uint32_t type = 0;
    std::string raw;  // as the type lays it out
  };
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dims;  // the fastest first
    std::uint32_t type = 0;
    std::uint64_t offset = 0;
  };
  static constexpr std::uint32_t kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kText = 8, kArray = 9;

  // REQUIRES: a valid file.
  static GgufImage Parse(absl::string_view file);
  static std::string Text(absl::string_view text);
  static std::string Array(std::uint32_t type, std::uint64_t count, absl::string_view values);
  void SetBytes(std::size_t index, std::uint32_t type, absl::string_view bytes);
  // Where tensor `index`'s bytes end in `data`, padding included.
  std::uint64_t End(std::size_t index) const;
  std::string File() const;

  std::uint32_t version = 3;
  std::vector<KeyValue> keys;
  std::vector<Tensor> tensors;
  std::string data;
  std::int64_t keys_lie = 0, tensors_lie = 0;  // added to the counts
};

}  // namespace nibble
