// nibble inspect: what is in a checkpoint, and what would be refused and why. Loads nothing.
#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/cli/checkpoint_report.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/cli/units.h"
#include "server/values.h"

namespace nibble {
namespace {

void Print(const char* what, const std::string& value) {
  std::printf("  %-14s %s\n", what, value.c_str());
}

std::string ModelLine(const ModelConfig& config) {
  std::string line = absl::StrCat(
      config.architecture, ": ", config.layers, " layers, hidden ", ShowCount(config.hidden), ", ",
      config.heads, " heads of ", config.head_dim, ", ", config.kv_heads, " for KV, MLP ",
      ShowCount(config.intermediate), ", vocabulary ", ShowCount(config.vocab));
  if (config.experts > 0)
    absl::StrAppend(&line, ", ", config.experts_per_token, " of ", config.experts, " experts");
  return absl::StrCat(line, ", context ", ShowCount(config.max_context));
}

void PrintSummary(const CheckpointReport& report) {
  std::printf("%s\n", report.path.c_str());
  Print("format", report.format.empty() ? absl::StrCat(report.kind, " (refused)") : report.format);
  if (!report.encodings.empty()) Print("encodings", absl::StrJoin(report.encodings, "; "));
  if (report.config.has_value()) Print("model", ModelLine(*report.config));
  if (report.parameters > 0) {
    Print("weights", absl::StrCat(ShowMagnitude(report.parameters), " parameters, ",
                                  ShowRate(report.bits_per_weight), " bits a weight"));
  }
  Print("on disk", absl::StrCat(ShowCount(static_cast<std::int64_t>(report.tensors.size())),
                                " tensors, ", ShowBytes(report.tensor_bytes)));
  Print("tokenizer",
        report.tokenizer.empty()
            ? "none that can be used"
            : absl::StrCat(report.tokenizer, ", ", ShowCount(report.vocabulary), " tokens"));
  Print("chat template",
        report.has_chat_template ? "yes" : "none: chats are refused, text is served");
  Print("revision", report.revision);
}

void PrintTensors(const CheckpointReport& report, bool each) {
  std::vector<TensorGroup> groups;
  if (each) {
    for (const TensorReport& tensor : report.tensors)
      groups.push_back({tensor.name, tensor.type, tensor.shape, 1, tensor.bytes});
  } else {
    groups = GroupTensors(report.tensors);
  }
  std::size_t width = 0;
  for (const TensorGroup& group : groups) width = std::max(width, group.pattern.size());
  width = std::min<std::size_t>(width, 64);
  std::printf("\n");
  for (const TensorGroup& group : groups) {
    std::printf("  %-*s  %-6s %18s %12s%s\n", static_cast<int>(width), group.pattern.c_str(),
                group.type.c_str(), ShowShape(group.shape).c_str(), ShowBytes(group.bytes).c_str(),
                group.count > 1 ? absl::StrCat("  in ", group.count).c_str() : "");
  }
}

void PrintRefusals(const CheckpointReport& report) {
  if (report.refusals.empty()) {
    std::printf("\ncan be served; `nibble plan` tells whether it fits\n");
    return;
  }
  std::printf("\ncannot be served:\n");
  for (const Refusal& refusal : report.refusals)
    std::printf("  %s: %s\n", refusal.what.c_str(), refusal.why.c_str());
}

}  // namespace

int RunInspect(int argc, char** argv) {
  CLI::App app(
      "What is in a checkpoint, and what would be refused and why. Exit status 3 when it cannot be "
      "served.",
      "nibble inspect");
  std::string path;
  std::string quantize_text = "none";
  bool as_json = false;
  bool each = false;
  app.add_option("MODEL", path, "a Hugging Face directory, a .safetensors or a .gguf file")
      ->required();
  app.add_flag("--tensors", each, "list every tensor, not one line for all layers");
  app.add_option("--quantize", quantize_text,
                 "as if quantized at load: none, nf4, fp4, int8 or int4");
  app.add_flag("--json", as_json, "print JSON, every tensor included");
  if (const auto exit = ParseArguments(app, argc, argv)) return *exit;
  const absl::StatusOr<LoadQuantization> quantize = ParseQuantization(quantize_text);
  if (!quantize.ok()) return Fail(app, kUsage, quantize.status());

  const absl::StatusOr<CheckpointReport> report = ReportCheckpoint(path, *quantize);
  if (!report.ok()) return Fail(app, kModelUnusable, report.status());
  if (as_json) {
    std::printf("%s\n", DumpJson(ToJson(*report), {.indent = 2}).c_str());
  } else {
    PrintSummary(*report);
    PrintTensors(*report, each);
    PrintRefusals(*report);
  }
  return report->refusals.empty() ? kDone : kModelUnusable;
}

}  // namespace nibble
