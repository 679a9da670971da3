// The bytes of a GGUF file of F32 tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/float_tensor.h"

namespace nibble {

class GgufWriter {
 public:
  void SetUint32(const std::string& key, std::uint32_t value) { Set(key, kUint32, Bytes(value)); }
  void SetFloat32(const std::string& key, float value) { Set(key, kFloat32, Bytes(value)); }
  void SetBool(const std::string& key, bool value) {
    Set(key, kBool, std::string(1, value ? 1 : 0));
  }
  void SetString(const std::string& key, const std::string& value) {
    Set(key, kString, Text(value));
  }

  void Add(FloatTensor tensor) { tensors_.push_back(std::move(tensor)); }

  std::string File() const {
    std::string out = "GGUF" + Bytes<std::uint32_t>(3) + Bytes<std::uint64_t>(tensors_.size()) +
                      Bytes<std::uint64_t>(keys_) + metadata_;
    std::uint64_t offset = 0;
    for (const FloatTensor& tensor : tensors_) {
      out +=
          Text(tensor.name) + Bytes<std::uint32_t>(static_cast<std::uint32_t>(tensor.shape.size()));
      for (auto dim = tensor.shape.rbegin(); dim != tensor.shape.rend(); ++dim)
        out += Bytes<std::uint64_t>(*dim);
      out += Bytes<std::uint32_t>(kTensorF32) + Bytes(offset);
      offset = Aligned(offset + tensor.values.size() * sizeof(float));
    }
    out.resize(Aligned(out.size()), '\0');
    for (const FloatTensor& tensor : tensors_) {
      out.append(reinterpret_cast<const char*>(tensor.values.data()),
                 tensor.values.size() * sizeof(float));
      out.resize(Aligned(out.size()), '\0');
    }
    return out;
  }

 private:
  static constexpr std::uint32_t kUint32 = 4, kFloat32 = 6, kBool = 7, kString = 8;
  static constexpr std::uint32_t kTensorF32 = 0;

  static std::uint64_t Aligned(std::uint64_t offset) { return (offset + 31) / 32 * 32; }
  template <typename T>
  static std::string Bytes(T value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  static std::string Text(const std::string& text) {
    return Bytes<std::uint64_t>(text.size()) + text;
  }
  void Set(const std::string& key, std::uint32_t type, const std::string& value) {
    metadata_ += Text(key) + Bytes(type) + value;
    ++keys_;
  }

  std::string metadata_;
  std::uint64_t keys_ = 0;
  std::vector<FloatTensor> tensors_;
};

}  // namespace nibble
