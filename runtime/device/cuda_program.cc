#include "runtime/device/cuda_program.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/overloaded.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_compiler.h"
#include "runtime/device/program_check.h"

namespace nibble {
namespace {

// Weights of heads are expanded piece by piece: a whole vocabulary would take a gigabyte.
constexpr std::int64_t kMostExpandedHead = std::int64_t{128} << 20;

}  // namespace

CudaProgram::CudaProgram(Program program, DType dtype, const StepLimits& limits, CudaLayout& layout)
    : program_(std::move(program)), dtype_(dtype), limits_(limits) {
  PlanStorage(layout);
  PlanScratch(layout);
}

std::int64_t CudaProgram::MaxRows(BufferId id) const {
  return program_.buffers[static_cast<std::size_t>(id)].per_logit_row
             ? Padded(limits_.max_logit_rows)
             : MaxTokens();
}

float* CudaProgram::F32(BufferId id) const {
  return reinterpret_cast<float*>(memory_ + storage_[static_cast<std::size_t>(id)].f32);
}
void* CudaProgram::Typed(BufferId id) const {
  return memory_ + storage_[static_cast<std::size_t>(id)].typed;
}

// Embeddings and sums are f32, and so are rows gathered from them and logits; all else is T.
void CudaProgram::PlanStorage(CudaLayout& layout) {
  storage_.resize(program_.buffers.size());
  const auto f32 = [&](BufferId id) { storage_[static_cast<std::size_t>(id)].f32 = 0; };
  const auto typed = [&](BufferId id) { storage_[static_cast<std::size_t>(id)].typed = 0; };
  f32(program_.logits);
  for (const Op& op : program_.ops) {
    std::visit(Overloaded{[&](const EmbedOp& each) { f32(each.out); },
                          [&](const RmsNormOp& each) { typed(each.out); },
                          [&](const AddRmsNormOp& each) { f32(each.residual), typed(each.out); },
                          [&](const AddOp& each) { f32(each.residual); },
                          [&](const LinearOp& each) {
                            if (each.out != program_.logits) typed(each.out);
                          },
                          [&](const RopeAppendOp& each) { typed(each.qkv); },
                          [&](const AttentionOp& each) { typed(each.out); },
                          [&](const GluOp& each) { typed(each.out); },
                          [&](const MoeOp& each) { typed(each.out); },
                          [&](const GatherRowsOp& each) {
                            const Storage& in = storage_[static_cast<std::size_t>(each.in)];
                            if (in.f32 >= 0) f32(each.out);
                            if (in.typed >= 0) typed(each.out);
                          },
                          [&](const SoftcapOp& each) { f32(each.logits); }},
               op);
  }
  for (std::size_t id = 0; id < storage_.size(); ++id) {
    const std::int64_t elements = MaxRows(static_cast<BufferId>(id)) * program_.buffers[id].dim;
    if (storage_[id].f32 >= 0) storage_[id].f32 = layout.Take(elements * 4);
    if (storage_[id].typed >= 0) storage_[id].typed = layout.Take(elements * 2);
  }
}

void CudaProgram::PlanScratch(CudaLayout& layout) {
  const auto dim = [&](BufferId id) { return program_.buffers[static_cast<std::size_t>(id)].dim; };
  std::int64_t raw = 0, prepared = 0, experts = 0, intermediate = 0, ranks = 0;
  const auto product = [&](std::int64_t rows, std::int64_t n, std::int64_t k, bool head) {
    const std::int64_t whole = 2 * n * k;
    expanded_bytes_ = std::max(expanded_bytes_, head ? std::min(whole, kMostExpandedHead) : whole);
    prepared = std::max(prepared, rows * k * 2);
    if (!head) raw = std::max(raw, cuda::RawBytes(static_cast<int>(rows), n));
  };
  for (const Op& op : program_.ops) {
    if (const auto* linear = std::get_if<LinearOp>(&op)) {
      product(MaxRows(linear->in), dim(linear->out), dim(linear->in),
              program_.buffers[static_cast<std::size_t>(linear->out)].per_logit_row);
    }
    const auto* moe = std::get_if<MoeOp>(&op);
    if (moe == nullptr) continue;
    const std::int64_t rows = MaxRows(moe->in);
    product(rows, 2 * moe->intermediate, dim(moe->in), false);
    product(rows, dim(moe->in), moe->intermediate, false);
    experts = std::max<std::int64_t>(experts, moe->experts);
    intermediate = std::max<std::int64_t>(intermediate, moe->intermediate);
    ranks = std::max<std::int64_t>(ranks, moe->top_k);
  }
  expanded_at_ = layout.Take(expanded_bytes_);
  raw_at_ = layout.Take(raw);
  prepared_at_ = layout.Take(prepared);
  const std::int64_t tokens = MaxTokens(), hidden = program_.hidden;
  square_sums_at_ = layout.Take(tokens * ((hidden + kTileRows - 1) / kTileRows) * 4);
  cuda::AttentionArgs attention;
  attention.heads = program_.num_heads;
  attention.kv_heads = program_.num_kv_heads;
  attention.head_dim = program_.head_dim;
  attention_at_ = layout.Take(cuda::AttentionWorkspaceBytes(attention));
  for (const RopeTable& rope : program_.ropes)
    ropes_at_.push_back(layout.Take(static_cast<std::int64_t>(rope.inv_freq.size()) * 4));
  zeros_at_ = layout.Take(kZeroWords * 4);
  outliers_at_ = layout.Take(tokens * cuda::kOutlierList * 2);
  if (experts == 0) return;
  const std::int64_t rows = tokens * ranks;
  moe_.logits = layout.Take(tokens * experts * 4);
  moe_.weights = layout.Take(tokens * experts * 4);
  moe_.sum = layout.Take(tokens * hidden * 4);
  moe_.chosen = layout.Take(rows * 4);
  moe_.offsets = layout.Take((experts + 1) * 4);
  moe_.tokens = layout.Take(rows * 4);
  moe_.rows = layout.Take(rows * 4);
  moe_.inputs = layout.Take(rows * hidden * 2);
  moe_.gate_up = layout.Take(rows * 2 * intermediate * 2);
  moe_.activated = layout.Take(rows * intermediate * 2);
  moe_.out = layout.Take(rows * hidden * 2);
}

absl::Status CudaProgram::ExpandWeights(cudaStream_t stream) {
  const std::vector<LinearId> ids = TokenLinears(program_);
  std::int64_t bytes = 0;
  for (const LinearId id : ids) bytes += linears_[static_cast<std::size_t>(id)]->expanded_bytes();
  ASSIGN_OR_RETURN(expanded_,
                   CudaMemory::Allocate(CudaMemory::Kind::kDevice, bytes, "the expanded weights"));
  std::byte* at = expanded_.data();
  for (const LinearId id : ids) {
    CudaLinear& linear = *linears_[static_cast<std::size_t>(id)];
    RETURN_IF_ERROR(linear.Expand(dtype_, at, stream));
    at += linear.expanded_bytes();
  }
  return absl::OkStatus();
}

absl::Status CudaProgram::Bind(const CudaMemory& memory, ModelWeights weights, const KvLayout& kv,
                               const CompileOptions& options, cublasHandle_t cublas,
                               const StepMemory& step, cudaStream_t stream) {
  RETURN_IF_ERROR(CheckProgram(program_, weights, kv));
  options_ = options;
  memory_ = memory.data();
  weights_ = std::move(weights);
  for (const auto& linear : weights_.linears) {
    auto* packed = dynamic_cast<CudaLinear*>(linear.get());
    if (packed == nullptr) return absl::InternalError("a weight was packed by another backend");
    linears_.push_back(packed);
    weights_bytes_ += packed->bytes;
  }

  if (options.expanded) RETURN_IF_ERROR(ExpandWeights(stream));
  const auto clear = [&](std::int64_t at, std::int64_t words) {
    return CudaError(cudaMemsetAsync(memory_ + at, 0, static_cast<std::size_t>(words) * 4, stream),
                     "clearing the workspace");
  };
  RETURN_IF_ERROR(clear(zeros_at_, kZeroWords));
  const auto copy = [&](void* to, const std::vector<float>& from) {
    return CudaError(
        cudaMemcpyAsync(to, from.data(), from.size() * 4, cudaMemcpyHostToDevice, stream),
        "copying tables");
  };
  std::int64_t floats = 0;
  for (const std::vector<float>& vector : weights_.vectors)
    floats += static_cast<std::int64_t>(vector.size());
  ASSIGN_OR_RETURN(vectors_,
                   CudaMemory::Allocate(CudaMemory::Kind::kDevice, floats * 4, "norm weights"));
  weights_bytes_ += floats * 4;
  std::int64_t at = 0;
  for (const std::vector<float>& vector : weights_.vectors) {
    vector_at_.push_back(vectors_.At<float>(at * 4));
    RETURN_IF_ERROR(copy(vectors_.At<float>(at * 4), vector));
    at += static_cast<std::int64_t>(vector.size());
  }
  for (std::size_t r = 0; r < program_.ropes.size(); ++r)
    RETURN_IF_ERROR(copy(memory_ + ropes_at_[r], program_.ropes[r].inv_freq));
  RETURN_IF_ERROR(CudaError(cudaStreamSynchronize(stream), "copying tables"));
  weights_.vectors.clear();
  return CudaCompiler(*this, kv, cublas, step).Compile();
}

}  // namespace nibble
