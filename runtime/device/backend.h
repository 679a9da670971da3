// A device: memory, packing, compiling a Program. One file a backend; engine and model know only
// this.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/kv_layout.h"
#include "runtime/device/program.h"
#include "runtime/device/step.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// The narrowest type activations may be rounded to (--compute).
enum class Compute : std::uint8_t { kAuto, kF32, kF16, kBF16, kFp8, kInt8 };

struct DeviceInfo {
  std::string name;               // "cpu" | "cuda:0"
  std::string description;        // "AMD EPYC, 2 threads, AVX-512 VNNI"
  std::int64_t memory_bytes = 0;  // usable in all: the card's, or the cgroup's limit
  double memory_bandwidth = 0;    // bytes/s, measured or tabled; 0: unknown
  double flops = 0;               // 16-bit multiply-adds * 2 a second; 0: unknown
};

// A stack of weights in the layout this backend's kernels like: concatenated along N (q, k, v), or
// stacked as experts. kGateUp is kN of [gate; up], whose product one GluOp reads: a backend may
// interleave the two. Segments of unequal encodings stay apart inside.
enum class PackAxis : std::uint8_t { kN, kExperts, kGateUp };

class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  std::int64_t n = 0;  // all segments together (kN), or of one expert
  std::int64_t k = 0;
  std::int64_t bytes = 0;  // device bytes held
};

// Weights of one model on one device, in the order the Program names them.
struct ModelWeights {
  std::vector<std::unique_ptr<PackedLinear>> linears;
  std::vector<std::vector<float>> vectors;  // norms; consumed by Compile
};

// The most one step may carry; buffers are sized for it.
struct StepLimits {
  std::int32_t max_tokens = 512;     // of a step (prefill chunk, or decode rows)
  std::int32_t max_sequences = 64;   // of a step
  std::int32_t max_slots = 64;       // sequences alive at once
  std::int32_t max_logit_rows = 64;  // of a step
  std::int32_t max_context = 2048;
  // Tokens that products work on at once: what a prefill step has over a multiple costs as much as
  // that many.
  std::int32_t tile_tokens = 1;
};

// How a model is compiled, besides its limits.
struct CompileOptions {
  // Keep Backend::ExpandedBytes of every one of TokenLinears(), for steps of many tokens.
  bool expanded = false;
  // A token's bits do not depend on what else is in its step, nor on its place there; two phases
  // may still differ.
  bool deterministic = false;
};

// What a Runner took from its device: the memory plan as it came out.
struct RunnerMemory {
  std::int64_t weights_bytes = 0;
  std::int64_t expanded_bytes = 0;
  std::int64_t kv_bytes = 0;
  std::int64_t workspace_bytes = 0;
  std::int64_t graphs_bytes = 0;
};

// The device half of a model. One thread (the engine's) calls it.
class Runner {
 public:
  virtual ~Runner() = default;

  // How many steps may be in flight besides the one being launched: 0 on the CPU, 1 on an
  // asynchronous device.
  virtual int depth() const = 0;

  // Starts a step; its inputs are copied before this returns. Steps run in launch order. Errors
  // that end the device (sticky) are Internal; every later call repeats them.
  virtual absl::Status Launch(const StepInput& input) = 0;

  // Waits for the oldest launched step. REQUIRES: one is in flight.
  virtual absl::StatusOr<StepResult> Collect() = 0;

  virtual int in_flight() const = 0;

  // Counted where it was allocated, not taken from the plan. Zeros: unknown.
  virtual RunnerMemory memory() const { return {}; }
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const DeviceInfo& info() const = 0;

  // The KV element type that "auto" means here.
  virtual DType DefaultKvDType(Compute compute) const = 0;
  // Whether Compile can keep such a pool, its size aside; Unimplemented says what to change.
  virtual absl::Status CheckKv(const KvLayout&) const { return absl::OkStatus(); }
  // What activations are rounded to, and weights beyond their format, for people: "f32", "f16".
  virtual std::string ComputeName() const = 0;

  // Exactly the device bytes Pack will hold. Unimplemented names what this backend cannot run.
  virtual absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs,
                                                   PackAxis axis) const = 0;
  virtual absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(std::span<const LinearWeight> weights,
                                                             PackAxis axis) = 0;

  // Exactly the device bytes of a copy in 16 bits, beside the packed weights, of a linear of such
  // parts; 0 where they are in 16 bits already. Unimplemented: this backend keeps none.
  virtual absl::StatusOr<std::int64_t> ExpandedBytes(std::span<const LinearSpec> specs) const;

  // Exactly the device bytes Compile will take besides the weights, their
  // expanded copy and the KV pool.
  virtual std::int64_t WorkspaceBytes(const Program& program, const StepLimits& limits) const = 0;

  // About the device bytes that Compile takes for steps captured at load; 0 where none are.
  virtual std::int64_t GraphsBytes(const Program&, const StepLimits&) const { return 0; }

  // Allocates the KV pool and the workspace; nothing is allocated in a step.
  virtual absl::StatusOr<std::unique_ptr<Runner>> Compile(const Program& program,
                                                          ModelWeights weights, const KvLayout& kv,
                                                          const StepLimits& limits,
                                                          const CompileOptions& options) = 0;
};

struct BackendOptions {
  std::string device = "auto";  // auto | cpu | cuda[:N]
  int threads = 0;              // 0: the cgroup's quota
  Compute compute = Compute::kAuto;
  // The type the model was made in, kF16 or kBF16: what kAuto is on a device that computes in 16
  // bits.
  DType model_dtype = DType::kF16;
};

// The table of backends. NotFound names the devices there are.
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options);

}  // namespace nibble
