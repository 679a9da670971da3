// Measures a model that is loaded in this process, through its engine as requests would.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/json.h"
#include "runtime/engine/served_model.h"
#include "server/cli/recorder.h"

namespace nibble {

// The middle of the samples, and how far they lie apart. REQUIRES: at least one.
struct Spread {
  double median = 0, low = 0, high = 0;
};
Spread SpreadOf(std::vector<double> samples);

struct PrefillResult {
  std::int32_t tokens = 0;
  std::int32_t batch = 0;      // prompts at once
  Spread first_token_seconds;  // until the last of them has its first token
  Spread tokens_per_second;    // of all prompts together
};

struct DecodeResult {
  std::int32_t batch = 0;
  std::int32_t context = 0;        // tokens of each prompt
  std::int32_t output_tokens = 0;  // and of each answer, at last
  Spread tokens_per_second;        // of all sequences together
  Spread step_seconds;             // from one token of a sequence to its next
};

// Many requests submitted at once, run as the scheduler likes: what a batch job sees.
struct ThroughputResult {
  std::int32_t requests = 0, input_tokens = 0, output_tokens = 0;
  double seconds = 0;                                          // until the last has ended
  double output_tokens_per_second = 0, tokens_per_second = 0;  // of all, the second with prompts
  double first_token_p50 = 0, first_token_p99 = 0;             // seconds from the submission
  double gap_p50 = 0, gap_p99 = 0;                             // seconds between tokens of one
};

// Streams that decode while prompts arrive, all at once: what chats feel of a burst of work.
struct ArrivalsResult {
  std::int32_t streams = 0, context = 0;        // that decode, after so many tokens each
  std::int32_t prompts = 0, prompt_tokens = 0;  // that arrive
  double calm_gap_p50 = 0, calm_gap_max = 0;    // seconds between tokens of a stream, before
  // From the arrival until the last prompt has its first token.
  double seconds = 0;
  double gap_p50 = 0, gap_p99 = 0, gap_max = 0;     // between tokens of a stream meanwhile
  std::int64_t gaps = 0;                            // behind those
  double first_token_p50 = 0, first_token_max = 0;  // of the prompts
};

// Tokens a second of all sequences together, from when the last of them had its first token until
// the first of them had its last: while all decode. 0 when there is no such time.
double RateWhileAllRun(const std::vector<Timeline>& timelines);

// Whether so many sequences of so many tokens run at once.
bool Fits(const MemoryPlan& plan, std::int64_t sequences, std::int64_t tokens);

// A stream that decodes while prompts arrive has room for at least so many.
inline constexpr std::int32_t kLeastArrivalTokens = 512;

// Runs of random tokens, none of which finds another's prefix in the cache. One thread.
class Measurement {
 public:
  Measurement(const ServedModel* model, std::uint64_t seed) : model_(model), random_state_(seed) {}

  // `batch` prompts at once, `tokens` long each, to the first token of all. One run more than
  // `repeats`, the first of which does not count.
  absl::StatusOr<PrefillResult> Prefill(std::int32_t tokens, std::int32_t batch, int repeats);
  // `batch` sequences at once, counted while all of them decode. Answers become longer, as far as
  // the plan has room, where some would end before others begin.
  absl::StatusOr<DecodeResult> Decode(std::int32_t batch, std::int32_t prompt_tokens,
                                      std::int32_t output_tokens, int repeats);
  // One run.
  absl::StatusOr<ThroughputResult> Throughput(std::int32_t requests, std::int32_t input_tokens,
                                              std::int32_t output_tokens);
  // One run: `streams` decode after `context` tokens each, then the prompts arrive.
  // REQUIRES: as many sequences of the longer of both and kLeastArrivalTokens more fit.
  absl::StatusOr<ArrivalsResult> Arrivals(std::int32_t streams, std::int32_t context,
                                          std::int32_t prompts, std::int32_t prompt_tokens,
                                          std::int32_t output_tokens);

 private:
  using Recorders = std::vector<std::shared_ptr<Recorder>>;

  std::vector<std::int32_t> RandomPrompt(std::int32_t tokens);
  // Submits so many requests at once, at `*submitted`.
  absl::StatusOr<Recorders> Submit(std::int32_t batch, std::int32_t prompt_tokens,
                                   std::int32_t output_tokens, absl::Time* submitted);
  // And waits for all. A timeline each, from the first token on.
  absl::StatusOr<std::vector<Timeline>> Run(std::int32_t batch, std::int32_t prompt_tokens,
                                            std::int32_t output_tokens, absl::Time* submitted);

  const ServedModel* const model_;
  std::uint64_t random_state_;
  std::uint64_t requests_ = 0;
};

Json ToJson(const PrefillResult& result);
Json ToJson(const DecodeResult& result);
Json ToJson(const ThroughputResult& result);
Json ToJson(const ArrivalsResult& result);

}  // namespace nibble
