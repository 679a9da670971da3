// config.json of any content: a status or a configuration whose rotary tables can be built.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "runtime/model/config.h"

namespace nibble {
namespace {

// Has every norm, of the hidden size that the configuration claims, so that reading gets past the
// tensors.
class ConfigOnly final : public Checkpoint {
 public:
  explicit ConfigOnly(Json config) : config_(std::move(config)) {
    const Json* hidden = config_.Find("hidden_size");
    norm_.shape = {hidden != nullptr && hidden->is_integer() ? hidden->AsInt64() : 4096};
  }

  CheckpointKind kind() const override { return CheckpointKind::kHuggingFace; }
  const std::string& path() const override { return path_; }
  const Json& config() const override { return config_; }
  const GgufMetadata* gguf() const override { return nullptr; }
  absl::StatusOr<std::string> ReadSideFile(absl::string_view) const override {
    return absl::NotFoundError("no side files");
  }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(absl::string_view name) const override {
    return absl::EndsWith(name, "norm.weight") ? &norm_ : nullptr;
  }
  absl::Status Read(const TensorInfo&, std::span<std::byte>) const override {
    return absl::NotFoundError("no data");
  }
  absl::StatusOr<std::string> Revision() const override { return std::string("0"); }

 private:
  const std::string path_ = "fuzz";
  const Json config_;
  TensorInfo norm_;
  const std::vector<TensorInfo> tensors_;
};

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  absl::StatusOr<nibble::Json> json =
      nibble::ParseJson(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!json.ok()) return 0;
  const nibble::ConfigOnly checkpoint(*std::move(json));
  const auto config = nibble::ReadModelConfig(checkpoint);
  if (!config.ok()) return 0;
  for (const nibble::RopeConfig& rope : config->ropes) {
    nibble::BuildRopeTable(rope, config->max_context);
  }
  return 0;
}
