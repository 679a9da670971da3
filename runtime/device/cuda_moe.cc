// The compiler's mixtures of experts: grouped products of rows sorted by expert, kernels of their
// own for few tokens, or one expert after the other.
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_compiler.h"

namespace nibble {
namespace {

bool IsFew(const CudaStepShape& shape) { return shape.tokens <= cuda::kFewTokens; }

}  // namespace

absl::Status CudaCompiler::Emit(const MoeOp& op) {
  const CudaLinear &router = Linear(op.router), &wide = Linear(op.gate_up),
                   &narrow = Linear(op.down);
  if (router.segments().size() != 1) return absl::InternalError("a router of several parts");
  for (const CudaLinear* stack : {&wide, &narrow}) {
    int parts = 0;
    for (const CudaSegment& segment : stack->segments()) parts += segment.parts;
    if (parts != op.experts) {
      return absl::InternalError(absl::StrCat("a stack of ", parts, " experts, not ", op.experts));
    }
  }
  const bool grouped = Grouped(wide) && Grouped(narrow), few = grouped && HasFewTokenKernels(op);
  EmitRouter(op, few);
  if (grouped) {
    EmitGrouped(op, few);
  } else {
    EmitOneByOne(op);
  }
  const float* sum = Scratch<float>(to_.moe_.sum);
  void* to = to_.Typed(op.out);
  Add("experts", [=, dtype = to_.dtype_, hidden = Dim(op.in)](const Shape& shape, Options options) {
    if (few && IsFew(shape)) return cudaSuccess;
    return cuda::Convert(dtype, to, DType::kF32, sum, std::int64_t{shape.tokens} * hidden, options);
  });
  SetF32(op.out, false);
  return absl::OkStatus();
}

bool CudaCompiler::Grouped(const CudaLinear& stack) const {
  const CudaSegment& segment = stack.segments().front();
  PackedShape shape = segment.matrix.shape;
  shape.n = stack.n;
  return stack.segments().size() == 1 && !segment.dense && !segment.prepares_input() &&
         segment.bias == nullptr && stack.n % kTileRows == 0 && cuda::SupportsGrouped(shape);
}

bool CudaCompiler::HasFewTokenKernels(const MoeOp& op) const {
  const CudaSegment& router = Linear(op.router).segments().front();
  const auto supports = [&](LinearId id) {
    return cuda::SupportsFewExperts(Linear(id).Expert(0).matrix.shape);
  };
  // Their sums of a token depend on what the others ask for.
  return !to_.options_.deterministic && router.dense && !router.prepares_input() &&
         router.bias == nullptr && Dim(op.in) % 8 == 0 && op.intermediate % kTileRows == 0 &&
         op.top_k <= cuda::kFewRanks && supports(op.gate_up) && supports(op.down);
}

// Logits of every expert; of few tokens the choice among them too.
void CudaCompiler::EmitRouter(const MoeOp& op, bool few) {
  cuda::ProductArgs args;
  args.dtype = to_.dtype_;
  args.x = to_.Typed(op.in);
  args.ldx = Dim(op.in);
  args.output = cuda::Output::kStoreF32;
  args.out = Scratch<float>(to_.moe_.logits);
  args.ldo = op.experts;
  const CudaSegment& router = Linear(op.router).segments().front();
  AddProduct("router", router, args, op.in);
  if (!few) return;
  cuda::RouteArgs route;
  route.dtype = args.dtype;
  route.x = args.x;
  route.ldx = args.ldx;
  route.router = router.weights;
  route.logits = Scratch<float>(to_.moe_.logits);
  route.routes = Routes();
  route.k = Dim(op.in);
  route.experts = op.experts;
  route.top_k = op.top_k;
  route.renormalize = op.renormalize;
  route.counters = Scratch<std::uint32_t>(to_.zeros_at_);
  CudaProgram::Launch& launch = to_.launches_.back();
  launch.run = [route, product = launch.run](const Shape& shape, Options options) {
    if (!IsFew(shape)) return product(shape, options);
    cuda::RouteArgs each = route;
    each.tokens = shape.tokens;
    return cuda::RouteTokens(each, options);
  };
}

cuda::ExpertRoutes CudaCompiler::Routes() const {
  const CudaProgram::MoeScratch& at = to_.moe_;
  return {Scratch<std::int32_t>(at.chosen), Scratch<float>(at.weights),
          Scratch<std::int32_t>(at.offsets), Scratch<std::int32_t>(at.tokens),
          Scratch<std::int32_t>(at.rows)};
}

// Every expert's tokens at once: rows sorted by expert, products of groups of them. Of few tokens
// the two products do all that lies between.
void CudaCompiler::EmitGrouped(const MoeOp& op, bool few) {
  const DType dtype = to_.dtype_;
  const int hidden = Dim(op.in), dim = op.intermediate, experts = op.experts, top_k = op.top_k;
  const CudaProgram::MoeScratch& at = to_.moe_;
  const float* logits = Scratch<float>(at.logits);
  const cuda::ExpertRoutes routes = Routes();
  void* inputs = Scratch<char>(at.inputs);
  void* gate_up = Scratch<char>(at.gate_up);
  void* activated = Scratch<char>(at.activated);
  void* out = Scratch<char>(at.out);
  const cuda::Gate gate = GateOf(op.activation);
  const auto add_of_many = [&](const char* what, auto run) {
    Add(what, [few, run](const Shape& shape, Options options) {
      return few && IsFew(shape) ? cudaSuccess : run(shape, options);
    });
  };
  add_of_many("route", [=, renormalize = op.renormalize](const Shape& shape, Options options) {
    return cuda::SortByExpert(logits, routes, shape.tokens, experts, top_k, renormalize, options);
  });
  const void* in = to_.Typed(op.in);
  add_of_many("expert inputs", [=](const Shape& shape, Options options) {
    return cuda::GatherRows(inputs, in, routes.tokens, shape.tokens * top_k,
                            std::int64_t{hidden} * 2, options);
  });
  // `few_x` and `few_y`: of few tokens, whose kernel is `few_product`.
  using FewProduct = cudaError_t (*)(const cuda::FewExpertsArgs&, cuda::LaunchOptions);
  const auto product = [&](const char* what, const CudaLinear& stack, const void* x, void* y,
                           FewProduct few_product, const void* few_x, void* few_y, int few_ldo) {
    cuda::GroupedProductArgs group;
    group.product.w = stack.Expert(0).matrix;
    group.product.dtype = dtype;
    group.product.x = x;
    group.product.ldx = stack.k;
    group.product.out = y;
    group.product.ldo = stack.n;
    group.experts = experts;
    group.offsets = routes.offsets;
    cuda::FewExpertsArgs few_args;
    few_args.w = group.product.w;
    few_args.dtype = dtype;
    few_args.x = few_x;
    few_args.ldx = stack.k;
    few_args.out = few_y;
    few_args.ldo = few_ldo;
    few_args.routes = routes;
    few_args.experts = experts;
    few_args.top_k = top_k;
    few_args.gate = gate;
    CudaProgram::Launch& launch = Add(
        what, [=, deterministic = to_.options_.deterministic](const Shape& shape, Options options) {
          if (few && IsFew(shape)) {
            cuda::FewExpertsArgs each = few_args;
            each.tokens = shape.tokens;
            return few_product(each, options);
          }
          cuda::GroupedProductArgs each = group;
          each.product.m = shape.tokens * top_k;
          each.product.cut = Cut(shape, deterministic);
          each.product.dependent = options.dependent;
          return cuda::GroupedProduct(each, options.stream);
        });
    launch.weight_bytes = group.product.w.shape.Bytes() * experts;  // when every expert is asked
    launch.flops_a_row = 2.0 * static_cast<double>(stack.n) * static_cast<double>(stack.k) * top_k;
  };
  product("experts gate_up", Linear(op.gate_up), inputs, gate_up, cuda::FewExpertsGlu, in,
          activated, dim);
  add_of_many("expert glu", [=](const Shape& shape, Options options) {
    return cuda::Glu(dtype, activated, gate_up, shape.tokens * top_k, dim, gate, false, options);
  });
  product("experts down", Linear(op.down), activated, out, cuda::FewExpertsSum, activated,
          to_.Typed(op.out), hidden);
  auto* sum = Scratch<float>(at.sum);
  add_of_many("expert sum", [=](const Shape& shape, Options options) {
    return cuda::CombineExperts(dtype, sum, out, routes, top_k, /*add=*/false, shape.tokens, hidden,
                                options);
  });
}

// One expert after the other, for all tokens: right for any encoding, and far from fast.
void CudaCompiler::EmitOneByOne(const MoeOp& op) {
  const DType dtype = to_.dtype_;
  const int hidden = Dim(op.in), dim = op.intermediate, experts = op.experts;
  const CudaProgram::MoeScratch& at = to_.moe_;
  const float* logits = Scratch<float>(at.logits);
  auto* weights = Scratch<float>(at.weights);
  auto* sum = Scratch<float>(at.sum);
  auto* gate_up = Scratch<char>(at.gate_up);
  auto* activated = Scratch<char>(at.activated);
  auto* out = Scratch<char>(at.out);
  Add("route", [=, top_k = op.top_k, renormalize = op.renormalize](const Shape& shape,
                                                                   Options options) {
    return cuda::RouteExperts(logits, weights, shape.tokens, experts, top_k, renormalize, options);
  });
  cuda::ProductArgs args;
  args.dtype = dtype;
  for (int e = 0; e < experts; ++e) {
    args.x = to_.Typed(op.in);
    args.ldx = hidden;
    args.out = gate_up;
    args.ldo = 2 * dim;
    AddProduct("expert gate_up", Linear(op.gate_up).Expert(e), args, op.in);
    Add("expert glu", [=, gate = GateOf(op.activation)](const Shape& shape, Options options) {
      return cuda::Glu(dtype, activated, gate_up, shape.tokens, dim, gate, false, options);
    });
    args.x = activated;
    args.ldx = dim;
    args.out = out;
    args.ldo = hidden;
    AddProduct("expert down", Linear(op.down).Expert(e), args, op.in);
    Add("expert sum", [=](const Shape& shape, Options options) {
      return cuda::AddExpert(dtype, sum, out, weights, experts, e, e == 0, shape.tokens, hidden,
                             options);
    });
  }
}

}  // namespace nibble
