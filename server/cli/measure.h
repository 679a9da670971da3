// Measures a model that is loaded in this process, through its engine as requests would.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/json.h"
#include "runtime/engine/served_model.h"

namespace nibble {

// The middle of the samples, and how far they lie apart. REQUIRES: at least one.
struct Spread {
  double median = 0, low = 0, high = 0;
};
Spread SpreadOf(std::vector<double> samples);

struct PrefillResult {
  std::int32_t tokens = 0;
  Spread first_token_seconds;
  Spread tokens_per_second;
};

struct DecodeResult {
  std::int32_t batch = 0;
  Spread tokens_per_second;  // of all sequences together
  Spread step_seconds;       // from one token of a sequence to its next
};

// When tokens of one sequence arrived, and how many at once.
using Timeline = std::vector<std::pair<absl::Time, std::int32_t>>;

// Tokens a second of all sequences together, from when the last of them had its first token until
// the first of them had its last: while all decode. 0 when there is no such time.
double RateWhileAllRun(const std::vector<Timeline>& timelines);

// Runs of random tokens, none of which finds another's prefix in the cache. One thread.
class Measurement {
 public:
  Measurement(const ServedModel* model, std::uint64_t seed) : model_(model), random_state_(seed) {}

  // Alone, `tokens` long, to its first token. One run more than `repeats`, the first of which does
  // not count.
  absl::StatusOr<PrefillResult> Prefill(std::int32_t tokens, int repeats);
  // `batch` sequences at once, counted while all of them decode.
  absl::StatusOr<DecodeResult> Decode(std::int32_t batch, std::int32_t prompt_tokens,
                                      std::int32_t output_tokens, int repeats);

 private:
  std::vector<std::int32_t> RandomPrompt(std::int32_t tokens);
  // Submits so many requests at once and waits for all. A timeline each, from the first token on.
  absl::StatusOr<std::vector<Timeline>> Run(std::int32_t batch, std::int32_t prompt_tokens,
                                            std::int32_t output_tokens, absl::Time* submitted);

  const ServedModel* const model_;
  std::uint64_t random_state_;
  std::uint64_t requests_ = 0;
};

Json ToJson(const PrefillResult& result);
Json ToJson(const DecodeResult& result);

}  // namespace nibble
