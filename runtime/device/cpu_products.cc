#include "runtime/device/cpu_products.h"

#include <algorithm>
#include <cstring>

namespace nibble {

using cpu::FakeQuant;
using cpu::kBlockK;
using cpu::QuantizeScope;

namespace {

// Whether the format's own rounding is done on floats, before a product; codes of int8 a token are
// that rounding.
bool RoundsInF32(const CpuSegment& segment, bool integer) {
  return segment.activation != FakeQuant::kNone &&
         !(integer && segment.activation == FakeQuant::kInt8Dynamic);
}

bool SamePreparation(const CpuSegment& a, const CpuSegment& b) {
  return a.matrix.permutation == b.matrix.permutation && a.activation == b.activation &&
         a.activation_scale == b.activation_scale && a.activation_zero == b.activation_zero &&
         a.outlier_threshold == b.outlier_threshold;
}

// Tiles of one range, of four to eight a thread: those that leave the thread with the most the
// least. Even, because kernels like pairs.
std::int64_t GrainOf(std::int64_t tiles, std::int64_t threads) {
  const std::int64_t largest = cpu::RoundUp(cpu::DivideUp(tiles, 4 * threads), 2);
  const auto most = [&](std::int64_t grain) {
    return cpu::DivideUp(cpu::DivideUp(tiles, grain), threads) * grain;
  };
  std::int64_t best = largest;
  for (std::int64_t grain = largest; grain >= std::max<std::int64_t>(2, largest / 2); grain -= 2) {
    if (most(grain) < most(best)) best = grain;
  }
  return best;
}

}  // namespace

void ProductLimits::Include(std::int64_t rows, std::int64_t columns) {
  inputs = std::max(inputs, rows * cpu::RoundUp(columns, cpu::kPaddedK));
  k = std::max(k, columns);
}

CpuProducts::CpuProducts(const CpuContext& context, const ProductLimits& limits,
                         MemoryLayout& layout)
    : context_(context), limits_(limits) {
  const std::int64_t threads = context.pool->threads();
  const std::int64_t quantized = context.integer() ? limits.inputs : 0;
  panels_at_ = layout.Take(threads * cpu::kPanelFloats * 4);
  prepared_at_ = layout.Take(limits.inputs * 4);
  codes_at_ = layout.Take(quantized * 2);
  blocks_at_ =
      layout.Take(quantized / kBlockK * static_cast<std::int64_t>(sizeof(cpu::QuantizedBlock)));
  code_panels_at_ = layout.Take(context.integer() ? threads * cpu::IntegerPanelBytes(limits.k) : 0);
  numbers_at_ =
      layout.Take(context.integer() ? threads * cpu::IntegerNumberFloats(limits.k) * 4 : 0);
}

void CpuProducts::Bind(const HostMemory& memory) {
  panels_ = memory.At<float>(panels_at_);
  prepared_ = memory.At<float>(prepared_at_);
  codes_ = memory.At<std::int16_t>(codes_at_);
  blocks_ = memory.At<cpu::QuantizedBlock>(blocks_at_);
  code_panels_ = memory.At<std::uint8_t>(code_panels_at_);
  numbers_ = memory.At<float>(numbers_at_);
}

// int8 a token is exact in 8 bits; an input that the format rounds otherwise, and that of codes of
// more than 8 bits, takes 16.
CpuProducts::Rounding CpuProducts::RoundingOf(const CpuSegment& segment) const {
  if (segment.activation == FakeQuant::kInt8Dynamic) return {QuantizeScope::kRow, 1, false, 127};
  const bool narrow = context_.rounding == InputRounding::kInt8 &&
                      segment.activation == FakeQuant::kNone && cpu::TakesInt8(segment.matrix);
  if (narrow) return {QuantizeScope::kSpan, 1, false, 127};
  return {QuantizeScope::kSpan, cpu::InputSpan(segment.matrix), true,
          cpu::InputLimit(segment.matrix)};
}

bool CpuProducts::TakesGlu(const CpuSegment& gate, const CpuSegment& up, std::int64_t rows) const {
  return context_.integer() && gate.integer && up.integer && rows >= cpu::kFewestGluRows &&
         cpu::MatchesForGlu(gate.matrix, up.matrix) && SamePreparation(gate, up);
}

void CpuProducts::Run(std::span<const ProductJob> jobs) {
  ready_.clear();
  std::int64_t used = 0;              // of the scratch for inputs, of either kind
  const ProductJob* first = nullptr;  // whose input, made ready, the jobs after it may share
  for (const ProductJob& job : jobs) {
    if (job.rows == 0) continue;
    const CpuSegment& segment = *job.segment;
    const bool integer = context_.integer() && segment.integer;
    const bool prepare = segment.matrix.permutation != nullptr || RoundsInF32(segment, integer);
    const Rounding rounding = RoundingOf(segment);
    const std::int64_t stride = cpu::RoundUp(segment.matrix.k, cpu::kPaddedK);
    Ready ready{job, integer, {}};
    if (first != nullptr && first->x == job.x && first->rows == job.rows &&
        ready_.back().integer == integer && SamePreparation(*first->segment, segment) &&
        (!integer || RoundingOf(*first->segment) == rounding)) {
      ready.job.x = ready_.back().job.x;
      ready.job.x_stride = ready_.back().job.x_stride;
      ready.quantized = ready_.back().quantized;
    } else if (integer || prepare) {
      if (used + job.rows * stride > limits_.inputs) {
        RunReady();
        used = 0;
      }
      if (prepare) {
        Prepare(job, prepared_ + used, stride);
        ready.job.x = prepared_ + used;
        ready.job.x_stride = stride;
      }
      if (integer) ready.quantized = Quantize(ready.job, rounding, used);
      used += job.rows * stride;
      first = &job;
    } else {
      first = nullptr;
    }
    ready_.push_back(ready);
  }
  RunReady();
}

// Gathers the stored order of columns, then rounds as the format asks; a row at a time, by itself.
void CpuProducts::Prepare(const ProductJob& job, float* to, std::int64_t stride) {
  const CpuSegment& segment = *job.segment;
  const std::int64_t k = segment.matrix.k;
  const bool round = RoundsInF32(segment, context_.integer() && segment.integer);
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

cpu::QuantizedRows CpuProducts::Quantize(const ProductJob& job, const Rounding& rounding,
                                         std::int64_t at) {
  const std::int64_t k = job.segment->matrix.k, stride = cpu::RoundUp(k, cpu::kPaddedK);
  const std::int64_t row_bytes = stride * (rounding.wide ? 2 : 1);
  char* codes = reinterpret_cast<char*>(codes_ + at);
  cpu::QuantizedBlock* blocks = blocks_ + at / kBlockK;
  context_.ForRows(job.rows, job.rows * k, [&](std::int64_t row) {
    context_.kernels->quantize_row({job.x + row * job.x_stride, k, rounding.scope, rounding.span,
                                    rounding.limit, rounding.wide, codes + row * row_bytes,
                                    blocks + row * (stride / kBlockK)});
  });
  return {codes, blocks, stride, rounding.span, rounding.wide};
}

void CpuProducts::RunTiles(const Ready& ready, std::int64_t begin, std::int64_t end, int thread) {
  const ProductJob& job = ready.job;
  const cpu::Matrix& w = job.segment->matrix;
  if (ready.integer) {
    context_.kernels->linear_integer({&w, begin, end, ready.quantized, job.rows, job.y,
                                      job.y_stride,
                                      code_panels_ + thread * cpu::IntegerPanelBytes(limits_.k),
                                      numbers_ + thread * cpu::IntegerNumberFloats(limits_.k),
                                      job.up == nullptr ? nullptr : &job.up->matrix});
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
  const std::int64_t grain = work < kSmallest ? tiles : GrainOf(tiles, context_.pool->threads());
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
