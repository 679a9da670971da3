// Inputs, packed embeddings, expansion and slots; and experts one at a time.
#include <cuda_fp8.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/model_ops.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxExperts = 512;

unsigned Blocks(std::int64_t count) {
  return static_cast<unsigned>(std::min<std::int64_t>((count + kThreads - 1) / kThreads, 132 * 16));
}

__device__ float BlockMax(float v, float* scratch) {  // of values >= 0; every thread gets it
  for (int delta = 16; delta > 0; delta /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, delta));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x % 32 < kThreads / 32 ? scratch[threadIdx.x % 32] : 0.0f;
  for (int delta = 16; delta > 0; delta /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, delta));
  __syncthreads();
  return v;
}

// Nearest e4m3, saturating at 448; NaN stays.
__device__ float RoundE4m3(float x) {
  const float y = fminf(fmaxf(x, -448.0f), 448.0f);
  const float exponent = __uint_as_float(__float_as_uint(y) & 0x7f800000u);
  const float spacing = fmaxf(exponent * 0x1p-3f, 0x1p-9f);
  return isnan(x) ? x : rintf(y / spacing) * spacing;
}

// One block a token: the absmax first where the rounding wants it, then every element.
template <typename T>
__global__ void __launch_bounds__(kThreads) PrepareInputsKernel(PrepareInputsArgs a) {
  __shared__ float scratch[32];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const T* in = static_cast<const T*>(a.in) + blockIdx.x * a.ld_in;
  T* out = static_cast<T*>(a.out) + static_cast<std::int64_t>(blockIdx.x) * a.k;
  const auto load = [&](int j) { return ToFloat(in[a.order == nullptr ? j : a.order[j]]); };
  const bool split = a.rounding == InputRounding::kOutlierSplit;
  const float threshold = split && a.threshold > 0.0f ? a.threshold : INFINITY;
  const auto of_interest = [&](float v) { return split ? __half2float(__float2half_rn(v)) : v; };

  float absmax = 0.0f;
  if (split || a.rounding == InputRounding::kInt8Dynamic ||
      a.rounding == InputRounding::kE4m3Dynamic) {
    for (int j = threadIdx.x; j < a.k; j += kThreads) {
      const float v = fabsf(of_interest(load(j)));
      if (v < threshold) absmax = fmaxf(absmax, v);
    }
    absmax = BlockMax(absmax, scratch);
  }
  for (int j = threadIdx.x; j < a.k; j += kThreads) {
    float v = of_interest(load(j));
    switch (a.rounding) {
      case InputRounding::kNone: break;
      case InputRounding::kInt8Dynamic: {
        const float scale = absmax > 0.0f ? absmax / 127.5f : 1.0f;
        const float code = rintf(v / scale);
        v = (code > 127.0f ? 127.0f : code) * scale;  // keeps NaN
        break;
      }
      case InputRounding::kInt8Static: {
        const float code = fminf(fmaxf(rintf(v / a.scale) + a.zero, -128.0f), 127.0f);
        v = isnan(v) ? v : (code - a.zero) * a.scale;
        break;
      }
      case InputRounding::kE4m3Dynamic: {
        const float scale = absmax > 0.0f ? absmax * (1.0f / 448.0f) : 1.0f;
        v = RoundE4m3(v / scale) * scale;
        break;
      }
      case InputRounding::kE4m3Static: v = RoundE4m3(v / a.scale) * a.scale; break;
      case InputRounding::kOutlierSplit:
        if (fabsf(v) < threshold) {
          v = rintf(v * (absmax > 0.0f ? 127.0f / absmax : 0.0f)) * (absmax * (1.0f / 127.0f));
        }
        break;
    }
    out[j] = FromFloat<T>(v);
  }
}

// The code at (row, column) of an atom: PackLane backwards.
__device__ int AtomCode(const std::uint8_t* atom, int bits, CodeKind kind, int row, int column) {
  const int step = column / 16, in_step = column % 16;
  const int pair = (row >= 8 ? 1 : 0) + (in_step >= 8 ? 2 : 0), half = in_step % 2;
  const int lane = row % 8 * 4 + in_step % 8 / 2;
  int code = 0, low = 0, plane_byte = 0;
  while (low < bits) {
    const int left = bits - low, plane = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int pairs_a_word = 16 / plane, pair_index = step * 4 + pair;
    const int word = kind == CodeKind::kCodebook ? step : pair_index / pairs_a_word;
    const int shift = kind == CodeKind::kCodebook ? 4 * (2 * pair + half)
                                                  : 16 * half + PlaneBit(plane, step, pair);
    const std::uint32_t value = *reinterpret_cast<const std::uint32_t*>(
        atom + plane_byte + PlaneWordByte(plane, lane, word));
    code |= static_cast<int>(value >> shift & ((1u << plane) - 1)) << low;
    plane_byte += 128 * plane;
    low += plane;
  }
  return code;
}

__global__ void __launch_bounds__(kThreads)
    EmbedPackedKernel(const __grid_constant__ PackedMatrix w, float* out,
                      const std::int32_t* tokens, const std::int32_t* last_tokens,
                      const std::int32_t* token_slots, float scale) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const PackedShape& shape = w.shape;
  int token = tokens[blockIdx.x];
  if (token < 0) token = last_tokens[token_slots[blockIdx.x]];
  if (token < 0 || token >= shape.n) token = 0;
  const int tile = token / kTileRows, row = token % kTileRows;
  const std::uint8_t* blocks = w.blocks + tile * shape.Units() * shape.BlockBytes();
  for (int column = threadIdx.x; column < shape.k; column += kThreads) {
    const std::uint8_t* block = blocks + column / kUnitColumns * shape.BlockBytes();
    const int in_unit = column % kUnitColumns;
    const int code = AtomCode(block + in_unit / kAtomColumns * shape.AtomBytes(), shape.bits,
                              shape.kind, row, in_unit % kAtomColumns);
    const auto entry = [&](int table) {
      return __half2float(*reinterpret_cast<const half*>(
          block + 2 * shape.AtomBytes() + table * shape.TableBytes() + in_unit / shape.group * 32 +
          row % 8 * 4 + row / 8 * 2));
    };
    float v;
    if (shape.kind == CodeKind::kCodebook) {
      v = entry(0) * w.table[code];
    } else {
      const float zero = shape.offset == OffsetMode::kZeros ? entry(1) : static_cast<float>(w.zero);
      const float bias = shape.offset == OffsetMode::kBias ? entry(1) : 0.0f;
      v = fmaf(entry(0), static_cast<float>(code) - zero, bias);
    }
    out[blockIdx.x * shape.k + column] = v * w.multiplier * scale;
  }
}

template <typename To, typename From>
__global__ void __launch_bounds__(kThreads)
    ConvertKernel(To* out, const From* in, std::int64_t count) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads) {
    out[i] = FromFloat<To>(ToFloat(in[i]));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ExpandE4m3Kernel(T* out, const std::uint8_t* codes, const float* scales, std::int64_t count,
                     std::int64_t k) {
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads) {
    __nv_fp8_e4m3 code;
    code.__x = codes[i];
    out[i] = FromFloat<T>(static_cast<float>(code) * scales[i / k]);
  }
}

// Adds to one of the two counters that share a 32-bit word.
__device__ void ChangeHistory(std::uint16_t* history, int id, bool prompt) {
  auto* word = reinterpret_cast<unsigned*>(reinterpret_cast<std::uintptr_t>(history + id) &
                                           ~std::uintptr_t{3});
  const int shift = reinterpret_cast<std::uintptr_t>(history + id) & 2 ? 16 : 0;
  if (prompt) {
    atomicOr(word, unsigned{kHistoryInPrompt} << shift);
    return;
  }
  unsigned seen = *word, before;
  do {
    before = seen;
    if ((before >> shift & kHistoryCount) == kHistoryCount) return;
    seen = atomicCAS(word, before, before + (1u << shift));
  } while (seen != before);
}

// One block an update.
__global__ void __launch_bounds__(1024) UpdateSlotsKernel(SlotArgs a) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const SlotUpdate& u = a.updates[blockIdx.x];
  std::uint16_t* history = a.history + std::int64_t{u.slot} * a.vocab;
  const int thread = threadIdx.x, threads = blockDim.x;
  if (u.begins) {
    if (thread == 0) {
      a.params[u.slot] = u.params;
      if (u.last_token >= 0) a.last_tokens[u.slot] = u.last_token;
      SlotLists lists;
      lists.bias_ids = a.bias_ids + std::int64_t{u.slot} * a.bias_capacity;
      lists.bias_values = a.bias_values + std::int64_t{u.slot} * a.bias_capacity;
      lists.banned = a.banned + std::int64_t{u.slot} * a.banned_capacity;
      lists.bias_count = min(u.bias_count, a.bias_capacity);
      lists.banned_count = min(u.banned_count, a.banned_capacity);
      a.lists[u.slot] = lists;
    }
    for (int i = thread; i < min(u.bias_count, a.bias_capacity); i += threads) {
      a.bias_ids[std::int64_t{u.slot} * a.bias_capacity + i] = a.data[u.bias_ids + i];
      a.bias_values[std::int64_t{u.slot} * a.bias_capacity + i] =
          __int_as_float(a.data[u.bias_values + i]);
    }
    for (int i = thread; i < min(u.banned_count, a.banned_capacity); i += threads)
      a.banned[std::int64_t{u.slot} * a.banned_capacity + i] = a.data[u.banned + i];
    if (u.penalties) {
      for (int i = thread; i < a.vocab; i += threads) history[i] = 0;
    }
    __syncthreads();
  }
  if (!u.penalties) return;
  for (int i = thread; i < u.prompt_count; i += threads)
    ChangeHistory(history, a.data[u.prompt + i], true);
  for (int i = thread; i < u.output_count; i += threads)
    ChangeHistory(history, a.data[u.outputs + i], false);
}

// One warp a token.
__global__ void __launch_bounds__(32) RouteExpertsKernel(const float* logits, float* weights,
                                                         int experts, int top_k, bool renormalize) {
  __shared__ float p[kMaxExperts], kept[kMaxExperts];
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const int lane = threadIdx.x;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * experts;
  float max = -INFINITY, sum = 0.0f;
  for (int e = lane; e < experts; e += 32) max = fmaxf(max, logits[row + e]);
  for (int delta = 16; delta > 0; delta /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, delta));
  for (int e = lane; e < experts; e += 32) {
    p[e] = expf(logits[row + e] - max);
    kept[e] = 0.0f;
    sum += p[e];
  }
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(~0u, sum, delta);
  float chosen = 0.0f;
  __syncwarp();
  for (int rank = 0; rank < top_k; ++rank) {
    float best = -2.0f;
    int id = kMaxExperts;
    for (int e = lane; e < experts; e += 32) {
      if (!(p[e] <= best)) best = p[e], id = e;  // NaN wins, as on the CPU
    }
    for (int delta = 16; delta > 0; delta /= 2) {
      const float other = __shfl_xor_sync(~0u, best, delta);
      const int other_id = __shfl_xor_sync(~0u, id, delta);
      if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
    id = __shfl_sync(~0u, id, 0);  // NaN may leave the lanes of two minds
    if (lane == 0 && id < experts) kept[id] = p[id] / sum, p[id] = -1.0f;
    __syncwarp();
    if (id < experts) chosen += kept[id];
  }
  for (int e = lane; e < experts; e += 32)
    weights[row + e] = renormalize ? kept[e] / chosen : kept[e];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddExpertKernel(float* sum, const T* y, const float* weights, int experts, int expert,
                    bool first, int dim) {
  ptx::LaunchDependents();
  ptx::WaitForPrerequisites();
  const float weight = weights[static_cast<std::int64_t>(blockIdx.x) * experts + expert];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * dim;
  if (weight == 0.0f && !first) return;
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    const float add = weight == 0.0f ? 0.0f : weight * ToFloat(y[row + i]);
    sum[row + i] = (first ? 0.0f : sum[row + i]) + add;
  }
}

template <typename Body>
cudaError_t ByFloat(DType dtype, const Body& body) {
  if (dtype == DType::kF32) return body.template operator()<float>();
  return ByDType(dtype, body);
}

}  // namespace

cudaError_t PrepareInputs(const PrepareInputsArgs& args, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  if (args.in == args.out) return cudaErrorInvalidValue;
  return ByDType(args.dtype, [&]<typename T>() {
    return Launch(PrepareInputsKernel<T>, args.tokens, kThreads, 0, options, args);
  });
}

cudaError_t EmbedPacked(float* out, const PackedMatrix& table, const std::int32_t* tokens,
                        const std::int32_t* last_tokens, const std::int32_t* token_slots, int count,
                        float scale, LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  return Launch(EmbedPackedKernel, count, kThreads, 0, options, table, out, tokens, last_tokens,
                token_slots, scale);
}

cudaError_t Convert(DType to, void* out, DType from, const void* in, std::int64_t count,
                    LaunchOptions options) {
  if (count == 0) return cudaSuccess;
  return ByFloat(to, [&]<typename To>() {
    return ByFloat(from, [&]<typename From>() {
      return Launch(ConvertKernel<To, From>, Blocks(count), kThreads, 0, options,
                    static_cast<To*>(out), static_cast<const From*>(in), count);
    });
  });
}

cudaError_t ExpandE4m3(DType to, void* out, const std::uint8_t* codes, const float* scales,
                       std::int64_t rows, std::int64_t k, LaunchOptions options) {
  if (rows == 0) return cudaSuccess;
  return ByDType(to, [&]<typename T>() {
    return Launch(ExpandE4m3Kernel<T>, Blocks(rows * k), kThreads, 0, options, static_cast<T*>(out),
                  codes, scales, rows * k, k);
  });
}

cudaError_t UpdateSlots(const SlotArgs& args, LaunchOptions options) {
  if (args.count == 0) return cudaSuccess;
  return Launch(UpdateSlotsKernel, args.count, 1024, 0, options, args);
}

cudaError_t RouteExperts(const float* logits, float* weights, int tokens, int experts, int top_k,
                         bool renormalize, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  if (experts > kMaxExperts || top_k < 1 || top_k > experts) return cudaErrorInvalidValue;
  return Launch(RouteExpertsKernel, tokens, 32, 0, options, logits, weights, experts, top_k,
                renormalize);
}

cudaError_t AddExpert(DType dtype, float* sum, const void* y, const float* weights, int experts,
                      int expert, bool first, int tokens, int dim, LaunchOptions options) {
  if (tokens == 0) return cudaSuccess;
  return ByDType(dtype, [&]<typename T>() {
    return Launch(AddExpertKernel<T>, tokens, kThreads, 0, options, sum, static_cast<const T*>(y),
                  weights, experts, expert, first, dim);
  });
}

}  // namespace nibble::cuda
