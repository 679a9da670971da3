// The two products of attention on wgmma (sm_90a): scores = q k^T with both operands in shared
// memory, and out += p v with p in registers and v as it lies in the cache, keys by entries.
//
// Tiles in shared memory: T[half][rows][64], a half being 64 entries of the head, rows of 128
// swizzled bytes (wgmma.cuh), halves 128 * rows bytes apart; 1024-byte aligned.
#pragma once

#include "kernels/cuda/wgmma.cuh"

namespace nibble::ptx {

// Operand B [16 keys][entries] of out += p v: halves are half_bytes apart. 16 keys further: + 128.
__device__ __forceinline__ std::uint64_t TransposedOperand(std::uint32_t shared, int half_bytes) {
  return (std::uint64_t{1} << 62) | (std::uint64_t{1024 >> 4} << 32) |
         (static_cast<std::uint64_t>(half_bytes >> 4) << 16) | ((shared & 0x3ffff) >> 4);
}

// Makes generic stores to shared memory visible to products and tensor copies.
__device__ __forceinline__ void FenceShared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives at hardware barrier `id` without waiting; `threads` counts those that wait, too.
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#define NIBBLE_REGISTERS_32                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NIBBLE_REGISTERS_48                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NIBBLE_REGISTERS_64                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NIBBLE_OPERANDS_8(i)                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define NIBBLE_OPERANDS_32(i)                                                \
  NIBBLE_OPERANDS_8(i), NIBBLE_OPERANDS_8(i + 8), NIBBLE_OPERANDS_8(i + 16), \
      NIBBLE_OPERANDS_8(i + 24)
#define NIBBLE_OPERANDS_48 NIBBLE_OPERANDS_32(0), NIBBLE_OPERANDS_8(32), NIBBLE_OPERANDS_8(40)
#define NIBBLE_OPERANDS_64 NIBBLE_OPERANDS_32(0), NIBBLE_OPERANDS_32(32)

// d[64, n] (+)= a[64, 16] * b[n, 16]^T, kAdd 0: d's old values do not count.
template <typename T, int kAdd>
__device__ __forceinline__ void WgmmaShared(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NIBBLE_REGISTERS_32
                 "}, %32, %33, %34, 1, 1, 0, 0;"
                 : NIBBLE_OPERANDS_32(0)
                 : "l"(a), "l"(b), "n"(kAdd));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NIBBLE_REGISTERS_32
                 "}, %32, %33, %34, 1, 1, 0, 0;"
                 : NIBBLE_OPERANDS_32(0)
                 : "l"(a), "l"(b), "n"(kAdd));
  }
}
template <typename T, int kAdd>
__device__ __forceinline__ void WgmmaShared(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NIBBLE_REGISTERS_64
                 "}, %64, %65, %66, 1, 1, 0, 0;"
                 : NIBBLE_OPERANDS_64
                 : "l"(a), "l"(b), "n"(kAdd));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NIBBLE_REGISTERS_64
                 "}, %64, %65, %66, 1, 1, 0, 0;"
                 : NIBBLE_OPERANDS_64
                 : "l"(a), "l"(b), "n"(kAdd));
  }
}

// d[64, n] += a[64, 16] * b[16, n], b a TransposedOperand.
template <typename T>
__device__ __forceinline__ void WgmmaTransposed(float (&d)[32], const std::uint32_t (&a)[4],
                                                std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" NIBBLE_REGISTERS_32
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : NIBBLE_OPERANDS_32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NIBBLE_REGISTERS_32
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : NIBBLE_OPERANDS_32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}
template <typename T>
__device__ __forceinline__ void WgmmaTransposed(float (&d)[48], const std::uint32_t (&a)[4],
                                                std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" NIBBLE_REGISTERS_48
                 "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;"
                 : NIBBLE_OPERANDS_48
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" NIBBLE_REGISTERS_48
                 "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;"
                 : NIBBLE_OPERANDS_48
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}
template <typename T>
__device__ __forceinline__ void WgmmaTransposed(float (&d)[64], const std::uint32_t (&a)[4],
                                                std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" NIBBLE_REGISTERS_64
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : NIBBLE_OPERANDS_64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NIBBLE_REGISTERS_64
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : NIBBLE_OPERANDS_64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

#undef NIBBLE_REGISTERS_32
#undef NIBBLE_REGISTERS_48
#undef NIBBLE_REGISTERS_64
#undef NIBBLE_OPERANDS_8
#undef NIBBLE_OPERANDS_32
#undef NIBBLE_OPERANDS_48
#undef NIBBLE_OPERANDS_64

}  // namespace nibble::ptx
