// The immutable ask: what one Generate wants of one model. Filled by the server's validator, or
// in-process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "kernels/sampling.h"

namespace nibble {

struct Stopping {
  std::optional<std::uint32_t>
      max_tokens;  // unset: to the end of the context; 0: score the prompt only
  std::uint32_t min_tokens = 0;
  std::vector<std::string> stop_strings;
  std::vector<std::int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_string = false;
  std::optional<absl::Duration> max_duration;  // from admission to the queue
};

struct Output {
  std::uint32_t num_outputs = 1;                     // 1..128
  std::optional<std::uint32_t> top_logprobs;         // 0..20
  std::optional<std::uint32_t> prompt_top_logprobs;  // 0..20
  bool output_token_ids = false;
  bool prompt_token_ids = false;
  bool keep_special_tokens = false;
  bool final_only = false;
};

struct Request {
  std::string id;  // a label; duplicates are allowed
  std::vector<std::int32_t> prompt;
  SamplingParams sampling;  // seed resolved; output_index is set per output
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  Stopping stopping;
  Output output;
  std::int32_t priority = 0;  // higher first
  std::string cache_salt;     // different salts never share cached prefixes
  std::string tenant;
  absl::Time deadline = absl::InfiniteFuture();
};

}  // namespace nibble
