// Every CUDA kernel's launcher. Plain C++: raw device pointers, sizes, a stream. A launcher checks
// its contract (cudaErrorInvalidValue), is asynchronous on the stream, allocates nothing and
// returns the launch's error.
//
// T is the activation type, half or bfloat16, named by a DType of kF16 or kBF16.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/kv_layout.h"
#include "kernels/packed_layout.h"
#include "kernels/sampling.h"

struct cublasContext;  // what cublasHandle_t points to

namespace nibble::cuda {

// dependent: programmatic dependent launch, the kernel may start before the stream's previous one
// ends (it waits for its results itself). The previous kernel must be one of ours.
struct LaunchOptions {
  cudaStream_t stream = nullptr;
  bool dependent = false;
};

// ---- Products
// ----------------------------------------------------------------------------------------------

// A packed matrix in device memory.
struct PackedMatrix {
  PackedShape shape;
  const std::uint8_t* blocks = nullptr;  // shape.Bytes(), 128-byte aligned
  int zero = 0;                          // of OffsetMode::kConstant and kBias
  float multiplier = 1.0f;               // 2^scale_exponent of the RowSource
  std::array<float, 16> table{};         // CodeKind::kCodebook
};

enum class Output : std::uint8_t {
  kStore,     // out T[m, ldo]
  kStoreF32,  // out f32[m, ldo]
  kGlu,  // out T[m, ldo] = act(gate) * up; the matrix was packed with alternate_halves, out has n /
         // 2 columns
  kResidual,  // residual f32[m, n] += product; and what the next RMS norm needs, see NormOutput
};

enum class Gate : std::uint8_t { kSilu, kGeluTanh };

// How a product is cut into work. kFastest: as suits the number of rows, so that a row's last bits
// depend on how many are beside it. The others give a row the same bits in any company and at any
// place: 16 rows at a time through the decode kernel (kTiles where it has no instance), or tiles
// that are never split.
enum class ProductCut : std::uint8_t { kFastest, kStream, kTiles };

// What such products may write of x's, out's, the residual stream's and the norms' rows: m rounded
// up to so many. From m on they mean nothing.
inline constexpr int kInvariantRows = 64;

// RMS normalisation without a kernel of its own: whoever writes the residual stream also writes
// normed = T(residual * weight) and, for each token and 16 columns, the sum of squares; whoever
// reads `normed` as activations multiplies its result by 1 / sqrt(sum / dim + eps).
struct NormOutput {
  const float* weight = nullptr;  // f32[n]
  void* normed = nullptr;         // T[m, n]
  float* square_sums = nullptr;   // f32[m, ceil(n / 16)]
  // Product and DenseProduct, above 0: the whole norm at once, normed = T(residual / rms * weight),
  // and no sums; for many tokens, whose products would each have to read the sums.
  float eps = 0.0f;
};
struct NormInput {
  const float* square_sums = nullptr;  // f32[m, count]; null: the activations are what they are
  int count = 0;
  int dim = 0;
  float eps = 0.0f;
};

// out = epilogue(x * w^T): x T[m, k] with rows ldx apart (k % 8 == 0, 16-byte aligned rows), w
// packed [n, k].
struct ProductArgs {
  PackedMatrix w;
  // T[n, k], what DequantizePacked makes of w, or null. Product multiplies by it where it measured
  // faster than the codes, so that no number of tokens is slower than dense weights are.
  const void* expanded = nullptr;
  DType dtype = DType::kF16;
  const void* x = nullptr;
  std::int64_t ldx = 0;
  int m = 0;
  NormInput norm_in;
  const float* bias = nullptr;  // f32[n] in packed row order, or null
  Output output = Output::kStore;
  Gate gate = Gate::kSilu;
  void* out = nullptr;
  std::int64_t ldo = 0;
  float* residual = nullptr;
  NormOutput norm_out;
  ProductCut cut = ProductCut::kFastest;
  bool dependent =
      true;  // programmatic dependent launch: may start before the stream's previous kernel ends
};

// How a streamed product is cut.
struct StreamPlan {
  // Blocks that share tiles, each with columns of its own: 1, 2 or 4; 0: chosen. The order of
  // sums depends on it and on the matrix, not on the number of tokens.
  int parts = 0;
  std::uint32_t* flags = nullptr;  // ProductScratch::flags; null: one part
};

// The decode kernel: weights are streamed once for every 16 tokens, or the fewer whose activations
// shared memory holds.
// cudaErrorNotSupported: this (encoding, group) has no instance; SupportsStream says so beforehand.
cudaError_t StreamProduct(const ProductArgs& args, cudaStream_t stream, StreamPlan plan = {});
bool SupportsStream(const PackedShape& shape);

// What products through dense weights need. `cublas` has its workspace set, so that it can be
// captured.
struct ProductScratch {
  cublasContext* cublas = nullptr;
  void* weights = nullptr;  // 2 * n * k bytes: the weights expanded, or partial sums
  void* raw = nullptr;      // RawBytes(m, n): the product of some tokens before their epilogue
  // kProductFlags words, zero before the first product and after each: through them SMs share
  // tiles. Products that may run at once need their own.
  std::uint32_t* flags = nullptr;
};
inline constexpr int kProductFlags = 1 << 20;
std::int64_t RawBytes(int m, std::int64_t n);  // never more than 2 * m * n

// Any number of tokens, any packed encoding. Not launched dependent beyond the streamed sizes.
cudaError_t Product(const ProductArgs& args, const ProductScratch& scratch, cudaStream_t stream);

// The same with dense weights w T[n, k] (rows in packed order); args.w gives n and k alone.
cudaError_t DenseProduct(const ProductArgs& args, const void* w, const ProductScratch& scratch,
                         cudaStream_t stream);

// out T[n, k] row-major (ldo = k) from packed blocks: rows in packed order, columns in stored
// order. k % 8 == 0.
cudaError_t DequantizePacked(const PackedMatrix& w, DType dtype, void* out, cudaStream_t stream);

// Packs rows of codes (RowSource of device pointers) into blocks.
cudaError_t PackBlocks(const PackedShape& shape, const RowSource& source, std::uint8_t* blocks,
                       cudaStream_t stream);

// ---- Mixtures of experts
// ---------------------------------------------------------------------------------------

inline constexpr int kMostExperts = 512;

// Which rows experts get. Rows are the (token, rank) pairs, sorted by expert, then by token.
struct ExpertRoutes {
  std::int32_t* chosen = nullptr;   // [tokens, top_k] experts, best first
  float* weights = nullptr;         // [tokens, top_k]
  std::int32_t* offsets = nullptr;  // [experts + 1]: where an expert's rows begin
  std::int32_t* tokens = nullptr;   // [tokens * top_k]: a row's token, what GatherRows takes
  std::int32_t* rows = nullptr;     // [tokens, top_k]: where in the sorted rows a pair went
};

// Softmax over all of logits f32[tokens, experts], the top_k best (the smaller id of equals),
// renormalised to sum 1 if asked. experts <= kMostExperts.
cudaError_t SortByExpert(const float* logits, const ExpertRoutes& routes, int tokens, int experts,
                         int top_k, bool renormalize, LaunchOptions options);

// Rows [offsets[e], offsets[e + 1]) of x times expert e. product.w is expert 0; the others follow
// it, each shape.Bytes() large, shape.n % 16 == 0. product.m: rows of x and out, all experts
// together (the grid is made for any split of them). kStore, kStoreF32 or kGlu, no norm, no bias.
struct GroupedProductArgs {
  ProductArgs product;
  int experts = 0;
  const std::int32_t* offsets = nullptr;  // device i32[experts + 1]
};
cudaError_t GroupedProduct(const GroupedProductArgs& args, cudaStream_t stream);
bool SupportsGrouped(const PackedShape& shape);

// sum f32[tokens, dim] = (add ? sum : 0) + each token's experts' rows of y T[rows, dim], best
// first, by their weights.
cudaError_t CombineExperts(DType dtype, float* sum, const void* y, const ExpertRoutes& routes,
                           int top_k, bool add, int tokens, int dim, LaunchOptions options);

// Few tokens: three kernels are the whole mixture. Their routes are SortByExpert's.
inline constexpr int kFewTokens = 64;
inline constexpr int kFewRanks = 16;  // most top_k
inline constexpr int kRouteCounters = 1 + kFewTokens / 4;

// The router's product and SortByExpert of at most kFewTokens tokens.
struct RouteArgs {
  DType dtype = DType::kF16;
  const void* x = nullptr;  // T[tokens, k], rows ldx apart; k and ldx multiples of 8
  std::int64_t ldx = 0;
  const void* router = nullptr;  // T[experts, k]
  float* logits = nullptr;       // f32[tokens, experts]: written
  ExpertRoutes routes;
  int tokens = 0, k = 0, experts = 0, top_k = 0;
  bool renormalize = false;
  std::uint32_t* counters = nullptr;  // kRouteCounters words, zero before and after
};
cudaError_t RouteTokens(const RouteArgs& args, LaunchOptions options);

// Products of at most kFewTokens tokens with the experts that `routes` gives them. w is expert 0;
// the others follow it, each shape.Bytes() large.
struct FewExpertsArgs {
  PackedMatrix w;
  DType dtype = DType::kF16;
  const void* x = nullptr;  // rows ldx apart, 16-byte aligned
  std::int64_t ldx = 0;
  void* out = nullptr;
  std::int64_t ldo = 0;
  ExpertRoutes routes;
  int tokens = 0, experts = 0, top_k = 0;
  Gate gate = Gate::kSilu;
};
// out T[tokens * top_k, n / 2] = gate(x w_gate^T) * (x w_up^T) in the order of the routes' rows, of
// x T[tokens, k]; the gate's rows are the first half of w.
cudaError_t FewExpertsGlu(const FewExpertsArgs& args, LaunchOptions options);
// out T[tokens, n] = each token's sum over its experts of weight * x w^T, of x T[tokens * top_k,
// k].
cudaError_t FewExpertsSum(const FewExpertsArgs& args, LaunchOptions options);
// On this device: what kFewTokens need has to fit its shared memory.
bool SupportsFewExperts(const PackedShape& shape);

// ---- Norms, embedding, gates
// -------------------------------------------------------------------------------

// out T[tokens, dim] = in / rms(in) * weight; in == out allowed.
cudaError_t RmsNorm(DType dtype, void* out, const void* in, const float* weight, int tokens,
                    int dim, float eps, LaunchOptions options);

// residual f32[tokens, dim] += delta T (null: nothing); out T = residual / rms(residual) * weight.
cudaError_t AddRmsNorm(DType dtype, float* residual, const void* delta, const float* weight,
                       void* out, int tokens, int dim, float eps, LaunchOptions options);

// What NormOutput describes, for a residual stream f32[tokens, dim] that no product has written.
cudaError_t PrepareNorm(DType dtype, const float* residual, const NormOutput& out, int tokens,
                        int dim, LaunchOptions options);

// residual f32[count] += delta T[count].
cudaError_t AddResidual(DType dtype, float* residual, const void* delta, std::int64_t count,
                        LaunchOptions options);

// out f32[count, dim] = table[token, :] * scale; table of kF16, kBF16 or kF32 [vocab, dim].
// tokens[t] < 0: the last sampled token of slot token_slots[t].
cudaError_t Embed(DType dtype, float* out, const void* table, const std::int32_t* tokens,
                  const std::int32_t* last_tokens, const std::int32_t* token_slots, int count,
                  int dim, int vocab, float scale, LaunchOptions options);

// out T[tokens, dim] = gate(in[t, i]) * in[t, dim + i]; alternate: columns as packed with
// alternate_halves.
cudaError_t Glu(DType dtype, void* out, const void* in, int tokens, int dim, Gate gate,
                bool alternate, LaunchOptions options);

// out[r] = in[rows[r]], rows of row_bytes (a multiple of 4).
cudaError_t GatherRows(void* out, const void* in, const std::int32_t* rows, int count,
                       std::int64_t row_bytes, LaunchOptions options);

// logits f32[count] = cap * tanh(logits / cap).
cudaError_t Softcap(float* logits, std::int64_t count, float cap, LaunchOptions options);

// out T[tokens, dim] += bias f32[dim].
cudaError_t AddBias(DType dtype, void* out, const float* bias, int tokens, int dim,
                    LaunchOptions options);

// ---- Attention
// ---------------------------------------------------------------------------------------------

// q and k heads of qkv T[tokens, ld_qkv] as [q | k | v]: optional RMS norm of each head, rotary
// embedding of its first rope_dim entries (pairs j, j + rope_dim / 2); q is written back, k and v
// to the cache at slots[token] (page * page_tokens + offset; negative: nowhere). head_dim <= 256.
// A cache of 8 bits gets each head scaled so that its largest magnitude is the type's.
struct RopeAppendArgs {
  DType dtype = DType::kF16;
  void* qkv = nullptr;
  std::int64_t ld_qkv = 0;
  int tokens = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int rope_dim = 0;                 // 0: no rotation
  const float* inv_freq = nullptr;  // f32[rope_dim / 2]
  float attention_factor = 1.0f;
  const float* q_norm = nullptr;  // f32[head_dim] or null
  const float* k_norm = nullptr;
  float norm_eps = 0.0f;
  const std::int32_t* positions = nullptr;  // [tokens]
  const std::int32_t* slots = nullptr;      // [tokens]
  KvLayout kv;
  void* layer_cache = nullptr;  // T, kF8E4M3 or kI8 as `kv` says, the pool + layer * LayerStride()
};
cudaError_t RopeAppend(const RopeAppendArgs& args, LaunchOptions options);

inline constexpr int kSplitEvenly = -1;
inline constexpr int kAttentionFlags = 512;

// Causal attention over the paged cache. Row r of sequence s sits at position context[s] -
// queries(s) + r; a key at p is visible iff p <= position and (window == 0 or position - p <
// window).
struct AttentionArgs {
  DType dtype = DType::kF16;
  const void* q = nullptr;  // T[tokens, ld_q], head h at h * head_dim
  std::int64_t ld_q = 0;
  void* out = nullptr;  // T[tokens, heads * head_dim]
  int sequences = 0, heads = 0, kv_heads = 0, head_dim = 0;
  const std::int32_t* query_offsets =
      nullptr;          // [sequences + 1] rows of q; null: one row a sequence (decode)
  int max_queries = 1;  // most rows of one sequence
  const std::int32_t* contexts = nullptr;  // [sequences] keys, the rows' own included
  int max_context = 0;                     // bound of contexts; the decode grid is sized for it
  const std::int32_t* pages = nullptr;     // [sequences, ld_pages] page ids in order of position
  std::int64_t ld_pages = 0;
  KvLayout kv;  // page_tokens 64
  const void* layer_cache = nullptr;
  float scale = 1.0f;
  int window = 0;
  float softcap = 0.0f;
  const float* sinks = nullptr;  // f32[heads] or null
  // Decode: about split_tokens keys (a multiple of 64) of the longest sequence a block; blocks of a
  // sequence, at most 16, share its pages and merge within the kernel. kSplitEvenly: some blocks an
  // SM share the pages of all sequences, whatever max_context says; needs workspace and flags.
  int split_tokens = 0;  // 0: chosen
  // With both, decode may split evenly, and prefill of few rows splits their keys. Launches that
  // may overlap need their own.
  void* workspace = nullptr;  // of AttentionWorkspaceBytes
  std::uint32_t* flags =
      nullptr;  // kAttentionFlags words, zero before the first launch and after each
  // Decode: RopeAppend(*append) is part of this launch, to the same bits, save that q is not
  // written back. Row s of append->qkv, which stands for `q`, is the newest token of sequence s.
  const RopeAppendArgs* append = nullptr;
  // Decode, launched dependent: all that this reads except q and the newest key and value of each
  // sequence was complete before the stream's last launch that was not dependent. Then the cache is
  // on its way before the previous kernel has ended.
  bool early = false;
  // Prefill: i32[2], zero before and after; tiles are dealt from it to a block an SM, which saves
  // each tile its start. Null: a block a tile. Launches that may overlap need their own.
  std::int32_t* counter = nullptr;
  bool portable = false;  // prefill: the kernel for every device, for tests and benches
};
// Of args' heads and head_dim, whatever the sequences.
std::int64_t AttentionWorkspaceBytes(const AttentionArgs& args);
cudaError_t DecodeAttention(const AttentionArgs& args, LaunchOptions options);
cudaError_t PrefillAttention(const AttentionArgs& args, LaunchOptions options);

// ---- Sampling
// ----------------------------------------------------------------------------------------------

// A token's history in one slot: how often it was generated (saturating), and whether the prompt
// holds it.
inline constexpr std::uint16_t kHistoryInPrompt = 0x8000;
inline constexpr std::uint16_t kHistoryCount = 0x7fff;

struct SampleRow {
  std::int32_t slot = 0;
  std::int32_t output_position = 0;
  std::int32_t score_token = -1;   // >= 0: report this id's log-probability
  std::int32_t top_logprobs = -1;  // of scored rows
  bool sample = true;
};

// Sparse parameters of a slot; device pointers.
struct SlotLists {
  const std::int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;
  const std::int32_t* banned = nullptr;
  std::int32_t bias_count = 0, banned_count = 0;
};

struct SampledToken {
  std::int32_t token;
  float logprob;
  std::int32_t bad_logits;
  std::int32_t num_top;
  std::int32_t top_tokens[kMaxTopLogprobs];
  float top_logprobs[kMaxTopLogprobs];
};

struct SampleArgs {
  float* logits = nullptr;  // f32[count, ld_logits]; overwritten
  std::int64_t ld_logits = 0;
  int vocab = 0, count = 0;
  const SampleRow* rows = nullptr;         // [count]
  const SamplingParams* params = nullptr;  // [slots]
  const SlotLists* lists = nullptr;        // [slots], or null
  std::uint16_t* history =
      nullptr;  // [slots, vocab], or null: no penalties; the sampled token is counted
  std::int32_t* last_tokens = nullptr;  // [slots]
  SampledToken* results = nullptr;      // [count]
};
cudaError_t Sample(const SampleArgs& args, LaunchOptions options);

}  // namespace nibble::cuda
