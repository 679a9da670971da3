// The weights that a Program wants, by name: derived once, beside the Program, and used both to
// plan memory and to load, so that the two cannot disagree.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/device/backend.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/format.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// One layer of the checkpoint.
struct LinearSource {
  std::string layer;   // as WeightFormat wants it
  std::int64_t n = 0;  // as the configuration has it
  std::int64_t k = 0;
  std::vector<std::int32_t> row_order;  // PermuteRows; empty: as stored
  bool needs_bias = false;
};

// One PackedLinear of ModelWeights::linears.
struct LinearPlan {
  PackAxis axis = PackAxis::kN;
  std::vector<LinearSource> sources;
  int joined = 1;  // so many sources, one below the other, make one matrix of the stack: [gate; up]
                   // of an expert
};

// One entry of ModelWeights::vectors: the tensor plus `add`.
struct VectorPlan {
  std::string tensor;
  std::int64_t size = 0;
  float add = 0.0f;
};

struct WeightPlan {
  std::vector<LinearPlan> linears;  // by LinearId
  std::vector<VectorPlan> vectors;  // by VectorId
};

// What Pack will be given, from headers alone. Errors name the layer, its shape and the one it must
// have.
absl::StatusOr<std::vector<LinearSpec>> DescribeLinear(const WeightFormat& format,
                                                       const LinearPlan& plan);

// What Pack is given. SpecOf(each) is as DescribeLinear said.
absl::StatusOr<std::vector<LinearWeight>> LoadLinear(const WeightFormat& format,
                                                     const LinearPlan& plan);

// Errors name the tensor, its size and the one it must have.
absl::Status CheckVector(const Checkpoint& checkpoint, const VectorPlan& plan);
absl::StatusOr<std::vector<float>> LoadVector(const Checkpoint& checkpoint, const VectorPlan& plan);

}  // namespace nibble
