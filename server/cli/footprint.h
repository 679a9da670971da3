// What a step of a model reads and computes at least: the roofline that measurements are held
// against.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/engine/load_model.h"
#include "runtime/model/plan.h"

namespace nibble {

struct Footprint {
  std::int64_t weight_bytes = 0;  // that every step reads; no embedding of which rows are looked up
  std::int64_t expert_bytes = 0;  // of all experts of all layers
  double expert_share = 0;        // of the experts, that one token goes through
  std::int64_t body_parameters = 0;  // that every token is multiplied with
  std::int64_t head_parameters = 0;  // and every token that is sampled after
  std::int64_t kv_bytes_per_token = 0;

  // Of one step of `batch` sequences that hold `context` tokens each; of experts as many as that
  // many tokens are expected to touch.
  double DecodeBytes(double batch, double context) const;
  // Multiplications and additions of the weights' products.
  double PrefillFlops(double tokens, double sequences) const;
};

absl::StatusOr<Footprint> FootprintOf(const OpenedModel& opened, const MemoryPlan& plan);

}  // namespace nibble
