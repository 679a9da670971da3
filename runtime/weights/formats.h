// The readers behind the rows of the format table, one file each. Only format.cc includes this.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/weights/format.h"
#include "runtime/weights/quant_config.h"

namespace nibble {

using OpenedFormat = absl::StatusOr<std::unique_ptr<WeightFormat>>;

// Each reads `quant` and enough of the headers to refuse what it can never serve; `checkpoint`
// outlives the result.
OpenedFormat OpenDense(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenGgufFormat(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenGptq(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenAutoRound(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenAwq(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenBitsandbytes(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenFp8(const Checkpoint& checkpoint, const QuantConfig& quant);
OpenedFormat OpenCompressedTensors(const Checkpoint& checkpoint, const QuantConfig& quant);

// LAYER.weight as it is stored: what most formats leave some layers in.
absl::StatusOr<LinearSpec> DescribeDense(const Checkpoint& checkpoint, absl::string_view layer);
absl::StatusOr<LinearWeight> LoadDense(const Checkpoint& checkpoint, absl::string_view layer);

}  // namespace nibble
