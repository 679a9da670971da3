// The parts that ReadModelConfig is made of. Each fills its fields of `config` from `source`, after
// ReadShape.
#pragma once

#include "absl/status/status.h"
#include "runtime/model/architectures.h"
#include "runtime/model/config.h"
#include "runtime/model/config_source.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

// Sizes, norms, scales, activation, experts, head.
absl::Status ReadShape(const ConfigSource& source, const Architecture& architecture,
                       const Checkpoint& checkpoint, ModelConfig& config);

// ModelConfig::ropes; raises max_context where the scaling extends it (yarn).
absl::Status ReadRopes(const ConfigSource& source, const Architecture& architecture,
                       const Checkpoint& checkpoint, ModelConfig& config);

// ModelConfig::layer: each layer's window, rope and kind of MLP.
absl::Status ReadLayers(const ConfigSource& source, const Architecture& architecture,
                        const Checkpoint& checkpoint, ModelConfig& config);

}  // namespace nibble
