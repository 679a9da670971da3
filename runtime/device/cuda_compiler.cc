#include "runtime/device/cuda_compiler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

// Norms whose division waits for the next product save a kernel, and leave its inputs and sums as
// large as the residual stream: too large for f16 at the first tokens of some models. Prefill
// divides at once.
bool DividesAtOnce(const CudaStepShape& shape) { return !shape.decode; }

// Whether the product's kernels want whole inputs, divided by their norm.
bool WantsWholeNorm(const CudaSegment& segment) {
  if (segment.is_row8()) return segment.rounding == cuda::InputRounding::kOutlierSplit;
  return segment.prepares_input();
}

// Whether attention ropes and appends itself. For a few sequences a kernel of its own is faster:
// it runs while attention's keys are on their way. The bits are the same.
bool AttentionAppends(const CudaStepShape& shape) {
  constexpr int kFewSequences = 2;
  return shape.decode && shape.sequences > kFewSequences;
}

int RowsOf(const CudaStepShape& shape, bool per_logit_row) {
  return per_logit_row ? shape.rows : shape.tokens;
}

// Keys a block of decode attention, where its cut must not depend on the batch: up to 8 blocks of
// the longest sequence, which share the pages of a shorter one.
int FixedSplit(int max_context) {
  constexpr int kPage = 64, kBlocks = 8;
  return (max_context + kBlocks * kPage - 1) / (kBlocks * kPage) * kPage;
}

}  // namespace

cuda::Gate CudaCompiler::GateOf(Activation activation) {
  return activation == Activation::kSilu ? cuda::Gate::kSilu : cuda::Gate::kGeluTanh;
}

cuda::ProductCut CudaCompiler::Cut(const CudaStepShape& shape, bool deterministic) {
  if (!deterministic) return cuda::ProductCut::kFastest;
  return shape.decode ? cuda::ProductCut::kStream : cuda::ProductCut::kTiles;
}

absl::Status CudaCompiler::Compile() {
  in_f32_.resize(program_.buffers.size());
  for (index_ = 0; index_ < program_.ops.size(); ++index_) {
    RETURN_IF_ERROR(std::visit([this](const auto& op) { return Emit(op); }, program_.ops[index_]));
  }
  return absl::OkStatus();
}

CudaProgram::Launch& CudaCompiler::Add(const std::string& kind,
                                       decltype(CudaProgram::Launch::run) run) {
  CudaProgram::Launch& launch = to_.launches_.emplace_back();
  launch.kind = kind;
  launch.op = static_cast<int>(index_);
  launch.run = std::move(run);
  return launch;
}

bool CudaCompiler::NormCanWait(BufferId normed, std::size_t at) const {
  const auto* linear =
      at + 1 < program_.ops.size() ? std::get_if<LinearOp>(&program_.ops[at + 1]) : nullptr;
  if (linear == nullptr || linear->in != normed || PerLogitRow(normed)) return false;
  const auto& segments = Linear(linear->weight).segments();
  if (std::any_of(segments.begin(), segments.end(), WantsWholeNorm)) return false;
  // Nobody else reads it before it is written again.
  for (std::size_t i = at + 2; i < program_.ops.size(); ++i) {
    const Op& op = program_.ops[i];
    if (const auto* norm = std::get_if<RmsNormOp>(&op)) {
      if (norm->in == normed) return false;
      if (norm->out == normed) return true;
    } else if (const auto* add = std::get_if<AddRmsNormOp>(&op)) {
      if (add->delta == normed || add->residual == normed) return false;
      if (add->out == normed) return true;
    } else if (const auto* other = std::get_if<LinearOp>(&op)) {
      if (other->in == normed) return false;
    } else if (const auto* moe = std::get_if<MoeOp>(&op)) {
      if (moe->in == normed) return false;
    }
  }
  return true;
}

absl::Status CudaCompiler::Emit(const EmbedOp& op) {
  const CudaLinear& table = Linear(op.table);
  const CudaSegment& segment = table.segments().front();
  if (table.segments().size() != 1 || segment.order != nullptr || segment.is_row8()) {
    return absl::UnimplementedError(
        "the cuda backend embeds from one matrix in the order of its columns");
  }
  float* out = to_.F32(op.out);
  const auto* layout = step_.layout;
  const std::int32_t* tokens = layout->tokens(step_.inputs);
  const std::int32_t* slots = layout->token_slots(step_.inputs);
  const std::int32_t* last = step_.last_tokens;
  const int dim = Dim(op.out);
  Add("embed",
      [=, &segment, scale = op.scale, dtype = to_.dtype_](const Shape& shape, Options options) {
        if (!segment.dense) {
          return cuda::EmbedPacked(out, segment.matrix, tokens, last, slots, shape.tokens, scale,
                                   options);
        }
        return cuda::Embed(dtype, out, segment.weights, tokens, last, slots, shape.tokens, dim,
                           static_cast<int>(segment.matrix.shape.n), scale, options);
      });
  SetF32(op.out, true);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const RmsNormOp& op) {
  const int dim = Dim(op.in);
  const bool per_row = PerLogitRow(op.in);
  const float* weight = Vector(op.weight);
  void* out = to_.Typed(op.out);
  const DType dtype = to_.dtype_;
  const float eps = op.eps;
  if (!InF32(op.in)) {
    const void* in = to_.Typed(op.in);
    Add(absl::StrCat("norm ", Name(op.out)), [=](const Shape& shape, Options options) {
      return cuda::RmsNorm(dtype, out, in, weight, RowsOf(shape, per_row), dim, eps, options);
    });
  } else {
    float* in = to_.F32(op.in);
    if (NormCanWait(op.out, index_)) {
      auto* sums = Scratch<float>(to_.square_sums_at_);
      Add(absl::StrCat("squares of ", Name(op.in)), [=](const Shape& shape, Options options) {
        const int rows = RowsOf(shape, per_row);
        if (DividesAtOnce(shape))
          return cuda::AddRmsNorm(dtype, in, nullptr, weight, out, rows, dim, eps, options);
        return cuda::PrepareNorm(dtype, in, {weight, out, sums}, rows, dim, options);
      });
      waiting_norm_ = op.out;
      waiting_ = {sums, (dim + kTileRows - 1) / kTileRows, dim, eps};
    } else {
      Add(absl::StrCat("norm ", Name(op.out)), [=](const Shape& shape, Options options) {
        return cuda::AddRmsNorm(dtype, in, nullptr, weight, out, RowsOf(shape, per_row), dim, eps,
                                options);
      });
    }
  }
  SetF32(op.out, false);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const AddRmsNormOp& op) {
  const int dim = Dim(op.residual);
  const bool per_row = PerLogitRow(op.residual);
  float* residual = to_.F32(op.residual);
  const void* delta = to_.Typed(op.delta);
  const float* weight = Vector(op.weight);
  void* out = to_.Typed(op.out);
  Add(absl::StrCat("add and norm ", Name(op.out)),
      [=, dtype = to_.dtype_, eps = op.eps](const Shape& shape, Options options) {
        return cuda::AddRmsNorm(dtype, residual, delta, weight, out, RowsOf(shape, per_row), dim,
                                eps, options);
      });
  SetF32(op.residual, true);
  SetF32(op.out, false);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const AddOp& op) {
  const int dim = Dim(op.residual);
  const bool per_row = PerLogitRow(op.residual);
  float* residual = to_.F32(op.residual);
  const void* delta = to_.Typed(op.delta);
  Add("add", [=, dtype = to_.dtype_](const Shape& shape, Options options) {
    return cuda::AddResidual(dtype, residual, delta, std::int64_t{RowsOf(shape, per_row)} * dim,
                             options);
  });
  SetF32(op.residual, true);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const LinearOp& op) {
  const CudaLinear& linear = Linear(op.weight);
  const auto& segments = linear.segments();
  cuda::ProductArgs args;
  args.dtype = to_.dtype_;
  args.x = to_.Typed(op.in);
  args.ldx = Dim(op.in);
  if (waiting_norm_ == op.in) args.norm_in = waiting_;
  waiting_norm_.reset();
  const std::string what = absl::StrCat("product ", Name(op.out));

  const auto* glu = Next<GluOp>();
  if (glu != nullptr && glu->in == op.out && linear.alternates()) {
    args.output = cuda::Output::kGlu;
    args.gate = GateOf(glu->activation);
    args.out = to_.Typed(glu->out);
    args.ldo = Dim(glu->out);
    AddProduct(what, segments.front(), args, op.in);
    SetF32(glu->out, false);
    ++index_;
    return absl::OkStatus();
  }

  const auto* add_norm = Next<AddRmsNormOp>();
  const auto* add = Next<AddOp>();
  const bool adds = (add_norm != nullptr && add_norm->delta == op.out) ||
                    (add != nullptr && add->delta == op.out);
  if (adds && segments.size() == 1) {
    const BufferId residual = add_norm != nullptr ? add_norm->residual : add->residual;
    args.output = cuda::Output::kResidual;
    args.residual = to_.F32(residual);
    const bool fused = add_norm != nullptr && NormCanWait(add_norm->out, index_ + 1);
    if (fused) {
      auto* sums = Scratch<float>(to_.square_sums_at_);
      args.norm_out = {Vector(add_norm->weight), to_.Typed(add_norm->out), sums, add_norm->eps};
      const int dim = Dim(residual);
      waiting_norm_ = add_norm->out;
      waiting_ = {sums, (dim + kTileRows - 1) / kTileRows, dim, add_norm->eps};
    }
    AddProduct(what, segments.front(), args, op.in);
    SetF32(residual, true);
    ++index_;
    if (add_norm == nullptr) return absl::OkStatus();
    if (fused) {
      SetF32(add_norm->out, false);
      return absl::OkStatus();
    }
    return Emit(RmsNormOp{residual, add_norm->weight, add_norm->out, add_norm->eps});
  }

  const bool f32 = op.out == program_.logits;
  args.output = f32 ? cuda::Output::kStoreF32 : cuda::Output::kStore;
  args.ldo = Dim(op.out);
  if (f32 && segments.size() > 1 &&
      std::any_of(segments.begin(), segments.end(),
                  [](const CudaSegment& segment) { return segment.bias != nullptr; })) {
    return absl::UnimplementedError(
        "the cuda backend cannot run a head of several parts with biases");
  }
  for (const CudaSegment& segment : segments) {
    args.out = f32 ? static_cast<void*>(to_.F32(op.out) + segment.row)
                   : static_cast<char*>(to_.Typed(op.out)) + segment.row * 2;
    AddProduct(what, segment, args, op.in);
  }
  SetF32(op.out, f32);
  return absl::OkStatus();
}

// Inputs in the segment's order and rounding; `in` itself where it wants none.
const void* CudaCompiler::AddPrepare(const CudaSegment& segment, const void* in, BufferId rows) {
  if (!segment.prepares_input()) return in;
  cuda::PrepareInputsArgs args;
  args.dtype = to_.dtype_;
  args.out = Scratch<char>(to_.prepared_at_);
  args.in = in;
  args.ld_in = args.k = static_cast<int>(segment.matrix.shape.k);
  args.order = segment.order;
  args.rounding = segment.rounding;
  args.scale = segment.scale;
  args.zero = segment.zero;
  args.threshold = segment.threshold;
  Add("inputs", [args, per_row = PerLogitRow(rows)](const Shape& shape, Options options) {
    cuda::PrepareInputsArgs each = args;
    each.tokens = RowsOf(shape, per_row);
    return cuda::PrepareInputs(each, options);
  });
  return args.out;
}

// A kernel rounds the inputs to codes, another multiplies codes.
void CudaCompiler::AddRow8Product(const std::string& what, const CudaSegment& segment,
                                  const cuda::ProductArgs& args, BufferId rows) {
  const std::int64_t k = segment.matrix.shape.k;
  const bool per_row = PerLogitRow(rows);
  cuda::QuantizeArgs inputs;
  inputs.dtype = args.dtype;
  inputs.x = args.x;
  inputs.ldx = args.ldx;
  inputs.k = static_cast<int>(k);
  inputs.norm_in = args.norm_in;
  inputs.rounding = segment.rounding;
  inputs.scale = segment.scale;
  inputs.zero = segment.zero;
  inputs.threshold = segment.threshold;
  // In place of inputs prepared in 16 bits.
  inputs.out.codes = Scratch<std::uint8_t>(to_.prepared_at_);
  inputs.out.scales = Scratch<float>(to_.prepared_at_ + to_.MaxRows(rows) * k);
  if (segment.rounding == cuda::InputRounding::kOutlierSplit)
    inputs.out.outliers = Scratch<std::uint16_t>(to_.outliers_at_);
  Add("inputs", [=](const Shape& shape, Options options) {
    cuda::QuantizeArgs each = inputs;
    each.tokens = RowsOf(shape, per_row);
    if (DividesAtOnce(shape)) each.norm_in = {};
    return cuda::QuantizeRows(each, options);
  });

  cuda::Row8ProductArgs product;
  product.product = args;
  product.product.w = segment.matrix;
  product.product.bias = segment.bias;
  product.product.norm_in = {};
  product.w = segment.row8;
  product.x = inputs.out;
  product.threshold = segment.threshold;
  product.scratch_bytes = to_.expanded_bytes_;
  cuda::ProductScratch scratch;
  // Where SMs share tiles depends on how many tokens there are: integers add up alike, e4m3 not.
  if (segment.row8.code == DType::kI8 || !to_.options_.deterministic)
    scratch.weights = Scratch<char>(to_.expanded_at_);
  scratch.flags = Scratch<std::uint32_t>(to_.zeros_at_);
  CudaProgram::Launch& launch = Add(what, [=](const Shape& shape, Options options) {
    cuda::Row8ProductArgs each = product;
    each.product.m = RowsOf(shape, per_row);
    each.product.dependent = options.dependent;
    each.product.norm_out.eps = 0.0f;
    if (!DividesAtOnce(shape) || args.norm_out.normed == nullptr)
      return cuda::Row8Product(each, scratch, options.stream);
    each.product.norm_out = {};
    const cudaError_t error = cuda::Row8Product(each, scratch, options.stream);
    if (error != cudaSuccess) return error;
    return cuda::AddRmsNorm(args.dtype, args.residual, nullptr, args.norm_out.weight,
                            args.norm_out.normed, each.product.m,
                            static_cast<int>(each.product.w.shape.n), args.norm_out.eps,
                            {options.stream, true});
  });
  launch.weight_bytes = segment.bytes();
  launch.flops_a_row = 2.0 * static_cast<double>(segment.matrix.shape.n) * static_cast<double>(k);
}

void CudaCompiler::AddProduct(const std::string& what, const CudaSegment& segment,
                              cuda::ProductArgs args, BufferId rows) {
  if (segment.is_row8()) return AddRow8Product(what, segment, args, rows);
  args.x = AddPrepare(segment, args.x, rows);
  args.w = segment.matrix;
  if (segment.packed()) args.expanded = segment.weights;
  args.bias = segment.bias;
  // The lambda keeps no pointer to this compiler: it is gone when steps run.
  cuda::ProductScratch scratch;
  scratch.cublas = cublas_;
  scratch.weights = Scratch<char>(to_.expanded_at_);
  scratch.raw = Scratch<char>(to_.raw_at_);
  scratch.flags = Scratch<std::uint32_t>(to_.zeros_at_);
  const std::int64_t expanded = to_.expanded_bytes_, whole = 2 * args.w.shape.n * args.w.shape.k;
  if (!segment.dense && whole > expanded && cuda::SupportsStream(args.w.shape))
    scratch.weights = nullptr;  // streamed, however many rows
  const std::int64_t piece = segment.dense || scratch.weights == nullptr || whole <= expanded
                                 ? args.w.shape.n
                                 : expanded / (2 * args.w.shape.k) / kTileRows * kTileRows;
  CudaProgram::Launch& launch =
      Add(what, [=, weights = segment.weights, dense = segment.dense, per_row = PerLogitRow(rows),
                 deterministic = to_.options_.deterministic](const Shape& shape, Options options) {
        cuda::ProductArgs each = args;
        each.m = RowsOf(shape, per_row);
        each.cut = Cut(shape, deterministic);
        each.dependent = options.dependent;
        if (DividesAtOnce(shape)) {
          each.norm_in = {};
          each.norm_out.square_sums = nullptr;
        } else {
          each.norm_out.eps = 0.0f;
        }
        if (dense) return cuda::DenseProduct(each, weights, scratch, options.stream);
        // A matrix too large to be expanded at once, in pieces of rows; only heads are.
        const std::int64_t out_bytes = args.output == cuda::Output::kStoreF32 ? 4 : 2;
        for (std::int64_t row = 0; row < args.w.shape.n; row += piece) {
          each.w.shape.n = std::min(piece, args.w.shape.n - row);
          each.w.blocks =
              args.w.blocks + row / kTileRows * args.w.shape.Units() * args.w.shape.BlockBytes();
          if (args.out != nullptr) each.out = static_cast<char*>(args.out) + row * out_bytes;
          if (args.bias != nullptr) each.bias = args.bias + row;
          const cudaError_t error = cuda::Product(each, scratch, options.stream);
          if (error != cudaSuccess) return error;
        }
        return cudaSuccess;
      });
  launch.weight_bytes = segment.dense ? whole : args.w.shape.Bytes();
  launch.flops_a_row = static_cast<double>(whole);
  launch.per_logit_row = PerLogitRow(rows);
}

cuda::RopeAppendArgs CudaCompiler::RopeAppendArgsOf(const RopeAppendOp& op) const {
  cuda::RopeAppendArgs args;
  args.dtype = to_.dtype_;
  args.qkv = to_.Typed(op.qkv);
  args.ld_qkv = Dim(op.qkv);
  args.heads = program_.num_heads;
  args.kv_heads = program_.num_kv_heads;
  args.head_dim = program_.head_dim;
  if (op.rope >= 0) {
    const auto rope = static_cast<std::size_t>(op.rope);
    args.rope_dim = 2 * static_cast<int>(program_.ropes[rope].inv_freq.size());
    args.inv_freq = Scratch<float>(to_.ropes_at_[rope]);
    args.attention_factor = program_.ropes[rope].attention_factor;
  }
  args.q_norm = Vector(op.q_norm);
  args.k_norm = Vector(op.k_norm);
  args.norm_eps = op.norm_eps;
  args.positions = step_.layout->positions(step_.inputs);
  args.slots = step_.layout->places(step_.inputs);
  args.kv = kv_;
  args.layer_cache =
      static_cast<char*>(step_.kv_pool) + op.layer * kv_.LayerStride() * BitsOf(kv_.dtype) / 8;
  return args;
}

absl::Status CudaCompiler::Emit(const RopeAppendOp& op) {
  const cuda::RopeAppendArgs args = RopeAppendArgsOf(op);
  const auto* attention = Next<AttentionOp>();
  const bool attends_next = attention != nullptr && attention->qkv == op.qkv;
  Add("rope and append", [args, attends_next](const Shape& shape, Options options) {
    if (attends_next && AttentionAppends(shape)) return cudaSuccess;
    cuda::RopeAppendArgs each = args;
    each.tokens = shape.tokens;
    return cuda::RopeAppend(each, options);
  });
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const AttentionOp& op) {
  cuda::AttentionArgs args;
  args.dtype = to_.dtype_;
  args.q = to_.Typed(op.qkv);
  args.ld_q = Dim(op.qkv);
  args.out = to_.Typed(op.out);
  args.heads = program_.num_heads;
  args.kv_heads = program_.num_kv_heads;
  args.head_dim = program_.head_dim;
  args.contexts = step_.layout->contexts(step_.inputs);
  args.pages = step_.layout->pages(step_.inputs);
  args.ld_pages = step_.layout->ld_pages();
  args.kv = kv_;
  args.layer_cache = static_cast<const char*>(step_.kv_pool) +
                     op.layer * kv_.LayerStride() * BitsOf(kv_.dtype) / 8;
  args.scale = op.scale;
  args.window = op.window;
  args.softcap = op.softcap;
  args.sinks = Vector(op.sinks);
  args.workspace = Scratch<char>(to_.attention_at_);
  args.counter = Scratch<std::int32_t>(to_.zeros_at_) + CudaProgram::kTileCounter;
  const std::int32_t* query_offsets = step_.layout->query_offsets(step_.inputs);
  if (to_.options_.deterministic) {
    args.max_context = to_.limits_.max_context;
    args.split_tokens = FixedSplit(args.max_context);
  } else {
    args.flags = Scratch<std::uint32_t>(to_.zeros_at_) + CudaProgram::kPartFlags;
  }
  std::optional<cuda::RopeAppendArgs> append;
  const auto* rope = index_ > 0 ? std::get_if<RopeAppendOp>(&program_.ops[index_ - 1]) : nullptr;
  if (rope != nullptr && rope->qkv == op.qkv) append = RopeAppendArgsOf(*rope);
  CudaProgram::Launch& launch =
      Add("attention", [args, append, query_offsets](const Shape& shape, Options options) {
        cuda::AttentionArgs each = args;
        each.sequences = shape.sequences;
        if (each.split_tokens == 0) each.max_context = shape.max_context;
        if (shape.decode) {
          each.early = options.dependent;  // only a step's first launch depends on nothing
          cuda::RopeAppendArgs newest;
          if (append.has_value() && AttentionAppends(shape)) {
            newest = *append;
            newest.tokens = shape.tokens;
            each.append = &newest;
          }
          return cuda::DecodeAttention(each, options);
        }
        each.query_offsets = query_offsets;
        each.max_queries = shape.max_queries;
        return cuda::PrefillAttention(each, options);
      });
  launch.flops_a_score = 4.0 * args.heads * args.head_dim;
  launch.key_bytes = 2 * kv_.num_kv_heads * kv_.head_dim * BitsOf(kv_.dtype) / 8;
  SetF32(op.out, false);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const GluOp& op) {
  void* out = to_.Typed(op.out);
  const void* in = to_.Typed(op.in);
  const int dim = Dim(op.out);
  // What writes `in` is the product before: only a fused one would have left gates alternating.
  const auto* linear = index_ > 0 ? std::get_if<LinearOp>(&program_.ops[index_ - 1]) : nullptr;
  const bool alternate =
      linear != nullptr && linear->out == op.in && Linear(linear->weight).alternates();
  Add("glu", [=, gate = GateOf(op.activation), dtype = to_.dtype_, per_row = PerLogitRow(op.in)](
                 const Shape& shape, Options options) {
    return cuda::Glu(dtype, out, in, RowsOf(shape, per_row), dim, gate, alternate, options);
  });
  SetF32(op.out, false);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const GatherRowsOp& op) {
  const bool f32 = InF32(op.in);
  const std::int64_t row_bytes = std::int64_t{Dim(op.in)} * (f32 ? 4 : 2);
  const void* in = f32 ? static_cast<const void*>(to_.F32(op.in)) : to_.Typed(op.in);
  void* out = f32 ? static_cast<void*>(to_.F32(op.out)) : to_.Typed(op.out);
  const std::int32_t* rows = step_.layout->row_tokens(step_.inputs);
  Add("gather", [=](const Shape& shape, Options options) {
    return cuda::GatherRows(out, in, rows, shape.rows, row_bytes, options);
  });
  SetF32(op.out, f32);
  return absl::OkStatus();
}

absl::Status CudaCompiler::Emit(const SoftcapOp& op) {
  float* logits = to_.F32(op.logits);
  const int dim = Dim(op.logits);
  const bool per_row = PerLogitRow(op.logits);
  Add("softcap", [=, cap = op.softcap](const Shape& shape, Options options) {
    return cuda::Softcap(logits, std::int64_t{RowsOf(shape, per_row)} * dim, cap, options);
  });
  return absl::OkStatus();
}

}  // namespace nibble
