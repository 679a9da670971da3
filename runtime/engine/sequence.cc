#include "runtime/engine/sequence.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace nibble {

RequestState::RequestState(std::uint64_t number, Request ask, absl::Time submit_time,
                           absl::Time end_by, std::int32_t context, std::int64_t kv_tokens,
                           std::span<const std::int32_t> eos_ids)
    : id(number),
      request(std::move(ask)),
      submitted(submit_time),
      deadline(end_by),
      time_limit(request.stopping.max_duration.has_value()
                     ? submit_time + *request.stopping.max_duration
                     : absl::InfiniteFuture()) {
  const Stopping& stopping = request.stopping;
  const std::int64_t room =
      std::min<std::int64_t>(context - prompt_size(), kv_tokens - prompt_size() + 1);
  const std::int64_t asked =
      stopping.max_tokens.value_or(std::numeric_limits<std::uint32_t>::max());
  context_limits = asked > room;
  max_outputs = static_cast<std::int32_t>(std::max<std::int64_t>(std::min(asked, room), 0));
  if (!stopping.ignore_eos) stop_ids.assign(eos_ids.begin(), eos_ids.end());
  stop_ids.insert(stop_ids.end(), stopping.stop_token_ids.begin(), stopping.stop_token_ids.end());
  for (std::uint32_t index = 0; index < request.output.num_outputs; ++index) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = this;
    sequence->index = index;
    sequences.push_back(std::move(sequence));
  }
}

bool RequestState::idle() const {
  return std::all_of(sequences.begin(), sequences.end(), [](const auto& sequence) {
    return sequence->in_flight == 0 && sequence->slot < 0;
  });
}

}  // namespace nibble
