// What requests see of a loaded model: its text half, its limits and its queue; never its engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/json.h"
#include "runtime/engine/request.h"
#include "runtime/engine/token_stream.h"
#include "runtime/metrics.h"
#include "runtime/model/plan.h"
#include "runtime/text/added_tokens.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace nibble {

class SubmitQueue;  // the bounded way into one engine; closed when the engine drains

// Defaults of generation_config.json, already folded into what "unset" means.
struct GenerationDefaults {
  SamplingParams sampling;                  // temperature 1 unless the file says otherwise
  std::optional<std::uint32_t> max_tokens;  // --default-max-tokens; the validator applies it
};

struct ModelInfo {
  std::string name, revision, path;
  std::string format;        // "gguf Q4_1"
  std::string architecture;  // "llama"
  std::int64_t parameters = 0;
  std::int32_t context = 0;  // tokens a sequence may hold
  std::int32_t vocab = 0;
  std::vector<std::string> devices;
  std::string compute;  // Backend::ComputeName
  MemoryPlan plan;
  absl::Duration load_time;
};

// Immutable but for the queue; shared by every request in flight. Any thread.
class ServedModel {
 public:
  ModelInfo info;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;  // null: the model has none
  std::shared_ptr<const ChatTemplate>
      tool_template;        // used instead when a chat has tools, if there is one
  Json template_variables;  // bos_token, eos_token, ...
  std::vector<std::int32_t> eos_ids;
  GenerationDefaults defaults;
  std::shared_ptr<SubmitQueue> queue;
  // Whoever refuses a request before Submit, or hands on what Submit refused, calls
  // metrics->CountRejected once; after Submit returned OK the engine counts.
  std::shared_ptr<ModelMetrics> metrics;

  AddedTokenMatcher special_spellings;  // finds where a text spells a special token

  // The rendered chat, tokenized without adding special tokens. `variables`: messages, tools, ...
  // Only the template's own text becomes special tokens; where a message spells one it stays plain
  // text, unless `parse_special_in_messages`.
  absl::StatusOr<std::vector<std::int32_t>> RenderChat(
      const Json& variables, absl::Time now, bool parse_special_in_messages = false) const;

  // Rejects at once what can never run (prompt and context, KV pool: FailedPrecondition
  // EXCEEDS_KV_POOL), a full queue (ResourceExhausted), a closed one (Unavailable). On OK the
  // stream will be closed exactly once.
  absl::Status Submit(Request request, std::shared_ptr<TokenStream> stream) const;
};

// Why a status came about, for google.rpc.ErrorInfo: attached as a payload to absl::Status.
// One of the ErrorReason names of generation.proto without prefix: "EXCEEDS_KV_POOL", "QUEUE_FULL",
// "DRAINING", "SLOW_CONSUMER", "NAN_LOGITS", "DEVICE_FAULT", "DEADLINE", "CONTEXT_EXCEEDED", ...
absl::Status WithReason(absl::Status status, absl::string_view reason);
std::string ReasonOf(const absl::Status& status);  // "" when none was attached
// How long a client should wait before it tries again; attached only where a retry can help.
absl::Status WithRetry(absl::Status status, absl::Duration delay);
std::optional<absl::Duration> RetryOf(const absl::Status& status);

}  // namespace nibble
