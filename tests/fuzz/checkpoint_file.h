// A checkpoint on disk for the length of a fuzzing process: one file and one config.json, rewritten
// for each input.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/strings/string_view.h"
#include "runtime/base/status.h"
#include "runtime/weights/format.h"

namespace nibble {

class CheckpointFile {
 public:
  explicit CheckpointFile(const char* name) {
    const char* base = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp";
    std::string pattern = std::string(base) + "/nibble_fuzz_XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    directory_ = pattern;
    path_ = directory_ + "/" + name;
  }
  ~CheckpointFile() {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  const std::string& path() const { return path_; }

  void Write(const std::uint8_t* data, std::size_t size) const {
    WriteFile(path_, absl::string_view(reinterpret_cast<const char*>(data), size));
  }
  void WriteConfig(absl::string_view text) const { WriteFile(directory_ + "/config.json", text); }

 private:
  static void WriteFile(const std::string& path, absl::string_view bytes) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size())
      std::abort();
    std::fclose(file);
  }

  std::string directory_;
  std::string path_;
};

// Describes and loads a layer. What loads has whole buffers, is what was described, and decodes.
inline void TryLayer(const WeightFormat& format, absl::string_view layer) {
  const absl::StatusOr<LinearSpec> spec = format.Describe(layer);
  if (!spec.ok()) return;
  const absl::StatusOr<LinearWeight> weight = format.Load(layer);
  if (!weight.ok()) return;
  if (!(SpecOf(*weight) == *spec) || !CheckBuffers(*weight).ok()) std::abort();
  if (weight->n * weight->k <= 1 << 20 && !Dequantize(*weight).ok()) std::abort();
}

}  // namespace nibble
