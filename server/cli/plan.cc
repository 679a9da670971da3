// nibble plan: what a model will take of the memory of a device, before a byte of it is touched.
#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/engine/load_model.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/cli/model_flags.h"
#include "server/cli/units.h"

namespace nibble {
namespace {

void Print(const char* what, const std::string& value, const std::string& remark = "") {
  std::printf("  %-22s %12s%s%s\n", what, value.c_str(), remark.empty() ? "" : "   ",
              remark.c_str());
}

void PrintPlan(const OpenedModel& model, const MemoryPlan& plan) {
  const DeviceInfo& device = model.backend->info();
  std::printf("%s\n  %s, %s, %s parameters of %.2f bits\n  on %s: %s, %s\n\n",
              model.checkpoint->path().c_str(), model.format->Name().c_str(),
              model.config.architecture.c_str(), ShowMagnitude(plan.parameters).c_str(),
              plan.bits_per_weight, device.name.c_str(), device.description.c_str(),
              ShowBytes(device.memory_bytes).c_str());
  Print("weights", ShowBytes(plan.weights_bytes));
  if (plan.expanded_bytes > 0) {
    Print("expanded weights", ShowBytes(plan.expanded_bytes),
          "a copy in 16 bits for prompts; --prefill-weights=packed does without");
  }
  Print("KV cache", ShowBytes(plan.kv_bytes),
        absl::StrCat(ShowCount(plan.kv_tokens), " tokens of ", ShowBytes(plan.kv_bytes_per_token),
                     " (", NameOf(plan.kv.dtype), ")"));
  Print("workspace", ShowBytes(plan.workspace_bytes));
  if (plan.graphs_bytes > 0) Print("graphs", ShowBytes(plan.graphs_bytes));
  Print("other", ShowBytes(plan.other_bytes));
  Print("in all", ShowBytes(plan.total_bytes()),
        absl::StrCat("of a budget of ", ShowBytes(plan.budget_bytes)));
  std::printf("\n");
  Print("activations", model.backend->ComputeName());
  Print("longest sequence",
        ShowCount(std::min<std::int64_t>(plan.limits.max_context, plan.kv_tokens)), "tokens");
  Print("largest batch", ShowCount(plan.limits.max_sequences),
        absl::StrCat("sequences; at full length ",
                     ShowCount(plan.kv_tokens / plan.limits.max_context)));
  if (plan.deterministic)
    Print("deterministic", "yes", "every row in one order of sums, 16 at a time on a GPU: slower");
  if (plan.balance_batch > 0) {
    Print("balance batch", ShowRate(plan.balance_batch),
          "sequences, where reading weights and arithmetic take equal time");
  }
}

Json PlanJson(const OpenedModel& model, const MemoryPlan& plan) {
  const DeviceInfo& info = model.backend->info();
  Json device;
  device.Set("name", info.name);
  device.Set("description", info.description);
  device.Set("memory_bytes", info.memory_bytes);
  device.Set("memory_bandwidth", info.memory_bandwidth);
  device.Set("flops", info.flops);
  Json json;
  json.Set("path", model.checkpoint->path());
  json.Set("format", model.format->Name());
  json.Set("architecture", model.config.architecture);
  json.Set("device", std::move(device));
  json.Set("compute", model.backend->ComputeName());
  json.Set("plan", ToJson(plan));
  return json;
}

}  // namespace

int RunPlan(int argc, char** argv) {
  CLI::App app(
      "The memory plan of a model on a device of this machine: exact, and nothing is loaded.",
      "nibble plan");
  std::string path;
  bool as_json = false;
  ModelFlags flags;
  app.add_option("MODEL", path, "a Hugging Face directory, a .safetensors or a .gguf file")
      ->required();
  app.add_flag("--json", as_json, "print JSON");
  flags.AddTo(app);
  if (const auto exit = ParseArguments(app, argc, argv)) return *exit;

  OpenDevices devices;
  const absl::StatusOr<LoadSpec> spec = flags.ToLoadSpec(path, devices);
  if (!spec.ok()) return Fail(app, kUsage, spec.status());
  const absl::StatusOr<OpenedModel> model = OpenModel(*spec, devices);
  if (!model.ok()) return Fail(app, kModelUnusable, model.status());
  const absl::StatusOr<MemoryPlan> plan = model->Plan(spec->plan, /*held_bytes=*/0);
  if (!plan.ok()) return Fail(app, kModelUnusable, plan.status());
  if (as_json) {
    std::printf("%s\n", DumpJson(PlanJson(*model, *plan), {.indent = 2}).c_str());
  } else {
    PrintPlan(*model, *plan);
  }
  return kDone;
}

}  // namespace nibble
