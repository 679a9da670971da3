#include "runtime/device/cpu_moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

// The largest of each dimension over the program's expert layers.
struct MoeShape {
  std::int64_t experts = 0, top_k = 0, hidden = 0, intermediate = 0;
};
MoeShape LargestMoe(const Program& program) {
  MoeShape shape;
  for (const Op& op : program.ops) {
    const auto* moe = std::get_if<MoeOp>(&op);
    if (moe == nullptr) continue;
    shape.experts = std::max<std::int64_t>(shape.experts, moe->experts);
    shape.top_k = std::max<std::int64_t>(shape.top_k, moe->top_k);
    shape.intermediate = std::max<std::int64_t>(shape.intermediate, moe->intermediate);
    shape.hidden = std::max(shape.hidden, program.buffers[static_cast<std::size_t>(moe->in)].dim);
  }
  return shape;
}

}  // namespace

void CpuMoe::Include(const Program& program, ProductLimits& limits) {
  const MoeShape shape = LargestMoe(program);
  limits.Include(kBlockTokens * shape.top_k, std::max(shape.hidden, shape.intermediate));
}

CpuMoe::CpuMoe(const CpuContext& context, const Program& program, MemoryLayout& layout)
    : context_(context) {
  const MoeShape shape = LargestMoe(program);
  if (shape.experts == 0) return;
  router_stride_ = cpu::RoundUp(shape.experts, 16);
  hidden_stride_ = cpu::RoundUp(shape.hidden, 16);
  wide_stride_ = cpu::RoundUp(2 * shape.intermediate, 16);
  narrow_stride_ = cpu::RoundUp(shape.intermediate, 16);
  const std::int64_t rows = kBlockTokens * shape.top_k;
  router_at_ = layout.Take(kBlockTokens * router_stride_ * 4);
  inputs_at_ = layout.Take(rows * hidden_stride_ * 4);
  gate_up_at_ = layout.Take(rows * wide_stride_ * 4);
  activated_at_ = layout.Take(rows * narrow_stride_ * 4);
  down_at_ = layout.Take(rows * hidden_stride_ * 4);
  choices_.resize(static_cast<std::size_t>(rows));
  expert_rows_.resize(static_cast<std::size_t>(shape.experts) + 1);
  next_row_.resize(static_cast<std::size_t>(shape.experts));
  jobs_.reserve(static_cast<std::size_t>(shape.experts));
}

void CpuMoe::Bind(const HostMemory& memory) {
  if (router_stride_ == 0) return;
  router_ = memory.At<float>(router_at_);
  inputs_ = memory.At<float>(inputs_at_);
  gate_up_ = memory.At<float>(gate_up_at_);
  activated_ = memory.At<float>(activated_at_);
  down_ = memory.At<float>(down_at_);
}

// Softmax over all experts, the top_k best (the smaller id of equals), and their rows sorted by
// expert.
void CpuMoe::Route(const MoeOp& op, std::int64_t tokens) {
  std::fill(expert_rows_.begin(), expert_rows_.end(), 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* p = router_ + t * router_stride_;
    const float max = context_.kernels->max_of(p, op.experts).max;
    context_.kernels->exp_shifted(p, p, op.experts, max, 1.0f);
    float sum = 0.0f, chosen = 0.0f;
    for (std::int32_t e = 0; e < op.experts; ++e) sum += p[e];
    Choice* best = &choices_[static_cast<std::size_t>(t * op.top_k)];
    for (std::int32_t rank = 0; rank < op.top_k; ++rank) {
      std::int32_t top = 0;
      for (std::int32_t e = 1; e < op.experts; ++e) {
        if (!(p[e] <= p[top])) top = e;
      }
      best[rank] = {top, p[top] / sum, 0};
      chosen += best[rank].weight;
      p[top] = -1.0f;
      ++expert_rows_[static_cast<std::size_t>(top) + 1];
    }
    for (std::int32_t rank = 0; op.renormalize && rank < op.top_k; ++rank)
      best[rank].weight /= chosen;
  }
  for (std::size_t e = 1; e < expert_rows_.size(); ++e) expert_rows_[e] += expert_rows_[e - 1];
  std::copy(expert_rows_.begin(), expert_rows_.end() - 1, next_row_.begin());
  for (std::int64_t i = 0; i < tokens * op.top_k; ++i) {
    Choice& choice = choices_[static_cast<std::size_t>(i)];
    choice.row = next_row_[static_cast<std::size_t>(choice.expert)]++;
  }
}

void CpuMoe::RunExperts(const MoeOp& op, const CpuLinear& linear, const float* x,
                        std::int64_t x_stride, float* y, std::int64_t y_stride,
                        CpuProducts& products) {
  jobs_.clear();
  for (std::int32_t e = 0; e < op.experts; ++e) {
    const std::int64_t begin = expert_rows_[static_cast<std::size_t>(e)];
    const std::int64_t rows = expert_rows_[static_cast<std::size_t>(e) + 1] - begin;
    if (rows == 0) continue;
    jobs_.push_back({&linear.segments()[static_cast<std::size_t>(e)], x + begin * x_stride,
                     x_stride, rows, y + begin * y_stride, y_stride});
  }
  products.Run(jobs_);
}

void CpuMoe::Run(const MoeOp& op, const CpuLinear& router, const CpuLinear& gate_up,
                 const CpuLinear& down, const float* in, std::int64_t in_stride, float* out,
                 std::int64_t out_stride, std::int64_t tokens, CpuProducts& products) {
  const std::int64_t hidden = gate_up.k, dim = op.intermediate;
  for (std::int64_t begin = 0; begin < tokens; begin += kBlockTokens) {
    const std::int64_t count = std::min(kBlockTokens, tokens - begin);
    const std::int64_t rows = count * op.top_k;
    const float* x = in + begin * in_stride;
    for (const CpuSegment& segment : router.segments()) {
      const ProductJob job{&segment, x, in_stride, count, router_ + segment.row, router_stride_};
      products.Run({&job, 1});
    }
    Route(op, count);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(inputs_ + choices_[static_cast<std::size_t>(i)].row * hidden_stride_,
                  x + i / op.top_k * in_stride, static_cast<std::size_t>(hidden) * sizeof(float));
    }
    RunExperts(op, gate_up, inputs_, hidden_stride_, gate_up_, wide_stride_, products);
    const auto glu = op.activation == Activation::kSilu ? context_.kernels->glu_silu
                                                        : context_.kernels->glu_gelu_tanh;
    context_.ForRows(rows, rows * dim * 8, [&](std::int64_t row) {
      glu(activated_ + row * narrow_stride_, gate_up_ + row * wide_stride_, dim);
    });
    RunExperts(op, down, activated_, narrow_stride_, down_, hidden_stride_, products);
    context_.ForRows(count, rows * down.n, [&](std::int64_t t) {
      float* to = out + (begin + t) * out_stride;
      std::fill_n(to, down.n, 0.0f);
      for (std::int32_t rank = 0; rank < op.top_k; ++rank) {
        const Choice& choice = choices_[static_cast<std::size_t>(t * op.top_k + rank)];
        context_.kernels->axpy(to, down_ + choice.row * hidden_stride_, choice.weight, down.n);
      }
    });
  }
}

}  // namespace nibble
