// What the configuration of a Hugging Face checkpoint says about its quantization.
#pragma once

#include <initializer_list>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

struct QuantConfig {
  std::string method;  // "gptq", "awq", "bitsandbytes", ... in lower case; empty: not quantized
  Json json;           // the object that says so, top-level keys in lower case
};

// From config.json, else quantize_config.json or quant_config.json. Two sources that disagree on
// bits, group size, symmetry, act-order or format are refused: a guess would give wrong weights
// silently.
absl::StatusOr<QuantConfig> ReadQuantConfig(const Checkpoint& checkpoint);

// The first of several spellings of a key that is present and not null.
const Json* FirstOf(const Json& json, std::initializer_list<absl::string_view> keys);

// A member of a certain kind; `fallback` when absent or null; InvalidArgument names the keys and
// the kind.
absl::StatusOr<std::int64_t> IntegerOr(const Json& json,
                                       std::initializer_list<absl::string_view> keys,
                                       std::int64_t fallback);
absl::StatusOr<bool> BoolOr(const Json& json, std::initializer_list<absl::string_view> keys,
                            bool fallback);
// In lower case.
absl::StatusOr<std::string> NameOr(const Json& json, std::initializer_list<absl::string_view> keys,
                                   absl::string_view fallback);

}  // namespace nibble
