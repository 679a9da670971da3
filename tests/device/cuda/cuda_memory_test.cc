// What steps take of the device: nothing. The linker routes every cudaMalloc of this program
// through here.
#include <cuda_runtime_api.h>

#include <atomic>

#include "tests/device/cuda/on_cuda.h"
#include "tests/device/tiny_program.h"

namespace {
std::atomic<int> allocations{0};
}  // namespace

extern "C" {
cudaError_t __real_cudaMalloc(void** data, std::size_t bytes);
cudaError_t __real_cudaMallocHost(void** data, std::size_t bytes);
cudaError_t __wrap_cudaMalloc(void** data, std::size_t bytes) {
  ++allocations;
  return __real_cudaMalloc(data, bytes);
}
cudaError_t __wrap_cudaMallocHost(void** data, std::size_t bytes) {
  ++allocations;
  return __real_cudaMallocHost(data, bytes);
}
}

namespace nibble {
namespace {

std::size_t FreeBytes() {
  std::size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return free;
}

// Prompts of several lengths at once, then decode of ever fewer, sampled in every way.
void RunSteps(Runner& runner, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    constexpr std::int32_t kSequences = 30;
    StepBuilder prefill(64);
    for (std::int32_t s = 0; s < kSequences; ++s) {
      SamplingParams params;
      params.temperature = s % 3 == 0 ? 0.0f : 1.0f;
      params.top_p = s % 3 == 1 ? 0.9f : 1.0f;
      params.repetition_penalty = s % 5 == 0 ? 1.2f : 1.0f;
      params.top_logprobs = s % 4 == 0 ? 5 : -1;
      prefill.Begin(s, params);
      prefill.Append(s, 0, Prompt(1 + s % 14, s));
      prefill.Sample();
    }
    RunStep(runner, prefill);
    for (std::int32_t left = kSequences; left > 0; left -= 3) {
      StepBuilder decode(64);
      for (std::int32_t s = 0; s < left; ++s) {
        decode.Append(s, 1 + s % 14 + (kSequences - left) / 3, {s});
        decode.Sample(1 + (kSequences - left) / 3);
      }
      RunStep(runner, decode);
    }
  }
}

TEST(CudaMemoryTest, StepsAllocateNothing) {
  NIBBLE_REQUIRE_CUDA(cuda, Compute::kAuto);
  TinyModel model = MakeTinyModel(*cuda);
  model.kv.page_tokens = 64;
  model.kv.dtype = cuda->DefaultKvDType(Compute::kAuto);
  EXPECT_GT(allocations.load(), 0);  // of the weights: the linker does as it is told
  const auto runner = Compile(*cuda, std::move(model));
  RunSteps(*runner, 1);  // kernels are loaded when they are first launched
  const int before = allocations.load();
  const std::size_t free = FreeBytes();
  RunSteps(*runner, 20);
  EXPECT_EQ(allocations.load(), before);
  EXPECT_EQ(FreeBytes(), free);
}

TEST(CudaMemoryTest, EverythingIsGivenBack) {
  NIBBLE_REQUIRE_CUDA(cuda, Compute::kAuto);
  const auto run = [&] {
    TinyModel model = MakeTinyModel(*cuda);
    model.kv.page_tokens = 64;
    model.kv.dtype = cuda->DefaultKvDType(Compute::kAuto);
    RunSteps(*Compile(*cuda, std::move(model), {.expanded = true}), 1);
  };
  run();  // what stays are kernels
  const std::size_t free = FreeBytes();
  for (int i = 0; i < 3; ++i) run();
  EXPECT_EQ(FreeBytes(), free);
}

}  // namespace
}  // namespace nibble
