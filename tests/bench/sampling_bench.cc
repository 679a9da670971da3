// Times the whole sampler on rows of Llama-3's vocabulary: CSV on stdout.
//
//   sampling_bench
//
// flat: normal logits, sigma 2, where two thirds of the vocabulary count. peaked: the same with a
// head of 2000 tokens at 25 - 3 ln(1 + rank), nearer to what models give.
#include <cstring>

#include "kernels/cuda/ops.h"
#include "tests/bench/timing.h"
#include "tests/kernels/cuda/check.h"

int main() {
  using namespace nibble;
  using namespace nibble::cuda;
  using test::DeviceArray;
  constexpr int kVocab = 128256, kRows = 64, kHead = 2000;
  std::mt19937 rng(1);
  std::printf("logits,sampling,rows,us\n");
  for (const bool peaked : {false, true}) {
    std::vector<float> logits = test::RandomFloats(std::size_t{kVocab} * kRows, rng, 2.0f);
    for (int row = 0; peaked && row < kRows; ++row) {
      for (int rank = 0; rank < kHead; ++rank)
        logits[std::size_t{kVocab} * row + rng() % kVocab] = 25.0f - 3.0f * std::log(1.0f + rank);
    }
    const DeviceArray<float> d_logits(logits);
    for (const char* name : {"greedy", "temperature", "top_k 50", "top_p 0.9", "penalties"}) {
      std::vector<SamplingParams> params(kRows);
      for (auto& p : params) {
        if (name[0] == 'g') p.temperature = 0;
        if (std::strcmp(name, "top_k 50") == 0) p.top_k = 50;
        if (std::strcmp(name, "top_p 0.9") == 0) p.top_p = 0.9f;
        if (name[0] == 'p') p.repetition_penalty = 1.1f;
        p.seed = rng();
      }
      const DeviceArray<SamplingParams> d_params(params);
      const DeviceArray<std::uint16_t> history(
          std::vector<std::uint16_t>(std::size_t{kVocab} * kRows, 0));
      const DeviceArray<std::int32_t> last(kRows);
      const DeviceArray<SampledToken> results(kRows);
      for (int count : {1, kRows}) {
        std::vector<SampleRow> rows(count);
        for (int i = 0; i < count; ++i) rows[i].slot = i;
        const DeviceArray<SampleRow> d_rows(rows);
        constexpr int kLaunches = 8;
        const double us = bench::MedianReplay([&](cudaStream_t stream) {
          for (int i = 0; i < kLaunches; ++i) {
            NIBBLE_CUDA_OK(
                Sample({d_logits.get(), kVocab, kVocab, count, d_rows.get(), d_params.get(),
                        nullptr, history.get(), last.get(), results.get()},
                       {stream, i > 0}));
          }
        });
        std::printf("%s,%s,%d,%.2f\n", peaked ? "peaked" : "flat", name, count, us / kLaunches);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}
