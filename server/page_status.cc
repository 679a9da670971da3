#include "server/page_status.h"

#include <cmath>
#include <utility>

#include "runtime/base/json.h"
#include "server/http_prompt.h"
#include "server/version.h"

namespace nibble {
namespace {

const char* NameOf(ModelState state) {
  switch (state) {
    case ModelState::kLoading: return "loading";
    case ModelState::kServing: return "serving";
    case ModelState::kDraining: return "draining";
    case ModelState::kFailed: return "failed";
    case ModelState::kUnloaded: return "unloaded";
  }
  return "unknown";
}

Json Whole(double value) { return static_cast<std::int64_t>(value); }

// {"sum", "count", "le": bounds without +Inf, "cumulative": one each}
Json HistogramJson(const Histogram& series) {
  const prometheus::ClientMetric::Histogram histogram = series->Collect().histogram;
  Json::Array bounds, counts;
  for (const auto& bucket : histogram.bucket) {
    if (std::isinf(bucket.upper_bound)) continue;
    bounds.push_back(bucket.upper_bound);
    counts.push_back(bucket.cumulative_count);
  }
  Json json;
  json.Set("sum", histogram.sample_sum);
  json.Set("count", histogram.sample_count);
  json.Set("le", std::move(bounds));
  json.Set("cumulative", std::move(counts));
  return json;
}

Json MemoryJson(const ModelMetrics& metrics, const char* source) {
  Json json;
  for (const char* kind : {"weights", "expanded", "kv", "workspace", "graphs", "other"})
    json.Set(kind, metrics.Memory(kind, source));
  return json;
}

Json OutcomesJson(const RequestCounter& requests) {
  Json::Array outcomes;
  for (const RequestCounter::Tally& outcome : requests.Occurred()) {
    Json json;
    json.Set("code", absl::StatusCodeToString(outcome.code));
    json.Set("reason", outcome.reason);
    json.Set("count", Whole(outcome.requests));
    outcomes.push_back(std::move(json));
  }
  return outcomes;
}

Json InfoJson(const ServedModel& model) {
  const ModelInfo& info = model.info;
  Json::Array devices(info.devices.begin(), info.devices.end());
  Json json;
  json.Set("revision", info.revision);
  json.Set("architecture", info.architecture);
  json.Set("format", info.format);
  json.Set("parameters", info.parameters);
  json.Set("bits_per_weight", info.plan.bits_per_weight);
  json.Set("context", info.context);
  json.Set("compute", info.compute);
  json.Set("devices", std::move(devices));
  json.Set("chat", model.chat_template != nullptr);
  json.Set("load_seconds", absl::ToDoubleSeconds(info.load_time));
  json.Set("budget_bytes", info.plan.budget_bytes);
  json.Set("kv_tokens", info.plan.kv_tokens);
  return json;
}

Json KvJson(const ModelMetrics& metrics) {
  Json json;
  json.Set("used", Whole(metrics.kv_used->Value()));
  json.Set("cached", Whole(metrics.kv_cached->Value()));
  json.Set("free", Whole(metrics.kv_free->Value()));
  json.Set("page_tokens", metrics.page_tokens());
  return json;
}

Json ModelJson(const ModelStatus& status, const ModelMetrics& metrics) {
  Json json;
  json.Set("name", status.name);
  json.Set("state", NameOf(status.state));
  if (!status.error.empty()) json.Set("error", status.error);
  if (status.progress.has_value()) {
    Json progress;
    progress.Set("stage", status.progress->stage);
    progress.Set("done", status.progress->done);
    progress.Set("total", status.progress->total);
    json.Set("progress", std::move(progress));
  }
  if (status.model != nullptr) json.Set("info", InfoJson(*status.model));
  json.Set("planned", MemoryJson(metrics, "planned"));
  json.Set("actual", MemoryJson(metrics, "actual"));
  json.Set("kv", KvJson(metrics));
  json.Set("running", Whole(metrics.requests_running->Value()));
  json.Set("waiting", Whole(metrics.requests_waiting->Value()));
  json.Set("slots", Whole(metrics.slots->Value()));
  json.Set("queue_limit", Whole(metrics.queue_limit->Value()));
  json.Set("prompt_tokens", Whole(metrics.prompt_computed->Value()));
  json.Set("cached_prompt_tokens", Whole(metrics.prompt_cached->Value()));
  json.Set("output_tokens", Whole(metrics.output_tokens->Value()));
  json.Set("preemptions", Whole(metrics.preemptions->Value()));
  json.Set("first_token", HistogramJson(metrics.time_to_first_token));
  json.Set("inter_token", HistogramJson(metrics.inter_token));
  json.Set("queue", HistogramJson(metrics.queue));
  json.Set("outcomes", OutcomesJson(metrics.requests));
  return json;
}

}  // namespace

std::string PageStatus(const ServingState& state, Metrics& metrics, const PageFacts& facts,
                       absl::Time now) {
  const BuildInfo build = ThisBuild();
  Json json;
  json.Set("version", build.version);
  json.Set("revision", build.revision);
  json.Set("backends", build.backends);
  json.Set("grpc", facts.grpc_address);
  json.Set("time", absl::ToDoubleSeconds(now - absl::UnixEpoch()));
  json.Set("uptime_seconds", absl::ToDoubleSeconds(now - facts.started));
  json.Set("live", state.Live());
  json.Set("ready", state.Ready());
  json.Set("draining", !state.CheckAccepting().ok());
  json.Set("prompt", facts.prompt);
  json.Set("prompt_max_tokens", std::int64_t{kMaxHttpTokens});
  Json::Array models;
  for (const ModelStatus& status : state.List())
    models.push_back(ModelJson(status, *metrics.ForModel(status.name)));
  json.Set("models", std::move(models));
  json.Set("unknown_model", OutcomesJson(metrics.unknown_model()));
  return DumpJson(json);
}

}  // namespace nibble
