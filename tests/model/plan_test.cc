#include "runtime/model/plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/program_builder.h"
#include "tests/model/tiny_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kMiB = 1 << 20;

TEST(PlanArithmeticTest, TextbookFigures) {
  // Llama-2-13B, fp16, 4096 tokens: 3.125 GiB a sequence.
  EXPECT_EQ(KvBytesPerToken(40, 5120, 2) * 4096, std::int64_t{3200} * kMiB);
  // An A100 of 312 TFLOP/s and 1555 GB/s.
  EXPECT_NEAR(BalanceBatch(312e12, 1555e9, 16), 100.3, 0.05);
  // Textbooks that count 1024 GFLOP to the TFLOP print 102.7.
  EXPECT_NEAR(BalanceBatch(312 * 1024e9, 1555e9, 16), 102.7, 0.05);
  EXPECT_NEAR(BalanceBatch(312e12, 1555e9, 4), 100.3 / 4, 0.05);
}

// A tiny model open for planning on the CPU.
class PlanTest : public ::testing::Test {
 protected:
  void Open(const std::string& name) {
    path_ = WriteHuggingFace(FindTinyModel(name), dir_);
    auto checkpoint = Checkpoint::Open(path_);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    auto format = OpenFormat(*checkpoint_);
    ASSERT_TRUE(format.ok()) << format.status();
    format_ = *std::move(format);
    auto config = ReadModelConfig(*checkpoint_);
    ASSERT_TRUE(config.ok()) << config.status();
    config_ = *std::move(config);
    BackendOptions options;
    options.device = "cpu";
    options.threads = 1;
    auto backend = OpenBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }

  absl::StatusOr<MemoryPlan> Plan(const PlanOptions& options) {
    return PlanMemory(config_, *checkpoint_, *format_, *backend_, options);
  }

  TempDir dir_;
  std::string path_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<WeightFormat> format_;
  std::unique_ptr<Backend> backend_;
  ModelConfig config_;
};

TEST_F(PlanTest, CountsWhatPackHolds) {
  for (const char* name : {"llama", "qwen2", "mixtral", "phi3", "gemma3"}) {
    SCOPED_TRACE(name);
    ASSERT_NO_FATAL_FAILURE(Open(name));
    const auto plan = Plan({});
    ASSERT_TRUE(plan.ok()) << plan.status();
    const auto built = BuildProgram(config_, *checkpoint_, *format_, 128);
    ASSERT_TRUE(built.ok()) << built.status();
    std::int64_t bytes = 0;
    for (const LinearPlan& linear : built->weights.linears) {
      const auto weights = LoadLinear(*format_, linear);
      ASSERT_TRUE(weights.ok()) << weights.status();
      const auto packed = backend_->Pack(*weights, linear.axis);
      ASSERT_TRUE(packed.ok()) << packed.status();
      bytes += (*packed)->bytes;
    }
    for (const VectorPlan& vector : built->weights.vectors) bytes += vector.size * 4;
    EXPECT_EQ(plan->weights_bytes, bytes);
    std::int64_t parameters = 0;
    for (const TensorInfo& tensor : checkpoint_->tensors())
      parameters += static_cast<std::int64_t>(tensor.bytes) / 4;
    EXPECT_EQ(plan->parameters, parameters);
  }
}

TEST_F(PlanTest, HoldsEverySequenceAtFullLengthAndNoMore) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  PlanOptions options;
  options.max_batch = 3;
  options.kv_dtype = DType::kF16;
  const auto plan = Plan(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kv_bytes_per_token, 2 * 4 * 16 * 2);  // K and V, layers, kv heads * head_dim, f16
  EXPECT_EQ(plan->limits.max_context, 128);
  EXPECT_EQ(plan->kv.num_pages, 3 * 2);
  EXPECT_EQ(plan->kv_tokens, 3 * 128);
  EXPECT_EQ(plan->kv_bytes, plan->kv_tokens * plan->kv_bytes_per_token);
  EXPECT_LE(plan->total_bytes(), plan->budget_bytes);
}

TEST_F(PlanTest, TakesWhatKvMemoryGives) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  PlanOptions options;
  options.max_batch = 8;
  options.kv_dtype = DType::kF16;
  options.kv_bytes = 5 * 64 * 256 + 100;  // five pages and a rest
  const auto plan = Plan(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kv.num_pages, 5);
}

TEST_F(PlanTest, KeepsTheModelsContextBesideASmallPoolUnlessOneWasAskedFor) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  PlanOptions options;
  options.kv_dtype = DType::kF16;
  options.kv_bytes = 64 * 256;  // one page
  const auto plan = Plan(options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->limits.max_context, 128);
  EXPECT_EQ(plan->kv_tokens, 64);
  options.max_context = 128;
  const auto asked = Plan(options);
  EXPECT_EQ(asked.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(asked.status().message()), HasSubstr("--max-context 128"));
}

// Before a byte of the weights is read.
TEST_F(PlanTest, RefusesKeysAndValuesThatTheBackendCannotKeep) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  PlanOptions options;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    options.kv_dtype = dtype;
    EXPECT_TRUE(Plan(options).ok()) << NameOf(dtype);
  }
  for (const DType dtype : {DType::kF8E4M3, DType::kI8}) {
    options.kv_dtype = dtype;
    const absl::Status status = Plan(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << NameOf(dtype);
    EXPECT_THAT(std::string(status.message()), HasSubstr("--kv-dtype"));
  }
}

// A backend that could keep copies.
class CopyingBackend final : public Backend {
 public:
  explicit CopyingBackend(Backend& backend) : backend_(backend) {}
  const DeviceInfo& info() const override { return backend_.info(); }
  DType DefaultKvDType(Compute compute) const override { return backend_.DefaultKvDType(compute); }
  std::string ComputeName() const override { return backend_.ComputeName(); }
  absl::StatusOr<std::int64_t> PackedBytes(std::span<const LinearSpec> specs,
                                           PackAxis axis) const override {
    return backend_.PackedBytes(specs, axis);
  }
  absl::StatusOr<std::int64_t> ExpandedBytes(std::span<const LinearSpec> specs) const override {
    std::int64_t bytes = 0;
    for (const LinearSpec& spec : specs) bytes += 2 * spec.n * spec.k;
    return bytes;
  }
  absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(std::span<const LinearWeight> weights,
                                                     PackAxis axis) override {
    return backend_.Pack(weights, axis);
  }
  std::int64_t WorkspaceBytes(const Program& program, const StepLimits& limits) const override {
    return backend_.WorkspaceBytes(program, limits);
  }
  absl::StatusOr<std::unique_ptr<Runner>> Compile(const Program& program, ModelWeights weights,
                                                  const KvLayout& kv, const StepLimits& limits,
                                                  const CompileOptions& options) override {
    return backend_.Compile(program, std::move(weights), kv, limits, options);
  }

 private:
  Backend& backend_;
};

TEST_F(PlanTest, KeepsAnExpandedCopyWhereTheKvPoolCanSpareIt) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  const CopyingBackend backend(*backend_);
  const auto plan_with = [&](const PlanOptions& options) {
    return PlanMemory(config_, *checkpoint_, *format_, backend, options);
  };
  PlanOptions options;
  options.max_batch = 2;
  options.kv_dtype = DType::kF16;
  const auto roomy = plan_with(options);
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  std::int64_t copies = 0;  // of every linear but the embedding and the head
  const auto built = BuildProgram(config_, *checkpoint_, *format_, 128);
  ASSERT_TRUE(built.ok()) << built.status();
  for (const LinearPlan& linear : built->weights.linears) {
    const auto specs = DescribeLinear(*format_, linear);
    ASSERT_TRUE(specs.ok()) << specs.status();
    for (const LinearSpec& spec : *specs)
      copies += spec.n == config_.vocab ? 0 : 2 * spec.n * spec.k;
  }
  EXPECT_EQ(roomy->expanded_bytes, copies);
  EXPECT_EQ(roomy->total_bytes(), roomy->fixed_bytes() + roomy->kv_bytes);

  options.prefill_weights = PrefillWeights::kPacked;
  const auto packed = plan_with(options);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(packed->expanded_bytes, 0);
  EXPECT_EQ(packed->kv_bytes, roomy->kv_bytes);

  ASSERT_GT(copies / 2, packed->kv_bytes / 4);  // more than may be taken from the pool
  options.prefill_weights = PrefillWeights::kAuto;
  options.memory_bytes = packed->total_bytes() + copies;
  EXPECT_EQ(plan_with(options)->expanded_bytes, copies);
  options.memory_bytes = packed->total_bytes() + copies / 2;  // the rest would be the KV pool's
  const auto small = plan_with(options);
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->expanded_bytes, 0);
  EXPECT_EQ(small->kv_bytes, packed->kv_bytes);

  options = {};
  options.prefill_weights = PrefillWeights::kExpanded;
  options.memory_bytes = packed->fixed_bytes() + copies / 2;
  EXPECT_THAT(std::string(plan_with(options).status().message()),
              HasSubstr("--prefill-weights=packed"));
  options.memory_bytes.reset();
  options.deterministic = true;
  EXPECT_EQ(plan_with(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.prefill_weights = PrefillWeights::kAuto;
  EXPECT_EQ(plan_with(options)->expanded_bytes, 0);
}

TEST_F(PlanTest, HostKeepsNoExpandedCopy) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  EXPECT_EQ(Plan({})->expanded_bytes, 0);
  const auto asked = Plan({.prefill_weights = PrefillWeights::kExpanded});
  EXPECT_EQ(asked.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(asked.status().message()), HasSubstr("--prefill-weights=expanded: cpu"));
}

TEST_F(PlanTest, RefusalsNameSizesAndFlags) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  PlanOptions options;
  options.memory_bytes = kMiB;
  const auto small = Plan(options);
  EXPECT_EQ(small.status().code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"weights", "workspace", "KV", "--memory is 1.0 MiB", "Raise --memory"}) {
    EXPECT_THAT(std::string(small.status().message()), HasSubstr(part));
  }

  options = {};
  options.max_context = 129;
  EXPECT_THAT(std::string(Plan(options).status().message()), HasSubstr("from 1 to 128"));
  options = {};
  options.max_batch = 0;
  EXPECT_THAT(std::string(Plan(options).status().message()), HasSubstr("--max-batch is 0"));
  options = {};
  options.kv_bytes = 1;
  EXPECT_THAT(std::string(Plan(options).status().message()), HasSubstr("--kv-memory"));
  options = {};
  options.memory_bytes = std::int64_t{1} << 30;
  options.kv_bytes = std::int64_t{2} << 30;
  EXPECT_EQ(Plan(options).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(PlanTest, WrongShapesAreFoundBeforeLoading) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  config_.intermediate = 64;
  const auto plan = Plan({});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(plan.status().message()),
      HasSubstr(
          "model.layers.0.mlp.gate_proj is [48, 32], but the configuration makes it [64, 32]"));
}

TEST_F(PlanTest, JsonHasEveryNumber) {
  ASSERT_NO_FATAL_FAILURE(Open("llama"));
  const auto plan = Plan({});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const Json json = ToJson(*plan);
  EXPECT_EQ(json.Find("total_bytes")->AsInt64(), plan->total_bytes());
  EXPECT_EQ(json.Find("kv_tokens")->AsInt64(), plan->kv_tokens);
  EXPECT_EQ(json.Find("max_batch")->AsInt64(), plan->limits.max_sequences);
}

}  // namespace
}  // namespace nibble
