#include "runtime/model/loader.h"

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/program_builder.h"
#include "tests/model/loaded_model.h"
#include "tests/model/tiny_models.h"
#include "tests/support/greedy.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class LoaderTest : public ::testing::Test {
 protected:
  void Open(const TinyModel& model) {
    WriteHuggingFace(model, dir_);
    auto loaded = LoadForTest(dir_.path());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    model_ = *std::move(loaded);
  }

  absl::StatusOr<std::unique_ptr<Runner>> Load(const LoadProgress& progress) {
    return LoadRunner(model_.config, *model_.checkpoint, *model_.format, model_.plan,
                      *model_.backend, progress);
  }

  TempDir dir_;
  LoadedModel model_;
};

TEST_F(LoaderTest, ReportsProgressToTheEnd) {
  ASSERT_NO_FATAL_FAILURE(Open(FindTinyModel("qwen3_moe")));
  std::mutex mutex;
  std::int64_t last = 0, total = 0;
  bool compiled = false;
  const auto runner = Load([&](const char* stage, std::int64_t done, std::int64_t of) {
    const std::lock_guard lock(mutex);
    EXPECT_GE(done, last);
    last = done;
    total = of;
    compiled = std::string(stage) == "compile";
    return true;
  });
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_GT(total, 0);
  EXPECT_EQ(last, total);
  EXPECT_TRUE(compiled);
}

TEST_F(LoaderTest, StopsWhenProgressSaysSo) {
  ASSERT_NO_FATAL_FAILURE(Open(FindTinyModel("llama")));
  int calls = 0;
  const auto weights = Load([&](const char*, std::int64_t, std::int64_t) { return ++calls < 2; });
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 2);
  const auto compile = Load([&](const char* stage, std::int64_t, std::int64_t) {
    return std::string(stage) != "compile";
  });
  EXPECT_EQ(compile.status().code(), absl::StatusCode::kCancelled);
}

TEST_F(LoaderTest, AFileThatShrankIsAStatusThatNamesTheTensor) {
  ASSERT_NO_FATAL_FAILURE(Open(FindTinyModel("llama")));
  const std::string file = dir_.File("model.safetensors");
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  const auto runner = Load(nullptr);
  ASSERT_FALSE(runner.ok());
  EXPECT_THAT(std::string(runner.status().message()), HasSubstr("model.safetensors"));
}

TEST_F(LoaderTest, TheSameModelLoadsTwiceAlike) {
  const TinyModel tiny = FindTinyModel("llama");
  ASSERT_NO_FATAL_FAILURE(Open(tiny));
  const auto again = Load(nullptr);
  ASSERT_TRUE(again.ok()) << again.status();
  GreedySequence first(*model_.runner, model_.plan.kv), second(**again, model_.plan.kv);
  const auto a = first.Generate(tiny.prompt, 16), b = second.Generate(tiny.prompt, 16);
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(*a, *b);
}

TEST(ProgramTest, MissingTensorsAreNamed) {
  TinyModel model = FindTinyModel("llama");
  std::erase_if(model.tensors, [](const FloatTensor& tensor) {
    return tensor.name == "model.layers.2.self_attn.k_proj.weight";
  });
  TempDir dir;
  EXPECT_THAT(std::string(LoadForTest(WriteHuggingFace(model, dir)).status().message()),
              HasSubstr("model.layers.2.self_attn.k_proj"));

  model = FindTinyModel("qwen2");
  std::erase_if(model.tensors, [](const FloatTensor& tensor) {
    return tensor.name == "model.layers.1.self_attn.q_proj.bias";
  });
  TempDir without_bias;
  EXPECT_THAT(std::string(LoadForTest(WriteHuggingFace(model, without_bias)).status().message()),
              HasSubstr("model.layers.1.self_attn.q_proj has no bias"));
}

}  // namespace
}  // namespace nibble
