// From packed codes (packed_layout.h) to operand A of mma.m16n8k16.
//
// A Codes<T, bits, kind> reads a lane's words of one atom and makes the four A registers of a
// k-step. What a register holds is (q + kShift) * 2^-exponent, exact in T:
//
//   f16   the code bits stay where a mask finds them and read as a *subnormal* half: q * 2^-24 at
//   bit 0, q * 2^-20
//         at bit 4; rows g and g + 8 have exponents kExponentLow and kExponentHigh. The tensor
//         cores multiply subnormals exactly.
//   bf16  its subnormals times activations would leave f32's range, so codes of at most 7 bits are
//   or-ed into
//         the mantissa of 128 (kShift = 128); 8-bit codes are converted.
//
// The caller undoes the exponent once an output, and the shift with the sum of the activations.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx.cuh"
#include "kernels/packed_layout.h"

namespace nibble {

__host__ __device__ __forceinline__ std::uint32_t ShiftRight(std::uint32_t v,
                                                             int amount) {  // negative: left
  return amount >= 0 ? v >> amount : v << -amount;
}

// v & mask | add in one instruction: the compiler takes two when both are constants, so callers
// keep one of them in a register.
__host__ __device__ __forceinline__ std::uint32_t AndOr(std::uint32_t v, std::uint32_t mask,
                                                        std::uint32_t add) {
#ifdef __CUDA_ARCH__
  std::uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(v), "r"(mask), "r"(add));
  return d;
#else
  return (v & mask) | add;
#endif
}

// A value that the compiler must keep in a register: neither folded into constants nor made anew.
__host__ __device__ __forceinline__ std::uint32_t Opaque(std::uint32_t v) {
#ifdef __CUDA_ARCH__
  asm("" : "+r"(v));
#endif
  return v;
}

// ---- Integer codes ----
// kLowPlane: 8, 4 or 2 bits; kHighPlane: 0, 1 or 2 more above them.
template <typename T, int kBits>
struct IntegerCodes {
  static constexpr bool kHalf = std::is_same_v<T, half>;
  static constexpr int kLow = kBits >= 8 ? 8 : kBits >= 4 ? 4 : 2;
  static constexpr int kHigh = kBits - kLow;
  static constexpr int kWidth = kBits;
  static constexpr int kAtomBytes = 128 * kBits;
  static constexpr bool kTable = false;
  static constexpr int kShift = kHalf || kBits == 8 ? 0 : 128;
  static constexpr int kExponentLow = kHalf ? 24 : 0;
  // Bit of the half register where row g + 8's code starts.
  static constexpr int kBitHigh = !kHalf || kBits == 8 ? 0 : 4;
  static constexpr int kExponentHigh = kHalf ? 24 - kBitHigh : 0;

  std::uint32_t low[kLow];
  std::uint32_t high[kHigh == 0 ? 1 : kHigh];

  __device__ __forceinline__ void Load(const std::uint8_t* atom, int lane, std::uint64_t policy) {
    if constexpr (kLow == 8) {
      const uint4 a = ptx::StreamLoad128(atom + lane * 16, policy);
      const uint4 b = ptx::StreamLoad128(atom + 512 + lane * 16, policy);
      low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
      low[4] = b.x, low[5] = b.y, low[6] = b.z, low[7] = b.w;
    } else if constexpr (kLow == 4) {
      const uint4 a = ptx::StreamLoad128(atom + lane * 16, policy);
      low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
    } else {
      const uint2 a = ptx::StreamLoad64(atom + lane * 8, policy);
      low[0] = a.x, low[1] = a.y;
    }
    if constexpr (kHigh == 2) {
      const uint2 a = ptx::StreamLoad64(atom + 128 * kLow + lane * 8, policy);
      high[0] = a.x, high[1] = a.y;
    } else if constexpr (kHigh == 1) {
      high[0] = ptx::StreamLoad32(atom + 128 * kLow + lane * 4, policy);
    }
  }

  // The same from an atom in shared memory.
  __device__ __forceinline__ void LoadShared(std::uint32_t atom, int lane) {
    if constexpr (kLow == 8) {
      const uint4 a = ptx::LoadShared128(atom + lane * 16);
      const uint4 b = ptx::LoadShared128(atom + 512 + lane * 16);
      low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
      low[4] = b.x, low[5] = b.y, low[6] = b.z, low[7] = b.w;
    } else if constexpr (kLow == 4) {
      const uint4 a = ptx::LoadShared128(atom + lane * 16);
      low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
    } else {
      const uint2 a = ptx::LoadShared64(atom + lane * 8);
      low[0] = a.x, low[1] = a.y;
    }
    if constexpr (kHigh == 2) {
      const uint2 a = ptx::LoadShared64(atom + 128 * kLow + lane * 8);
      high[0] = a.x, high[1] = a.y;
    } else if constexpr (kHigh == 1) {
      high[0] = ptx::LoadShared32(atom + 128 * kLow + lane * 4);
    }
  }

  // Pair `pair` of step `step`: both codes at bit `at` of their 16-bit halves, 0 or kBitHigh. The
  // arguments are constants once the caller's loops are unrolled.
  // `magic` is or-ed in.
  __host__ __device__ __forceinline__ std::uint32_t RawPair(int step, int pair,
                                                            std::uint32_t magic = 0) const {
    const int at = (pair & 1) ? kBitHigh : 0;
    const int index = step * 4 + pair;  // of the lane's 16 pairs
    if constexpr (kBits == 3) {         // the step's codes as nibbles first, all four pairs at once
      const std::uint32_t two = ShiftRight(low[step / 2], PlaneBit(2, step, 0)) & 0x33333333u;
      const std::uint32_t three =
          AndOr(ShiftRight(high[0], PlaneBit(1, step, 0) - 2), 0x44444444u, two);
      return AndOr(ShiftRight(three, 4 * pair - at), 0x70007u << at, magic);
    }
    const auto plane = [&](const std::uint32_t* words, int bits, int to, std::uint32_t add) {
      const std::uint32_t mask = (((1u << bits) - 1) * 0x10001u) << to;
      return AndOr(ShiftRight(words[index * bits / 16], PlaneBit(bits, step, pair) - to), mask,
                   add);
    };
    std::uint32_t v = plane(low, kLow, at, magic);
    if constexpr (kHigh > 0) v = plane(high, kHigh, at + kLow, v);
    return v;
  }

  __device__ __forceinline__ void Fragment(int step, std::uint32_t, std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      std::uint32_t v = RawPair(step, pair, kShift == 0 ? 0 : 0x43004300u);
      if constexpr (!kHalf && kBits == 8) {  // 2^23 + q as f32, then to bf16: exact, q has 8 bits
        const float first = __uint_as_float(0x4B000000u | (v & 0xffffu)) - 8388608.0f;
        const float second = __uint_as_float(__byte_perm(v, 0x4B000000u, 0x7632)) - 8388608.0f;
        v = PackPair<T>(first, second);
      }
      a[pair] = v;
    }
  }
};

// ---- Codebooks: one byte holds the two codes of a pair; shared memory holds every pair of
// entries, once a bank ----
inline constexpr int kPairTableBytes = 256 * 32 * 4;

template <typename T>
struct CodebookCodes {
  static constexpr int kWidth = 4;
  static constexpr int kAtomBytes = 512;
  static constexpr bool kTable = true;
  static constexpr int kShift = 0;
  static constexpr int kExponentLow = 0;
  static constexpr int kExponentHigh = 0;

  std::uint32_t low[4];

  __device__ __forceinline__ void Load(const std::uint8_t* atom, int lane, std::uint64_t policy) {
    const uint4 a = ptx::StreamLoad128(atom + lane * 16, policy);
    low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
  }

  __device__ __forceinline__ void LoadShared(std::uint32_t atom, int lane) {
    const uint4 a = ptx::LoadShared128(atom + lane * 16);
    low[0] = a.x, low[1] = a.y, low[2] = a.z, low[3] = a.w;
  }

  // `table` is the lane's bank of the pair table: entry b at table + 128 * b.
  __device__ __forceinline__ void Fragment(int step, std::uint32_t table,
                                           std::uint32_t (&a)[4]) const {
    const std::uint32_t w = low[step];
    a[0] = Lookup(table + ((w << 7) & 0x7f80));
    a[1] = Lookup(table + ((w >> 1) & 0x7f80));
    a[2] = Lookup(table + ((w >> 9) & 0x7f80));
    a[3] = Lookup(table + ((w >> 17) & 0x7f80));
  }

  // The same by the table itself and the lane's place in an entry, lane * 4: one operation less a
  // pair, where shared memory's base is an operand of the load.
  __device__ __forceinline__ void Fragment(int step, const char* pairs, std::uint32_t lane_bytes,
                                           std::uint32_t (&a)[4]) const {
    const std::uint32_t w = low[step];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const std::uint32_t at = AndOr(ShiftRight(w, 8 * pair - 7), 0x7f80, lane_bytes);
      a[pair] = *reinterpret_cast<const std::uint32_t*>(pairs + at);
    }
  }

  // No memory clobber: the table never changes, the compiler may move these loads.
  static __device__ __forceinline__ std::uint32_t Lookup(std::uint32_t at) {
    std::uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
  }

  // Fills the pair table; every thread of the block takes part, a block barrier must follow.
  static __device__ __forceinline__ void FillTable(std::uint32_t* pairs, const float* table) {
    for (int i = threadIdx.x; i < 512; i += blockDim.x) {  // half of an entry's banks
      const int byte = i / 2;
      const std::uint32_t v = PackPair<T>(table[byte & 15], table[byte >> 4]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // neighbours begin at other banks
        *reinterpret_cast<uint4*>(pairs + byte * 32 + i % 2 * 16 + (j + byte) % 4 * 4) =
            make_uint4(v, v, v, v);
      }
    }
  }
};

template <typename T, CodeKind kKind, int kBits>
using CodesOf =
    std::conditional_t<kKind == CodeKind::kCodebook, CodebookCodes<T>, IntegerCodes<T, kBits>>;

}  // namespace nibble
