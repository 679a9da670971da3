// POST /prompt: one Generate for the page's prompt box, behind the same validator, pool and queue
// as gRPC. The body is a nibble.v1.GenerateRequest as JSON; the answer is server-sent events, each
// a nibble.v1.GenerateResponse as JSON, and an `error` event when it ends badly after it began.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nibble/v1/generation.pb.h"
#include "server/http_exchange.h"
#include "server/prepare_pool.h"
#include "server/serving_state.h"

namespace nibble {

inline constexpr std::uint32_t kMaxHttpTokens = 1024;     // an answer may have
inline constexpr std::uint32_t kDefaultHttpTokens = 256;  // unset max_tokens

// "a.example,b": lower-case host names. InvalidArgument for anything else, ports among it.
absl::StatusOr<std::vector<std::string>> ParseHostNames(absl::string_view text);

// Whether a browser may be trusted to send this because its user asked for it: PermissionDenied
// for other sites' pages (they cannot send the header X-Nibble-Prompt, nor JSON) and for names that
// are neither an IP address, localhost nor among `host_names` (another site's name may be made to
// point here).
absl::Status CheckPromptHead(const HttpHead& head, const std::vector<std::string>& host_names);

// The request, with its bounds applied. InvalidArgument for what the prompt box has no business
// to ask: that is for gRPC.
absl::StatusOr<v1::GenerateRequest> ParsePrompt(const std::string& body);

// {"error": {"code", "reason", "message"}} with the HTTP status that fits. REQUIRES: !status.ok().
HttpAnswer ErrorAnswer(const absl::Status& status);

// The answer to one body. Never null: what is refused is an answer too.
std::unique_ptr<AnswerStream> AnswerPrompt(const ServingState* state, PreparePool* pool,
                                           const std::string& body,
                                           std::weak_ptr<StreamWaker> waker);

}  // namespace nibble
