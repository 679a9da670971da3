// The inputs of a step as the kernels read them: one block of device memory at fixed addresses,
// whose image is written in page-locked memory and copied as a whole.
#pragma once

#include <cstdint>

#include "kernels/cuda/ops.h"
#include "runtime/device/backend.h"
#include "runtime/device/cuda_raii.h"
#include "runtime/device/step.h"

namespace nibble {

// What the grid of a step's kernels depends on. Decode steps are padded to a bucket.
struct CudaStepShape {
  int tokens = 0;
  int rows = 0;  // of logits
  int sequences = 0;
  int max_queries = 0;
  int max_context = 0;
  bool decode = false;  // the phase, and one token a sequence
};

CudaStepShape ShapeOf(const StepInput& input);

class CudaStepLayout {
 public:
  CudaStepLayout(const StepLimits& limits, const KvLayout& kv);

  std::int64_t bytes() const { return layout_.total(); }
  std::int64_t ld_pages() const { return ld_pages_; }

  // Writes the image of `input`, padded to `shape`: tokens of no slot that are written nowhere,
  // sequences of no keys, rows that are neither sampled nor scored. Returns how much of it a step
  // of this shape reads. REQUIRES: StepChecker accepted it.
  std::int64_t Write(const StepInput& input, const CudaStepShape& shape, std::byte* host) const;

  // Addresses in the block at `base`.
  const std::int32_t* tokens(const std::byte* base) const {
    return At<std::int32_t>(base, tokens_);
  }
  const std::int32_t* token_slots(const std::byte* base) const {
    return At<std::int32_t>(base, token_slots_);
  }
  const std::int32_t* positions(const std::byte* base) const {
    return At<std::int32_t>(base, positions_);
  }
  // Where each token's keys go: page * page_tokens + offset.
  const std::int32_t* places(const std::byte* base) const {
    return At<std::int32_t>(base, places_);
  }
  const std::int32_t* query_offsets(const std::byte* base) const {
    return At<std::int32_t>(base, query_offsets_);
  }
  const std::int32_t* contexts(const std::byte* base) const {
    return At<std::int32_t>(base, contexts_);
  }
  const std::int32_t* row_tokens(const std::byte* base) const {
    return At<std::int32_t>(base, row_tokens_);
  }
  const cuda::SampleRow* rows(const std::byte* base) const {
    return At<cuda::SampleRow>(base, rows_);
  }
  const std::int32_t* pages(const std::byte* base) const { return At<std::int32_t>(base, pages_); }

 private:
  template <typename T>
  static const T* At(const std::byte* base, std::int64_t offset) {
    return reinterpret_cast<const T*>(base + offset);
  }

  CudaLayout layout_;
  std::int64_t page_tokens_, ld_pages_;
  std::int64_t tokens_, token_slots_, positions_, places_, query_offsets_, contexts_, row_tokens_,
      rows_, pages_;
};

}  // namespace nibble
