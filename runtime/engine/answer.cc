#include "runtime/engine/answer.h"

#include <algorithm>
#include <utility>

#include "runtime/engine/served_model.h"

namespace nibble {
namespace {

bool Contains(const std::vector<std::int32_t>& ids, std::int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

const char* FinishLabel(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength:
    case FinishReason::kContext: return "length";
    case FinishReason::kTimeLimit: return "abort";
  }
  return "abort";
}

// The end of a prefix of `text` of at most `most` bytes that cuts no UTF-8 character.
std::size_t CutUtf8(const std::string& text, std::size_t begin, std::size_t most) {
  std::size_t end = std::min(text.size(), begin + most);
  while (end > begin && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80)
    --end;
  return end > begin ? end : std::min(text.size(), begin + most);
}

}  // namespace

Answer::Answer(const AnswerContext* context, RequestState* state,
               std::shared_ptr<TokenStream> stream)
    : context_(context), state_(state), stream_(std::move(stream)) {
  for (std::size_t i = 0; i < state->sequences.size(); ++i)
    outputs_.emplace_back(*context->tokenizer, state->request);
}

void Answer::Start() {
  const Request& request = state_->request;
  context_->metrics->RequestStarted(state_->prompt_size(), state_->cached_prompt_tokens,
                                    absl::ToDoubleSeconds(state_->started_at - state_->submitted));
  stream_->Push(StartedEvent{context_->model, context_->revision, state_->prompt_size(),
                             state_->cached_prompt_tokens});
  if (state_->scores_prompt()) {
    PromptEvent first;  // what comes before the first token is nothing to score it by
    if (request.output.prompt_token_ids) first.token_ids = {request.prompt[0]};
    first.logprobs.push_back(
        {.token = request.prompt[0], .bytes = context_->tokenizer->TokenBytes(request.prompt[0])});
    stream_->PushHeld(std::move(first));
  } else if (request.output.prompt_token_ids) {
    constexpr std::size_t kPiece = TokenStream::kMaxEventBytes / 8;
    for (std::size_t at = 0; at < request.prompt.size(); at += kPiece) {
      const auto begin = request.prompt.begin() + static_cast<std::ptrdiff_t>(at);
      const auto size = static_cast<std::ptrdiff_t>(std::min(kPiece, request.prompt.size() - at));
      stream_->PushHeld(
          PromptEvent{.offset = static_cast<std::int32_t>(at), .token_ids = {begin, begin + size}});
    }
  }
}

TokenLogprob Answer::MakeLogprob(std::int32_t token, const RowResult& row) const {
  TokenLogprob logprob{
      .token = token, .logprob = row.logprob, .bytes = context_->tokenizer->TokenBytes(token)};
  for (const TopLogprob& top : row.top) {
    logprob.top.push_back({top.token, top.logprob, context_->tokenizer->TokenBytes(top.token)});
  }
  return logprob;
}

Answer::Progress Answer::AddPrompt(std::int32_t first_scored, std::span<const RowResult> rows) {
  const Request& request = state_->request;
  PromptEvent event{.offset = first_scored + 1};
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int32_t position = first_scored + 1 + static_cast<std::int32_t>(i);
    TokenLogprob logprob = MakeLogprob(request.prompt[position], rows[i]);
    bytes += EventBytes(logprob);
    if (bytes > TokenStream::kMaxEventBytes && !event.logprobs.empty()) {
      if (!stream_->Push(std::exchange(event, PromptEvent{.offset = position})))
        return Progress::kSlow;
      bytes = EventBytes(logprob);
    }
    if (request.output.prompt_token_ids) event.token_ids.push_back(request.prompt[position]);
    event.logprobs.push_back(std::move(logprob));
  }
  if (event.logprobs.empty() || stream_->Push(std::move(event))) return Progress::kGoesOn;
  return Progress::kSlow;
}

void Answer::ObserveToken(OutputState& output, absl::Time now) {
  if (output.tokens == 0) {
    output.first_token = now;
    context_->metrics->FirstToken(absl::ToDoubleSeconds(now - state_->submitted),
                                  absl::ToDoubleSeconds(now - state_->started_at));
  } else {
    context_->metrics->NextToken(absl::ToDoubleSeconds(now - output.last_token));
  }
  output.last_token = now;
  ++output.tokens;
  ++output.uncounted;
}

Answer::Progress Answer::AddToken(const Sequence& sequence, const RowResult& row, absl::Time now) {
  OutputState& output = outputs_[sequence.index];
  ObserveToken(output, now);
  ChunkEvent chunk{.output_index = sequence.index};
  if (state_->request.output.output_token_ids) chunk.token_ids.push_back(row.token);
  if (state_->request.output.top_logprobs.has_value())
    chunk.logprobs.push_back(MakeLogprob(row.token, row));
  std::optional<FinishedEvent> end = FindEnd(output, row.token, &chunk.text);
  if (end.has_value()) return Finish(output, sequence, std::move(chunk), *std::move(end), now);
  return Emit(output, std::move(chunk)) ? Progress::kGoesOn : Progress::kSlow;
}

Answer::Progress Answer::EndOutput(const Sequence& sequence, FinishReason reason, absl::Time now) {
  OutputState& output = outputs_[sequence.index];
  if (output.ended) return Progress::kEnded;
  ChunkEvent chunk{.output_index = sequence.index};
  FinishedEvent finished{.reason = reason};
  if (const int stop = FlushText(output, &chunk.text); stop >= 0) {
    finished.reason = FinishReason::kStop;
    finished.stop_string = state_->request.stopping.stop_strings[stop];
  }
  return Finish(output, sequence, std::move(chunk), std::move(finished), now);
}

// Text in, certain text out; the index of a stop string that matched, or -1.
int Answer::AppendText(OutputState& output, std::string piece, std::string* text) const {
  const Stopping& stopping = state_->request.stopping;
  // Before min_tokens nothing can stop, so nothing is held back.
  if (stopping.stop_strings.empty() ||
      output.tokens < static_cast<std::int64_t>(stopping.min_tokens)) {
    text->append(piece);
    return -1;
  }
  StopMatcher::Result result = output.stops.Push(piece);
  text->append(result.text);
  if (result.matched >= 0 && stopping.include_stop_string)
    text->append(stopping.stop_strings[result.matched]);
  return result.matched;
}

int Answer::FlushText(OutputState& output, std::string* text) const {
  const int stop = AppendText(output, output.detokenizer.Finish(), text);
  if (stop < 0) text->append(output.stops.Finish());
  return stop;
}

std::optional<FinishedEvent> Answer::FindEnd(OutputState& output, std::int32_t token,
                                             std::string* text) const {
  const Stopping& stopping = state_->request.stopping;
  FinishedEvent end;
  int stop = AppendText(output, output.detokenizer.Push(token), text);
  bool ends = stop >= 0;
  if (!ends) {
    const bool may_stop = output.tokens > static_cast<std::int64_t>(stopping.min_tokens);
    if (may_stop && !stopping.ignore_eos && Contains(context_->eos_ids, token)) {
      end.eos_token_id = token;
      ends = true;
    } else if (may_stop && Contains(stopping.stop_token_ids, token)) {
      end.stop_token_id = token;
      ends = true;
    } else if (output.tokens >= state_->max_outputs) {
      end.reason = state_->context_limits ? FinishReason::kContext : FinishReason::kLength;
      ends = true;
    }
    if (ends) stop = FlushText(output, text);
  }
  if (!ends) return std::nullopt;
  if (stop >= 0) {
    end = FinishedEvent{.reason = FinishReason::kStop};
    end.stop_string = stopping.stop_strings[stop];
  }
  return end;
}

void Answer::Count(OutputState& output) {
  context_->metrics->TokensPushed(std::exchange(output.uncounted, 0));
}

bool Answer::Emit(OutputState& output, ChunkEvent chunk) {
  if (chunk.text.empty() && chunk.token_ids.empty() && chunk.logprobs.empty()) return true;
  if (state_->request.output.final_only) {
    ChunkEvent& held = output.held;
    held.text += chunk.text;
    held.token_ids.insert(held.token_ids.end(), chunk.token_ids.begin(), chunk.token_ids.end());
    std::move(chunk.logprobs.begin(), chunk.logprobs.end(), std::back_inserter(held.logprobs));
    return true;
  }
  if (!stream_->Push(std::move(chunk))) return false;
  has_output_ = true;
  Count(output);
  return true;
}

// One chunk, or as many as the size of an event asks for.
void Answer::EmitHeld(OutputState& output) {
  ChunkEvent all = std::exchange(output.held, {});
  const auto index = static_cast<std::uint32_t>(&output - outputs_.data());
  constexpr std::size_t kShare = TokenStream::kMaxEventBytes / 2;  // for text and for tokens each
  const std::size_t count = std::max(all.token_ids.size(), all.logprobs.size());
  std::size_t text = 0, token = 0;
  do {
    ChunkEvent piece{.output_index = index};
    const std::size_t text_end = CutUtf8(all.text, text, kShare);
    piece.text = all.text.substr(text, text_end - text);
    text = text_end;
    // An id stays beside its log-probability.
    for (std::size_t bytes = 0; token < count && bytes < kShare; ++token) {
      bytes += 5;
      if (token < all.token_ids.size()) piece.token_ids.push_back(all.token_ids[token]);
      if (token < all.logprobs.size()) {
        bytes += EventBytes(all.logprobs[token]);
        piece.logprobs.push_back(std::move(all.logprobs[token]));
      }
    }
    stream_->PushHeld(std::move(piece));
  } while (text < all.text.size() || token < count);
  has_output_ = true;
}

Answer::Progress Answer::Finish(OutputState& output, const Sequence& sequence, ChunkEvent chunk,
                                FinishedEvent finished, absl::Time now) {
  if (!Emit(output, std::move(chunk))) return Progress::kSlow;
  if (state_->request.output.final_only) EmitHeld(output);
  Count(output);
  output.ended = true;
  ++num_ended_;

  finished.output_index = sequence.index;
  finished.completion_tokens = output.tokens;
  finished.recomputed_tokens = sequence.recomputed_tokens;
  Timing& timing = finished.timing;
  const bool started = state_->started;
  const absl::Time first = output.tokens > 0 ? output.first_token : now;
  timing.queue = (started ? state_->started_at : now) - state_->submitted;
  timing.prefill = started ? first - state_->started_at : absl::ZeroDuration();
  timing.decode = now - first;
  timing.time_to_first_token = output.tokens > 0 ? first - state_->submitted : absl::ZeroDuration();
  context_->metrics->OutputEnded(FinishLabel(finished.reason), absl::ToDoubleSeconds(timing.decode),
                                 absl::ToDoubleSeconds(timing.prefill + timing.decode),
                                 output.tokens);
  stream_->Push(std::move(finished));
  return Progress::kEnded;
}

void Answer::Close(const absl::Status& status, absl::Time now) {
  EndedRequest ended{.code = status.code(),
                     .reason = ReasonOf(status),
                     .seconds = absl::ToDoubleSeconds(now - state_->submitted),
                     .started = state_->started,
                     .prompt_tokens = state_->prompt_size(),
                     .num_outputs = static_cast<std::uint32_t>(outputs_.size()),
                     .max_tokens = state_->max_outputs};
  for (const OutputState& output : outputs_) {
    ended.output_tokens += output.tokens;
    ended.longest_output = std::max<std::int64_t>(ended.longest_output, output.tokens);
    if (!output.ended) context_->metrics->OutputEnded("abort", 0, 0, 0);
  }
  context_->metrics->RequestEnded(ended);
  stream_->Close(status);
}

}  // namespace nibble
