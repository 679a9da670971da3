// Any bytes as model.safetensors, under the configuration that the last byte picks: every layer is
// described and loaded, or refused.
#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/strings/strip.h"
#include "tests/fuzz/checkpoint_file.h"

namespace nibble {
namespace {

constexpr std::array<absl::string_view, 8> kConfigs = {
    "{}",
    R"({"quantization_config":{"quant_method":"gptq","bits":4,"group_size":8,"sym":false}})",
    R"({"quantization_config":{"quant_method":"gptq","bits":3,"group_size":-1,"format":"gptq_v2",
        "dynamic":{"-:x":{},"a":{"bits":8},"b":{"bits":2,"group_size":4}}}})",
    R"({"quantization_config":{"quant_method":"awq","bits":4,"group_size":8,"version":"gemm"}})",
    R"({"quantization_config":{"quant_method":"awq","bits":4,"group_size":64,"version":"gemv_fast"}})",
    R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true}})",
    R"({"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{
        "a":{"targets":["re:a"],"weights":{"num_bits":3,"strategy":"group","group_size":8,"symmetric":false}},
        "b":{"targets":["Linear"],"weights":{"num_bits":4,"strategy":"channel"}}}}})",
    R"({"quantization_config":{"quant_method":"compressed-tensors","format":"int-quantized","config_groups":{
        "a":{"targets":["re:a"],"weights":{"num_bits":8,"strategy":"channel","symmetric":false},
             "input_activations":{"num_bits":8,"strategy":"tensor","dynamic":false}},
        "b":{"targets":["Linear"],"weights":{"num_bits":8,"strategy":"group","group_size":4}}}}})"};

void TryFile(const CheckpointFile& file, const std::uint8_t* data, std::size_t size) {
  file.Write(data, size);
  const int choice = size == 0 ? 0 : data[size - 1];
  file.WriteConfig(kConfigs[static_cast<std::size_t>(choice) % kConfigs.size()]);
  const auto checkpoint = Checkpoint::Open(file.path());
  if (!checkpoint.ok()) return;
  (void)(*checkpoint)->Revision();
  const auto quantize = static_cast<LoadQuantization>(choice / 8 % 5);
  const auto format = OpenFormat(**checkpoint, quantize);
  if (!format.ok()) return;
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) {
    absl::string_view layer = tensor.name;
    for (const char* suffix : {".weight", ".qweight", ".weight_packed"}) {
      if (absl::ConsumeSuffix(&layer, suffix)) TryLayer(**format, layer);
    }
  }
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const nibble::CheckpointFile file("model.safetensors");
  nibble::TryFile(file, data, size);
  return 0;
}
