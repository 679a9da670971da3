// GET /status: everything that the page shows, as one JSON object. Counters and histograms are
// totals; the page takes differences.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "runtime/metrics.h"
#include "server/serving_state.h"

namespace nibble {

struct PageFacts {
  std::string grpc_address;
  bool prompt = false;  // whether POST /prompt is there
  absl::Time started;
};

std::string PageStatus(const ServingState& state, Metrics& metrics, const PageFacts& facts,
                       absl::Time now);

}  // namespace nibble
