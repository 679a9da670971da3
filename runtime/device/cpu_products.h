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

// What inputs of integer-coded weights may be rounded to: integers in blocks, or nothing.
enum class InputRounding : std::uint8_t { kNone, kInt8, kInt16 };

// What every part of the executor works with; owned by the backend.
struct CpuContext {
  cpu::ThreadPool* pool = nullptr;
  const cpu::KernelTable* kernels = nullptr;
  InputRounding rounding = InputRounding::kNone;

  bool integer() const { return rounding != InputRounding::kNone; }
  DenseForm dense_form() const { return integer() ? DenseForm::kRounded : DenseForm::kExact; }

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
  // Where set, y = silu(x * W^T + bias) * (x * up^T + bias). REQUIRES: TakesGlu.
  const CpuSegment* up = nullptr;
};

// The largest products of a program: scratch is sized for them.
struct ProductLimits {
  std::int64_t inputs = 0;  // rows times columns (rounded up to blocks) of one job's input
  std::int64_t k = 0;

  void Include(std::int64_t rows, std::int64_t columns);
};

// Owns the scratch of products; one thread calls it. The constructor only reserves: Bind gives the
// memory.
class CpuProducts {
 public:
  CpuProducts(const CpuContext& context, const ProductLimits& limits, MemoryLayout& layout);
  void Bind(const HostMemory& memory);

  // Whether the products of a gate and of what it lets through can be one job.
  bool TakesGlu(const CpuSegment& gate, const CpuSegment& up, std::int64_t rows) const;

  // All jobs, in as few regions as the scratch allows. REQUIRES: outputs do not overlap.
  void Run(std::span<const ProductJob> jobs);

  // The panel scratch of a thread, also for reading single rows.
  float* panel(int thread) const { return panels_ + thread * cpu::kPanelFloats; }

 private:
  // How one job's input becomes codes; equal ones of the same input are shared.
  struct Rounding {
    cpu::QuantizeScope scope = cpu::QuantizeScope::kSpan;
    std::int64_t span = 1;
    bool wide = false;
    std::int32_t limit = 0;
    bool operator==(const Rounding&) const = default;
  };
  // A job with its input as the kernels take it.
  struct Ready {
    ProductJob job;
    bool integer = false;
    cpu::QuantizedRows quantized;
  };

  void RunReady();
  void Prepare(const ProductJob& job, float* to, std::int64_t stride);
  Rounding RoundingOf(const CpuSegment& segment) const;
  cpu::QuantizedRows Quantize(const ProductJob& job, const Rounding& rounding, std::int64_t at);
  void RunTiles(const Ready& ready, std::int64_t begin, std::int64_t end, int thread);

  const CpuContext& context_;
  const ProductLimits limits_;
  std::int64_t panels_at_, prepared_at_, codes_at_, blocks_at_, code_panels_at_, numbers_at_;
  float* panels_ = nullptr;                // [threads, kPanelFloats]
  float* prepared_ = nullptr;              // [limits.inputs]
  std::int16_t* codes_ = nullptr;          // [limits.inputs]
  cpu::QuantizedBlock* blocks_ = nullptr;  // [limits.inputs / 32]
  std::uint8_t* code_panels_ = nullptr;    // [threads, IntegerPanelBytes]
  float* numbers_ = nullptr;               // [threads, IntegerNumberFloats]
  std::vector<Ready> ready_;
};

}  // namespace nibble
