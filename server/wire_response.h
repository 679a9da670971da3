// Answers from the runtime to the wire. No gRPC here. Any thread.
#pragma once

#include <string>
#include <vector>

#include "nibble/v1/generation.pb.h"
#include "nibble/v1/models.pb.h"
#include "runtime/engine/model_hub.h"
#include "runtime/engine/token_stream.h"

namespace nibble {

inline constexpr std::size_t kMaxResponseBytes = 1 << 20;

// One event as one response, or several where it would exceed a response's size: text is then cut
// between characters, and ids stay beside their log-probabilities. `request_id` goes into
// `started`.
std::vector<v1::GenerateResponse> ToResponses(const StreamEvent& event,
                                              const std::string& request_id);

v1::Model ToProto(const ModelStatus& status);
v1::Model ToProto(const ModelInfo& info);  // only what ModelInfo knows; the state is left unset
v1::MemoryPlan ToProto(const MemoryPlan& plan);

}  // namespace nibble
