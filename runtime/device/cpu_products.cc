#include "runtime/device/cpu_products.h"

#include <algorithm>
#include <cstring>

namespace nibble {

CpuProducts::CpuProducts(const CpuContext& context, std::int64_t max_prepared, MemoryLayout& layout)
    : context_(context),
      max_prepared_(max_prepared),
      panels_at_(layout.Take(context.pool->threads() * cpu::kPanelFloats * 4)),
      prepared_at_(layout.Take(max_prepared * 4)) {}

void CpuProducts::Bind(const HostMemory& memory) {
  panels_ = memory.At<float>(panels_at_);
  prepared_ = memory.At<float>(prepared_at_);
}

void CpuProducts::Run(std::span<const ProductJob> jobs) {
  pending_.clear();
  std::int64_t used = 0;
  for (ProductJob job : jobs) {
    if (job.rows == 0) continue;
    if (job.segment->prepares_input()) {
      const std::int64_t stride = cpu::RoundUp(job.segment->matrix.k, cpu::kTileRows);
      if (used + job.rows * stride > max_prepared_) {
        RunPrepared(pending_);
        pending_.clear();
        used = 0;
      }
      Prepare(job, prepared_ + used, stride);
      job.x = prepared_ + used;
      job.x_stride = stride;
      used += job.rows * stride;
    }
    pending_.push_back(job);
  }
  RunPrepared(pending_);
}

// Gathers the stored order of columns, then rounds as the format asks; a row at a time, by itself.
void CpuProducts::Prepare(const ProductJob& job, float* to, std::int64_t stride) {
  const CpuSegment& segment = *job.segment;
  const std::int64_t k = segment.matrix.k;
  context_.ForRows(job.rows, job.rows * k, [&](std::int64_t row) {
    const float* from = job.x + row * job.x_stride;
    float* out = to + row * stride;
    if (const std::int32_t* order = segment.matrix.permutation; order != nullptr) {
      for (std::int64_t j = 0; j < k; ++j) out[j] = from[order[j]];
    } else {
      std::memcpy(out, from, static_cast<std::size_t>(k) * sizeof(float));
    }
    context_.kernels->fake_quant({out, k, segment.activation, segment.activation_scale,
                                  segment.activation_zero, segment.outlier_threshold});
  });
}

void CpuProducts::RunPrepared(std::span<const ProductJob> jobs) {
  std::int64_t tiles = 0, work = 0;
  for (const ProductJob& job : jobs) {
    tiles += job.segment->matrix.tiles;
    work += job.segment->matrix.n * job.segment->matrix.k * job.rows;
  }
  if (tiles == 0) return;
  constexpr std::int64_t kSmallest = 65536;  // multiply-adds worth a region
  const std::int64_t parts = std::int64_t{context_.pool->threads()} * 4;
  const std::int64_t grain = work < kSmallest ? tiles : cpu::DivideUp(tiles, parts);
  context_.pool->For(tiles, grain, [&](std::int64_t begin, std::int64_t end, int thread) {
    std::int64_t first = 0;  // tile of the job among all
    for (const ProductJob& job : jobs) {
      const cpu::Matrix& w = job.segment->matrix;
      const std::int64_t from = std::max(begin, first), to = std::min(end, first + w.tiles);
      if (from < to) {
        context_.kernels->linear_f32({&w, from - first, to - first, job.x, job.x_stride, job.rows,
                                      job.y, job.y_stride, panel(thread)});
      }
      first += w.tiles;
      if (first >= end) break;
    }
  });
}

}  // namespace nibble
