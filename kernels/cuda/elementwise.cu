// Embedding, gates, row gathers and other work of one element at a time.
#include <climits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_params.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

// out f32[tokens, dim] = table[token, :] * scale. A token is tokens[t], or the slot's last one when
// that is negative. Ids outside the vocabulary read row 0: validation is the engine's.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(float* out, const T* table, const std::int32_t* tokens,
                const std::int32_t* last_tokens, const std::int32_t* token_slots, int dim,
                int vocab, float scale) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  int token = tokens[blockIdx.x];
  if (token < 0) token = last_tokens[token_slots[blockIdx.x]];
  if (token < 0 || token >= vocab) token = 0;
  const T* row = table + static_cast<std::int64_t>(token) * dim;
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    out[static_cast<std::int64_t>(blockIdx.x) * dim + i] = ToFloat(row[i]) * scale;
  }
}

// out[t, i] = gate(in[t, i]) * in[t, dim + i]; `alternate`: gate and up alternate every 16 columns
// instead. kRun columns a thread, 8 (16 bytes) or 1.
template <typename T, int kRun>
__global__ void __launch_bounds__(kThreads)
    GluKernel(T* out, const T* in, int tokens, int dim, Gate gate, bool alternate) {
  struct alignas(kRun * sizeof(T)) Run {
    T v[kRun];
  };
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int runs = dim / kRun, index = blockIdx.x * kThreads + threadIdx.x, token = index / runs;
  if (token >= tokens) return;
  const int i = (index - token * runs) * kRun;
  const T* row = in + static_cast<std::int64_t>(token) * 2 * dim;
  const int at = alternate ? i / 16 * 32 + i % 16 : i, step = alternate ? 16 : dim;
  Run gated = *reinterpret_cast<const Run*>(row + at);
  const Run up = *reinterpret_cast<const Run*>(row + at + step);
#pragma unroll
  for (int j = 0; j < kRun; ++j)
    gated.v[j] = FromFloat<T>(GateOf(gate, ToFloat(gated.v[j])) * ToFloat(up.v[j]));
  *reinterpret_cast<Run*>(out + static_cast<std::int64_t>(token) * dim + i) = gated;
}

// out[r, :] = in[rows[r], :], an Element at a time.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(Element* out, const Element* in, const std::int32_t* rows,
                     std::int64_t elements) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const Element* from = in + rows[blockIdx.x] * elements;
  Element* to = out + blockIdx.x * elements;
  for (std::int64_t i = threadIdx.x; i < elements; i += kThreads) to[i] = from[i];
}

// logits = cap * tanh(logits / cap)
__global__ void __launch_bounds__(kThreads)
    SoftcapKernel(float* logits, std::int64_t count, float cap) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads) {
    logits[i] = cap * tanhf(logits[i] / cap);
  }
}

// out[t, :] += bias
template <typename T>
__global__ void __launch_bounds__(kThreads) AddBiasKernel(T* out, const float* bias, int dim) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= dim) return;
  T& v = out[static_cast<std::int64_t>(blockIdx.y) * dim + i];
  v = FromFloat<T>(ToFloat(v) + bias[i]);
}

unsigned Blocks(std::int64_t count) {
  return static_cast<unsigned>(std::min<std::int64_t>((count + kThreads - 1) / kThreads, 2048));
}

}  // namespace

cudaError_t Embed(DType dtype, float* out, const void* table, const std::int32_t* tokens,
                  const std::int32_t* last_tokens, const std::int32_t* token_slots, int count,
                  int dim, int vocab, float scale, LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  if (dtype == DType::kF32) {
    return Launch(EmbedKernel<float>, count, kThreads, 0, options, out,
                  static_cast<const float*>(table), tokens, last_tokens, token_slots, dim, vocab,
                  scale);
  }
  return ByDType(dtype, [&]<typename T>() {
    return Launch(EmbedKernel<T>, count, kThreads, 0, options, out, static_cast<const T*>(table),
                  tokens, last_tokens, token_slots, dim, vocab, scale);
  });
}

cudaError_t Glu(DType dtype, void* out, const void* in, int tokens, int dim, Gate gate,
                bool alternate, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  if (std::int64_t{tokens} * dim > INT_MAX - kThreads || (alternate && dim % 16 != 0))
    return cudaErrorInvalidValue;
  const bool runs = dim % 8 == 0 && Aligned(in) && Aligned(out);
  const int items = tokens * (runs ? dim / 8 : dim);
  return ByDType(dtype, [&]<typename T>() {
    const auto kernel = runs ? GluKernel<T, 8> : GluKernel<T, 1>;
    return Launch(kernel, (items + kThreads - 1) / kThreads, kThreads, 0, options,
                  static_cast<T*>(out), static_cast<const T*>(in), tokens, dim, gate, alternate);
  });
}

cudaError_t GatherRows(void* out, const void* in, const std::int32_t* rows, int count,
                       std::int64_t row_bytes, LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  if (row_bytes % 4 != 0) return cudaErrorInvalidValue;
  const auto launch = [&]<typename Element>() {
    return Launch(GatherRowsKernel<Element>, count, kThreads, 0, options,
                  static_cast<Element*>(out), static_cast<const Element*>(in), rows,
                  row_bytes / std::int64_t{sizeof(Element)});
  };
  const bool vectors = row_bytes % 16 == 0 && Aligned(in) && Aligned(out);
  return vectors ? launch.template operator()<uint4>()
                 : launch.template operator()<std::uint32_t>();
}

cudaError_t Softcap(float* logits, std::int64_t count, float cap, LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  return Launch(SoftcapKernel, Blocks(count), kThreads, 0, options, logits, count, cap);
}

cudaError_t AddBias(DType dtype, void* out, const float* bias, int tokens, int dim,
                    LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  if (tokens > 65535) return cudaErrorInvalidValue;
  const dim3 grid((dim + kThreads - 1) / kThreads, tokens);
  return ByDType(dtype, [&]<typename T>() {
    return Launch(AddBiasKernel<T>, grid, kThreads, 0, options, static_cast<T*>(out), bias, dim);
  });
}

}  // namespace nibble::cuda
