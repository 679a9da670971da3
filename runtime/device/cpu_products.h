// Matrix products of the CPU backend, spread over its threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/thread_pool.h"
#include "runtime/device/cpu_linear.h"
#include "runtime/device/host_memory.h"

namespace nibble {

// What every part of the executor works with; owned by the backend.
struct CpuContext {
  cpu::ThreadPool* pool = nullptr;
  const cpu::KernelTable* kernels = nullptr;

  // Calls body(row) for every row: on this thread when `work` (elements touched) is too small to
  // share.
  template <typename Body>
  void ForRows(std::int64_t rows, std::int64_t work, Body&& body) const {
    constexpr std::int64_t kSmallest = 16384;  // a region costs about a microsecond
    const std::int64_t parts = std::int64_t{pool->threads()} * 2;
    const std::int64_t grain = work < kSmallest ? rows : (rows + parts - 1) / parts;
    pool->For(rows, grain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t row = begin; row < end; ++row) body(row);
    });
  }
};

// y = x * W^T + bias for one segment.
struct ProductJob {
  const CpuSegment* segment = nullptr;
  const float* x = nullptr;  // [rows, x_stride]
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;
  float* y = nullptr;  // [rows, y_stride]
  std::int64_t y_stride = 0;
};

// Owns the scratch of products; one thread calls it. The constructor only reserves: Bind gives the
// memory.
class CpuProducts {
 public:
  // Rows times columns of input that one job may have to prepare.
  CpuProducts(const CpuContext& context, std::int64_t max_prepared, MemoryLayout& layout);
  void Bind(const HostMemory& memory);

  // All jobs, in as few regions as the scratch allows. REQUIRES: outputs do not overlap.
  void Run(std::span<const ProductJob> jobs);

  // The panel scratch of a thread, also for reading single rows.
  float* panel(int thread) const { return panels_ + thread * cpu::kPanelFloats; }

 private:
  void RunPrepared(std::span<const ProductJob> jobs);
  void Prepare(const ProductJob& job, float* to, std::int64_t stride);

  const CpuContext& context_;
  const std::int64_t max_prepared_;
  std::int64_t panels_at_, prepared_at_;
  float* panels_ = nullptr;
  float* prepared_ = nullptr;
  std::vector<ProductJob> pending_;
};

}  // namespace nibble
