#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/engine/load_model.h"

namespace nibble {
namespace {

// A number within [low, high]; anything else is a mistake of the file that should not keep a model
// from serving.
std::optional<double> NumberIn(const Json& file, const char* key, double low, double high) {
  const Json* value = file.Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  if (value->is_number()) {
    const double number = value->AsDouble();
    if (number >= low && number <= high) return number;
  }
  LogWarning("generation_config.json: a value out of range is ignored",
             {{"key", key}, {"low", absl::StrCat(low)}, {"high", absl::StrCat(high)}});
  return std::nullopt;
}

void AddId(const Json& value, std::vector<std::int32_t>& ids) {
  if (value.is_integer() && value.FitsInt64() && value.AsInt64() >= 0) {
    ids.push_back(static_cast<std::int32_t>(std::min<std::int64_t>(value.AsInt64(), INT32_MAX)));
  }
}

}  // namespace

absl::StatusOr<GenerationConfig> ReadGenerationConfig(const Checkpoint& checkpoint,
                                                      const ModelConfig& config,
                                                      const Tokenizer& tokenizer) {
  GenerationConfig result;
  SamplingParams& sampling = result.defaults.sampling;
  std::vector<std::int32_t> ids;
  absl::StatusOr<std::string> text = checkpoint.ReadSideFile("generation_config.json");
  if (text.ok()) {
    absl::StatusOr<Json> file = ParseJson(*text);
    if (!file.ok()) {
      return absl::Status(file.status().code(),
                          absl::StrCat("generation_config.json: ", file.status().message()));
    }
    if (const auto value = NumberIn(*file, "temperature", 0, 100))
      sampling.temperature = static_cast<float>(*value);
    if (const auto value = NumberIn(*file, "top_k", 0, 1e9))
      sampling.top_k = static_cast<std::int32_t>(*value);
    if (const auto value = NumberIn(*file, "top_p", 1e-6, 1))
      sampling.top_p = static_cast<float>(*value);
    if (const auto value = NumberIn(*file, "min_p", 0, 1))
      sampling.min_p = static_cast<float>(*value);
    if (const auto value = NumberIn(*file, "repetition_penalty", 1e-2, 100)) {
      sampling.repetition_penalty = static_cast<float>(*value);
    }
    const Json* sample = file->Find("do_sample");
    if (sample != nullptr && sample->is_bool() && !sample->AsBool()) sampling.temperature = 0;
    if (const Json* eos = file->Find("eos_token_id")) {
      if (eos->is_array()) {
        for (const Json& id : eos->AsArray()) AddId(id, ids);
      } else {
        AddId(*eos, ids);
      }
    }
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  if (ids.empty()) ids = config.eos_ids;
  const std::vector<std::int32_t> own = tokenizer.end_ids();
  ids.insert(ids.end(), own.begin(), own.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::erase_if(ids, [&](std::int32_t id) { return id < 0 || id >= config.vocab; });
  result.eos_ids = std::move(ids);
  return result;
}

}  // namespace nibble
