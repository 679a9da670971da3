// Every metric, one line each. Series are resolved once, when a model loads, and removed when it is
// gone; an event costs an atomic add. deploy/dashboards and the alerts are written against these
// names.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace nibble {

// Where a series lives: a registry and the labels that all series of the scope carry.
struct MetricScope {
  prometheus::Registry* registry;
  prometheus::Labels labels;
  MetricScope With(std::string label, std::string value) const;
};

// One series, taken out of its family when this is destroyed. Updates are thread-safe.
template <typename T>
class Series {
 public:
  Series(const MetricScope& scope, const char* name, const char* help);
  Series(const MetricScope& scope, const char* name,
         const prometheus::Histogram::BucketBoundaries& buckets, const char* help);
  ~Series() { family_->Remove(metric_); }
  Series(const Series&) = delete;
  Series& operator=(const Series&) = delete;
  T* operator->() const { return metric_; }

 private:
  prometheus::Family<T>* family_;
  T* metric_;
};
using Counter = Series<prometheus::Counter>;
using Gauge = Series<prometheus::Gauge>;
using Histogram = Series<prometheus::Histogram>;

// Supersets of vLLM's buckets; small quantized models decode in 1..10 ms, below its first bucket.
namespace buckets {
using Boundaries = prometheus::Histogram::BucketBoundaries;
inline const Boundaries kFirstToken{.0005, .001, .0025, .005, .0075, .01, .02, .04, .06,
                                    .08,   .1,   .25,   .5,   .75,   1,   2.5, 5,   7.5,
                                    10,    20,   40,    80,   160,   640, 2560};
inline const Boundaries kInterToken{.0005, .001, .0025, .005, .0075, .01, .025, .05,
                                    .075,  .1,   .15,   .2,   .3,    .4,  .5,   .75,
                                    1,     2.5,  5,     7.5,  10,    20,  40,   80};
inline const Boundaries kRequest{.005, .01, .025, .05, .1, .2, .3, .5,  .8,  1,   1.5, 2,    2.5, 5,
                                 10,   15,  20,   30,  40, 50, 60, 120, 240, 480, 960, 1920, 7680};
inline const Boundaries kTokens{1,    2,    5,    10,    20,    50,    100,    200,    500,
                                1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000};
inline const Boundaries kStepTokens{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
inline const Boundaries kOutputs{1, 2, 5, 10, 20, 50, 100};
}  // namespace buckets

// nibble_requests_total: requests that ended, one series an outcome that can occur. A reason
// outside the table counts as "_OTHER", so the number of series never depends on what clients send.
class RequestCounter {
 public:
  explicit RequestCounter(const MetricScope& scope);
  void Count(absl::StatusCode code, absl::string_view reason);
  double Value(absl::StatusCode code, absl::string_view reason) const;

  struct Tally {
    absl::StatusCode code;
    std::string reason;
    double requests;
  };
  // The outcomes that have occurred.
  std::vector<Tally> Occurred() const;

 private:
  const Counter& Find(absl::StatusCode code, absl::string_view reason) const;
  std::map<std::pair<absl::StatusCode, std::string>, std::unique_ptr<Counter>, std::less<>> series_;
};

// The states of nibble_model_state, in the order of ModelState (runtime/engine/model_hub.h).
inline constexpr std::array<const char*, 4> kModelStateNames = {"loading", "serving", "draining",
                                                                "failed"};

// What one request was, told once when it ends (or is refused after it was queued).
struct EndedRequest {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string reason;  // ErrorReason without prefix; empty when it ended well
  double seconds = 0;  // from Submit
  bool started = false;
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t longest_output = 0;
  std::uint32_t num_outputs = 1;
  std::int64_t max_tokens = 0;  // what the request might have generated an output
};

// The series of one model name; two revisions of a name that is being replaced share it, so
// counters go on and gauges are changed by differences. Any thread.
class ModelMetrics {
 public:
  ModelMetrics(prometheus::Registry* registry, const std::string& model);

  // --- the server ---
  // A request that never came into the queue: refused by the validator or by Submit. The engine
  // counts the others.
  void CountRejected(absl::StatusCode code, absl::string_view reason) {
    requests.Count(code, reason);
  }

  // --- the engine ---
  void ChangeWaiting(int by) { requests_waiting->Increment(by); }
  void ChangeRunning(int by) { requests_running->Increment(by); }
  void RequestStarted(std::int64_t prompt_tokens, std::int64_t cached_tokens, double queue_seconds);
  void TokensPushed(std::int64_t tokens);
  void FirstToken(double since_submit, double since_admission);
  void NextToken(double since_previous);
  // `finish` is "stop", "length" or "abort".
  void OutputEnded(absl::string_view finish, double decode_seconds, double inference_seconds,
                   std::int64_t tokens);
  void RequestEnded(const EndedRequest& request);
  void Preempted() { preemptions->Increment(), vllm_preemptions->Increment(); }
  void Recomputed(std::int64_t tokens) {
    recomputed_tokens->Increment(static_cast<double>(tokens));
  }
  void PrefixCacheQueried(std::int64_t tokens, std::int64_t hits);
  void StepEnded(bool prefill, std::int64_t tokens);
  void StepTook(bool is_prefill, double seconds) {
    (is_prefill ? step_seconds_prefill : step_seconds_decode)->Observe(seconds);
  }
  void BadLogits() { vllm_corrupted_requests->Increment(); }
  void ChangeKvBlocks(std::int64_t used, std::int64_t cached, std::int64_t free);

  // --- the hub ---
  void SetState(int state);  // index into kModelStateNames; -1: none of them
  void SetKvShape(std::int64_t page_tokens) { page_tokens_.store(page_tokens); }
  void SetLimits(std::int64_t max_queue, std::int64_t max_slots) {
    queue_limit->Set(static_cast<double>(max_queue));
    slots->Set(static_cast<double>(max_slots));
  }
  // kind: weights|kv|workspace|graphs|other; source: planned|actual.
  void SetMemory(const std::string& kind, const std::string& source, const std::string& device,
                 std::int64_t bytes);
  // The sum over the devices; 0 when it was never set.
  std::int64_t Memory(const std::string& kind, const std::string& source) const;

  const std::string& model() const { return model_; }
  std::int64_t page_tokens() const { return page_tokens_.load(); }

 private:
  const std::string model_;
  const MetricScope nibble_;  // {model}
  const MetricScope vllm_;    // {model_name, engine}
  std::atomic<std::int64_t> page_tokens_{0};

 public:
  // clang-format off
  RequestCounter requests{nibble_};
  Gauge requests_running{nibble_, "nibble_requests_running", "Requests with at least one output in a slot."};
  Gauge requests_waiting{nibble_, "nibble_requests_waiting", "Requests queued or preempted, none of whose outputs is in a slot."};
  Counter prompt_computed{nibble_.With("source", "computed"), "nibble_prompt_tokens_total", "Prompt tokens of started requests, by where their keys and values came from."};
  Counter prompt_cached{nibble_.With("source", "cached"), "nibble_prompt_tokens_total", "Prompt tokens of started requests, by where their keys and values came from."};
  Counter output_tokens{nibble_, "nibble_output_tokens_total", "Tokens handed to clients."};
  Histogram time_to_first_token{nibble_, "nibble_time_to_first_token_seconds", buckets::kFirstToken, "From the queue to the first token of an output."};
  Histogram inter_token{nibble_, "nibble_inter_token_seconds", buckets::kInterToken, "Between two tokens of an output."};
  Histogram queue{nibble_, "nibble_queue_seconds", buckets::kRequest, "From the queue to the first prefill."};
  Histogram prefill{nibble_, "nibble_prefill_seconds", buckets::kRequest, "From the first prefill to the first token."};
  Histogram decode{nibble_, "nibble_decode_seconds", buckets::kRequest, "From the first token of an output to its last."};
  Histogram request{nibble_, "nibble_request_seconds", buckets::kRequest, "From the queue to the end of the stream, however it ended."};
  Histogram step_prefill{nibble_.With("phase", "prefill"), "nibble_step_tokens", buckets::kStepTokens, "Tokens of one step."};
  Histogram step_decode{nibble_.With("phase", "decode"), "nibble_step_tokens", buckets::kStepTokens, "Tokens of one step."};
  Histogram step_seconds_prefill{nibble_.With("phase", "prefill"), "nibble_step_seconds", buckets::kInterToken, "Device time of one step."};
  Histogram step_seconds_decode{nibble_.With("phase", "decode"), "nibble_step_seconds", buckets::kInterToken, "Device time of one step."};
  Gauge queue_limit{nibble_, "nibble_queue_limit", "Requests that may wait: --max-queue. One more is refused."};
  Gauge slots{nibble_, "nibble_slots", "Sequences that may run at once: --max-batch, or what the memory plan allows."};
  Gauge load_seconds{nibble_, "nibble_model_load_seconds", "How long the newest revision took to load; 0 before."};
  Gauge kv_used{nibble_.With("state", "used"), "nibble_kv_blocks", "KV blocks held by sequences, kept for their prefix, or free."};
  Gauge kv_cached{nibble_.With("state", "cached"), "nibble_kv_blocks", "KV blocks held by sequences, kept for their prefix, or free."};
  Gauge kv_free{nibble_.With("state", "free"), "nibble_kv_blocks", "KV blocks held by sequences, kept for their prefix, or free."};
  Counter preemptions{nibble_, "nibble_preemptions_total", "Sequences put back into the queue for want of KV blocks."};
  Counter recomputed_tokens{nibble_, "nibble_recomputed_tokens_total", "Tokens computed again after a preemption."};

  // The families that endpoint pickers and dashboards written for vLLM look up.
  Counter vllm_prompt_tokens{vllm_, "vllm:prompt_tokens_total", "As nibble_prompt_tokens_total, both sources."};
  Counter vllm_generation_tokens{vllm_, "vllm:generation_tokens_total", "As nibble_output_tokens_total."};
  Counter vllm_success_stop{vllm_.With("finished_reason", "stop"), "vllm:request_success_total", "Outputs that finished, by reason."};
  Counter vllm_success_length{vllm_.With("finished_reason", "length"), "vllm:request_success_total", "Outputs that finished, by reason."};
  Counter vllm_success_abort{vllm_.With("finished_reason", "abort"), "vllm:request_success_total", "Outputs that finished, by reason."};
  Counter vllm_preemptions{vllm_, "vllm:num_preemptions_total", "As nibble_preemptions_total."};
  Counter vllm_prefix_queries{vllm_, "vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."};
  Counter vllm_prefix_hits{vllm_, "vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache."};
  Counter vllm_corrupted_requests{vllm_, "vllm:corrupted_requests_total", "Requests whose logits were not numbers."};
  Histogram vllm_time_to_first_token{vllm_, "vllm:time_to_first_token_seconds", buckets::kFirstToken, "As nibble_time_to_first_token_seconds."};
  Histogram vllm_inter_token{vllm_, "vllm:inter_token_latency_seconds", buckets::kInterToken, "As nibble_inter_token_seconds."};
  Histogram vllm_per_output_token{vllm_, "vllm:request_time_per_output_token_seconds", buckets::kInterToken, "Decode time of an output by its tokens after the first."};
  Histogram vllm_e2e_latency{vllm_, "vllm:e2e_request_latency_seconds", buckets::kRequest, "As nibble_request_seconds."};
  Histogram vllm_queue_time{vllm_, "vllm:request_queue_time_seconds", buckets::kRequest, "As nibble_queue_seconds."};
  Histogram vllm_inference_time{vllm_, "vllm:request_inference_time_seconds", buckets::kRequest, "From the first prefill to the end of an output."};
  Histogram vllm_prefill_time{vllm_, "vllm:request_prefill_time_seconds", buckets::kRequest, "As nibble_prefill_seconds."};
  Histogram vllm_decode_time{vllm_, "vllm:request_decode_time_seconds", buckets::kRequest, "As nibble_decode_seconds."};
  Histogram vllm_prompt_length{vllm_, "vllm:request_prompt_tokens", buckets::kTokens, "Prompt tokens of a started request."};
  Histogram vllm_generation_length{vllm_, "vllm:request_generation_tokens", buckets::kTokens, "Tokens an ended request generated, all outputs."};
  Histogram vllm_max_generation{vllm_, "vllm:request_max_num_generation_tokens", buckets::kTokens, "Tokens of the longest output of a request."};
  Histogram vllm_params_n{vllm_, "vllm:request_params_n", buckets::kOutputs, "Outputs a request asked for."};
  Histogram vllm_params_max_tokens{vllm_, "vllm:request_params_max_tokens", buckets::kTokens, "Tokens an output might have had."};
  Histogram vllm_iteration_tokens{vllm_, "vllm:iteration_tokens_total", buckets::kStepTokens, "As nibble_step_tokens, both phases."};
  // clang-format on

 private:
  std::vector<std::unique_ptr<Gauge>> state_;  // nibble_model_state, one a state
  mutable std::mutex memory_mutex_;            // guards memory_
  std::map<std::string, std::unique_ptr<Gauge>>
      memory_;  // nibble_memory_bytes by "kind/source/device"
};

struct BuildInfo {
  std::string version, revision, backends;
};

// Owns the registry; outlives every model. Any thread.
class Metrics {
 public:
  explicit Metrics(const BuildInfo& build);
  ~Metrics();

  // The series of a model name, made at zero if there are none; they go when the last holder lets
  // go.
  std::shared_ptr<ModelMetrics> ForModel(const std::string& model);

  // A request that named no model that is served.
  void CountUnknownModel(absl::StatusCode code, absl::string_view reason) {
    unknown_model_.Count(code, reason);
  }
  const RequestCounter& unknown_model() const { return unknown_model_; }

  // What /livez and /readyz would answer, told before each scrape.
  void SetHealth(bool live, bool ready) {
    live_->Set(live ? 1 : 0);
    ready_->Set(ready ? 1 : 0);
  }

  // The Prometheus text format: all families, the process's own and vLLM's scheduler gauges among
  // them, which are one series a process: sums over the models, the largest of the cache usages.
  std::string Scrape();

 private:
  void Forget(ModelMetrics* metrics);
  std::vector<std::shared_ptr<ModelMetrics>> Models();

  prometheus::Registry registry_;
  Gauge build_info_;
  Gauge live_{{&registry_, {}},
              "nibble_live",
              "1 while every engine's heartbeat is fresh, as /livez says."};
  Gauge ready_{{&registry_, {}},
               "nibble_ready",
               "1 while requests are taken for every model, as /readyz says."};
  RequestCounter unknown_model_;
  std::mutex mutex_;  // guards models_ and their order
  std::condition_variable forgotten_;
  std::vector<std::pair<std::string, std::weak_ptr<ModelMetrics>>> models_;  // oldest first
};

}  // namespace nibble
