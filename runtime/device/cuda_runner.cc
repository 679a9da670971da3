#include "runtime/device/cuda_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

constexpr std::int64_t kCublasBytes = std::int64_t{32} << 20;  // what cuBLAS wants on Hopper

// Numbers of sequences that have graphs of their own: up to 16 every product reads its weights once
// whatever the number, beyond it works in sixteens.
constexpr int kDecodeSequences[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512};
constexpr int kLeastContext = 512;  // of the smallest bound of contexts
// So many (sequence, kv head) fill the device: attention then shares all pages evenly whatever the
// bound, and one graph serves every context.
constexpr int kFullGrid = 66;

std::string Describe(const StepInput& input) {
  return absl::StrCat("step ", input.id, ", ", input.phase == Phase::kDecode ? "decode" : "prefill",
                      " of ", input.tokens.size(), " tokens in ", input.slots.size(), " sequences");
}

}  // namespace

// The parts reserve from layout_ in the order of their construction.
CudaRunner::CudaRunner(std::shared_ptr<CudaContext> context, const Program& program,
                       const KvLayout& kv, const StepLimits& limits, const CompileOptions& options)
    : context_(std::move(context)),
      limits_(limits),
      options_(options),
      program_(program, context_->dtype, limits, layout_),
      step_layout_(limits, kv),
      slots_(program.vocab, limits, layout_),
      inputs_at_(layout_.Take(step_layout_.bytes())),
      results_at_(layout_.Take(limits.max_logit_rows * std::int64_t{sizeof(cuda::SampledToken)})),
      cublas_at_(layout_.Take(kCublasBytes)),
      checker_(limits, program.vocab, kv),
      page_bytes_(kv.BytesPerPage()) {}

std::int64_t CudaRunner::WorkspaceBytes(DType dtype, const Program& program,
                                        const StepLimits& limits) {
  auto context = std::make_shared<CudaContext>();
  context->dtype = dtype;
  KvLayout kv;
  kv.page_tokens = 64;
  return CudaRunner(std::move(context), program, kv, limits, {}).layout_.total();
}

CudaRunner::~CudaRunner() {
  if (stream_.get() == nullptr) return;
  cudaSetDevice(context_->device);
  cudaStreamSynchronize(stream_.get());
}

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Create(
    const std::shared_ptr<CudaContext>& context, const Program& program, ModelWeights weights,
    const KvLayout& kv, const StepLimits& limits, const CompileOptions& options) {
  RETURN_IF_ERROR(CudaError(cudaSetDevice(context->device), "choosing the device"));
  std::unique_ptr<CudaRunner> runner(new CudaRunner(context, program, kv, limits, options));
  RETURN_IF_ERROR(runner->Allocate(std::move(weights), kv));
  RETURN_IF_ERROR(runner->CaptureGraphs());
  return runner;
}

absl::Status CudaRunner::Allocate(ModelWeights weights, const KvLayout& kv) {
  ASSIGN_OR_RETURN(workspace_, CudaMemory::Allocate(CudaMemory::Kind::kDevice, layout_.total(),
                                                    "the workspace"));
  ASSIGN_OR_RETURN(kv_pool_, CudaMemory::Allocate(CudaMemory::Kind::kDevice, kv.TotalBytes(),
                                                  "keys and values"));
  ASSIGN_OR_RETURN(stream_, MakeCudaStream());
  for (Set& set : sets_) {
    ASSIGN_OR_RETURN(set.inputs, CudaMemory::Allocate(CudaMemory::Kind::kPinned,
                                                      step_layout_.bytes(), "step inputs"));
    ASSIGN_OR_RETURN(set.results, CudaMemory::Allocate(CudaMemory::Kind::kPinned,
                                                       limits_.max_logit_rows *
                                                           std::int64_t{sizeof(cuda::SampledToken)},
                                                       "step results"));
    ASSIGN_OR_RETURN(set.begin, MakeCudaEvent(/*timed=*/true));
    ASSIGN_OR_RETURN(set.end, MakeCudaEvent(/*timed=*/true));
  }
  cublasHandle_t cublas = nullptr;
  if (cublasCreate(&cublas) != CUBLAS_STATUS_SUCCESS)
    return absl::InternalError("cuBLAS cannot be started on the device");
  cublas_ = CublasHandle(cublas);
  // With memory of its own its products can be captured, and always take the same path.
  if (cublasSetStream(cublas, stream_.get()) != CUBLAS_STATUS_SUCCESS ||
      cublasSetWorkspace(cublas, workspace_.data() + cublas_at_, kCublasBytes) !=
          CUBLAS_STATUS_SUCCESS) {
    return absl::InternalError("cuBLAS does not take its workspace");
  }
  RETURN_IF_ERROR(slots_.Bind(workspace_, stream_.get()));
  CudaProgram::StepMemory step;
  step.layout = &step_layout_;
  step.inputs = workspace_.data() + inputs_at_;
  step.last_tokens = slots_.last_tokens();
  step.kv_pool = kv_pool_.data();
  RETURN_IF_ERROR(program_.Bind(workspace_, std::move(weights), kv, options_, cublas_.get(), step,
                                stream_.get()));
  memory_ = {.weights_bytes = program_.weights_bytes(),
             .expanded_bytes = program_.expanded_bytes(),
             .kv_bytes = kv_pool_.size(),
             .workspace_bytes = workspace_.size()};
  return absl::OkStatus();
}

// ---- Graphs ----

std::vector<CudaStepShape> CudaRunner::DecodeShapes(const Program& program,
                                                    const StepLimits& limits,
                                                    const CompileOptions& options) {
  const int most = std::min({limits.max_sequences, limits.max_tokens, limits.max_logit_rows});
  std::vector<CudaStepShape> shapes;
  for (int sequences : kDecodeSequences) {
    const bool last = sequences >= most;
    sequences = std::min(sequences, most);
    const bool one = options.deterministic || sequences * program.num_kv_heads > kFullGrid;
    for (std::int64_t context = one ? limits.max_context : kLeastContext;; context *= 2) {
      CudaStepShape shape;
      shape.tokens = shape.rows = shape.sequences = sequences;
      shape.max_queries = 1;
      shape.max_context = static_cast<int>(std::min<std::int64_t>(context, limits.max_context));
      shape.decode = true;
      shapes.push_back(shape);
      if (context >= limits.max_context) break;
    }
    if (last) break;
  }
  return shapes;
}

std::int64_t CudaRunner::GraphsBytes(const Program& program, const StepLimits& limits) {
  constexpr std::int64_t kNodeBytes = 8192;  // measured, CUDA 13 on an H200
  std::int64_t nodes = 8;                    // before the first layer and behind the last
  for (const Op& op : program.ops) {
    if (std::holds_alternative<MoeOp>(op)) {
      nodes += 8;
    } else if (!std::holds_alternative<AddRmsNormOp>(op) && !std::holds_alternative<GluOp>(op)) {
      ++nodes;  // those two are mostly part of a product
    }
  }
  return static_cast<std::int64_t>(DecodeShapes(program, limits, {}).size()) * nodes * kNodeBytes;
}

absl::Status CudaRunner::CaptureGraphs() {
  constexpr std::size_t kMostLaunches = 2048;  // of a graph: 16 MiB
  if (program_.launches().size() > kMostLaunches) {
    LogWarning("decode steps are not captured: too many kernels",
               {{"launches", absl::StrCat(program_.launches().size())}});
    return absl::OkStatus();
  }
  const std::vector<CudaStepShape> shapes = DecodeShapes(program_.program(), limits_, options_);
  // Once outside of any graph: kernels are loaded and cuBLAS has chosen.
  int warmed = 0;
  for (const CudaStepShape& shape : shapes) {
    if (std::exchange(warmed, shape.sequences) == shape.sequences) continue;
    RETURN_IF_ERROR(SendEmpty(shape));
    RETURN_IF_ERROR(RunKernels(shape, absl::StrCat("warming up decode of ", shape.sequences)));
    RETURN_IF_ERROR(CudaError(cudaStreamSynchronize(stream_.get()),
                              absl::StrCat("warming up decode of ", shape.sequences)));
  }
  std::size_t before = 0, after = 0, total = 0;
  RETURN_IF_ERROR(CudaError(cudaMemGetInfo(&before, &total), "asking for free memory"));
  for (const CudaStepShape& shape : shapes) RETURN_IF_ERROR(Capture(shape));
  RETURN_IF_ERROR(CudaError(cudaStreamSynchronize(stream_.get()), "uploading graphs"));
  RETURN_IF_ERROR(CudaError(cudaMemGetInfo(&after, &total), "asking for free memory"));
  memory_.graphs_bytes = before > after ? static_cast<std::int64_t>(before - after) : 0;
  LogInfo("device memory", {{"used", absl::StrCat(total - after)},
                            {"weights", absl::StrCat(memory_.weights_bytes)},
                            {"expanded", absl::StrCat(memory_.expanded_bytes)},
                            {"kv", absl::StrCat(memory_.kv_bytes)},
                            {"workspace", absl::StrCat(memory_.workspace_bytes)},
                            {"graphs", absl::StrCat(memory_.graphs_bytes)},
                            {"number_of_graphs", absl::StrCat(graphs_.size())}});
  return absl::OkStatus();
}

absl::StatusOr<CudaGraphExec> CudaRunner::CaptureLaunches(
    const std::function<absl::Status()>& launch, const std::string& what) {
  RETURN_IF_ERROR(
      CudaError(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), what));
  const absl::Status launched = launch();
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &captured);
  const CudaGraph graph(captured);
  RETURN_IF_ERROR(launched);
  RETURN_IF_ERROR(CudaError(ended, what));
  cudaGraphExec_t exec = nullptr;
  RETURN_IF_ERROR(CudaError(cudaGraphInstantiate(&exec, graph.get(), 0), what));
  return CudaGraphExec(exec);
}

absl::Status CudaRunner::Capture(const CudaStepShape& shape) {
  const std::string what = absl::StrCat("capturing decode of ", shape.sequences, " up to ",
                                        shape.max_context, " tokens");
  ASSIGN_OR_RETURN(CudaGraphExec exec,
                   CaptureLaunches([&] { return RunKernels(shape, what); }, what));
  RETURN_IF_ERROR(CudaError(cudaGraphUpload(exec.get(), stream_.get()), what));
  graphs_.push_back({shape.sequences, shape.max_context, std::move(exec)});
  return absl::OkStatus();
}

absl::Status CudaRunner::SendInputs(const StepInput& input, const CudaStepShape& shape,
                                    const Set& set, const std::string& what) {
  const std::int64_t bytes = step_layout_.Write(input, shape, set.inputs.data());
  return CudaError(
      cudaMemcpyAsync(workspace_.data() + inputs_at_, set.inputs.data(),
                      static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream_.get()),
      absl::StrCat(what, ": copying its inputs"));
}

// The inputs of a step of nobody.
absl::Status CudaRunner::SendEmpty(const CudaStepShape& shape) {
  const std::int32_t offsets[1] = {0};
  StepInput nobody;
  nobody.block_table_offsets = offsets;
  RETURN_IF_ERROR(SendInputs(nobody, shape, sets_[0], "a step of nobody"));
  return CudaError(cudaStreamSynchronize(stream_.get()), "copying step inputs");
}

const CudaRunner::DecodeGraph* CudaRunner::FindGraph(const CudaStepShape& shape) const {
  if (!shape.decode || shape.rows > shape.sequences) return nullptr;
  const auto found = std::find_if(graphs_.begin(), graphs_.end(), [&](const DecodeGraph& graph) {
    return graph.sequences >= shape.sequences && graph.max_context >= shape.max_context;
  });
  return found == graphs_.end() ? nullptr : &*found;
}

// ---- Steps ----

cudaError_t CudaRunner::RunSampler(const CudaStepShape& shape, cuda::LaunchOptions options) {
  cuda::SampleArgs args;
  args.logits = program_.logits();
  args.vocab = program_.program().vocab;
  args.ld_logits = args.vocab;
  args.count = shape.rows;
  args.rows = step_layout_.rows(workspace_.data() + inputs_at_);
  args.params = slots_.params();
  args.lists = slots_.lists();
  args.history = slots_.history();
  args.last_tokens = slots_.last_tokens();
  args.results = workspace_.At<cuda::SampledToken>(results_at_);
  return cuda::Sample(args, options);
}

// What a launch follows is a copy or another stream's work only before the first.
absl::Status CudaRunner::RunKernels(const CudaStepShape& shape, const std::string& what) {
  bool dependent = false;
  for (const CudaProgram::Launch& launch : program_.launches()) {
    const cudaError_t error = launch.run(shape, {stream_.get(), dependent});
    if (error != cudaSuccess)
      return CudaError(error, absl::StrCat(what, ": op ", launch.op, ", ", launch.kind));
    dependent = true;
  }
  return CudaError(RunSampler(shape, {stream_.get(), dependent}), absl::StrCat(what, ": sampling"));
}

absl::Status CudaRunner::Fail(absl::Status status) {
  if (sticky_.ok()) sticky_ = absl::InternalError(status.message());
  return sticky_;
}

absl::Status CudaRunner::Launch(const StepInput& input) {
  RETURN_IF_ERROR(sticky_);
  if (in_flight() > depth()) {
    return absl::InternalError(absl::StrCat("step ", input.id, " launched with ", in_flight(),
                                            " in flight; at most ", depth(), " may be"));
  }
  RETURN_IF_ERROR(checker_.Accept(input));
  const std::string what = Describe(input);
  const absl::Status launched = LaunchStep(input, what);
  return launched.ok() ? launched : Fail(launched);
}

absl::Status CudaRunner::LaunchStep(const StepInput& input, const std::string& what) {
  RETURN_IF_ERROR(CudaError(cudaSetDevice(context_->device), what));
  const Set& set = sets_[static_cast<std::size_t>(next_set_)];
  cudaStream_t stream = stream_.get();
  CudaStepShape shape = ShapeOf(input);
  const DecodeGraph* graph = FindGraph(shape);
  if (graph != nullptr) shape.tokens = shape.rows = shape.sequences = graph->sequences;

  RETURN_IF_ERROR(CudaError(cudaEventRecord(set.begin.get(), stream), what));
  RETURN_IF_ERROR(SendInputs(input, shape, set, what));
  RETURN_IF_ERROR(slots_.Begin(input.slot_inits, next_set_, stream));
  if (graph != nullptr) {
    RETURN_IF_ERROR(
        CudaError(cudaGraphLaunch(graph->exec.get(), stream), absl::StrCat(what, ": its graph")));
  } else {
    RETURN_IF_ERROR(RunKernels(shape, what));
  }
  const std::size_t rows = input.logit_rows.size();
  if (rows > 0) {
    RETURN_IF_ERROR(CudaError(
        cudaMemcpyAsync(set.results.data(), workspace_.data() + results_at_,
                        rows * sizeof(cuda::SampledToken), cudaMemcpyDeviceToHost, stream),
        absl::StrCat(what, ": copying its results")));
  }
  RETURN_IF_ERROR(CudaError(cudaEventRecord(set.end.get(), stream), what));

  Flying& flying = flying_.emplace_back();
  flying.id = input.id;
  flying.rows = static_cast<int>(rows);
  flying.set = next_set_;
  flying.what = what;
  next_set_ = (next_set_ + 1) % kSets;
  return absl::OkStatus();
}

absl::StatusOr<StepResult> CudaRunner::Collect() {
  RETURN_IF_ERROR(sticky_);
  if (flying_.empty()) return absl::InternalError("nothing was launched");
  const Flying flying = std::move(flying_.front());
  flying_.pop_front();
  const Set& set = sets_[static_cast<std::size_t>(flying.set)];
  absl::Status status = CudaError(cudaEventSynchronize(set.end.get()),
                                  absl::StrCat(flying.what, ": in one of its kernels"));
  float milliseconds = 0.0f;
  if (status.ok()) {
    status =
        CudaError(cudaEventElapsedTime(&milliseconds, set.begin.get(), set.end.get()), flying.what);
  }
  if (!status.ok()) return Fail(std::move(status));

  StepResult result;
  result.id = flying.id;
  result.seconds = milliseconds * 1e-3;
  result.rows.resize(static_cast<std::size_t>(flying.rows));
  const auto* tokens = set.results.At<cuda::SampledToken>(0);
  for (std::size_t r = 0; r < result.rows.size(); ++r) {
    const cuda::SampledToken& token = tokens[r];
    RowResult& row = result.rows[r];
    row.token = token.token;
    row.logprob = token.logprob;
    row.bad_logits = token.bad_logits != 0;
    for (int i = 0; i < token.num_top; ++i)
      row.top.push_back({token.top_tokens[i], token.top_logprobs[i]});
  }
  return result;
}

}  // namespace nibble
