// Models without files: the published shape of one, random weights in any format. They take the way
// of every other model, from configuration through plan to loader, so that speed, memory and time
// to load are those of the real one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/format.h"

namespace nibble {

struct SyntheticSpec {
  std::string shape;   // of SyntheticShapes()
  std::string format;  // of SyntheticFormats()
};

std::vector<std::string> SyntheticShapes();   // "llama-3-8b", ...
std::vector<std::string> SyntheticFormats();  // "int4-g128", ...

struct SyntheticModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<WeightFormat> format;
};

// NotFound lists the shapes or the formats there are. Layers of one shape hold equal numbers, each
// layer a copy of its own; the first load of a shape makes them. Groups that do not divide a row
// are halved until they do, and blocks of 256 give way to those of 32, as in real files.
absl::StatusOr<SyntheticModel> OpenSynthetic(const SyntheticSpec& spec);

// The same for a config.json that is in no table. It must say hidden_size, num_hidden_layers,
// num_attention_heads and vocab_size.
absl::StatusOr<SyntheticModel> OpenSynthetic(const Json& config, absl::string_view name,
                                             absl::string_view format);

}  // namespace nibble
