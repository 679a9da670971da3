// What one request says to its client: tokens become text, text is searched for stop strings, and
// events go into the stream.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/device/step.h"
#include "runtime/engine/sequence.h"
#include "runtime/engine/token_stream.h"
#include "runtime/metrics.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"

namespace nibble {

// What the answers of one engine share.
struct AnswerContext {
  std::string model, revision;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::vector<std::int32_t> eos_ids;
  std::shared_ptr<ModelMetrics> metrics;
};

// The engine's thread only. `context` and `state` must outlive this.
class Answer {
 public:
  enum class Progress : std::uint8_t {
    kGoesOn,
    kEnded,  // the output has its FinishedEvent
    kSlow,   // the stream is full: the request must be ended with ABORTED
  };

  Answer(const AnswerContext* context, RequestState* state, std::shared_ptr<TokenStream> stream);

  bool cancelled() const { return stream_->cancelled(); }
  // The first output got its slot.
  void Start();
  // Log-probabilities of the prompt tokens after `first_scored`, in order.
  Progress AddPrompt(std::int32_t first_scored, std::span<const RowResult> rows);
  // The next token of an output.
  Progress AddToken(const Sequence& sequence, const RowResult& row, absl::Time now);
  // The end of an output from outside: out of time, or nothing was to be generated.
  Progress EndOutput(const Sequence& sequence, FinishReason reason, absl::Time now);

  bool all_ended() const { return num_ended_ == outputs_.size(); }
  // Whether the client may have seen output: after that a fault is not UNAVAILABLE any more.
  bool has_output() const { return has_output_; }

  // The end of the stream: counts the request, then closes.
  void Close(const absl::Status& status, absl::Time now);

 private:
  struct OutputState {
    OutputState(const Tokenizer& tokenizer, const Request& request)
        : detokenizer(tokenizer, request.output.keep_special_tokens),
          stops(request.stopping.stop_strings) {}
    Detokenizer detokenizer;
    StopMatcher stops;
    ChunkEvent held;  // final_only: everything until the end
    std::int32_t tokens = 0;
    std::int32_t uncounted = 0;  // tokens no pushed event stands for yet
    bool ended = false;
    absl::Time first_token, last_token;
  };

  void ObserveToken(OutputState& output, absl::Time now);
  TokenLogprob MakeLogprob(std::int32_t token, const RowResult& row) const;
  // Whether `token`, already counted, ends the output; appends the text that has become certain.
  std::optional<FinishedEvent> FindEnd(OutputState& output, std::int32_t token,
                                       std::string* text) const;
  int AppendText(OutputState& output, std::string piece, std::string* text) const;
  int FlushText(OutputState& output, std::string* text) const;
  bool Emit(OutputState& output, ChunkEvent chunk);
  void EmitHeld(OutputState& output);
  Progress Finish(OutputState& output, const Sequence& sequence, ChunkEvent chunk,
                  FinishedEvent finished, absl::Time now);
  bool PushPrompt(PromptEvent event);
  void Count(OutputState& output);

  const AnswerContext* const context_;
  RequestState* const state_;
  const std::shared_ptr<TokenStream> stream_;
  std::vector<OutputState> outputs_;
  std::size_t num_ended_ = 0;
  bool has_output_ = false;
};

}  // namespace nibble
