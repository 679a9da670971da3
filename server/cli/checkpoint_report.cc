#include "server/cli/checkpoint_report.h"

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/engine/vocabulary.h"
#include "runtime/model/program_builder.h"
#include "runtime/text/chat_template.h"
#include "runtime/weights/format.h"
#include "server/cli/units.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxLayerRefusals = 8;  // one mistake of a tool repeats in every layer

void Refuse(const char* what, const absl::Status& status, CheckpointReport* report) {
  report->refusals.push_back({what, std::string(status.message())});
}

void ListTensors(const Checkpoint& checkpoint, CheckpointReport* report) {
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    report->tensors.push_back(
        {tensor.name, TypeName(tensor), tensor.shape, static_cast<std::int64_t>(tensor.bytes)});
    report->tensor_bytes += static_cast<std::int64_t>(tensor.bytes);
  }
}

// The layers that the forward pass will ask for: what each is, and whether it can be read.
void DescribeLayers(const Checkpoint& checkpoint, const WeightFormat& format,
                    CheckpointReport* report) {
  const absl::StatusOr<BuiltProgram> built =
      BuildProgram(*report->config, checkpoint, format, report->config->max_context);
  if (!built.ok()) return Refuse("layers", built.status(), report);
  std::map<std::string, std::int64_t> weights_of;  // by encoding
  std::int64_t bytes = 0;
  std::int64_t weights = 0;
  std::size_t refused = 0;
  for (const LinearPlan& linear : built->weights.linears) {
    const absl::StatusOr<std::vector<LinearSpec>> specs = DescribeLinear(format, linear);
    if (!specs.ok()) {
      if (++refused <= kMaxLayerRefusals) Refuse("layers", specs.status(), report);
      continue;
    }
    for (const LinearSpec& spec : *specs) {
      weights_of[Describe(spec)] += spec.n * spec.k;
      bytes += HostBytes(spec);
      weights += spec.n * spec.k;
      report->parameters += spec.n * spec.k + (spec.has_bias ? spec.n : 0);
    }
  }
  for (const VectorPlan& vector : built->weights.vectors) {
    const absl::Status status = CheckVector(checkpoint, vector);
    if (!status.ok() && ++refused <= kMaxLayerRefusals) Refuse("layers", status, report);
    report->parameters += vector.size;
  }
  if (refused > kMaxLayerRefusals) {
    report->refusals.push_back(
        {"layers", absl::StrCat("and ", refused - kMaxLayerRefusals, " layers more")});
  }
  if (weights > 0)
    report->bits_per_weight = 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  std::vector<std::pair<std::int64_t, std::string>> sorted;
  for (const auto& [name, count] : weights_of) sorted.emplace_back(-count, name);
  std::sort(sorted.begin(), sorted.end());
  for (auto& [count, name] : sorted) report->encodings.push_back(std::move(name));
}

std::string TokenizerKind(const Checkpoint& checkpoint) {
  if (const GgufMetadata* gguf = checkpoint.gguf()) {
    const std::string* model = gguf->String("tokenizer.ggml.model");
    const std::string* pre = gguf->String("tokenizer.ggml.pre");
    return absl::StrCat("GGUF ", model != nullptr ? *model : "",
                        pre != nullptr ? absl::StrCat(" (", *pre, ")") : "");
  }
  return checkpoint.ReadSideFile("tokenizer.json").ok() ? "tokenizer.json"
                                                        : "vocab.json and merges.txt";
}

void LookAtText(const Checkpoint& checkpoint, CheckpointReport* report) {
  const auto tokenizer = LoadTokenizer(checkpoint);
  if (tokenizer.ok()) {
    report->tokenizer = TokenizerKind(checkpoint);
    report->vocabulary = (*tokenizer)->vocab_size();
  } else {
    Refuse("tokenizer", tokenizer.status(), report);
  }
  const auto source = FindChatTemplate(checkpoint);
  if (!source.ok()) return Refuse("chat template", source.status(), report);
  if (!source->has_value()) return;
  report->has_chat_template = true;
  const auto parsed = ChatTemplate::Parse(**source);
  if (!parsed.ok()) Refuse("chat template", parsed.status(), report);
}

// The name with its first number of its own ("layers.3.", "blk.3.") taken out; -1 when it has none.
std::pair<std::string, std::int64_t> SplitLayerNumber(const std::string& name) {
  for (std::size_t begin = 1; begin < name.size(); ++begin) {
    if (name[begin - 1] != '.' || !absl::ascii_isdigit(static_cast<unsigned char>(name[begin])))
      continue;
    std::size_t end = begin;
    std::int64_t number = 0;
    while (end < name.size() && end - begin < 9 &&
           absl::ascii_isdigit(static_cast<unsigned char>(name[end]))) {
      number = number * 10 + (name[end++] - '0');
    }
    if (end == name.size() || name[end] != '.') continue;
    return {absl::StrCat(name.substr(0, begin), "{}", name.substr(end)), number};
  }
  return {name, -1};
}

}  // namespace

absl::StatusOr<CheckpointReport> ReportCheckpoint(const std::string& path,
                                                  LoadQuantization quantize) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(path);
  if (!opened.ok()) return opened.status();
  const Checkpoint& checkpoint = **opened;
  CheckpointReport report;
  report.path = checkpoint.path();
  report.kind = checkpoint.kind() == CheckpointKind::kGguf ? "gguf" : "safetensors";
  ListTensors(checkpoint, &report);
  const absl::StatusOr<std::string> revision = checkpoint.Revision();
  if (revision.ok()) report.revision = *revision;

  absl::StatusOr<ModelConfig> config = ReadModelConfig(checkpoint);
  if (config.ok()) {
    report.config = *std::move(config);
  } else {
    Refuse("configuration", config.status(), &report);
  }
  const absl::StatusOr<std::unique_ptr<WeightFormat>> format = OpenFormat(checkpoint, quantize);
  if (format.ok()) {
    report.format = (*format)->Name();
    if (report.config.has_value()) DescribeLayers(checkpoint, **format, &report);
  } else {
    Refuse("format", format.status(), &report);
  }
  LookAtText(checkpoint, &report);
  return report;
}

std::vector<TensorGroup> GroupTensors(const std::vector<TensorReport>& tensors) {
  struct Range {
    TensorGroup group;
    std::int64_t low = 0, high = 0;
  };
  std::vector<Range> ranges;
  std::map<std::tuple<std::string, std::string, std::vector<std::int64_t>>, std::size_t> index;
  for (const TensorReport& tensor : tensors) {
    auto [pattern, number] = SplitLayerNumber(tensor.name);
    const auto [found, is_new] =
        index.try_emplace({pattern, tensor.type, tensor.shape}, ranges.size());
    if (is_new) ranges.push_back({{pattern, tensor.type, tensor.shape, 0, 0}, number, number});
    Range& range = ranges[found->second];
    range.low = std::min(range.low, number);
    range.high = std::max(range.high, number);
    ++range.group.count;
    range.group.bytes += tensor.bytes;
  }
  std::vector<TensorGroup> groups;
  for (Range& range : ranges) {
    const std::size_t hole = range.group.pattern.find("{}");
    if (range.low >= 0 && hole != std::string::npos) {
      range.group.pattern.replace(hole, 2,
                                  range.low == range.high
                                      ? absl::StrCat(range.low)
                                      : absl::StrCat("{", range.low, "-", range.high, "}"));
    }
    groups.push_back(std::move(range.group));
  }
  return groups;
}

std::string ShowShape(const std::vector<std::int64_t>& shape) {
  if (shape.empty()) return "scalar";
  return absl::StrJoin(shape, " x ",
                       [](std::string* out, std::int64_t size) { out->append(ShowCount(size)); });
}

Json ToJson(const CheckpointReport& report) {
  Json json;
  json.Set("path", report.path);
  json.Set("kind", report.kind);
  json.Set("revision", report.revision);
  json.Set("format", report.format);
  if (report.config.has_value()) {
    const ModelConfig& config = *report.config;
    Json model;
    model.Set("architecture", config.architecture);
    for (const auto& [name, value] : {std::pair{"layers", config.layers},
                                      {"hidden", config.hidden},
                                      {"intermediate", config.intermediate},
                                      {"heads", config.heads},
                                      {"kv_heads", config.kv_heads},
                                      {"head_dim", config.head_dim},
                                      {"vocab", config.vocab},
                                      {"max_context", config.max_context},
                                      {"experts", config.experts}}) {
      model.Set(name, std::int64_t{value});
    }
    json.Set("model", std::move(model));
  }
  json.Set("parameters", report.parameters);
  json.Set("bits_per_weight", report.bits_per_weight);
  json.Set("encodings", Json::Array(report.encodings.begin(), report.encodings.end()));
  json.Set("tokenizer", report.tokenizer);
  json.Set("vocabulary", std::int64_t{report.vocabulary});
  json.Set("chat_template", report.has_chat_template);
  Json::Array refusals;
  for (const Refusal& refusal : report.refusals) {
    Json one;
    one.Set("what", refusal.what);
    one.Set("why", refusal.why);
    refusals.push_back(std::move(one));
  }
  json.Set("servable", report.refusals.empty());
  json.Set("refusals", std::move(refusals));
  json.Set("tensor_bytes", report.tensor_bytes);
  Json::Array tensors;
  for (const TensorReport& tensor : report.tensors) {
    Json one;
    one.Set("name", tensor.name);
    one.Set("type", tensor.type);
    one.Set("shape", Json::Array(tensor.shape.begin(), tensor.shape.end()));
    one.Set("bytes", tensor.bytes);
    tensors.push_back(std::move(one));
  }
  json.Set("tensors", std::move(tensors));
  return json;
}

}  // namespace nibble
