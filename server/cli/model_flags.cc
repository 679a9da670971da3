#include "server/cli/model_flags.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "server/options.h"
#include "server/values.h"
#include "server/wire.h"

namespace nibble {
namespace {

template <typename T>
absl::Status Take(const char* flag, absl::StatusOr<T> parsed, T* value) {
  if (!parsed.ok()) {
    return absl::Status(parsed.status().code(),
                        absl::StrCat(flag, ": ", parsed.status().message()));
  }
  *value = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status TakeSize(const char* flag, const std::string& text, std::optional<MemorySize>* value) {
  if (text.empty()) return absl::OkStatus();
  MemorySize size;
  RETURN_IF_ERROR(Take(flag, ParseMemorySize(text), &size));
  *value = size;
  return absl::OkStatus();
}

}  // namespace

void ModelFlags::AddTo(CLI::App& app) {
  const char* const group = "Model";
  app.add_option("--device", device, "auto, cpu or cuda[:N]")->group(group);
  app.add_option("--threads", threads, "of the CPU; 0: the cgroup's quota")
      ->check(CLI::Range(0, 1024))
      ->group(group);
  app.add_option("--memory", memory, "most to use, BYTES or PERCENT of the device's (90%)")
      ->group(group);
  app.add_option("--kv-memory", kv_memory, "of the KV cache, BYTES or PERCENT (what is left)")
      ->group(group);
  app.add_option("--kv-dtype", kv_dtype, "of the KV cache: auto, f32, f16, bf16, fp8 or int8")
      ->group(group);
  app.add_option("--compute", compute,
                 "narrowest type of activations: auto, f32, f16, bf16, fp8 or int8")
      ->group(group);
  app.add_option("--prefill-weights", prefill_weights,
                 "what prompts multiply by on a GPU: auto, packed or expanded")
      ->group(group);
  app.add_option("--max-context", max_context, "tokens of one sequence (the model's)")
      ->group(group);
  app.add_option("--max-batch", max_batch, "sequences at once")->group(group);
  app.add_option("--quantize", quantize,
                 "a 16-bit checkpoint at load: none, nf4, fp4, int8 or int4")
      ->group(group);
  app.add_flag("--deterministic", deterministic, "answers do not depend on what runs beside them")
      ->group(group);
}

absl::StatusOr<LoadSpec> ModelFlags::ToLoadSpec(const std::string& path,
                                                OpenDevices& devices) const {
  ServeOptions options;
  options.device = device;
  options.threads = threads;
  options.max_context = max_context;
  options.max_batch = max_batch;
  options.max_queue = 1024;
  options.max_itl = absl::Milliseconds(50);
  options.deterministic = deterministic;
  RETURN_IF_ERROR(TakeSize("--memory", memory, &options.memory));
  RETURN_IF_ERROR(TakeSize("--kv-memory", kv_memory, &options.kv_memory));
  RETURN_IF_ERROR(Take("--kv-dtype", ParseKvDType(kv_dtype), &options.kv_dtype));
  RETURN_IF_ERROR(Take("--compute", ParseCompute(compute), &options.compute));
  RETURN_IF_ERROR(
      Take("--prefill-weights", ParsePrefillWeights(prefill_weights), &options.prefill_weights));
  RETURN_IF_ERROR(Take("--quantize", ParseQuantization(quantize), &options.quantize));
  std::int64_t device_bytes = 0;
  if (NeedsDeviceBytes(options)) {
    ASSIGN_OR_RETURN(const auto backend, devices.Get(MakeLoadSpec(options, 0).backend));
    device_bytes = backend->info().memory_bytes;
  }
  ModelOption model;
  model.name = DefaultModelName(path);
  model.path = path;
  return MakeLoadSpec(options, model, device_bytes);
}

}  // namespace nibble
