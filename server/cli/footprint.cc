#include "server/cli/footprint.h"

#include <cmath>

#include "runtime/base/status.h"
#include "runtime/model/program_builder.h"

namespace nibble {

double Footprint::DecodeBytes(double batch, double context) const {
  const double touched = 1 - std::pow(1 - expert_share, batch);
  return static_cast<double>(weight_bytes) + touched * static_cast<double>(expert_bytes) +
         batch * context * static_cast<double>(kv_bytes_per_token);
}

double Footprint::PrefillFlops(double tokens, double sequences) const {
  return 2 * (tokens * static_cast<double>(body_parameters) +
              sequences * static_cast<double>(head_parameters));
}

absl::StatusOr<Footprint> FootprintOf(const OpenedModel& opened, const MemoryPlan& plan) {
  const ModelConfig& config = opened.config;
  ASSIGN_OR_RETURN(const BuiltProgram built, BuildProgram(config, *opened.checkpoint,
                                                          *opened.format, plan.limits.max_context));
  Footprint footprint;
  footprint.kv_bytes_per_token = plan.kv_bytes_per_token;
  if (config.experts > 0)
    footprint.expert_share = static_cast<double>(config.experts_per_token) / config.experts;
  const auto last = static_cast<std::int64_t>(built.weights.linears.size()) - 1;
  for (std::int64_t id = 0; id <= last; ++id) {
    const LinearPlan& linear = built.weights.linears[static_cast<std::size_t>(id)];
    ASSIGN_OR_RETURN(const auto specs, DescribeLinear(*opened.format, linear));
    ASSIGN_OR_RETURN(const std::int64_t bytes, opened.backend->PackedBytes(specs, linear.axis));
    std::int64_t parameters = 0;
    for (const LinearSpec& spec : specs) parameters += spec.n * spec.k;
    // The program names the embedding first and the head last; a tied head is the embedding.
    const bool head = id == (config.tied_head ? 0 : last);
    if (id == 0 && !head) continue;
    if (head) {
      footprint.head_parameters = parameters;
      footprint.weight_bytes += bytes;
    } else if (linear.axis == PackAxis::kExperts) {
      footprint.expert_bytes += bytes;
      footprint.body_parameters +=
          static_cast<std::int64_t>(footprint.expert_share * static_cast<double>(parameters));
    } else {
      footprint.body_parameters += parameters;
      footprint.weight_bytes += bytes;
    }
  }
  return footprint;
}

}  // namespace nibble
