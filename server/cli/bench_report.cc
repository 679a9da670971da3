#include "server/cli/bench_report.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/cli/units.h"

namespace nibble {
namespace {

// How far the runs lie apart; nothing where there is one.
std::string Percent(const Spread& spread) {
  if (spread.high == spread.low) return "";
  const double apart = spread.median > 0 ? (spread.high - spread.low) / 2 / spread.median * 100 : 0;
  return absl::StrCat("+-", ShowRate(apart), "%");
}

std::string Share(double share) { return share > 0 ? absl::StrFormat("%.0f%%", share * 100) : "-"; }

std::string Seconds(double seconds) { return ShowTime(absl::Seconds(seconds)); }

Json Part(std::int64_t planned, std::int64_t actual) {
  Json json;
  json.Set("planned", planned);
  json.Set("actual", actual);
  return json;
}

}  // namespace

BenchReport::BenchReport(const BenchSubject* subject, const BenchSettings& settings, bool json)
    : subject_(*subject), settings_(settings), json_(json) {
  if (!json_) PrintHead();
}

double BenchReport::BandwidthShare(const DecodeResult& result) const {
  if (subject_.device.memory_bandwidth <= 0) return 0;
  const double context = result.context + result.output_tokens / 2.0;
  return subject_.footprint.DecodeBytes(result.batch, context) / result.step_seconds.median /
         subject_.device.memory_bandwidth;
}

double BenchReport::FlopsShare(const PrefillResult& result) const {
  if (subject_.device.flops <= 0) return 0;
  const double tokens = static_cast<double>(result.tokens) * result.batch;
  return subject_.footprint.PrefillFlops(tokens, result.batch) / result.first_token_seconds.median /
         subject_.device.flops;
}

void BenchReport::PrintHead() const {
  const ModelInfo& info = subject_.info;
  const MemoryPlan& plan = info.plan;
  const auto part = [](const char* name, std::int64_t planned, std::int64_t actual) {
    std::printf("  %-10s %12s %12s\n", name, ShowBytes(planned).c_str(), ShowBytes(actual).c_str());
  };
  std::printf("%s: %s, %s, %s parameters of %.2f bits\non %s, activations %s, KV %s\n",
              info.name.c_str(), info.format.c_str(), info.architecture.c_str(),
              ShowMagnitude(info.parameters).c_str(), plan.bits_per_weight,
              absl::StrJoin(info.devices, ", ").c_str(), info.compute.c_str(),
              NameOf(plan.kv.dtype));
  std::printf("loaded in %s, ready %s after this process began\n\n",
              ShowTime(info.load_time).c_str(), ShowTime(subject_.ready).c_str());
  std::printf("  %-10s %12s %12s\n", "memory", "planned", "actual");
  part("weights", plan.weights_bytes, subject_.memory.weights_bytes);
  part("expanded", plan.expanded_bytes, subject_.memory.expanded_bytes);
  part("kv", plan.kv_bytes, subject_.memory.kv_bytes);
  part("workspace", plan.workspace_bytes, subject_.memory.workspace_bytes);
  part("graphs", plan.graphs_bytes, subject_.memory.graphs_bytes);
  if (subject_.device.memory_bandwidth > 0 && subject_.device.flops > 0) {
    std::printf("\n%s reads %s/s and computes %sFLOP/s at best\n", subject_.device.name.c_str(),
                ShowBytes(static_cast<std::int64_t>(subject_.device.memory_bandwidth)).c_str(),
                ShowMagnitude(static_cast<std::int64_t>(subject_.device.flops)).c_str());
  }
  std::printf("medians of %d; prompts of random tokens; %d tokens decoded\n", settings_.repeats,
              settings_.output_tokens);
}

void BenchReport::Add(const PrefillResult& result) {
  if (json_) {
    Json json = ToJson(result);
    json.Set("flops_share", FlopsShare(result));
    return prefill_.push_back(std::move(json));
  }
  if (prefill_.empty()) {
    std::printf("\n  %8s %8s %12s %14s %10s\n", "prompt", "at once", "tok/s", "first token",
                "of FLOP/s");
  }
  prefill_.emplace_back();
  std::printf("  %8s %8s %12s %14s %10s   %s\n", ShowCount(result.tokens).c_str(),
              ShowCount(result.batch).c_str(), ShowRate(result.tokens_per_second.median).c_str(),
              Seconds(result.first_token_seconds.median).c_str(), Share(FlopsShare(result)).c_str(),
              Percent(result.tokens_per_second).c_str());
  std::fflush(stdout);
}

void BenchReport::Add(const DecodeResult& result) {
  if (json_) {
    Json json = ToJson(result);
    json.Set("bandwidth_share", BandwidthShare(result));
    return decode_.push_back(std::move(json));
  }
  if (decode_.empty()) {
    std::printf("\n  %8s %8s %12s %12s %14s %10s\n", "streams", "after", "tok/s", "each",
                "between tokens", "of bytes/s");
  }
  decode_.emplace_back();
  std::printf("  %8s %8s %12s %12s %14s %10s   %s\n", ShowCount(result.batch).c_str(),
              ShowCount(result.context).c_str(), ShowRate(result.tokens_per_second.median).c_str(),
              ShowRate(result.tokens_per_second.median / result.batch).c_str(),
              Seconds(result.step_seconds.median).c_str(), Share(BandwidthShare(result)).c_str(),
              Percent(result.tokens_per_second).c_str());
  std::fflush(stdout);
}

void BenchReport::Add(const ThroughputResult& result) {
  if (json_) return throughput_.push_back(ToJson(result));
  std::printf(
      "\n%s requests of %s tokens, answers of %s: %s\n  %s tok/s of answers, %s tok/s in all; "
      "first token p50 %s, p99 %s; between tokens p50 %s, p99 %s\n",
      ShowCount(result.requests).c_str(), ShowCount(result.input_tokens).c_str(),
      ShowCount(result.output_tokens).c_str(), Seconds(result.seconds).c_str(),
      ShowRate(result.output_tokens_per_second).c_str(), ShowRate(result.tokens_per_second).c_str(),
      Seconds(result.first_token_p50).c_str(), Seconds(result.first_token_p99).c_str(),
      Seconds(result.gap_p50).c_str(), Seconds(result.gap_p99).c_str());
}

void BenchReport::Add(const ArrivalsResult& result) {
  if (json_) return arrivals_.push_back(ToJson(result));
  std::printf(
      "\n%s streams after %s tokens each, while %s prompts of %s arrive at once\n"
      "  between tokens p50 %s, p99 %s, longest %s (before: p50 %s, longest %s)\n"
      "  the prompts' first token p50 %s, last %s\n",
      ShowCount(result.streams).c_str(), ShowCount(result.context).c_str(),
      ShowCount(result.prompts).c_str(), ShowCount(result.prompt_tokens).c_str(),
      Seconds(result.gap_p50).c_str(), Seconds(result.gap_p99).c_str(),
      Seconds(result.gap_max).c_str(), Seconds(result.calm_gap_p50).c_str(),
      Seconds(result.calm_gap_max).c_str(), Seconds(result.first_token_p50).c_str(),
      Seconds(result.first_token_max).c_str());
}

void BenchReport::End() {
  if (!json_) return;
  const ModelInfo& info = subject_.info;
  Json json;
  json.Set("model", info.name);
  json.Set("path", info.path);
  json.Set("revision", info.revision);
  json.Set("format", info.format);
  json.Set("architecture", info.architecture);
  json.Set("parameters", info.parameters);
  json.Set("devices", Json::Array(info.devices.begin(), info.devices.end()));
  json.Set("device", subject_.device.description);
  json.Set("memory_bandwidth", subject_.device.memory_bandwidth);
  json.Set("flops", subject_.device.flops);
  json.Set("compute", info.compute);
  json.Set("load_seconds", absl::ToDoubleSeconds(info.load_time));
  json.Set("ready_seconds", absl::ToDoubleSeconds(subject_.ready));
  json.Set("repeats", settings_.repeats);
  json.Set("output_tokens", std::int64_t{settings_.output_tokens});
  json.Set("plan", ToJson(info.plan));
  Json memory;
  memory.Set("weights", Part(info.plan.weights_bytes, subject_.memory.weights_bytes));
  memory.Set("expanded", Part(info.plan.expanded_bytes, subject_.memory.expanded_bytes));
  memory.Set("kv", Part(info.plan.kv_bytes, subject_.memory.kv_bytes));
  memory.Set("workspace", Part(info.plan.workspace_bytes, subject_.memory.workspace_bytes));
  memory.Set("graphs", Part(info.plan.graphs_bytes, subject_.memory.graphs_bytes));
  json.Set("memory", std::move(memory));
  json.Set("prefill", std::move(prefill_));
  json.Set("decode", std::move(decode_));
  json.Set("throughput", std::move(throughput_));
  json.Set("arrivals", std::move(arrivals_));
  std::printf("%s\n", DumpJson(json, {.indent = 2}).c_str());
}

}  // namespace nibble
