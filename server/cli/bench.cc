// nibble bench: how fast a model reads prompts and writes answers on this machine.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/cli/measure.h"
#include "server/cli/model_flags.h"
#include "server/cli/units.h"
#include "server/load_display.h"
#include "server/version.h"

namespace nibble {
namespace {

struct Flags {
  std::string path;
  std::vector<std::int32_t> prompts = {64, 256, 1024};
  std::vector<std::int32_t> batches = {1, 2, 4, 8, 16};
  std::int32_t prompt_tokens = 16;
  std::int32_t output_tokens = 64;
  int repeats = 3;
  std::uint64_t seed = 1;
  bool json = false;
  bool chosen_prompts = false,
       chosen_batches = false;  // by flags: what does not fit is then an error
  ModelFlags load;
};

// What is running, on a line of its own that goes away; on a terminal only.
class Progress {
 public:
  explicit Progress(bool enabled) : enabled_(enabled) {}
  void Show(const std::string& what) {
    if (enabled_) std::fprintf(stderr, "\r\033[K%s", what.c_str());
  }
  void Clear() { Show(""); }

 private:
  const bool enabled_;
};

// How far the runs lie apart; nothing where there is one.
std::string Percent(const Spread& spread) {
  if (spread.high == spread.low) return "";
  const double apart = spread.median > 0 ? (spread.high - spread.low) / 2 / spread.median * 100 : 0;
  return absl::StrCat("+-", ShowRate(apart), "%");
}

void PrintHead(const Flags& flags, const ModelInfo& info) {
  std::printf("%s: %s, %s, %s parameters of %.2f bits, %s\non %s, activations %s; loaded in %s\n",
              info.name.c_str(), info.format.c_str(), info.architecture.c_str(),
              ShowMagnitude(info.parameters).c_str(), info.plan.bits_per_weight,
              ShowBytes(info.plan.weights_bytes).c_str(), absl::StrJoin(info.devices, ", ").c_str(),
              info.compute.c_str(), ShowTime(info.load_time).c_str());
  std::printf("medians of %d; prompts of random tokens; decode after %d tokens, %d tokens each\n\n",
              flags.repeats, flags.prompt_tokens, flags.output_tokens);
}

void Print(const PrefillResult& result) {
  std::printf("  %8s %12s %14s   %s\n", ShowCount(result.tokens).c_str(),
              ShowRate(result.tokens_per_second.median).c_str(),
              ShowTime(absl::Seconds(result.first_token_seconds.median)).c_str(),
              Percent(result.tokens_per_second).c_str());
  std::fflush(stdout);
}

void Print(const DecodeResult& result) {
  std::printf("  %8s %12s %14s %14s   %s\n", ShowCount(result.batch).c_str(),
              ShowRate(result.tokens_per_second.median).c_str(),
              ShowRate(result.tokens_per_second.median / result.batch).c_str(),
              ShowTime(absl::Seconds(result.step_seconds.median)).c_str(),
              Percent(result.tokens_per_second).c_str());
  std::fflush(stdout);
}

// What of the default lengths and batches the plan has room for; what a flag asked for must fit.
absl::Status FitToPlan(const MemoryPlan& plan, Flags* flags) {
  const std::int64_t context = plan.limits.max_context;
  if (flags->prompt_tokens + flags->output_tokens > context) {
    return absl::InvalidArgumentError(absl::StrCat("--decode-prompt and --output-tokens make ",
                                                   flags->prompt_tokens + flags->output_tokens,
                                                   " tokens; a sequence holds ", context));
  }
  const auto no_prompt = [&](std::int32_t tokens) { return tokens + 1 > context; };
  const auto no_batch = [&](std::int32_t batch) {
    const std::int64_t page = plan.kv.page_tokens;
    const std::int64_t pages = (flags->prompt_tokens + flags->output_tokens + page - 1) / page;
    return batch > plan.limits.max_sequences || batch * pages * page > plan.kv_tokens;
  };
  if (flags->chosen_prompts &&
      std::any_of(flags->prompts.begin(), flags->prompts.end(), no_prompt)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompts has one that is longer than a sequence may be, ", context - 1,
                     " tokens; raise --max-context or --kv-memory"));
  }
  if (flags->chosen_batches &&
      std::any_of(flags->batches.begin(), flags->batches.end(), no_batch)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--batches has one that does not fit: at once run ", plan.limits.max_sequences,
        " sequences, of ", plan.kv_tokens, " tokens in all; raise --max-batch or --kv-memory"));
  }
  flags->prompts.erase(std::remove_if(flags->prompts.begin(), flags->prompts.end(), no_prompt),
                       flags->prompts.end());
  flags->batches.erase(std::remove_if(flags->batches.begin(), flags->batches.end(), no_batch),
                       flags->batches.end());
  return absl::OkStatus();
}

absl::Status Measure(const Flags& flags, const ServedModel& model) {
  Progress progress(isatty(STDERR_FILENO) != 0);
  Measurement measurement(&model, flags.seed);
  Json::Array prefill;
  Json::Array decode;
  if (!flags.json) PrintHead(flags, model.info);
  if (!flags.json) std::printf("  %8s %12s %14s\n", "prompt", "tok/s", "first token");
  for (const std::int32_t tokens : flags.prompts) {
    progress.Show(absl::StrCat("reading a prompt of ", ShowCount(tokens), " tokens"));
    absl::StatusOr<PrefillResult> result = measurement.Prefill(tokens, flags.repeats);
    progress.Clear();
    if (!result.ok()) return result.status();
    if (!flags.json) Print(*result);
    prefill.push_back(ToJson(*result));
  }
  if (!flags.json)
    std::printf("\n  %8s %12s %14s %14s\n", "batch", "tok/s", "each", "between tokens");
  for (const std::int32_t batch : flags.batches) {
    progress.Show(absl::StrCat("decoding ", batch, " at once"));
    absl::StatusOr<DecodeResult> result =
        measurement.Decode(batch, flags.prompt_tokens, flags.output_tokens, flags.repeats);
    progress.Clear();
    if (!result.ok()) return result.status();
    if (!flags.json) Print(*result);
    decode.push_back(ToJson(*result));
  }
  if (!flags.json) return absl::OkStatus();
  const ModelInfo& info = model.info;
  Json json;
  json.Set("model", info.name);
  json.Set("path", info.path);
  json.Set("revision", info.revision);
  json.Set("format", info.format);
  json.Set("architecture", info.architecture);
  json.Set("parameters", info.parameters);
  json.Set("devices", Json::Array(info.devices.begin(), info.devices.end()));
  json.Set("compute", info.compute);
  json.Set("load_seconds", absl::ToDoubleSeconds(info.load_time));
  json.Set("repeats", flags.repeats);
  json.Set("decode_prompt_tokens", std::int64_t{flags.prompt_tokens});
  json.Set("output_tokens", std::int64_t{flags.output_tokens});
  json.Set("plan", ToJson(info.plan));
  json.Set("prefill", std::move(prefill));
  json.Set("decode", std::move(decode));
  std::printf("%s\n", DumpJson(json, {.indent = 2}).c_str());
  return absl::OkStatus();
}

}  // namespace

int RunBench(int argc, char** argv) {
  CLI::App app(
      "How fast a model reads prompts and decodes on this machine, measured through the engine.",
      "nibble bench");
  Flags flags;
  app.add_option("MODEL", flags.path, "a Hugging Face directory, a .safetensors or a .gguf file")
      ->required();
  CLI::Option* const prompts =
      app.add_option("--prompts", flags.prompts, "lengths of prompts to read (64,256,1024)")
          ->delimiter(',')
          ->allow_extra_args(false)
          ->check(CLI::Range(1, 1 << 24));
  CLI::Option* const batches =
      app.add_option("--batches", flags.batches, "sequences to decode at once (1,2,4,8,16)")
          ->delimiter(',')
          ->allow_extra_args(false)
          ->check(CLI::Range(1, 4096));
  app.add_option("--decode-prompt", flags.prompt_tokens, "tokens before decoding starts (16)")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--output-tokens", flags.output_tokens, "tokens to decode (64)")
      ->check(CLI::Range(8, 1 << 24));
  app.add_option("--repeats", flags.repeats,
                 "runs behind each number, after one that does not count (3)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--seed", flags.seed, "of the random prompts (1)");
  app.add_flag("--json", flags.json, "print JSON");
  flags.load.AddTo(app);
  if (const auto exit = ParseArguments(app, argc, argv)) return *exit;
  flags.chosen_prompts = prompts->count() > 0;
  flags.chosen_batches = batches->count() > 0;

  ConfigureLog(LogFormat::kText, LogLevel::kWarning);
  OpenDevices devices;
  const absl::StatusOr<LoadSpec> spec = flags.load.ToLoadSpec(flags.path, devices);
  if (!spec.ok()) return Fail(app, kUsage, spec.status());
  Metrics metrics(ThisBuild());
  ModelHub hub({}, &metrics);
  const absl::StatusOr<MemoryPlan> plan = hub.Plan(*spec);
  if (!plan.ok()) return Fail(app, kModelUnusable, plan.status());
  if (const absl::Status fits = FitToPlan(*plan, &flags); !fits.ok())
    return Fail(app, kUsage, fits);

  LoadDisplay display(isatty(STDERR_FILENO) != 0);
  const auto model =
      hub.Load(*spec, [&](const std::string& stage, std::int64_t done, std::int64_t total) {
        display.Show(spec->name, stage, done, total);
        return true;
      });
  display.Clear();
  if (!model.ok()) return Fail(app, ExitOf(model.status(), kModelUnusable), model.status());
  const absl::Status measured = Measure(flags, **model);
  hub.Drain(absl::Now());
  return measured.ok() ? kDone : Fail(app, ExitOf(measured, kFailed), measured);
}

}  // namespace nibble
