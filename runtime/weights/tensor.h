// Host memory and small dense tensors as they come out of a checkpoint.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "kernels/dtype.h"

namespace nibble {

// Owned, 64-byte aligned, uninitialised host bytes. Move-only; a default one is empty.
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(std::size_t bytes)
      : data_(bytes == 0
                  ? nullptr
                  : static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment}))),
        size_(bytes) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::span<std::byte> bytes() { return {data(), size_}; }
  std::span<const std::byte> bytes() const { return {data(), size_}; }

  // REQUIRES: the bytes hold objects of T.
  template <typename T>
  std::span<T> As() {
    return {reinterpret_cast<T*>(data()), size_ / sizeof(T)};
  }
  template <typename T>
  std::span<const T> As() const {
    return {reinterpret_cast<const T*>(data()), size_ / sizeof(T)};
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(std::byte* data) const {
      ::operator delete(data, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

// Row-major, innermost dimension last.
struct Tensor {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  HostBuffer data;
};

// Where one tensor lies in a checkpoint. `dtype` describes safetensors, `ggml_type` GGUF.
struct TensorInfo {
  std::string name;                 // as in the file
  std::vector<std::int64_t> shape;  // row-major, [out, in]: GGUF dims already reversed
  DType dtype = DType::kF32;  // for GGUF the equivalent of F32, F16, BF16, I8..I64, F64, else kU8
  int ggml_type = -1;         // GGUF; -1 otherwise
  int file = 0;               // index of the shard
  std::uint64_t offset = 0;   // in that file
  std::uint64_t bytes = 0;
};

}  // namespace nibble
