#include "runtime/engine/load_model.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/engine/vocabulary.h"
#include "runtime/model/loader.h"
#include "runtime/model/synthetic.h"

namespace nibble {
namespace {

// Of the time that a load has taken, warming up may take this part more, within limits; plus one
// step.
constexpr int kWarmUpPart = 5;
constexpr absl::Duration kLeastWarmUp = absl::Milliseconds(40), kMostWarmUp = absl::Seconds(2);
constexpr double kBudgetShare = 0.9;  // of a device, when --memory is unset

// What opens as "synthetic:SHAPE:FORMAT": no file, random weights.
absl::Status OpenSyntheticPath(absl::string_view names, LoadQuantization quantize,
                               OpenedModel* opened) {
  if (quantize != LoadQuantization::kNone) {
    return absl::InvalidArgumentError(
        "--quantize is for checkpoints; random weights are made in the format their name says");
  }
  const std::pair<std::string, std::string> parts = absl::StrSplit(names, absl::MaxSplits(':', 1));
  ASSIGN_OR_RETURN(SyntheticModel model, OpenSynthetic({parts.first, parts.second}));
  opened->checkpoint = std::move(model.checkpoint);
  opened->format = std::move(model.format);
  return absl::OkStatus();
}

absl::Status Cancelled() { return absl::CancelledError("the load was cancelled"); }

absl::StatusOr<AddedTokenMatcher> SpecialSpellings(const Tokenizer& tokenizer) {
  AddedTokenMatcher spellings;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.IsSpecial(id)) continue;
    AddedToken token;
    token.id = id;
    token.content = tokenizer.Spelling(id);
    RETURN_IF_ERROR(spellings.Add(token, token.content));
  }
  return spellings;
}

// A template that does not parse keeps nobody from text and token ids: chats are refused, with a
// log line now.
std::shared_ptr<const ChatTemplate> OpenTemplate(const Checkpoint& checkpoint,
                                                 absl::string_view name) {
  absl::StatusOr<std::optional<std::string>> source = FindChatTemplate(checkpoint, name);
  absl::Status status = source.status();
  if (status.ok()) {
    if (!source->has_value()) return nullptr;
    absl::StatusOr<std::unique_ptr<ChatTemplate>> parsed = ChatTemplate::Parse(**source);
    if (parsed.ok()) return *std::move(parsed);
    status = parsed.status();
  }
  LogWarning("the chat template cannot be used; chats will be refused",
             {{"path", checkpoint.path()},
              {"template", std::string(name)},
              {"error", std::string(status.message())}});
  return nullptr;
}

absl::Status FillText(const OpenedModel& opened, const LoadSpec& spec, ServedModel* model) {
  ASSIGN_OR_RETURN(model->tokenizer, LoadTokenizer(*opened.checkpoint));
  if (model->tokenizer->vocab_size() > opened.config.vocab) {
    LogWarning(
        "the tokenizer has ids the model has no embedding for; prompts with them are refused",
        {{"tokenizer", absl::StrCat(model->tokenizer->vocab_size())},
         {"model", absl::StrCat(opened.config.vocab)}});
  }
  ASSIGN_OR_RETURN(model->special_spellings, SpecialSpellings(*model->tokenizer));
  model->chat_template = OpenTemplate(*opened.checkpoint, "default");
  model->tool_template = OpenTemplate(*opened.checkpoint, "tool_use");
  model->template_variables = Json(Json::Object{});
  for (const auto& [name, content] : model->tokenizer->special_token_names()) {
    model->template_variables.Set(name, Json(content));
  }
  ASSIGN_OR_RETURN(GenerationConfig generation,
                   ReadGenerationConfig(*opened.checkpoint, opened.config, *model->tokenizer));
  model->defaults = generation.defaults;
  model->defaults.max_tokens = spec.default_max_tokens;
  model->eos_ids = std::move(generation.eos_ids);
  return absl::OkStatus();
}

absl::StatusOr<ModelInfo> MakeInfo(const LoadSpec& spec, const OpenedModel& opened,
                                   const MemoryPlan& plan) {
  ModelInfo info;
  info.name = spec.name;
  ASSIGN_OR_RETURN(info.revision, opened.checkpoint->Revision());
  info.path = spec.path;
  info.format = opened.format->Name();
  info.architecture = opened.config.architecture;
  info.parameters = plan.parameters;
  info.context = plan.limits.max_context;
  info.vocab = opened.config.vocab;
  info.devices = {opened.backend->info().name};
  info.compute = opened.backend->ComputeName();
  info.plan = plan;
  return info;
}

// See EngineOptions::attended_cost. A parameter is a multiplication and an addition a token; a key
// is two of each an entry of every head, its score and its value.
double AttendedCost(const ModelConfig& config, const MemoryPlan& plan) {
  const double key = 2.0 * config.layers * config.heads * config.head_dim;
  return plan.parameters > 0 ? key / static_cast<double>(plan.parameters) : 0.0;
}

void PublishMemory(ModelMetrics& metrics, const MemoryPlan& plan, const RunnerMemory& actual,
                   const Tokenizer& tokenizer, const std::string& device) {
  metrics.SetMemory("weights", "planned", device, plan.weights_bytes);
  metrics.SetMemory("expanded", "planned", device, plan.expanded_bytes);
  metrics.SetMemory("kv", "planned", device, plan.kv_bytes);
  metrics.SetMemory("workspace", "planned", device, plan.workspace_bytes);
  metrics.SetMemory("graphs", "planned", device, plan.graphs_bytes);
  metrics.SetMemory("other", "planned", device, plan.other_bytes);
  metrics.SetMemory("weights", "actual", device, actual.weights_bytes);
  metrics.SetMemory("expanded", "actual", device, actual.expanded_bytes);
  metrics.SetMemory("kv", "actual", device, actual.kv_bytes);
  metrics.SetMemory("workspace", "actual", device, actual.workspace_bytes);
  metrics.SetMemory("graphs", "actual", device, actual.graphs_bytes);
  metrics.SetMemory("other", "actual", device,
                    tokenizer.memory_bytes());  // what can be counted of it
}

// Makes the text half and the info of a model on a thread of its own, while its weights are read.
class TextLoad {
 public:
  TextLoad(const LoadSpec& spec, const OpenedModel& opened, const MemoryPlan& plan,
           ServedModel* model)
      : spec_(spec), opened_(opened), plan_(plan), model_(model) {
    try {
      thread_ = std::thread([this]() noexcept { Run(); });
    } catch (const std::system_error&) {
      Run();  // the system refuses a thread: one after the other then
    }
  }
  ~TextLoad() {
    if (thread_.joinable()) thread_.join();
  }

  bool failed() const { return failed_.load(); }
  absl::Status Join() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 private:
  void Run() {
    try {
      status_ = Fill();
    } catch (const std::bad_alloc&) {
      status_ = absl::ResourceExhaustedError("out of memory while loading the tokenizer");
    }
    failed_.store(!status_.ok());
  }
  absl::Status Fill() {
    ASSIGN_OR_RETURN(model_->info, MakeInfo(spec_, opened_, plan_));
    return FillText(opened_, spec_, model_);
  }

  const LoadSpec& spec_;
  const OpenedModel& opened_;
  const MemoryPlan& plan_;
  ServedModel* const model_;
  absl::Status status_;  // the thread's until it is joined
  std::atomic<bool> failed_{false};
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Backend>> OpenDevices::Get(const BackendOptions& options) {
  std::lock_guard lock(mutex_);
  // A host's backend is one whatever type its models were made in.
  const std::string host_key =
      absl::StrCat(options.device, "/", options.threads, "/", static_cast<int>(options.compute));
  const std::string key = absl::StrCat(host_key, "/", NameOf(options.model_dtype));
  for (const std::string& known : {host_key, key}) {
    if (const auto found = backends_.find(known); found != backends_.end()) return found->second;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend, OpenBackend(options));
  backends_[backend->info().name == "cpu" ? host_key : key] = backend;
  return backend;
}

absl::Status WithLoadReason(const absl::Status& status) {
  if (status.ok() || !ReasonOf(status).empty()) return status;
  if (absl::IsResourceExhausted(status)) return WithReason(status, "INSUFFICIENT_MEMORY");
  if (absl::IsCancelled(status)) return WithReason(status, "CANCELLED");
  return WithReason(status, "MODEL_UNUSABLE");
}

absl::StatusOr<OpenedModel> OpenModel(const LoadSpec& spec, OpenDevices& devices) {
  OpenedModel opened;
  if (absl::string_view path = spec.path; absl::ConsumePrefix(&path, kSyntheticPrefix)) {
    RETURN_IF_ERROR(OpenSyntheticPath(path, spec.quantize, &opened));
  } else {
    ASSIGN_OR_RETURN(opened.checkpoint, Checkpoint::Open(spec.path, spec.check_path));
    ASSIGN_OR_RETURN(opened.format, OpenFormat(*opened.checkpoint, spec.quantize));
  }
  ASSIGN_OR_RETURN(opened.config, ReadModelConfig(*opened.checkpoint));
  BackendOptions backend = spec.backend;
  backend.model_dtype = opened.config.dtype;
  ASSIGN_OR_RETURN(opened.backend, devices.Get(backend));
  return opened;
}

absl::StatusOr<MemoryPlan> OpenedModel::Plan(const PlanOptions& options,
                                             std::int64_t held_bytes) const {
  PlanOptions beside = options;
  if (held_bytes > 0) {
    const auto budget = options.memory_bytes.value_or(static_cast<std::int64_t>(
        kBudgetShare * static_cast<double>(backend->info().memory_bytes)));
    beside.memory_bytes = budget - held_bytes;
    if (*beside.memory_bytes <= 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("other models hold ", held_bytes, " bytes of ", backend->info().name,
                       ", all of the ", budget, " that may be used; unload one or raise --memory"));
    }
  }
  absl::StatusOr<MemoryPlan> plan = PlanMemory(config, *checkpoint, *format, *backend, beside);
  if (!plan.ok() && held_bytes > 0 && absl::IsResourceExhausted(plan.status())) {
    return absl::ResourceExhaustedError(
        absl::StrCat(plan.status().message(), " (other models hold ", held_bytes, " bytes)"));
  }
  return plan;
}

absl::StatusOr<LoadedModel> LoadModel(const LoadSpec& spec, OpenedModel opened,
                                      const MemoryPlan& plan, MemoryLedger::Lease memory,
                                      std::shared_ptr<ModelMetrics> metrics, EngineHooks hooks,
                                      const HubProgress& progress) {
  LoadedModel loaded;
  loaded.backend = opened.backend;
  loaded.memory = std::move(memory);
  loaded.model = std::make_shared<ServedModel>();
  ServedModel& model = *loaded.model;
  model.metrics = metrics;
  if (!progress("weights", 0, plan.weights_bytes)) return Cancelled();

  TextLoad text(spec, opened, plan, &model);
  const LoadProgress weights = [&](const char* stage, std::int64_t done, std::int64_t total) {
    return !text.failed() && progress(stage, done, total);
  };
  absl::StatusOr<std::unique_ptr<Runner>> runner =
      LoadRunner(opened.config, *opened.checkpoint, *opened.format, plan, *opened.backend, weights);
  RETURN_IF_ERROR(text.Join());
  RETURN_IF_ERROR(runner.status());
  const RunnerMemory actual = loaded.memory_in_use = (*runner)->memory();
  EngineOptions options{.limits = plan.limits,
                        .num_pages = plan.kv.num_pages,
                        .page_tokens = plan.kv.page_tokens,
                        .vocab = opened.config.vocab,
                        .max_queue = spec.max_queue,
                        .max_itl = spec.max_itl,
                        .admission = spec.admission,
                        .deterministic = plan.deterministic,
                        .attended_cost = AttendedCost(opened.config, plan),
                        .clock = std::move(hooks.clock),
                        .on_device_lost = std::move(hooks.on_device_lost),
                        .on_done = std::move(hooks.on_done)};
  loaded.engine = std::make_unique<Engine>(std::move(options),
                                           AnswerContext{.model = spec.name,
                                                         .revision = model.info.revision,
                                                         .tokenizer = model.tokenizer,
                                                         .eos_ids = model.eos_ids,
                                                         .metrics = metrics},
                                           *std::move(runner));
  RETURN_IF_ERROR(loaded.engine->WarmUp(
      std::clamp((absl::Now() - opened.began) / kWarmUpPart, kLeastWarmUp, kMostWarmUp),
      [&](int done, int total) { return progress("warm up", done, total); }));
  model.queue = loaded.engine->queue();
  model.info.load_time = absl::Now() - opened.began;
  metrics->load_seconds->Set(absl::ToDoubleSeconds(model.info.load_time));
  PublishMemory(*metrics, plan, actual, *model.tokenizer, opened.backend->info().name);
  return loaded;
}

}  // namespace nibble
