// The slots of running sequences on the CPU, and sampling from them.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cpu/sampling.h"
#include "runtime/device/backend.h"
#include "runtime/device/cpu_products.h"
#include "runtime/device/host_memory.h"
#include "runtime/device/step.h"

namespace nibble {

// Owns the slots; one thread calls it. The constructor only reserves: Bind gives the memory.
class CpuSampler {
 public:
  CpuSampler(const CpuContext& context, std::int32_t vocab, const StepLimits& limits,
             MemoryLayout& layout);
  void Bind(const HostMemory& memory);

  void Begin(const SlotInit& init);
  std::int32_t last_token(std::int32_t slot) const {
    return slots_[static_cast<std::size_t>(slot)].last_token;
  }

  // Samples or scores every row; `logits(row)` is overwritten. Sampled tokens enter their slots.
  template <typename Logits>
  std::vector<RowResult> Run(std::span<const LogitRow> rows, Logits&& logits) {
    std::vector<RowResult> results(rows.size());
    const auto count = static_cast<std::int64_t>(rows.size());
    context_.pool->For(count, 1, [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t r = begin; r < end; ++r) {
        results[static_cast<std::size_t>(r)] =
            RunRow(rows[static_cast<std::size_t>(r)], logits(r), thread);
      }
    });
    for (std::size_t r = 0; r < rows.size(); ++r) Record(rows[r], results[r]);
    return results;
  }

 private:
  struct Slot {
    SamplingParams params;
    std::int32_t last_token = 0;
    std::vector<std::pair<std::int32_t, float>> logit_bias;
    std::vector<std::int32_t> banned;
  };

  RowResult RunRow(const LogitRow& row, float* logits, int thread) const;
  void Record(const LogitRow& row, const RowResult& result);
  std::uint16_t* history(std::int32_t slot) const { return history_ + std::int64_t{slot} * vocab_; }

  const CpuContext& context_;
  const std::int32_t vocab_;
  std::int64_t history_at_, candidates_at_, probabilities_at_;
  std::uint16_t* history_ = nullptr;      // [slots, vocab]
  cpu::Candidate* candidates_ = nullptr;  // [threads, vocab]
  float* probabilities_ = nullptr;        // [threads, vocab]
  std::vector<Slot> slots_;
};

}  // namespace nibble
