// Every key of every family's configuration with every kind of nonsense: a status or a plan, never
// a crash. Best run under the sanitizers.
#include "gtest/gtest.h"
#include "runtime/model/config.h"
#include "runtime/model/plan.h"
#include "tests/model/tiny_models.h"

namespace nibble {
namespace {

// The tensors of one checkpoint under another configuration.
class Reconfigured final : public Checkpoint {
 public:
  Reconfigured(const Checkpoint& base, Json config) : base_(base), config_(std::move(config)) {}

  CheckpointKind kind() const override { return base_.kind(); }
  const std::string& path() const override { return base_.path(); }
  const Json& config() const override { return config_; }
  const GgufMetadata* gguf() const override { return base_.gguf(); }
  absl::StatusOr<std::string> ReadSideFile(absl::string_view name) const override {
    return base_.ReadSideFile(name);
  }
  const std::vector<TensorInfo>& tensors() const override { return base_.tensors(); }
  const TensorInfo* Find(absl::string_view name) const override { return base_.Find(name); }
  absl::Status Read(const TensorInfo& tensor, std::span<std::byte> out) const override {
    return base_.Read(tensor, out);
  }
  absl::StatusOr<std::string> Revision() const override { return base_.Revision(); }

 private:
  const Checkpoint& base_;
  const Json config_;
};

std::vector<Json> Nonsense() {
  return {Json(),
          Json(0),
          Json(-1),
          Json(1),
          Json(3),
          Json(std::int64_t{1} << 31),
          Json(INT64_MIN),
          Json(std::uint64_t{1} << 63),
          Json(0.5),
          Json(-0.0),
          Json(1e-300),
          Json(1e300),
          Json(true),
          Json("yarn"),
          Json("longrope"),
          Json("dynamic"),
          Json(Json::Array{}),
          Json(Json::Array{Json(), Json(1e300), Json("x")}),
          Json(Json::Object{})};
}

class MutationTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    model_ = FindTinyModel(GetParam());
    auto checkpoint = Checkpoint::Open(WriteHuggingFace(model_, dir_));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    BackendOptions options;
    options.device = "cpu";
    options.threads = 1;
    auto backend = OpenBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }

  void Try(const Json& config) {
    const Reconfigured checkpoint(*checkpoint_, config);
    const auto read = ReadModelConfig(checkpoint);
    if (!read.ok()) {
      EXPECT_FALSE(read.status().message().empty());
      ++refused_;
      return;
    }
    const auto format = OpenFormat(checkpoint);
    if (!format.ok()) return;
    for (const RopeConfig& rope : read->ropes) BuildRopeTable(rope, read->max_context);
    const auto plan = PlanMemory(*read, checkpoint, **format, *backend_, {});
    if (plan.ok()) {
      EXPECT_LE(plan->total_bytes(), plan->budget_bytes);
      EXPECT_GE(plan->kv.num_pages, 1);
    }
  }

  // `config` with each of its own values, and each inside them, replaced in turn.
  void Mutate(const Json& whole, const std::vector<std::string>& path, const Json& object) {
    for (const auto& [key, value] : object.AsObject()) {
      std::vector<std::string> inner = path;
      inner.push_back(key);
      for (const Json& nonsense : Nonsense()) {
        SCOPED_TRACE(key + " = " + DumpJson(nonsense));
        Try(Replaced(whole, inner, 0, nonsense));
      }
      if (value.is_object()) Mutate(whole, inner, value);
    }
  }

  static Json Replaced(Json json, const std::vector<std::string>& path, std::size_t at,
                       const Json& value) {
    const Json* member = json.Find(path[at]);
    json.Set(path[at], at + 1 == path.size() ? value : Replaced(*member, path, at + 1, value));
    return json;
  }

  TempDir dir_;
  TinyModel model_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  int refused_ = 0;
};

TEST_P(MutationTest, NonsenseIsAStatus) {
  Mutate(model_.config, {}, model_.config);
  EXPECT_GT(refused_, 50);
}

INSTANTIATE_TEST_SUITE_P(Families, MutationTest,
                         ::testing::Values("llama3", "mixtral", "qwen3_yarn", "qwen3_moe_step",
                                           "phi3_longrope", "gemma3_pattern", "smollm3_list"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace nibble
