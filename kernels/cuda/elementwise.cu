// Embedding, gates, row gathers and other work of one element at a time.
#include "kernels/cuda/launch.cuh"

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
// instead.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    GluKernel(T* out, const T* in, int dim, Gate gate, bool alternate) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= dim) return;
  const T* row = in + static_cast<std::int64_t>(blockIdx.y) * 2 * dim;
  const int at = alternate ? i / 16 * 32 + i % 16 : i, step = alternate ? 16 : dim;
  out[static_cast<std::int64_t>(blockIdx.y) * dim + i] =
      FromFloat<T>(GateOf(gate, ToFloat(row[at])) * ToFloat(row[at + step]));
}

// out[r, :] = in[rows[r], :]
__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(char* out, const char* in, const std::int32_t* rows, std::int64_t row_bytes) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const char* from = in + rows[blockIdx.x] * row_bytes;
  char* to = out + blockIdx.x * row_bytes;
  for (std::int64_t i = threadIdx.x * 4; i < row_bytes; i += kThreads * 4) {
    *reinterpret_cast<std::uint32_t*>(to + i) = *reinterpret_cast<const std::uint32_t*>(from + i);
  }
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
  if (tokens > 65535 || (alternate && dim % 16 != 0)) return cudaErrorInvalidValue;
  const dim3 grid((dim + kThreads - 1) / kThreads, tokens);
  return ByDType(dtype, [&]<typename T>() {
    return Launch(GluKernel<T>, grid, kThreads, 0, options, static_cast<T*>(out),
                  static_cast<const T*>(in), dim, gate, alternate);
  });
}

cudaError_t GatherRows(void* out, const void* in, const std::int32_t* rows, int count,
                       std::int64_t row_bytes, LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  if (row_bytes % 4 != 0) return cudaErrorInvalidValue;
  return Launch(GatherRowsKernel, count, kThreads, 0, options, static_cast<char*>(out),
                static_cast<const char*>(in), rows, row_bytes);
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
