// Any bytes as a GGUF file: every layer, and every expert of every stack, is described and loaded,
// or refused.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "tests/fuzz/checkpoint_file.h"

namespace nibble {
namespace {

void TryFile(const CheckpointFile& file, const std::uint8_t* data, std::size_t size) {
  file.Write(data, size);
  const auto checkpoint = Checkpoint::Open(file.path());
  if (!checkpoint.ok()) return;
  for (const auto& [key, value] : (*checkpoint)->gguf()->values()) {
    (void)(*checkpoint)->gguf()->Integer(key);
    (void)(*checkpoint)->gguf()->Number(key);
    (void)(*checkpoint)->gguf()->Strings(key);
  }
  (void)(*checkpoint)->Revision();
  const auto format = OpenFormat(**checkpoint);
  if (!format.ok()) return;
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) {
    absl::string_view layer = tensor.name;
    if (!absl::ConsumeSuffix(&layer, ".weight")) continue;
    TryLayer(**format, layer);
    if (tensor.shape.size() != 3) continue;
    for (std::int64_t e = 0; e < std::min<std::int64_t>(tensor.shape[0], 4); ++e) {
      TryLayer(**format, absl::StrCat(layer, "#", e));
    }
  }
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const nibble::CheckpointFile file("model.gguf");
  nibble::TryFile(file, data, size);
  return 0;
}
