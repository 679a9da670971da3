// LLM.int8()'s outliers, inputs that stayed in 16 bits, times their columns of the weights.
//
// Two warps gather what a tile's outliers need, some columns at a time, while its 8-bit products
// are made: codes of the tile's rows and inputs of its tokens, to shared memory. Codes and halves
// are exact in 16-bit products.
#pragma once

#include "kernels/cuda/row8.h"
#include "kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

inline constexpr int kOutlierWarps = 2;
inline constexpr int kRow8Rows = 128;      // of a tile
inline constexpr int kOutlierChunk = 16;   // columns at a time
inline constexpr int kOutlierStride = 18;  // halves a token: 16, and 2 against bank conflicts

struct OutlierParams {
  const std::uint8_t* codes;  // of the weights, int8[n, k]
  int k;
  const void* inputs;  // T[m, k] before rounding, ld_inputs apart
  std::int64_t ld_inputs;
  float threshold;
  const std::uint16_t* outliers;  // Row8Inputs::outliers; null: there are none
};

// Of shared memory, in this order: two barriers and the count; codes, inputs, columns of each
// gathering warp, a bit a column.
constexpr int OutlierBytes(int tokens, std::int64_t k) {
  return 32 + kRow8Rows * kOutlierChunk + tokens * kOutlierStride * 2 +
         kOutlierWarps * kOutlierChunk * 2 + static_cast<int>((k + 31) / 32) * 4;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int kTokens>
struct OutlierBuffers {
  std::uint32_t full, empty;  // barriers of a chunk
  int* count;                 // columns of the tile
  std::uint8_t* codes;        // [kRow8Rows][kOutlierChunk]
  half* inputs;               // [kTokens][kOutlierStride]
  std::uint16_t* columns;     // [kOutlierWarps][kOutlierChunk]
  std::uint32_t* marks;       // a bit a column

  __device__ __forceinline__ explicit OutlierBuffers(char* shared)
      : full(ptx::SharedAddress(shared)),
        empty(full + 8),
        count(reinterpret_cast<int*>(shared + 16)),
        codes(reinterpret_cast<std::uint8_t*>(shared + 32)),
        inputs(reinterpret_cast<half*>(codes + kRow8Rows * kOutlierChunk)),
        columns(reinterpret_cast<std::uint16_t*>(inputs + kTokens * kOutlierStride)),
        marks(reinterpret_cast<std::uint32_t*>(columns + kOutlierWarps * kOutlierChunk)) {}

  // By one thread; `readers` warps.
  __device__ __forceinline__ void Init(int readers) const {
    ptx::BarrierInit(full, kOutlierWarps);
    ptx::BarrierInit(empty, readers);
  }
};

// What one of the gathering warps does: `part` 0 brings codes, 1 inputs.
template <typename T, int kTokens>
class OutlierGatherer {
 public:
  __device__ __forceinline__ OutlierGatherer(const OutlierParams& p,
                                             const OutlierBuffers<kTokens>& to, int part)
      : p_(p), to_(to), part_(part), columns_(to.columns + part * kOutlierChunk) {}

  // All chunks of a tile, at least one; rows from n on and tokens past `tokens` mean nothing.
  __device__ void Gather(int row0, int n, int token0, int tokens) {
    if (token0 != marked_) Mark(token0, tokens);
    marked_ = token0;
    const int lane = threadIdx.x % 32;
    for (int begin = 0, count = 1; begin < count; begin += kOutlierChunk) {
      count = FindColumns(begin);
      if (round_ > 0) ptx::BarrierWait(to_.empty, round_ - 1 & 1);
      ++round_;
      const int width = count - begin > kOutlierChunk / 2 ? kOutlierChunk : kOutlierChunk / 2;
      const int at = lane % width, column = begin + at < count ? columns_[at] : -1;
      if (part_ == 0) {
        if (lane == 0) *to_.count = count;
        if (column >= 0) BringCodes(row0, n, column, at, width);
      } else if (count > 0) {
        BringInputs(token0, tokens, column, at, width);
      }
      __syncwarp();
      if (lane == 0) ptx::BarrierArrive(to_.full);
    }
  }

 private:
  static __device__ __forceinline__ void Barrier() { ptx::NamedBarrier(4, 32 * kOutlierWarps); }
  static __device__ __forceinline__ half Half(T v) { return __float2half_rn(ToFloat(v)); }
  __device__ __forceinline__ bool IsOutlier(half v) const {
    return fabsf(__half2float(v)) >= p_.threshold;
  }
  __device__ __forceinline__ void MarkColumn(int column) const {
    atomicOr(to_.marks + column / 32, 1u << column % 32);
  }

  // The columns in which one of the tokens has an outlier, by both warps.
  __device__ void Mark(int token0, int tokens) const {
    const int lane = threadIdx.x % 32, thread = part_ * 32 + lane;
    Barrier();
    for (int i = thread; i < (p_.k + 31) / 32; i += 32 * kOutlierWarps) to_.marks[i] = 0;
    Barrier();
    for (int base = part_ * 32; base < tokens; base += 32 * kOutlierWarps) {
      const int token = token0 + min(base + lane, tokens - 1);
      const std::uint16_t* list = p_.outliers + std::int64_t{token} * kOutlierList;
      const uint4 eight = *reinterpret_cast<const uint4*>(list);  // few have more
      const std::uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
      const int count = static_cast<int>(words[0] & 0xffff);
      const bool listed = count < kOutlierList;
#pragma unroll
      for (int i = 1; i < 8; ++i) {
        if (listed && i <= count) MarkColumn(static_cast<int>(words[i / 2] >> i % 2 * 16 & 0xffff));
      }
      for (int i = 8; listed && i <= count; ++i) MarkColumn(list[i]);
      for (unsigned others = __ballot_sync(~0u, !listed); others != 0; others &= others - 1) {
        const auto* x = static_cast<const T*>(p_.inputs) +
                        __shfl_sync(~0u, token, __ffs(others) - 1) * p_.ld_inputs;
        for (int column = lane; column < p_.k; column += 32) {
          if (IsOutlier(Half(x[column]))) MarkColumn(column);
        }
      }
    }
    Barrier();
  }

  // Columns begin .. of those marked, in order; how many there are in all.
  __device__ int FindColumns(int begin) const {
    const int lane = threadIdx.x % 32, words = (p_.k + 31) / 32;
    int total = 0;
    for (int base = 0; base < words; base += 32) {
      std::uint32_t mark = base + lane < words ? to_.marks[base + lane] : 0;
      if (__ballot_sync(~0u, mark != 0) == 0) continue;
      const int own = __popc(mark);
      int sum = own;
#pragma unroll
      for (int delta = 1; delta < 32; delta *= 2) {
        const int lower = __shfl_up_sync(~0u, sum, delta);
        if (lane >= delta) sum += lower;
      }
      for (int rank = total + sum - own - begin; mark != 0; mark &= mark - 1, ++rank) {
        if (rank >= 0 && rank < kOutlierChunk)
          columns_[rank] = static_cast<std::uint16_t>((base + lane) * 32 + __ffs(mark) - 1);
      }
      total += __shfl_sync(~0u, sum, 31);
    }
    __syncwarp();
    return total;
  }

  // width lanes share a row or token. What has no column has codes of before, but inputs of 0. All
  // that is loaded is on its way before anything is stored.
  static constexpr int kBatch = 16;
  __device__ __forceinline__ void BringCodes(int row0, int n, int column, int at, int width) const {
    const int step = 32 / width;
    for (int base = threadIdx.x % 32 / width; base < kRow8Rows; base += kBatch * step) {
      std::uint8_t codes[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const std::int64_t row = min(row0 + base + i * step, n - 1);
        codes[i] = __ldg(p_.codes + row * p_.k + column);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) to_.codes[(base + i * step) * kOutlierChunk + at] = codes[i];
    }
  }
  __device__ __forceinline__ void BringInputs(int token0, int tokens, int column, int at,
                                              int width) const {
    const int step = 32 / width;
    const half zero = __float2half_rn(0.0f);
    for (int base = threadIdx.x % 32 / width; base < kTokens; base += kBatch * step) {
      T values[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const std::int64_t token = token0 + min(base + i * step, tokens - 1);
        values[i] = static_cast<const T*>(p_.inputs)[token * p_.ld_inputs + max(column, 0)];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i * step >= kTokens) break;
        const half v = Half(values[i]);
        half* to = to_.inputs + (base + i * step) * kOutlierStride + at;
        *to = column >= 0 && IsOutlier(v) ? v : zero;
        if (width < kOutlierChunk) to[width] = zero;
      }
    }
  }

  const OutlierParams& p_;
  const OutlierBuffers<kTokens>& to_;
  const int part_;
  std::uint16_t* const columns_;
  int marked_ = -1, round_ = 0;
};

// acc[row, token] += code[row, column] * input[token, column] over all chunks of a tile, by each
// warp for its 16 rows from `row` of the tile on. `parity`: of the next chunk.
template <int kTokens>
__device__ __forceinline__ void AddOutliers(const OutlierBuffers<kTokens>& from, int row,
                                            int* parity, float (&acc)[kTokens / 2]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int begin = 0, count = 1; begin < count; begin += kOutlierChunk) {
    ptx::BarrierWait(from.full, *parity);
    *parity ^= 1;
    count = *from.count;
    if (count > 0) {
      std::uint32_t a[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const auto* codes = reinterpret_cast<const std::int8_t*>(from.codes) +
                            (row + g + pair % 2 * 8) * kOutlierChunk + 2 * t + pair / 2 * 8;
        a[pair] = PackPair<half>(codes[0], codes[1]);
      }
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        const half* b = from.inputs + (j * 8 + g) * kOutlierStride + 2 * t;
        float d[4] = {acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]};
        ptx::Mma<half>(d, a, *reinterpret_cast<const std::uint32_t*>(b),
                       *reinterpret_cast<const std::uint32_t*>(b + 8));
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[4 * j + i] = d[i];
      }
    }
    __syncwarp();
    if (lane == 0) ptx::BarrierArrive(from.empty);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace nibble::cuda
