// What is in a checkpoint, and what would keep it from being served; from headers and side files
// alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/json.h"
#include "runtime/engine/model_hub.h"
#include "runtime/model/config.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

struct TensorReport {
  std::string name, type;
  std::vector<std::int64_t> shape;
  std::int64_t bytes = 0;
};

struct Refusal {
  std::string what;  // "format", "configuration", "layers", "tokenizer", "chat template"
  std::string why;
};

struct CheckpointReport {
  std::string path, kind, revision;
  std::string format;                 // "" when refused
  std::optional<ModelConfig> config;  // nothing when refused
  std::vector<TensorReport> tensors;  // by name
  std::int64_t tensor_bytes = 0;
  std::int64_t parameters = 0;         // of the layers that the model uses; 0: unknown
  double bits_per_weight = 0;          // of those, as the format has them
  std::vector<std::string> encodings;  // "affine int4 g128", each once, the most used first
  std::string tokenizer;               // "" when there is none, or it is refused
  std::int32_t vocabulary = 0;
  bool has_chat_template = false;
  std::vector<Refusal> refusals;  // empty: can be served
};

// InvalidArgument or NotFound when there is no checkpoint to look into.
absl::StatusOr<CheckpointReport> ReportCheckpoint(const std::string& path,
                                                  LoadQuantization quantize);

// Layers of a model differ in a number only; their tensors of one type and shape are one group.
struct TensorGroup {
  std::string pattern;  // "blk.{0-29}.attn_q.weight"
  std::string type;
  std::vector<std::int64_t> shape;
  std::int64_t count = 0;
  std::int64_t bytes = 0;  // of all
};
std::vector<TensorGroup> GroupTensors(const std::vector<TensorReport>& tensors);

std::string ShowShape(const std::vector<std::int64_t>& shape);  // "576 x 1,536"

Json ToJson(const CheckpointReport& report);

}  // namespace nibble
