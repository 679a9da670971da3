// The safetensors container: a JSON header that names tensors, then their bytes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/file.h"
#include "runtime/weights/tensor.h"

namespace nibble {

struct SafetensorsLimits {
  std::uint64_t header_bytes = 100'000'000;  // the format's own limit
  std::size_t tensors = 250'000;
  std::size_t name_bytes = 4096;
  std::size_t rank = 16;
};

struct SafetensorsFile {
  std::vector<TensorInfo> tensors;  // by offset, which is absolute
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Reads the header and checks it as the reference reader does: no holes, no overlaps, no bytes left
// over, sizes that agree with shapes, without overflow. Stricter: duplicate keys and headers beyond
// `limits` are refused. InvalidArgument names the file, the tensor and the value.
absl::StatusOr<SafetensorsFile> ReadSafetensors(const RandomAccessFile& file,
                                                const SafetensorsLimits& limits = {});

}  // namespace nibble
