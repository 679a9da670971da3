// Typed, checked reads of configuration values that Hugging Face and GGUF spell differently.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/weights/gguf.h"

namespace nibble {

// One value in its two spellings. Hugging Face's may list aliases with '|'; GGUF's follows
// "<architecture>.". Null: that kind of file has no such key.
struct ConfigKey {
  const char* hf;
  const char* gguf;
};

// A view of config.json (or its text_config), or of GGUF's key-values. Every error names the key,
// its value and what is allowed. Absent and null read alike except through `IsNull`.
class ConfigSource {
 public:
  // `path` is where in config.json the object lies: "", "text_config.", "rope_scaling.".
  static ConfigSource HuggingFace(const Json& config, absl::string_view path) {
    return ConfigSource(&config, nullptr, std::string(path));
  }
  static ConfigSource Gguf(const GgufMetadata& metadata, absl::string_view architecture) {
    return ConfigSource(nullptr, &metadata, std::string(architecture) + ".");
  }

  bool is_gguf() const { return metadata_ != nullptr; }

  absl::StatusOr<std::optional<std::int64_t>> Integer(ConfigKey key) const;
  absl::StatusOr<std::optional<double>> Number(ConfigKey key) const;  // finite
  absl::StatusOr<std::optional<bool>> Bool(ConfigKey key) const;
  absl::StatusOr<std::optional<std::string>> String(ConfigKey key) const;
  // Null when absent, null or GGUF.
  const Json* HuggingFaceValue(const char* name) const;
  bool IsNull(const char* hf_name) const;  // present in config.json, as null

  // An integer in [minimum, maximum]; `fallback` when absent, an error without one.
  absl::StatusOr<std::int32_t> Size(ConfigKey key, std::optional<std::int64_t> fallback,
                                    std::int64_t minimum, std::int64_t maximum) const;
  // A number in [minimum, maximum]; likewise.
  absl::StatusOr<double> Real(ConfigKey key, std::optional<double> fallback, double minimum,
                              double maximum) const;
  absl::StatusOr<bool> Flag(ConfigKey key, bool fallback) const;

  // "config.json: hidden_size" | "llama.embedding_length", as errors name it.
  std::string NameOf(ConfigKey key) const;

 private:
  ConfigSource(const Json* json, const GgufMetadata* metadata, std::string prefix)
      : json_(json), metadata_(metadata), prefix_(std::move(prefix)) {}

  const GgufMetadata::Value* GgufValue(ConfigKey key) const;
  const Json* JsonValue(ConfigKey key) const;

  const Json* json_;
  const GgufMetadata* metadata_;
  std::string prefix_;
};

}  // namespace nibble
