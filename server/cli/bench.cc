// nibble bench: how fast a model reads prompts and writes answers on this machine.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/model/synthetic.h"
#include "server/cli/bench_report.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/cli/measure.h"
#include "server/cli/model_flags.h"
#include "server/cli/units.h"
#include "server/load_display.h"
#include "server/values.h"
#include "server/version.h"

namespace nibble {
namespace {

// What to run, and whether a flag said so: then it must fit, else it is left out.
template <typename T>
struct Sweep {
  std::vector<T> values;
  bool chosen = false;
};

struct Flags {
  std::string path;
  std::string shape, format = "int4-g128";  // --synthetic, --quant
  Sweep<std::int32_t> prompts{{64, 256, 1024}}, prompt_batches{{1}};
  Sweep<std::int32_t> batches{{1, 2, 4, 8, 16}}, contexts{{16}};
  std::int32_t output_tokens = 64;
  std::int32_t requests = 0, request_input = 1000, request_output = 1000;
  std::int32_t arrivals = 0, arrival_prompt = 2048, arrival_streams = 16, arrival_context = 1000;
  std::string max_itl;
  int repeats = 3;
  std::uint64_t seed = 1;
  bool json = false;
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

struct Point {
  std::int32_t sequences = 0, tokens = 0;
};

// Every pair of a sweep that fits, `extra` tokens added to each sequence. InvalidArgument when what
// flags asked for does not, or when nothing does.
absl::StatusOr<std::vector<Point>> PointsOf(const MemoryPlan& plan, const char* what,
                                            const Sweep<std::int32_t>& sequences,
                                            const Sweep<std::int32_t>& tokens, std::int32_t extra) {
  std::vector<Point> points;
  for (const std::int32_t each : tokens.values) {
    for (const std::int32_t many : sequences.values) {
      if (Fits(plan, many, std::int64_t{each} + extra)) {
        points.push_back({many, each});
      } else if (sequences.chosen || tokens.chosen) {
        return absl::InvalidArgumentError(absl::StrCat(
            what, " of ", many, " at once of ", each, " tokens and ", extra,
            " more does not fit: a sequence holds ", plan.limits.max_context,
            " tokens, at once run ", plan.limits.max_sequences, ", of ", plan.kv_tokens,
            " tokens in all; raise --max-context, --max-batch or --kv-memory"));
      }
    }
  }
  return points;
}

struct Points {
  std::vector<Point> prefill, decode;
};

absl::StatusOr<Points> FitToPlan(const MemoryPlan& plan, const Flags& flags) {
  Points points;
  ASSIGN_OR_RETURN(points.prefill,
                   PointsOf(plan, "a prefill", flags.prompt_batches, flags.prompts, 1));
  ASSIGN_OR_RETURN(points.decode,
                   PointsOf(plan, "decoding", flags.batches, flags.contexts, flags.output_tokens));
  if (flags.requests > 0 &&
      !Fits(plan, 1, std::int64_t{flags.request_input} + flags.request_output)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--request-input and --request-output make ",
                     flags.request_input + flags.request_output, " tokens; a sequence holds ",
                     std::min<std::int64_t>(plan.limits.max_context, plan.kv_tokens)));
  }
  const std::int64_t longest = std::max(flags.arrival_prompt, flags.arrival_context);
  const std::int64_t answer = std::max(flags.output_tokens, kLeastArrivalTokens);
  if (flags.arrivals > 0 && !Fits(plan, flags.arrivals + flags.arrival_streams, longest + answer)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--arrivals and --arrival-streams make ", flags.arrivals + flags.arrival_streams,
        " sequences of up to ", longest + answer, " tokens; a sequence holds ",
        plan.limits.max_context, ", at once run ", plan.limits.max_sequences, ", of ",
        plan.kv_tokens, " tokens in all"));
  }
  return points;
}

absl::Status Measure(const Flags& flags, const Points& points, const ServedModel& model,
                     const BenchSubject& subject) {
  Progress progress(isatty(STDERR_FILENO) != 0);
  Measurement measurement(&model, flags.seed);
  BenchReport report(&subject, {flags.output_tokens, flags.repeats}, flags.json);
  for (const Point& point : points.prefill) {
    progress.Show(absl::StrCat("reading ", point.sequences, " prompts of ", ShowCount(point.tokens),
                               " tokens"));
    const auto result = measurement.Prefill(point.tokens, point.sequences, flags.repeats);
    progress.Clear();
    if (!result.ok()) return result.status();
    report.Add(*result);
  }
  for (const Point& point : points.decode) {
    progress.Show(absl::StrCat("decoding ", point.sequences, " at once"));
    const auto result =
        measurement.Decode(point.sequences, point.tokens, flags.output_tokens, flags.repeats);
    progress.Clear();
    if (!result.ok()) return result.status();
    report.Add(*result);
  }
  if (flags.requests > 0) {
    progress.Show(absl::StrCat("answering ", flags.requests, " requests"));
    const auto result =
        measurement.Throughput(flags.requests, flags.request_input, flags.request_output);
    progress.Clear();
    if (!result.ok()) return result.status();
    report.Add(*result);
  }
  if (flags.arrivals > 0) {
    progress.Show(absl::StrCat("decoding ", flags.arrival_streams, " while ", flags.arrivals,
                               " prompts arrive"));
    const auto result =
        measurement.Arrivals(flags.arrival_streams, flags.arrival_context, flags.arrivals,
                             flags.arrival_prompt, flags.output_tokens);
    progress.Clear();
    if (!result.ok()) return result.status();
    report.Add(*result);
  }
  report.End();
  return absl::OkStatus();
}

void AddSweep(CLI::App& app, const std::string& name, Sweep<std::int32_t>* sweep, int most,
              const std::string& help) {
  app.add_option_function<std::vector<std::int32_t>>(
         name, [sweep](const std::vector<std::int32_t>& values) { *sweep = {values, true}; },
         absl::StrCat(help, " (", absl::StrJoin(sweep->values, ","), ")"))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, most));
}

void AddFlags(CLI::App& app, Flags* flags) {
  constexpr int kMaxTokens = 1 << 24, kMaxSequences = 4096;
  app.add_option("MODEL", flags->path, "a Hugging Face directory, a .safetensors or a .gguf file");
  app.add_option("--synthetic", flags->shape,
                 absl::StrCat("instead of MODEL, random weights of this shape: ",
                              absl::StrJoin(SyntheticShapes(), ", ")));
  app.add_option("--quant", flags->format,
                 absl::StrCat("the format of --synthetic (int4-g128): ",
                              absl::StrJoin(SyntheticFormats(), ", ")));
  AddSweep(app, "--prompts", &flags->prompts, kMaxTokens, "lengths of prompts to read");
  AddSweep(app, "--prompt-batches", &flags->prompt_batches, kMaxSequences,
           "prompts to read at once");
  AddSweep(app, "--batches", &flags->batches, kMaxSequences, "sequences to decode at once");
  AddSweep(app, "--decode-prompt,--contexts", &flags->contexts, kMaxTokens,
           "tokens of each before decoding starts");
  app.add_option("--output-tokens", flags->output_tokens, "tokens to decode (64)")
      ->check(CLI::Range(8, kMaxTokens));
  app.add_option("--requests", flags->requests,
                 "also the time of so many requests submitted at once (0)")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--request-input", flags->request_input, "tokens of their prompts (1000)")
      ->check(CLI::Range(1, kMaxTokens));
  app.add_option("--request-output", flags->request_output, "tokens of their answers (1000)")
      ->check(CLI::Range(1, kMaxTokens));
  app.add_option("--arrivals", flags->arrivals,
                 "also the gaps between tokens of streams while so many prompts arrive at once (0)")
      ->check(CLI::Range(0, kMaxSequences));
  app.add_option("--arrival-prompt", flags->arrival_prompt, "tokens of each (2048)")
      ->check(CLI::Range(1, kMaxTokens));
  app.add_option("--arrival-streams", flags->arrival_streams, "streams that decode (16)")
      ->check(CLI::Range(1, kMaxSequences));
  app.add_option("--arrival-context", flags->arrival_context, "tokens of their prompts (1000)")
      ->check(CLI::Range(1, kMaxTokens));
  app.add_option("--max-itl", flags->max_itl,
                 "the longest gap between tokens that prefill may cause (50ms)");
  app.add_option("--repeats", flags->repeats,
                 "runs behind each number, after one that does not count (3)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--seed", flags->seed, "of the random prompts (1)");
  app.add_flag("--json", flags->json, "print JSON");
  flags->load.AddTo(app);
}

absl::StatusOr<LoadSpec> SpecOf(const Flags& flags, OpenDevices& devices) {
  if (flags.path.empty() == flags.shape.empty()) {
    return absl::InvalidArgumentError("name one model: MODEL, or --synthetic SHAPE");
  }
  if (flags.shape.empty()) return flags.load.ToLoadSpec(flags.path, devices);
  ASSIGN_OR_RETURN(LoadSpec spec,
                   flags.load.ToLoadSpec(
                       absl::StrCat(kSyntheticPrefix, flags.shape, ":", flags.format), devices));
  spec.name = flags.shape;
  return spec;
}

// Loads, measures and ends one model; its engine is told to stop on every way out.
class Bench {
 public:
  Bench(CLI::App* app, const Flags* flags, absl::Time began)
      : app_(*app), flags_(*flags), began_(began) {}

  int Run() {
    OpenDevices devices;
    absl::StatusOr<LoadSpec> spec = SpecOf(flags_, devices);
    if (!spec.ok()) return Fail(app_, kUsage, spec.status());
    spec->max_queue = std::max({spec->max_queue, flags_.requests, flags_.arrivals});
    if (!flags_.max_itl.empty()) {
      const absl::StatusOr<absl::Duration> itl = ParseDuration(flags_.max_itl);
      if (!itl.ok()) return Fail(app_, kUsage, itl.status());
      spec->max_itl = *itl;
    }
    absl::StatusOr<OpenedModel> opened = OpenModel(*spec, devices);
    if (!opened.ok()) {
      const bool no_such = !flags_.shape.empty() && absl::IsNotFound(opened.status());
      return Fail(app_, no_such ? kUsage : kModelUnusable, opened.status());
    }
    const absl::StatusOr<MemoryPlan> plan = opened->Plan(spec->plan, 0);
    if (!plan.ok()) return Fail(app_, kModelUnusable, plan.status());
    const absl::StatusOr<Points> points = FitToPlan(*plan, flags_);
    if (!points.ok()) return Fail(app_, kUsage, points.status());

    BenchSubject subject;
    subject.device = opened->backend->info();
    absl::StatusOr<Footprint> footprint = FootprintOf(*opened, *plan);
    if (!footprint.ok()) return Fail(app_, kModelUnusable, footprint.status());
    subject.footprint = *footprint;

    Metrics metrics(ThisBuild());
    absl::StatusOr<LoadedModel> loaded =
        Load(*spec, *std::move(opened), *plan, metrics.ForModel(spec->name));
    if (!loaded.ok()) return Fail(app_, ExitOf(loaded.status(), kModelUnusable), loaded.status());
    subject.ready = absl::Now() - began_;
    subject.info = loaded->model->info;
    subject.memory = loaded->memory_in_use;
    loaded->engine->Start();
    const absl::Status measured = Measure(flags_, *points, *loaded->model, subject);
    loaded->engine->Abort(absl::UnavailableError("the measurement is over"));
    loaded->engine->Join();
    return measured.ok() ? kDone : Fail(app_, ExitOf(measured, kFailed), measured);
  }

 private:
  static absl::StatusOr<LoadedModel> Load(const LoadSpec& spec, OpenedModel opened,
                                          const MemoryPlan& plan,
                                          std::shared_ptr<ModelMetrics> series) {
    LoadDisplay display(isatty(STDERR_FILENO) != 0);
    auto loaded =
        LoadModel(spec, std::move(opened), plan, nullptr, std::move(series), EngineHooks(),
                  [&](const std::string& stage, std::int64_t done, std::int64_t total) {
                    display.Show(spec.name, stage, done, total);
                    return true;
                  });
    display.Clear();
    return loaded;
  }

  CLI::App& app_;
  const Flags& flags_;
  const absl::Time began_;
};

}  // namespace

int RunBench(int argc, char** argv) {
  const absl::Time began = absl::Now();
  CLI::App app(
      "How fast a model reads prompts and decodes on this machine, measured through the engine.",
      "nibble bench");
  Flags flags;
  AddFlags(app, &flags);
  if (const auto exit = ParseArguments(app, argc, argv)) return *exit;
  ConfigureLog(LogFormat::kText, LogLevel::kWarning);
  return Bench(&app, &flags, began).Run();
}

}  // namespace nibble
