// The bytes of a safetensors file of F32 tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/json.h"
#include "tests/support/float_tensor.h"

namespace nibble {

inline std::string SafetensorsFile(const std::vector<FloatTensor>& tensors) {
  Json header{Json::Object{}};
  std::string data;
  for (const FloatTensor& tensor : tensors) {
    Json entry{Json::Object{}};
    Json::Array shape(tensor.shape.begin(), tensor.shape.end());
    const auto begin = static_cast<std::int64_t>(data.size());
    data.append(reinterpret_cast<const char*>(tensor.values.data()),
                tensor.values.size() * sizeof(float));
    entry.Set("dtype", "F32");
    entry.Set("shape", std::move(shape));
    entry.Set("data_offsets", Json::Array{begin, static_cast<std::int64_t>(data.size())});
    header.Set(tensor.name, std::move(entry));
  }
  std::string text = DumpJson(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text + data;
}

}  // namespace nibble
