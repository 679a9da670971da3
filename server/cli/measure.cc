#include "server/cli/measure.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/engine/submit_queue.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxStreamBytes = 16 << 20;
constexpr std::int32_t kCalmTokens = 48;  // of each stream, twice, before prompts arrive
constexpr int kMaxMissed =
    3;  // runs of which some sequence ended before another began: this process was held up

// splitmix64
std::uint64_t NextRandom(std::uint64_t* state) {
  std::uint64_t z = *state += 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// The sample that a share `q` of all do not exceed; 0 of none.
double Quantile(std::vector<double> samples, double q) {
  if (samples.empty()) return 0;
  const auto at = static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1) + 0.5);
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(at),
                   samples.end());
  return samples[at];
}

Json ToJson(const Spread& spread) {
  Json json;
  json.Set("median", spread.median);
  json.Set("low", spread.low);
  json.Set("high", spread.high);
  return json;
}

}  // namespace

Spread SpreadOf(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const std::size_t middle = samples.size() / 2;
  const double median =
      samples.size() % 2 == 1 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2;
  return {median, samples.front(), samples.back()};
}

double RateWhileAllRun(const std::vector<Timeline>& timelines) {
  absl::Time begin = absl::InfinitePast();
  absl::Time end = absl::InfiniteFuture();
  for (const Timeline& timeline : timelines) {
    if (timeline.empty()) return 0;
    begin = std::max(begin, timeline.front().first);
    end = std::min(end, timeline.back().first);
  }
  if (end <= begin) return 0;
  std::int64_t tokens = 0;
  for (const Timeline& timeline : timelines) {
    for (const auto& [at, count] : timeline) tokens += at > begin && at <= end ? count : 0;
  }
  return static_cast<double>(tokens) / absl::ToDoubleSeconds(end - begin);
}

bool Fits(const MemoryPlan& plan, std::int64_t sequences, std::int64_t tokens) {
  const std::int64_t page = plan.kv.page_tokens;
  const std::int64_t pages = (tokens + page - 1) / page;
  return tokens <= plan.limits.max_context && sequences <= plan.limits.max_sequences &&
         sequences * pages * page <= plan.kv_tokens;
}

std::vector<std::int32_t> Measurement::RandomPrompt(std::int32_t tokens) {
  std::vector<std::int32_t> prompt;
  while (static_cast<std::int32_t>(prompt.size()) < tokens) {
    const auto token = static_cast<std::int32_t>(NextRandom(&random_state_) %
                                                 static_cast<std::uint64_t>(model_->info.vocab));
    if (!model_->tokenizer->IsSpecial(token)) prompt.push_back(token);
  }
  return prompt;
}

absl::StatusOr<Measurement::Recorders> Measurement::Submit(std::int32_t batch,
                                                           std::int32_t prompt_tokens,
                                                           std::int32_t output_tokens,
                                                           absl::Time* submitted) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  Recorders recorders;
  std::vector<Request> requests;
  for (std::int32_t i = 0; i < batch; ++i) {
    Request request;
    request.prompt = RandomPrompt(prompt_tokens);
    request.sampling.temperature = 0;
    request.stopping.max_tokens = static_cast<std::uint32_t>(output_tokens);
    request.stopping.ignore_eos = true;
    request.output.output_token_ids = true;
    request.cache_salt = absl::StrCat("bench ", ++requests_);
    requests.push_back(std::move(request));
    streams.push_back(std::make_shared<TokenStream>(kMaxStreamBytes));
    recorders.push_back(std::make_shared<Recorder>(streams.back()));
    streams.back()->SetWaker(recorders.back());
  }
  *submitted = MonotonicNow();
  for (std::size_t i = 0; i < streams.size(); ++i) {
    const absl::Status taken = model_->Submit(std::move(requests[i]), streams[i]);
    if (taken.ok()) continue;
    for (std::size_t before = 0; before < i; ++before) streams[before]->Cancel();
    return taken;
  }
  return recorders;
}

absl::StatusOr<std::vector<Timeline>> Measurement::Run(std::int32_t batch,
                                                       std::int32_t prompt_tokens,
                                                       std::int32_t output_tokens,
                                                       absl::Time* submitted) {
  ASSIGN_OR_RETURN(const Recorders recorders,
                   Submit(batch, prompt_tokens, output_tokens, submitted));
  std::vector<Timeline> timelines;
  for (const auto& recorder : recorders) {
    ASSIGN_OR_RETURN(Timeline timeline, recorder->Wait());
    timelines.push_back(std::move(timeline));
  }
  return timelines;
}

absl::StatusOr<PrefillResult> Measurement::Prefill(std::int32_t tokens, std::int32_t batch,
                                                   int repeats) {
  std::vector<double> seconds;
  for (int run = 0; run <= repeats; ++run) {
    absl::Time submitted;
    ASSIGN_OR_RETURN(const std::vector<Timeline> timelines, Run(batch, tokens, 1, &submitted));
    absl::Time last = submitted;
    for (const Timeline& timeline : timelines) {
      if (timeline.empty()) return absl::InternalError("a prompt ended without a token");
      last = std::max(last, timeline[0].first);
    }
    if (run > 0) seconds.push_back(absl::ToDoubleSeconds(last - submitted));
  }
  PrefillResult result;
  result.tokens = tokens;
  result.batch = batch;
  result.first_token_seconds = SpreadOf(seconds);
  for (double& one : seconds) one = static_cast<double>(tokens) * batch / one;
  result.tokens_per_second = SpreadOf(seconds);
  return result;
}

absl::StatusOr<DecodeResult> Measurement::Decode(std::int32_t batch, std::int32_t prompt_tokens,
                                                 std::int32_t output_tokens, int repeats) {
  std::vector<double> rates;
  int missed = 0;
  for (int run = 0; run <= repeats;) {
    absl::Time submitted;
    ASSIGN_OR_RETURN(const std::vector<Timeline> timelines,
                     Run(batch, prompt_tokens, output_tokens, &submitted));
    const double rate = RateWhileAllRun(timelines);
    if (rate > 0) {
      if (run++ > 0) rates.push_back(rate);
    } else if (Fits(model_->info.plan, batch, std::int64_t{prompt_tokens} + 2 * output_tokens)) {
      output_tokens *= 2;  // the first had ended before the last had read its prompt
    } else if (++missed > kMaxMissed) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the ", batch,
          " sequences never decoded all at once; raise --output-tokens or lower --batches"));
    }
  }
  DecodeResult result;
  result.batch = batch;
  result.context = prompt_tokens;
  result.output_tokens = output_tokens;
  result.tokens_per_second = SpreadOf(rates);
  for (double& one : rates) one = batch / one;
  result.step_seconds = SpreadOf(rates);
  return result;
}

absl::StatusOr<ThroughputResult> Measurement::Throughput(std::int32_t requests,
                                                         std::int32_t input_tokens,
                                                         std::int32_t output_tokens) {
  absl::Time submitted;
  ASSIGN_OR_RETURN(const std::vector<Timeline> timelines,
                   Run(requests, input_tokens, output_tokens, &submitted));
  absl::Time last = submitted;
  std::int64_t outputs = 0;
  std::vector<double> first, gaps;
  for (const Timeline& timeline : timelines) {
    if (timeline.empty()) return absl::InternalError("a request ended without a token");
    first.push_back(absl::ToDoubleSeconds(timeline[0].first - submitted));
    for (std::size_t i = 0; i < timeline.size(); ++i) {
      outputs += timeline[i].second;
      if (i > 0) gaps.push_back(absl::ToDoubleSeconds(timeline[i].first - timeline[i - 1].first));
    }
    last = std::max(last, timeline.back().first);
  }
  ThroughputResult result{requests, input_tokens, output_tokens};
  result.seconds = absl::ToDoubleSeconds(last - submitted);
  result.output_tokens_per_second = static_cast<double>(outputs) / result.seconds;
  result.tokens_per_second =
      (static_cast<double>(outputs) + static_cast<double>(requests) * input_tokens) /
      result.seconds;
  result.first_token_p50 = Quantile(first, 0.5);
  result.first_token_p99 = Quantile(first, 0.99);
  result.gap_p50 = Quantile(gaps, 0.5);
  result.gap_p99 = Quantile(gaps, 0.99);
  return result;
}

absl::StatusOr<ArrivalsResult> Measurement::Arrivals(std::int32_t streams, std::int32_t context,
                                                     std::int32_t prompts,
                                                     std::int32_t prompt_tokens,
                                                     std::int32_t output_tokens) {
  const MemoryPlan& plan = model_->info.plan;
  // As long as there is room for beside the prompts; they are cancelled before their end.
  const std::int64_t room =
      (plan.kv_tokens - std::int64_t{prompts} * (prompt_tokens + output_tokens)) / streams;
  const auto longest = static_cast<std::int32_t>(
      std::min<std::int64_t>(room - plan.kv.page_tokens, plan.limits.max_context) - context);
  absl::Time began, arrived;
  ASSIGN_OR_RETURN(const Recorders chats, Submit(streams, context, longest, &began));
  for (const auto& chat : chats) RETURN_IF_ERROR(chat->WaitFor(kCalmTokens));
  const absl::Time calm = MonotonicNow();
  RETURN_IF_ERROR(chats.back()->WaitFor(2 * kCalmTokens));
  ASSIGN_OR_RETURN(const Recorders arrivals,
                   Submit(prompts, prompt_tokens, output_tokens, &arrived));
  for (const auto& prompt : arrivals) RETURN_IF_ERROR(prompt->WaitFor(1));
  const absl::Time over = MonotonicNow();
  // The prompts may all have been read within one gap, whose end is still to come.
  for (const auto& chat : chats) RETURN_IF_ERROR(chat->WaitForNext());
  if (std::any_of(chats.begin(), chats.end(), [](const auto& chat) { return chat->ended(); })) {
    return absl::FailedPreconditionError(
        absl::StrCat("answers of ", longest, " tokens ended before all ", prompts,
                     " prompts were read; lower --arrivals or raise --max-context"));
  }

  ArrivalsResult result{streams, context, prompts, prompt_tokens};
  std::vector<double> before, during, first;
  for (const auto& chat : chats) {
    const Timeline timeline = chat->Stop();
    for (std::size_t i = 1; i < timeline.size(); ++i) {
      const absl::Time from = timeline[i - 1].first, to = timeline[i].first;
      if (from >= calm && to < arrived) before.push_back(absl::ToDoubleSeconds(to - from));
      if (to >= arrived && from < over) during.push_back(absl::ToDoubleSeconds(to - from));
    }
  }
  for (const auto& prompt : arrivals) {
    ASSIGN_OR_RETURN(const Timeline timeline, prompt->Wait());
    first.push_back(absl::ToDoubleSeconds(timeline[0].first - arrived));
  }
  result.calm_gap_p50 = Quantile(before, 0.5);
  result.calm_gap_max = Quantile(before, 1);
  result.seconds = result.first_token_max = Quantile(first, 1);
  result.first_token_p50 = Quantile(first, 0.5);
  result.gaps = static_cast<std::int64_t>(during.size());
  result.gap_p50 = Quantile(during, 0.5);
  result.gap_p99 = Quantile(during, 0.99);
  result.gap_max = Quantile(during, 1);
  return result;
}

Json ToJson(const PrefillResult& result) {
  Json json;
  json.Set("tokens", std::int64_t{result.tokens});
  json.Set("prompts", std::int64_t{result.batch});
  json.Set("tokens_per_second", ToJson(result.tokens_per_second));
  json.Set("first_token_seconds", ToJson(result.first_token_seconds));
  return json;
}

Json ToJson(const DecodeResult& result) {
  Json json;
  json.Set("batch", std::int64_t{result.batch});
  json.Set("context", std::int64_t{result.context});
  json.Set("output_tokens", std::int64_t{result.output_tokens});
  json.Set("tokens_per_second", ToJson(result.tokens_per_second));
  json.Set("step_seconds", ToJson(result.step_seconds));
  return json;
}

Json ToJson(const ThroughputResult& result) {
  Json json;
  json.Set("requests", std::int64_t{result.requests});
  json.Set("input_tokens", std::int64_t{result.input_tokens});
  json.Set("output_tokens", std::int64_t{result.output_tokens});
  json.Set("seconds", result.seconds);
  json.Set("output_tokens_per_second", result.output_tokens_per_second);
  json.Set("tokens_per_second", result.tokens_per_second);
  json.Set("first_token_seconds_p50", result.first_token_p50);
  json.Set("first_token_seconds_p99", result.first_token_p99);
  json.Set("gap_seconds_p50", result.gap_p50);
  json.Set("gap_seconds_p99", result.gap_p99);
  return json;
}

Json ToJson(const ArrivalsResult& result) {
  Json json;
  json.Set("streams", std::int64_t{result.streams});
  json.Set("context", std::int64_t{result.context});
  json.Set("prompts", std::int64_t{result.prompts});
  json.Set("prompt_tokens", std::int64_t{result.prompt_tokens});
  json.Set("calm_gap_seconds_p50", result.calm_gap_p50);
  json.Set("calm_gap_seconds_max", result.calm_gap_max);
  json.Set("seconds", result.seconds);
  json.Set("gaps", result.gaps);
  json.Set("gap_seconds_p50", result.gap_p50);
  json.Set("gap_seconds_p99", result.gap_p99);
  json.Set("gap_seconds_max", result.gap_max);
  json.Set("first_token_seconds_p50", result.first_token_p50);
  json.Set("first_token_seconds_max", result.first_token_max);
  return json;
}

}  // namespace nibble
