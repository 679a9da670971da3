// The inner step of attention shared by decode and prefill: one warp, 16 query rows, online
// softmax.
//
// Keys and values lie in shared memory as T[key][kDim], rows of 2 * kDim bytes whose 16-byte chunks
// are stored at chunk ^ (key % 8), so that neither the copies in nor ldmatrix conflict.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {

inline constexpr int kPageTokens = 64;
inline constexpr float kLog2E = 1.4426950408889634f;

// Head dimensions are padded to one of these; entries past head_dim are zero.
constexpr int PaddedHeadDim(int head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

template <int kDim>
__device__ __forceinline__ std::uint32_t SwizzledChunk(std::uint32_t tile, int key, int chunk) {
  return tile + key * (2 * kDim) + ((chunk ^ (key & 7)) << 4);
}

struct AttentionMask {
  int position0, position1;  // of rows g and g + 8
  int window;                // 0: none
  __device__ __forceinline__ bool Visible(int position, int key) const {
    return key <= position && (window == 0 || position - key < window);
  }
};

struct AttentionScale {
  float unit;  // log2 of a probability for each unit of score
  float cap;   // scale / softcap, or 0
};
__device__ __forceinline__ AttentionScale ScaleOf(const AttentionArgs& a) {
  if (a.softcap > 0.0f) return {a.softcap * kLog2E, a.scale / a.softcap};
  return {a.scale * kLog2E, 0.0f};
}

__device__ __forceinline__ float PowerOf2(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

template <typename T, int kDim>
struct AttentionState {
  float out[kDim / 8][4];  // rows g and g + 8 x columns 8 i + 2t, + 1
  float max[2], sum[2];    // of raw scores until Finish, then in units of log2; sum of this lane's
                           // columns until then

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  // kKeys keys starting at position `key0`, at rows [row0, row0 + kKeys) of the tiles.
  // Probabilities are 2^(score * unit); with a softcap the score is first capped: tanh(score *
  // scale / softcap).
  template <int kKeys>
  __device__ __forceinline__ void Step(const std::uint32_t (&q)[kDim / 16][4], std::uint32_t keys,
                                       std::uint32_t values, int row0, int key0, bool masked,
                                       const AttentionMask& mask, const AttentionScale& scale,
                                       int lane) {
    const int t = lane % 4;
    float s[kKeys / 8][4] = {};
    // ---- s = q k^T ----
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        std::uint32_t b[4];
        ptx::LoadMatrix4(b, SwizzledChunk<kDim>(keys, row0 + j * 16 + (lane >> 4) * 8 + lane % 8,
                                                2 * i + (lane >> 3 & 1)));
        ptx::Mma<T>(s[2 * j], q[i], b[0], b[1]);
        ptx::Mma<T>(s[2 * j + 1], q[i], b[2], b[3]);
      }
    }
    // ---- cap, mask; new maxima ----
    if (scale.cap > 0.0f) {
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] = tanhf(s[i][j] * scale.cap);
      }
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int position = j < 2 ? mask.position0 : mask.position1;
          if (!mask.Visible(position, key0 + i * 8 + 2 * t + (j & 1))) s[i][j] = -INFINITY;
        }
      }
    }
    float high[2] = {max[0], max[1]}, shift[2];
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
      high[0] = fmaxf(high[0], fmaxf(s[i][0], s[i][1]));
      high[1] = fmaxf(high[1], fmaxf(s[i][2], s[i][3]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2));
      const float factor = high[r] == -INFINITY ? 1.0f : PowerOf2((max[r] - high[r]) * scale.unit);
      shift[r] = high[r] == -INFINITY ? 0.0f : -high[r] * scale.unit;
      max[r] = high[r];
      sum[r] *= factor;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) out[i][2 * r] *= factor, out[i][2 * r + 1] *= factor;
    }
    // ---- p = 2^((s - max) * unit); out += p v ----
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] = PowerOf2(fmaf(s[i][j], scale.unit, shift[j / 2]));
      sum[0] += s[i][0] + s[i][1];
      sum[1] += s[i][2] + s[i][3];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      const std::uint32_t p[4] = {PackPair<T>(s[2 * j][0], s[2 * j][1]),
                                  PackPair<T>(s[2 * j][2], s[2 * j][3]),
                                  PackPair<T>(s[2 * j + 1][0], s[2 * j + 1][1]),
                                  PackPair<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        std::uint32_t b[4];
        ptx::LoadMatrix4Transposed(
            b, SwizzledChunk<kDim>(values, row0 + j * 16 + (lane >> 3 & 1) * 8 + lane % 8,
                                   2 * i + (lane >> 4)));
        ptx::Mma<T>(out[2 * i], p, b[0], b[1]);
        ptx::Mma<T>(out[2 * i + 1], p, b[2], b[3]);
      }
    }
  }

  // Sums over the four lanes of a row, maxima to units of log2.
  __device__ __forceinline__ void Finish(const AttentionScale& scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
      max[r] *= scale.unit;
    }
  }
};

// Operand A of 16 query rows: row(r) gives the global address of row r, or null for a row of zeros.
template <typename T, int kDim, typename Row>
__device__ __forceinline__ void LoadQueries(std::uint32_t (&q)[kDim / 16][4], int head_dim,
                                            int lane, const Row& row) {
  const int g = lane / 4, t = lane % 4;
  const T* rows[2] = {row(g), row(g + 8)};
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = i * 16 + 2 * t + 8 * (j >> 1);
      const T* at = rows[j & 1];
      q[i][j] = at != nullptr && column < head_dim
                    ? *reinterpret_cast<const std::uint32_t*>(at + column)
                    : 0;
    }
  }
}

}  // namespace nibble::cuda
