// Random weights of every encoding, for models that exist for their shape alone.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/weights/linear_weight.h"

namespace nibble {

// Weights of mean 0 and standard deviation about 1 / sqrt(k), so that inputs of unit variance give
// outputs of unit variance; a bias of a tenth of that. `table` is a codebook's. The same arguments
// give the same weight. SpecOf(result) == spec. REQUIRES: a spec that some checkpoint could have;
// zero points of Row8 are not among them.
LinearWeight RandomWeight(const LinearSpec& spec, const std::array<float, 16>& table,
                          std::uint64_t seed);

// Every byte again.
LinearWeight CopyOf(const LinearWeight& weight);

}  // namespace nibble
