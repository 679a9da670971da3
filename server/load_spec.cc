// From settings to loads.
#include <cmath>

#include "server/options.h"

namespace nibble {
namespace {

std::int64_t ToBytes(const MemorySize& size, std::int64_t device_bytes) {
  if (const auto* bytes = std::get_if<std::int64_t>(&size)) return *bytes;
  return static_cast<std::int64_t>(std::get<Percent>(size).value / 100.0 *
                                   static_cast<double>(device_bytes));
}

bool IsPercent(const std::optional<MemorySize>& size) {
  return size.has_value() && std::holds_alternative<Percent>(*size);
}

}  // namespace

LoadSpec MakeLoadSpec(const ServeOptions& options, std::int64_t device_bytes) {
  LoadSpec spec;
  if (options.memory.has_value()) spec.plan.memory_bytes = ToBytes(*options.memory, device_bytes);
  if (options.kv_memory.has_value()) spec.plan.kv_bytes = ToBytes(*options.kv_memory, device_bytes);
  spec.plan.kv_dtype = options.kv_dtype;
  spec.plan.max_context = options.max_context;
  spec.plan.max_batch = options.max_batch;
  spec.plan.compute = options.compute;
  spec.plan.prefill_weights = options.prefill_weights;
  spec.plan.deterministic = options.deterministic;
  spec.quantize = options.quantize;
  spec.admission = options.admission;
  spec.max_queue = options.max_queue;
  spec.max_itl = options.max_itl;
  spec.default_max_tokens = options.default_max_tokens;
  spec.backend.device = options.device;
  spec.backend.threads = options.threads;
  spec.backend.compute = options.compute;
  return spec;
}

LoadSpec MakeLoadSpec(const ServeOptions& options, const ModelOption& model,
                      std::int64_t device_bytes) {
  LoadSpec spec = MakeLoadSpec(options, device_bytes);
  spec.name = model.name;
  spec.path = model.path;
  if (model.kv_memory.has_value()) spec.plan.kv_bytes = ToBytes(*model.kv_memory, device_bytes);
  if (model.max_context.has_value()) spec.plan.max_context = model.max_context;
  if (model.device.has_value()) spec.backend.device = *model.device;
  return spec;
}

bool NeedsDeviceBytes(const ServeOptions& options) {
  if (IsPercent(options.memory) || IsPercent(options.kv_memory)) return true;
  for (const ModelOption& model : options.models) {
    if (IsPercent(model.kv_memory)) return true;
  }
  return false;
}

}  // namespace nibble
