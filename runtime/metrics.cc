#include "runtime/metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "prometheus/text_serializer.h"

namespace nibble {
namespace {

// The outcomes a request can have besides (code, "_OTHER"): the ErrorReason enum of
// generation.proto.
struct Outcome {
  absl::StatusCode code;
  const char* reason;
};
constexpr Outcome kOutcomes[] = {
    {absl::StatusCode::kOk, "NONE"},
    {absl::StatusCode::kInvalidArgument, "INVALID_FIELD"},
    {absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE"},
    {absl::StatusCode::kInvalidArgument, "CONTEXT_EXCEEDED"},
    {absl::StatusCode::kInvalidArgument, "CHAT_TEMPLATE_REFUSED"},
    {absl::StatusCode::kNotFound, "MODEL_NOT_FOUND"},
    {absl::StatusCode::kFailedPrecondition, "NO_CHAT_TEMPLATE"},
    {absl::StatusCode::kFailedPrecondition, "EXCEEDS_KV_POOL"},
    {absl::StatusCode::kResourceExhausted, "QUEUE_FULL"},
    {absl::StatusCode::kUnavailable, "MODEL_LOADING"},
    {absl::StatusCode::kUnavailable, "DRAINING"},
    {absl::StatusCode::kUnavailable, "MODEL_FAILED"},
    {absl::StatusCode::kUnavailable, "DEVICE_FAULT"},
    {absl::StatusCode::kInternal, "DEVICE_FAULT"},
    {absl::StatusCode::kInternal, "NAN_LOGITS"},
    {absl::StatusCode::kInternal, "INTERNAL"},
    {absl::StatusCode::kDeadlineExceeded, "DEADLINE"},
    {absl::StatusCode::kCancelled, "CANCELLED"},
    {absl::StatusCode::kAborted, "SLOW_CONSUMER"},
    {absl::StatusCode::kUnimplemented, "UNSUPPORTED"},
    {absl::StatusCode::kUnauthenticated, "TENANT_NOT_AUTHENTICATED"},
    {absl::StatusCode::kPermissionDenied, "TENANT_NOT_AUTHENTICATED"},
};
constexpr absl::StatusCode kCodes[] = {
    absl::StatusCode::kCancelled,          absl::StatusCode::kUnknown,
    absl::StatusCode::kInvalidArgument,    absl::StatusCode::kDeadlineExceeded,
    absl::StatusCode::kNotFound,           absl::StatusCode::kAlreadyExists,
    absl::StatusCode::kPermissionDenied,   absl::StatusCode::kResourceExhausted,
    absl::StatusCode::kFailedPrecondition, absl::StatusCode::kAborted,
    absl::StatusCode::kOutOfRange,         absl::StatusCode::kUnimplemented,
    absl::StatusCode::kInternal,           absl::StatusCode::kUnavailable,
    absl::StatusCode::kDataLoss,           absl::StatusCode::kUnauthenticated,
};
constexpr char kOther[] = "_OTHER";

template <typename T>
prometheus::Family<T>& FamilyOf(prometheus::Registry& registry, const char* name,
                                const char* help) {
  if constexpr (std::is_same_v<T, prometheus::Counter>) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
  } else if constexpr (std::is_same_v<T, prometheus::Gauge>) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
  } else {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
  }
}

}  // namespace

MetricScope MetricScope::With(std::string label, std::string value) const {
  MetricScope scope = *this;
  scope.labels[std::move(label)] = std::move(value);
  return scope;
}

template <typename T>
Series<T>::Series(const MetricScope& scope, const char* name, const char* help)
    : family_(&FamilyOf<T>(*scope.registry, name, help)) {
  if constexpr (!std::is_same_v<T, prometheus::Histogram>) metric_ = &family_->Add(scope.labels);
}

template <typename T>
Series<T>::Series(const MetricScope& scope, const char* name,
                  const prometheus::Histogram::BucketBoundaries& buckets, const char* help)
    : family_(&FamilyOf<T>(*scope.registry, name, help)) {
  if constexpr (std::is_same_v<T, prometheus::Histogram>) {
    metric_ = &family_->Add(scope.labels, buckets);
  }
}

template class Series<prometheus::Counter>;
template class Series<prometheus::Gauge>;
template class Series<prometheus::Histogram>;

RequestCounter::RequestCounter(const MetricScope& scope) {
  const auto add = [&](absl::StatusCode code, const char* reason) {
    series_[{code, reason}] = std::make_unique<Counter>(
        scope.With("code", absl::StatusCodeToString(code)).With("reason", reason),
        "nibble_requests_total", "Requests that ended, by gRPC code and ErrorReason.");
  };
  for (const Outcome& outcome : kOutcomes) add(outcome.code, outcome.reason);
  for (absl::StatusCode code : kCodes) add(code, kOther);
}

const Counter& RequestCounter::Find(absl::StatusCode code, absl::string_view reason) const {
  if (code == absl::StatusCode::kOk) reason = "NONE";
  auto found = series_.find({code, std::string(reason)});
  if (found == series_.end()) found = series_.find({code, kOther});
  if (found == series_.end()) found = series_.find({absl::StatusCode::kUnknown, kOther});
  return *found->second;
}

void RequestCounter::Count(absl::StatusCode code, absl::string_view reason) {
  Find(code, reason)->Increment();
}

double RequestCounter::Value(absl::StatusCode code, absl::string_view reason) const {
  return Find(code, reason)->Value();
}

std::vector<RequestCounter::Tally> RequestCounter::Occurred() const {
  std::vector<Tally> occurred;
  for (const auto& [outcome, counter] : series_) {
    if (const double requests = (*counter)->Value(); requests > 0)
      occurred.push_back({outcome.first, outcome.second, requests});
  }
  return occurred;
}

ModelMetrics::ModelMetrics(prometheus::Registry* registry, const std::string& model)
    : model_(model),
      nibble_{registry, {{"model", model}}},
      vllm_{registry, {{"model_name", model}, {"engine", "0"}}} {
  for (const char* state : kModelStateNames) {
    state_.push_back(std::make_unique<Gauge>(nibble_.With("state", state), "nibble_model_state",
                                             "1 for the state the model is in."));
  }
}

void ModelMetrics::RequestStarted(std::int64_t prompt_tokens, std::int64_t cached_tokens,
                                  double queue_seconds) {
  prompt_cached->Increment(static_cast<double>(cached_tokens));
  prompt_computed->Increment(static_cast<double>(prompt_tokens - cached_tokens));
  vllm_prompt_tokens->Increment(static_cast<double>(prompt_tokens));
  vllm_prompt_length->Observe(static_cast<double>(prompt_tokens));
  queue->Observe(queue_seconds);
  vllm_queue_time->Observe(queue_seconds);
}

void ModelMetrics::TokensPushed(std::int64_t tokens) {
  output_tokens->Increment(static_cast<double>(tokens));
  vllm_generation_tokens->Increment(static_cast<double>(tokens));
}

void ModelMetrics::FirstToken(double since_submit, double since_admission) {
  time_to_first_token->Observe(since_submit);
  vllm_time_to_first_token->Observe(since_submit);
  prefill->Observe(since_admission);
  vllm_prefill_time->Observe(since_admission);
}

void ModelMetrics::NextToken(double since_previous) {
  inter_token->Observe(since_previous);
  vllm_inter_token->Observe(since_previous);
}

void ModelMetrics::OutputEnded(absl::string_view finish, double decode_seconds,
                               double inference_seconds, std::int64_t tokens) {
  (finish == "stop"     ? vllm_success_stop
   : finish == "length" ? vllm_success_length
                        : vllm_success_abort)
      ->Increment();
  if (tokens == 0) return;
  decode->Observe(decode_seconds);
  vllm_decode_time->Observe(decode_seconds);
  vllm_inference_time->Observe(inference_seconds);
  if (tokens > 1) vllm_per_output_token->Observe(decode_seconds / static_cast<double>(tokens - 1));
}

void ModelMetrics::RequestEnded(const EndedRequest& ended) {
  requests.Count(ended.code, ended.reason);
  request->Observe(ended.seconds);
  vllm_e2e_latency->Observe(ended.seconds);
  vllm_params_n->Observe(ended.num_outputs);
  vllm_params_max_tokens->Observe(static_cast<double>(ended.max_tokens));
  if (!ended.started) return;
  vllm_generation_length->Observe(static_cast<double>(ended.output_tokens));
  vllm_max_generation->Observe(static_cast<double>(ended.longest_output));
}

void ModelMetrics::PrefixCacheQueried(std::int64_t tokens, std::int64_t hits) {
  vllm_prefix_queries->Increment(static_cast<double>(tokens));
  vllm_prefix_hits->Increment(static_cast<double>(hits));
}

void ModelMetrics::StepEnded(bool is_prefill, std::int64_t tokens) {
  (is_prefill ? step_prefill : step_decode)->Observe(static_cast<double>(tokens));
  vllm_iteration_tokens->Observe(static_cast<double>(tokens));
}

void ModelMetrics::ChangeKvBlocks(std::int64_t used, std::int64_t cached, std::int64_t free) {
  if (used != 0) kv_used->Increment(static_cast<double>(used));
  if (cached != 0) kv_cached->Increment(static_cast<double>(cached));
  if (free != 0) kv_free->Increment(static_cast<double>(free));
}

void ModelMetrics::SetState(int state) {
  for (std::size_t i = 0; i < state_.size(); ++i)
    (*state_[i])->Set(static_cast<int>(i) == state ? 1 : 0);
}

void ModelMetrics::SetMemory(const std::string& kind, const std::string& source,
                             const std::string& device, std::int64_t bytes) {
  std::lock_guard lock(memory_mutex_);
  std::unique_ptr<Gauge>& series = memory_[absl::StrCat(kind, "/", source, "/", device)];
  if (series == nullptr) {
    series = std::make_unique<Gauge>(
        nibble_.With("kind", kind).With("source", source).With("device", device),
        "nibble_memory_bytes", "Memory of a model, as planned and as it came out.");
  }
  (*series)->Set(static_cast<double>(bytes));
}

std::int64_t ModelMetrics::Memory(const std::string& kind, const std::string& source) const {
  const std::string prefix = absl::StrCat(kind, "/", source, "/");
  double bytes = 0;
  std::lock_guard lock(memory_mutex_);
  for (auto at = memory_.lower_bound(prefix);
       at != memory_.end() && at->first.compare(0, prefix.size(), prefix) == 0; ++at) {
    bytes += (*at->second)->Value();
  }
  return static_cast<std::int64_t>(bytes);
}

Metrics::Metrics(const BuildInfo& build)
    : build_info_({&registry_,
                   {{"version", build.version},
                    {"revision", build.revision},
                    {"backends", build.backends}}},
                  "nibble_build_info", "1; the labels say what is running."),
      unknown_model_({&registry_, {{"model", kOther}}}) {
  build_info_->Set(1);
}

Metrics::~Metrics() = default;

std::shared_ptr<ModelMetrics> Metrics::ForModel(const std::string& model) {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto found = std::find_if(models_.begin(), models_.end(),
                                    [&](const auto& entry) { return entry.first == model; });
    if (found == models_.end()) break;
    if (std::shared_ptr<ModelMetrics> alive = found->second.lock()) return alive;
    forgotten_.wait(lock);  // its last holder is taking the series out of the families just now
  }
  std::shared_ptr<ModelMetrics> made(new ModelMetrics(&registry_, model),
                                     [this](ModelMetrics* metrics) { Forget(metrics); });
  models_.emplace_back(model, made);
  return made;
}

void Metrics::Forget(ModelMetrics* metrics) {
  {
    std::lock_guard lock(mutex_);
    std::erase_if(models_, [&](const auto& entry) { return entry.first == metrics->model(); });
    delete metrics;
  }
  forgotten_.notify_all();
}

std::vector<std::shared_ptr<ModelMetrics>> Metrics::Models() {
  std::vector<std::shared_ptr<ModelMetrics>> models;
  std::lock_guard lock(mutex_);
  for (const auto& [name, weak] : models_) {
    if (std::shared_ptr<ModelMetrics> alive = weak.lock()) models.push_back(std::move(alive));
  }
  return models;
}

namespace {

using Label = prometheus::ClientMetric::Label;

prometheus::MetricFamily GaugeFamily(std::string name, std::string help, double value,
                                     std::vector<Label> labels = {}) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  return {std::move(name), std::move(help), prometheus::MetricType::Gauge, {std::move(metric)}};
}

// Endpoint pickers take the first series of a family, so each of these is one series a process. The
// label names the oldest model.
void AddScheduler(const std::vector<std::shared_ptr<ModelMetrics>>& models,
                  std::vector<prometheus::MetricFamily>& out) {
  double running = 0, waiting = 0, usage = 0, pages = 0;
  for (const auto& model : models) {
    running += model->requests_running->Value();
    waiting += model->requests_waiting->Value();
    const double all =
        model->kv_used->Value() + model->kv_cached->Value() + model->kv_free->Value();
    if (all > 0) usage = std::max(usage, model->kv_used->Value() / all);
    pages += all;
  }
  const std::string name = models.empty() ? "" : models.front()->model();
  const std::string page_tokens = absl::StrCat(models.empty() ? 0 : models.front()->page_tokens());
  const std::vector<Label> labels = {{"model_name", name}, {"engine", "0"}};
  out.push_back(GaugeFamily("vllm:num_requests_running", "nibble_requests_running of all models.",
                            running, labels));
  out.push_back(GaugeFamily("vllm:num_requests_waiting", "nibble_requests_waiting of all models.",
                            waiting, labels));
  out.push_back(GaugeFamily("vllm:kv_cache_usage_perc",
                            "Used share of the fullest KV pool, 0 to 1.", usage, labels));
  out.push_back(GaugeFamily(
      "vllm:lora_requests_info", "No adapters are served.", 0,
      {{"max_lora", "0"}, {"running_lora_adapters", ""}, {"waiting_lora_adapters", ""}}));
  out.push_back(GaugeFamily("vllm:cache_config_info", "1; the labels say the size of the KV pools.",
                            1,
                            {{"block_size", page_tokens},
                             {"num_gpu_blocks", absl::StrCat(static_cast<std::int64_t>(pages))},
                             {"model_name", name},
                             {"engine", "0"}}));
}

// The process_ families every Prometheus client library exports, from /proc/self.
void AddProcess(std::vector<prometheus::MetricFamily>& out) {
  std::ifstream file("/proc/self/stat");
  std::string stat((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::size_t name_end = stat.rfind(')');  // the name may hold spaces
  if (name_end == std::string::npos) return;
  std::istringstream fields(stat.substr(name_end + 1));
  std::vector<std::string> field;
  for (std::string value; fields >> value;) field.push_back(value);
  if (field.size() < 22) return;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const auto number = [&](std::size_t index) { return std::strtod(field[index].c_str(), nullptr); };

  double boot_time = 0;
  std::ifstream system("/proc/stat");
  for (std::string line; std::getline(system, line);) {
    if (line.rfind("btime ", 0) == 0) boot_time = std::strtod(line.c_str() + 6, nullptr);
  }
  double descriptors = 0;
  if (DIR* directory = opendir("/proc/self/fd")) {
    while (const dirent* entry = readdir(directory)) descriptors += entry->d_name[0] != '.' ? 1 : 0;
    closedir(directory);
    descriptors -= 1;  // the directory itself
  }
  double anonymous = 0;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) == 0) anonymous = std::strtod(line.c_str() + 8, nullptr) * 1024;
  }
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);

  prometheus::MetricFamily cpu{"process_cpu_seconds_total",
                               "User and system CPU time.",
                               prometheus::MetricType::Counter,
                               {prometheus::ClientMetric{}}};
  cpu.metric[0].counter.value = (number(11) + number(12)) / ticks;
  out.push_back(std::move(cpu));
  out.push_back(GaugeFamily("process_start_time_seconds", "Start, in seconds since 1970.",
                            boot_time + number(19) / ticks));
  out.push_back(GaugeFamily("process_virtual_memory_bytes", "Virtual memory.", number(20)));
  out.push_back(GaugeFamily("process_resident_memory_bytes", "Resident memory.",
                            number(21) * static_cast<double>(sysconf(_SC_PAGESIZE))));
  out.push_back(GaugeFamily("process_resident_anonymous_memory_bytes",
                            "Resident memory that no file backs: what the CPU memory plans bound.",
                            anonymous));
  out.push_back(GaugeFamily("process_threads", "Threads.", number(17)));
  out.push_back(GaugeFamily("process_open_fds", "Open file descriptors.", descriptors));
  out.push_back(GaugeFamily("process_max_fds", "File descriptors there may be.",
                            static_cast<double>(limit.rlim_cur)));
}

}  // namespace

std::string Metrics::Scrape() {
  std::vector<prometheus::MetricFamily> families;
  {
    const std::vector<std::shared_ptr<ModelMetrics>> models = Models();
    families = registry_.Collect();
    AddScheduler(models, families);
  }
  AddProcess(families);
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace nibble
