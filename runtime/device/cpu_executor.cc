#include "runtime/device/cpu_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/device/program_check.h"

namespace nibble {
namespace {

ProductLimits LimitsOf(const Program& program, const StepLimits& limits) {
  ProductLimits products;
  CpuMoe::Include(program, products);
  for (const Op& op : program.ops) {
    BufferId in = -1;
    if (const auto* linear = std::get_if<LinearOp>(&op)) in = linear->in;
    if (const auto* moe = std::get_if<MoeOp>(&op)) in = moe->in;
    if (in < 0) continue;
    const BufferSpec& buffer = program.buffers[static_cast<std::size_t>(in)];
    products.Include(buffer.per_logit_row ? limits.max_logit_rows : limits.max_tokens, buffer.dim);
  }
  return products;
}

}  // namespace

CpuExecutor::CpuExecutor(const CpuContext& context, Program program, const StepLimits& limits,
                         MemoryLayout& layout)
    : context_(context),
      program_(std::move(program)),
      products_(context, LimitsOf(program_, limits), layout),
      attention_(context, program_, layout),
      moe_(context, program_, layout),
      max_tokens_(limits.max_tokens) {
  for (const BufferSpec& buffer : program_.buffers) {
    const std::int64_t rows = buffer.per_logit_row ? limits.max_logit_rows : limits.max_tokens;
    strides_.push_back(cpu::RoundUp(buffer.dim, cpu::kTileRows));
    offsets_.push_back(layout.Take(rows * strides_.back() * 4));
  }
  for (const RopeTable& rope : program_.ropes) {
    rope_at_.push_back(
        layout.Take(2 * max_tokens_ * static_cast<std::int64_t>(rope.inv_freq.size()) * 4));
  }
  for (std::size_t i = 0; i < program_.ops.size(); ++i) {
    if (std::holds_alternative<RopeAppendOp>(program_.ops[i])) last_append_ = i;
  }
  sequence_of_.reserve(static_cast<std::size_t>(limits.max_tokens));
  kept_.reserve(static_cast<std::size_t>(limits.max_logit_rows));
  kept_positions_.reserve(static_cast<std::size_t>(limits.max_logit_rows));
  kept_lengths_.reserve(static_cast<std::size_t>(limits.max_sequences));
}

absl::Status CpuExecutor::Bind(const HostMemory& memory, ModelWeights weights, const KvLayout& kv,
                               void* kv_pool) {
  RETURN_IF_ERROR(CheckProgram(program_, weights, kv));
  products_.Bind(memory);
  attention_.Bind(memory, kv, kv_pool);
  moe_.Bind(memory);
  for (std::int64_t offset : offsets_) buffers_.push_back(memory.At<float>(offset));
  for (std::int64_t offset : rope_at_) ropes_.push_back(memory.At<float>(offset));
  weights_ = std::move(weights);
  for (const auto& linear : weights_.linears) {
    const auto* packed = dynamic_cast<const CpuLinear*>(linear.get());
    if (packed == nullptr) return absl::InternalError("a weight was packed by another backend");
    linears_.push_back(packed);
  }
  for (const Op& op : program_.ops) {
    const auto* moe = std::get_if<MoeOp>(&op);
    if (moe == nullptr) continue;
    for (const LinearId id : {moe->gate_up, moe->down}) {
      const std::size_t experts = Linear(id).segments().size();
      if (experts != static_cast<std::size_t>(moe->experts)) {
        return absl::InternalError(
            absl::StrCat("linear ", id, " stacks ", experts, " experts, not ", moe->experts));
      }
    }
  }
  return absl::OkStatus();
}

void CpuExecutor::Run(const StepInput& input, std::span<const std::int32_t> tokens) {
  input_ = input;
  tokens_ = tokens;
  num_tokens_ = static_cast<std::int64_t>(tokens.size());
  logit_rows_ = static_cast<std::int64_t>(input.logit_rows.size());
  sequence_of_.clear();
  for (std::size_t s = 0; s < input.slots.size(); ++s) {
    sequence_of_.insert(sequence_of_.end(), static_cast<std::size_t>(input.query_lengths[s]),
                        static_cast<std::int32_t>(s));
  }
  attention_.BeginStep(input_);
  FillRopes();
  for (std::size_t i = 0; i < program_.ops.size(); ++i) {
    const auto* linear = std::get_if<LinearOp>(&program_.ops[i]);
    if (linear != nullptr && i + 1 < program_.ops.size() &&
        RunWithGlu(*linear, program_.ops[i + 1])) {
      ++i;
      continue;
    }
    std::visit([this](const auto& each) { Run(each); }, program_.ops[i]);
    if (i == last_append_) KeepLogitRows();
  }
}

void CpuExecutor::KeepLogitRows() {
  kept_.clear();
  for (const LogitRow& row : input_.logit_rows) kept_.push_back(row.token_index);
  std::sort(kept_.begin(), kept_.end());
  kept_.erase(std::unique(kept_.begin(), kept_.end()), kept_.end());
  if (static_cast<std::int64_t>(kept_.size()) == num_tokens_) return;  // all, as in decode
  num_tokens_ = static_cast<std::int64_t>(kept_.size());
  kept_positions_.clear();
  kept_lengths_.assign(input_.slots.size(), 0);
  for (const std::int32_t token : kept_) {
    kept_positions_.push_back(input_.positions[static_cast<std::size_t>(token)]);
    ++kept_lengths_[static_cast<std::size_t>(sequence_of_[static_cast<std::size_t>(token)])];
  }
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    const auto id = static_cast<BufferId>(b);
    if (program_.buffers[b].per_logit_row) continue;
    for (std::int64_t row = 0; row < num_tokens_; ++row) {
      const std::int32_t from = kept_[static_cast<std::size_t>(row)];
      if (from != row) std::copy_n(Row(id, from), Dim(id), Row(id, row));
    }
  }
  input_.positions = kept_positions_;
  input_.query_lengths = kept_lengths_;
  attention_.BeginStep(input_);
}

// cos and sin of every token's angles, shared by all layers.
void CpuExecutor::FillRopes() {
  for (std::size_t r = 0; r < ropes_.size(); ++r) {
    const RopeTable& table = program_.ropes[r];
    const auto half = static_cast<std::int64_t>(table.inv_freq.size());
    context_.ForRows(num_tokens_, num_tokens_ * half * 16, [&](std::int64_t t) {
      float* cosines = ropes_[r] + t * half;
      float* sines = cosines + max_tokens_ * half;
      const auto position = static_cast<float>(input_.positions[static_cast<std::size_t>(t)]);
      for (std::int64_t j = 0; j < half; ++j) {
        const float angle = position * table.inv_freq[static_cast<std::size_t>(j)];
        cosines[j] = std::cos(angle) * table.attention_factor;
        sines[j] = std::sin(angle) * table.attention_factor;
      }
    });
  }
}

void CpuExecutor::Run(const EmbedOp& op) {
  const CpuLinear& table = Linear(op.table);
  const std::int64_t parts = std::int64_t{context_.pool->threads()} * 2;
  context_.pool->For(num_tokens_, cpu::DivideUp(num_tokens_, parts),
                     [&](std::int64_t begin, std::int64_t end, int thread) {
                       for (std::int64_t t = begin; t < end; ++t) {
                         std::int64_t row = tokens_[static_cast<std::size_t>(t)];
                         const CpuSegment* segment = &table.segments().front();
                         while (row >= segment->row + segment->matrix.n) ++segment;
                         row -= segment->row;
                         context_.kernels->embed_row({&segment->matrix, row, op.scale,
                                                      Row(op.out, t), products_.panel(thread)});
                       }
                     });
}

void CpuExecutor::Run(const RmsNormOp& op) {
  const std::int64_t rows = Rows(op.in), dim = Dim(op.in);
  const float* weight = Vector(op.weight);
  context_.ForRows(rows, rows * dim, [&](std::int64_t row) {
    context_.kernels->rms_norm(Row(op.out, row), Row(op.in, row), weight, dim, op.eps);
  });
}

void CpuExecutor::Run(const AddRmsNormOp& op) {
  const std::int64_t rows = Rows(op.residual), dim = Dim(op.residual);
  const float* weight = Vector(op.weight);
  context_.ForRows(rows, rows * dim, [&](std::int64_t row) {
    context_.kernels->add(Row(op.residual, row), Row(op.delta, row), dim);
    context_.kernels->rms_norm(Row(op.out, row), Row(op.residual, row), weight, dim, op.eps);
  });
}

void CpuExecutor::Run(const AddOp& op) {
  const std::int64_t rows = Rows(op.residual), dim = Dim(op.residual);
  context_.ForRows(rows, rows * dim, [&](std::int64_t row) {
    context_.kernels->add(Row(op.residual, row), Row(op.delta, row), dim);
  });
}

void CpuExecutor::Run(const LinearOp& op) {
  jobs_.clear();
  for (const CpuSegment& segment : Linear(op.weight).segments()) {
    jobs_.push_back({&segment, Row(op.in, 0), Stride(op.in), Rows(op.in),
                     Row(op.out, 0) + segment.row, Stride(op.out)});
  }
  products_.Run(jobs_);
}

bool CpuExecutor::RunWithGlu(const LinearOp& op, const Op& next) {
  const auto* glu = std::get_if<GluOp>(&next);
  const std::vector<CpuSegment>& segments = Linear(op.weight).segments();
  if (glu == nullptr || glu->in != op.out || glu->activation != Activation::kSilu ||
      segments.size() != 2 || !products_.TakesGlu(segments[0], segments[1], Rows(op.in))) {
    return false;
  }
  const ProductJob job{&segments[0],     Row(op.in, 0),    Stride(op.in), Rows(op.in),
                       Row(glu->out, 0), Stride(glu->out), &segments[1]};
  products_.Run({&job, 1});
  return true;
}

void CpuExecutor::Run(const RopeAppendOp& op) {
  const std::int64_t head_dim = program_.head_dim;
  const std::int32_t heads = program_.num_heads, kv_heads = program_.num_kv_heads;
  const KvLayout& kv = attention_.kv();
  const std::int64_t element = BitsOf(kv.dtype) / 8;
  const float* q_norm = Vector(op.q_norm);
  const float* k_norm = Vector(op.k_norm);
  const float* cosines = op.rope < 0 ? nullptr : ropes_[static_cast<std::size_t>(op.rope)];
  const std::int64_t half =
      op.rope < 0 ? 0
                  : static_cast<std::int64_t>(
                        program_.ropes[static_cast<std::size_t>(op.rope)].inv_freq.size());
  std::byte* pool = attention_.layer(op.layer);
  const cpu::KernelTable& kernels = *context_.kernels;
  context_.ForRows(num_tokens_, num_tokens_ * Dim(op.qkv), [&](std::int64_t t) {
    float* qkv = Row(op.qkv, t);
    for (std::int32_t head = 0; head < heads + kv_heads; ++head) {
      float* x = qkv + head * head_dim;
      const float* norm = head < heads ? q_norm : k_norm;
      if (norm != nullptr) kernels.rms_norm(x, x, norm, head_dim, op.norm_eps);
      if (half > 0) kernels.rope({x, cosines + t * half, cosines + (max_tokens_ + t) * half, half});
    }
    const auto token = static_cast<std::size_t>(t);
    const std::int64_t key = attention_.KeyOffset(sequence_of_[token], input_.positions[token]);
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      std::byte* to = pool + (key + head * kv.HeadStride()) * element;
      const float* k = qkv + (heads + head) * head_dim;
      kernels.convert(to, k, head_dim, kv.dtype);
      kernels.convert(to + kv.ValueOffset() * element, k + kv_heads * head_dim, head_dim, kv.dtype);
    }
  });
}

void CpuExecutor::Run(const AttentionOp& op) {
  attention_.Run(op, Row(op.qkv, 0), Stride(op.qkv), Row(op.out, 0), Stride(op.out),
                 Vector(op.sinks));
}

void CpuExecutor::Run(const GluOp& op) {
  const std::int64_t rows = Rows(op.in), dim = Dim(op.out);
  const auto glu = op.activation == Activation::kSilu ? context_.kernels->glu_silu
                                                      : context_.kernels->glu_gelu_tanh;
  context_.ForRows(rows, rows * dim * 8,
                   [&](std::int64_t row) { glu(Row(op.out, row), Row(op.in, row), dim); });
}

void CpuExecutor::Run(const MoeOp& op) {
  moe_.Run(op, Linear(op.router), Linear(op.gate_up), Linear(op.down), Row(op.in, 0), Stride(op.in),
           Row(op.out, 0), Stride(op.out), Rows(op.in), products_);
}

void CpuExecutor::Run(const GatherRowsOp& op) {
  for (std::int64_t row = 0; row < logit_rows_; ++row) {
    const std::int32_t token = input_.logit_rows[static_cast<std::size_t>(row)].token_index;
    const auto kept = std::lower_bound(kept_.begin(), kept_.end(), token) - kept_.begin();
    std::memcpy(Row(op.out, row), Row(op.in, kept),
                static_cast<std::size_t>(Dim(op.in)) * sizeof(float));
  }
}

void CpuExecutor::Run(const SoftcapOp& op) {
  const std::int64_t rows = Rows(op.logits), dim = Dim(op.logits);
  context_.ForRows(rows, rows * dim * 8, [&](std::int64_t row) {
    context_.kernels->softcap(Row(op.logits, row), dim, op.softcap);
  });
}

}  // namespace nibble
