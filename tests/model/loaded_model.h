// A checkpoint taken all the way to a Runner, as the daemon does it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/base/status.h"
#include "runtime/device/backend.h"
#include "runtime/model/config.h"
#include "runtime/model/loader.h"
#include "runtime/model/plan.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/format.h"

namespace nibble {

struct LoadOptions {
  std::string device = "cpu";
  LoadQuantization quantize = LoadQuantization::kNone;
  Compute compute = Compute::kF32;
  std::optional<DType> kv_dtype = DType::kF32;
  std::int32_t page_tokens = 64;
  std::optional<std::int32_t> max_context;
};

struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<WeightFormat> format;
  std::unique_ptr<Backend> backend;
  ModelConfig config;
  MemoryPlan plan;
  std::unique_ptr<Runner> runner;  // ends before its backend
};

inline absl::StatusOr<LoadedModel> LoadForTest(const std::string& path,
                                               const LoadOptions& options = {}) {
  LoadedModel model;
  ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(path));
  ASSIGN_OR_RETURN(model.config, ReadModelConfig(*model.checkpoint));
  ASSIGN_OR_RETURN(model.format, OpenFormat(*model.checkpoint, options.quantize));
  BackendOptions backend;
  backend.device = options.device;
  backend.threads = 2;
  backend.compute = options.compute;
  backend.model_dtype = model.config.dtype;
  ASSIGN_OR_RETURN(model.backend, OpenBackend(backend));
  PlanOptions plan;
  plan.compute = options.compute;
  plan.kv_dtype = options.kv_dtype;
  plan.page_tokens = options.page_tokens;
  plan.max_context = options.max_context;
  plan.max_batch = 4;
  plan.memory_bytes = std::int64_t{2} << 30;
  ASSIGN_OR_RETURN(
      model.plan, PlanMemory(model.config, *model.checkpoint, *model.format, *model.backend, plan));
  ASSIGN_OR_RETURN(model.runner, LoadRunner(model.config, *model.checkpoint, *model.format,
                                            model.plan, *model.backend, nullptr));
  return model;
}

}  // namespace nibble
