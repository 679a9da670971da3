// The mutable progress of a request and of each of its outputs. Owned by the engine, used on its
// thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "runtime/cache/block_pool.h"
#include "runtime/engine/request.h"

namespace nibble {

struct RequestState;

// One output. Positions [0, kv_launched) have their keys and values in `blocks`, or will have when
// the launched steps are through.
struct Sequence {
  enum class State : std::uint8_t {
    kHeld,     // a further output, until the first has computed the prompt they share
    kWaiting,  // for a slot and blocks, never run or preempted
    kRunning,
    kLeaving,  // preempted; launched steps still use its blocks and slot
    kEnded,    // likewise, for the last time
  };

  RequestState* request = nullptr;
  std::uint32_t index = 0;
  State state = State::kHeld;

  std::vector<std::int32_t> outputs;  // tokens seen
  std::int32_t pending = 0;           // tokens sampled by launched steps and not seen yet

  // While it runs:
  std::vector<std::int32_t> tokens;  // prompt and outputs
  std::int32_t prefill_target = 0;   // tokens to be computed before it decodes
  std::int32_t kv_launched = 0;
  BlockList blocks;
  std::int32_t slot = -1;
  bool slot_written = false;   // a launched step carried its SlotInit
  bool reserved = false;       // holds all blocks it can ever need: never preempted
  std::int32_t in_flight = 0;  // launched steps that use it

  std::int32_t scored = 0;  // prompt positions whose log-probabilities were launched
  bool bad_logits = false;  // its blocks are not to be found by others
  std::int32_t preemptions = 0;
  std::int32_t recomputed_tokens = 0;
  std::int32_t computed_before = 0;  // kv_launched when it was preempted

  bool prefilling() const { return kv_launched < prefill_target; }
};

struct RequestState {
  RequestState(std::uint64_t number, Request ask, absl::Time submit_time, absl::Time end_by,
               std::int32_t context, std::int64_t kv_tokens, std::span<const std::int32_t> eos_ids);

  const std::uint64_t id;  // in order of arrival
  const Request request;
  const absl::Time submitted;
  const absl::Time deadline;
  const absl::Time time_limit;         // max_duration
  std::int32_t max_outputs = 0;        // tokens an output may have
  bool context_limits = false;         // max_outputs is what the context leaves, not what was asked
  std::vector<std::int32_t> stop_ids;  // eos unless ignored, and the request's own

  std::vector<std::unique_ptr<Sequence>> sequences;
  bool started = false;
  absl::Time started_at;
  std::int32_t cached_prompt_tokens = 0;
  std::int32_t slots_held = 0;  // sequences in kRunning or kLeaving
  bool waiting = false;         // in the WaitingQueue

  std::int32_t prompt_size() const { return static_cast<std::int32_t>(request.prompt.size()); }
  // KV positions a whole output takes: its last token is never fed back.
  std::int64_t MostKvTokens() const { return prompt_size() + std::max(max_outputs - 1, 0); }
  bool scores_prompt() const { return request.output.prompt_top_logprobs.has_value(); }
  // No launched step uses any of it: it may be destroyed.
  bool idle() const;
};

}  // namespace nibble
