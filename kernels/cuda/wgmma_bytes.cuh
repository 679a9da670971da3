// Warpgroup products of bytes: d[64 rows, n tokens] (+)= a[64, 32] * b[32, n], both operands in
// shared memory as rows of 128 swizzled bytes (wgmma.cuh). int8 adds up in s32, e4m3 in what the
// tensor cores have of f32 (about 14 bits: not for long sums). sm_90a.
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace nibble::ptx {

template <int kSize>
__device__ __forceinline__ void PinRegisters(std::int32_t (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define NIBBLE_D_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NIBBLE_D_16 NIBBLE_D_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NIBBLE_D_32                                                          \
  NIBBLE_D_16                                                                \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
  "%30, %31"
#define NIBBLE_D_64                                                          \
  NIBBLE_D_32                                                                \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "   \
  "%60, %61, %62, %63"
#define NIBBLE_R_8(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define NIBBLE_R_16(c, i) NIBBLE_R_8(c, i), NIBBLE_R_8(c, i + 8)
#define NIBBLE_R_32(c, i) NIBBLE_R_16(c, i), NIBBLE_R_16(c, i + 16)
#define NIBBLE_R_64(c, i) NIBBLE_R_32(c, i), NIBBLE_R_32(c, i + 32)

// `add` false: d is overwritten. size: registers of d; a, b, add: their operand numbers.
#define NIBBLE_WGMMA_BYTES(size, tokens, a_at, b_at, add_at)                                     \
  __device__ __forceinline__ void WgmmaBytes(std::int32_t (&d)[size], std::uint64_t a,           \
                                             std::uint64_t b, int add) {                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add_at                                     \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" tokens                                \
                 "k32.s32.s8.s8 {" NIBBLE_D_##size "}, %" a_at ", %" b_at ", p;\n}\n"            \
                 : NIBBLE_R_##size("+r", 0)                                                      \
                 : "l"(a), "l"(b), "r"(add));                                                    \
  }                                                                                              \
  __device__ __forceinline__ void WgmmaBytes(float (&d)[size], std::uint64_t a, std::uint64_t b, \
                                             int add) {                                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add_at                                     \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" tokens                                \
                 "k32.f32.e4m3.e4m3 {" NIBBLE_D_##size "}, %" a_at ", %" b_at ", p, 1, 1;\n}\n"  \
                 : NIBBLE_R_##size("+f", 0)                                                      \
                 : "l"(a), "l"(b), "r"(add));                                                    \
  }
NIBBLE_WGMMA_BYTES(8, "16", "8", "9", "10")
NIBBLE_WGMMA_BYTES(16, "32", "16", "17", "18")
NIBBLE_WGMMA_BYTES(32, "64", "32", "33", "34")
NIBBLE_WGMMA_BYTES(64, "128", "64", "65", "66")

#undef NIBBLE_WGMMA_BYTES
#undef NIBBLE_R_64
#undef NIBBLE_R_32
#undef NIBBLE_R_16
#undef NIBBLE_R_8
#undef NIBBLE_D_64
#undef NIBBLE_D_32
#undef NIBBLE_D_16
#undef NIBBLE_D_8

}  // namespace nibble::ptx
