#include "runtime/device/cpu_products.h"

#include <algorithm>
#include <cstring>

namespace nibble {

using cpu::kBlockK;
using cpu::QuantizeScope;

void ProductLimits::Include(std::int64_t rows, std::int64_t columns) {
  inputs = std::max(inputs, rows * cpu::RoundUp(columns, kBlockK));
  k = std::max(k, columns);
}

CpuProducts::CpuProducts(const CpuContext& context, const ProductLimits& limits,
                         MemoryLayout& layout)
    : context_(context), limits_(limits) {
  const std::int64_t threads = context.pool->threads();
  const std::int64_t quantized = context.integer() ? limits.inputs : 0;
  panels_at_ = layout.Take(threads * cpu::kPanelFloats * 4);
  prepared_at_ = layout.Take(limits.inputs * 4);
  codes_at_ = layout.Take(quantized * (context.wide() ? 2 : 1));
  blocks_at_ =
      layout.Take(quantized / kBlockK * static_cast<std::int64_t>(sizeof(cpu::QuantizedBlock)));
  code_panels_at_ = layout.Take(context.integer() ? threads * cpu::Int8PanelBytes(limits.k) : 0);
  numbers_at_ = layout.Take(context.integer() ? threads * cpu::Int8NumberFloats(limits.k) * 4 : 0);
}

void CpuProducts::Bind(const HostMemory& memory) {
  panels_ = memory.At<float>(panels_at_);
  prepared_ = memory.At<float>(prepared_at_);
  codes_ = memory.At<std::int8_t>(codes_at_);
  blocks_ = memory.At<cpu::QuantizedBlock>(blocks_at_);
  code_panels_ = memory.At<std::uint8_t>(code_panels_at_);
  numbers_ = memory.At<float>(numbers_at_);
}

void CpuProducts::Run(std::span<const ProductJob> jobs) {
  ready_.clear();
  std::int64_t used = 0;  // of the scratch for inputs, of either kind
  const ProductJob* quantized_job = nullptr;
  QuantizeScope quantized_scope = QuantizeScope::kBlock;
  for (const ProductJob& job : jobs) {
    if (job.rows == 0) continue;
    const CpuSegment& segment = *job.segment;
    const bool integer = context_.integer() && segment.int8;
    const bool prepare = integer ? segment.matrix.permutation != nullptr : segment.prepares_input();
    const QuantizeScope scope = segment.activation == cpu::FakeQuant::kInt8Dynamic
                                    ? QuantizeScope::kRow
                                    : QuantizeScope::kBlock;
    const std::int64_t stride = cpu::RoundUp(segment.matrix.k, kBlockK);
    Ready ready{job, integer, {}};
    const bool reuse = integer && !prepare && quantized_job != nullptr &&
                       quantized_job->x == job.x && quantized_job->rows == job.rows &&
                       quantized_scope == scope;
    if (!reuse && (integer || prepare) && used + job.rows * stride > limits_.inputs) {
      RunReady();
      used = 0;
      quantized_job = nullptr;
    }
    if (prepare) {
      Prepare(job, prepared_ + used, stride);
      ready.job.x = prepared_ + used;
      ready.job.x_stride = stride;
    }
    if (reuse) {
      ready.quantized = ready_.back().quantized;
    } else if (integer) {
      ready.quantized = Quantize(ready.job, scope, used);
      quantized_job = prepare ? nullptr : &job;
      quantized_scope = scope;
    }
    if (!reuse && (integer || prepare)) used += job.rows * stride;
    if (!integer) quantized_job = nullptr;
    ready_.push_back(ready);
  }
  RunReady();
}

// Gathers the stored order of columns, then rounds as the format asks; a row at a time, by itself.
void CpuProducts::Prepare(const ProductJob& job, float* to, std::int64_t stride) {
  const CpuSegment& segment = *job.segment;
  const std::int64_t k = segment.matrix.k;
  const bool round = !(context_.integer() && segment.int8);
  context_.ForRows(job.rows, job.rows * k, [&](std::int64_t row) {
    const float* from = job.x + row * job.x_stride;
    float* out = to + row * stride;
    if (const std::int32_t* order = segment.matrix.permutation; order != nullptr) {
      for (std::int64_t j = 0; j < k; ++j) out[j] = from[order[j]];
    } else {
      std::memcpy(out, from, static_cast<std::size_t>(k) * sizeof(float));
    }
    if (!round) return;
    context_.kernels->fake_quant({out, k, segment.activation, segment.activation_scale,
                                  segment.activation_zero, segment.outlier_threshold});
  });
}

cpu::QuantizedRows CpuProducts::Quantize(const ProductJob& job, QuantizeScope scope,
                                         std::int64_t at) {
  const std::int64_t k = job.segment->matrix.k, stride = cpu::RoundUp(k, kBlockK);
  const std::int64_t bytes = context_.wide() ? 2 : 1;
  std::int8_t* codes = codes_ + at * bytes;
  cpu::QuantizedBlock* blocks = blocks_ + at / kBlockK;
  context_.ForRows(job.rows, job.rows * k, [&](std::int64_t row) {
    context_.kernels->quantize_row({job.x + row * job.x_stride, k, scope,
                                    codes + row * stride * bytes, blocks + row * (stride / kBlockK),
                                    context_.wide()});
  });
  return {codes, blocks, stride, context_.wide()};
}

void CpuProducts::RunTiles(const Ready& ready, std::int64_t begin, std::int64_t end, int thread) {
  const ProductJob& job = ready.job;
  const cpu::Matrix& w = job.segment->matrix;
  if (ready.integer) {
    context_.kernels->linear_i8({&w, cpu::Int8Zero(w), begin, end, ready.quantized, job.rows, job.y,
                                 job.y_stride,
                                 code_panels_ + thread * cpu::Int8PanelBytes(limits_.k),
                                 numbers_ + thread * cpu::Int8NumberFloats(limits_.k)});
  } else {
    context_.kernels->linear_f32(
        {&w, begin, end, job.x, job.x_stride, job.rows, job.y, job.y_stride, panel(thread)});
  }
}

void CpuProducts::RunReady() {
  std::int64_t tiles = 0, work = 0;
  for (const Ready& ready : ready_) {
    const cpu::Matrix& w = ready.job.segment->matrix;
    tiles += w.tiles;
    work += w.n * w.k * ready.job.rows;
  }
  if (tiles == 0) return;
  constexpr std::int64_t kSmallest = 65536;  // multiply-adds worth a region
  const std::int64_t parts = std::int64_t{context_.pool->threads()} * 4;
  // Even, because kernels like pairs of tiles.
  const std::int64_t grain =
      work < kSmallest ? tiles : cpu::RoundUp(cpu::DivideUp(tiles, parts), 2);
  context_.pool->For(tiles, grain, [&](std::int64_t begin, std::int64_t end, int thread) {
    std::int64_t first = 0;  // tile of the job among all
    for (const Ready& ready : ready_) {
      const std::int64_t count = ready.job.segment->matrix.tiles;
      const std::int64_t from = std::max(begin, first), to = std::min(end, first + count);
      if (from < to) RunTiles(ready, from - first, to - first, thread);
      first += count;
      if (first >= end) break;
    }
  });
  ready_.clear();
}

}  // namespace nibble
