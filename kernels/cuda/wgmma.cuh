// Warpgroup matrix products (wgmma) with operand A in registers, and the tensor copies that feed
// operand B. sm_90a.
//
// A warpgroup is 4 consecutive warps. d[64 rows, n tokens] += a[64, 16] * b[16, n]:
//
//   a     warp w holds rows 16 w.. as operand A of mma.m16n8k16 does (packed_layout.h)
//   b     in shared memory, [n tokens][64 columns] of 16 bits in rows of 128 swizzled bytes, as a
//         tensor copy with CU_TENSOR_MAP_SWIZZLE_128B writes them; 1024-byte aligned
//   d     lane 4 g + t of warp w: d[4 j + 0, 1] = row 16 w + g, tokens 8 j + 2 t, + 1; d[4 j + 2,
//   3]
//         = row 16 w + g + 8
#pragma once

#include <cuda.h>

#include "kernels/cuda/ptx.cuh"

namespace nibble::ptx {

// ---- Tensor copies: a box of a tensor map to shared memory, completing on a barrier. Both ends
// 128-byte aligned (1024 when swizzled). Outside the tensor zeros arrive, and count as bytes. ----
__device__ __forceinline__ void TensorCopy(std::uint32_t shared, const CUtensorMap* map, int x,
                                           int y, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void TensorCopy(std::uint32_t shared, const CUtensorMap* map, int x,
                                           int y, std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
      : "memory");
}
// To the same address of every block in `mask`, completing on each block's own barrier.
__device__ __forceinline__ void TensorCopyMulticast(std::uint32_t shared, const CUtensorMap* map,
                                                    int x, int y, std::uint32_t barrier,
                                                    std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
      : "memory");
}
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Arrives at the barrier of the same address in block `rank` of the cluster.
__device__ __forceinline__ void BarrierArriveCluster(std::uint32_t barrier, std::uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Waits for `threads` threads at hardware barrier `id` (1..15).
__device__ __forceinline__ void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers a thread from here on; every warp of the warpgroup.
template <int kCount>
__device__ __forceinline__ void FewerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void MoreRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Operand B at `shared`: rows of 128 bytes, 8 rows every 1024. 16 columns further: + 2.
__device__ __forceinline__ constexpr std::uint64_t SwizzledOperand(std::uint32_t shared) {
  return (std::uint64_t{1} << 62) | (std::uint64_t{1024 >> 4} << 32) | (std::uint64_t{1} << 16) |
         ((shared & 0x3ffff) >> 4);
}
// Orders this thread's register writes before the products that follow.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from moving accumulators while products are in flight.
template <int kSize>
__device__ __forceinline__ void PinRegisters(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define NIBBLE_WGMMA_8(i)                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

template <typename T>
__device__ __forceinline__ void Wgmma(float (&d)[8], const std::uint32_t (&a)[4], std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

template <typename T>
__device__ __forceinline__ void Wgmma(float (&d)[16], const std::uint32_t (&a)[4],
                                      std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15}, "
        "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0), NIBBLE_WGMMA_8(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15}, "
        "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0), NIBBLE_WGMMA_8(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

template <typename T>
__device__ __forceinline__ void Wgmma(float (&d)[32], const std::uint32_t (&a)[4],
                                      std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0), NIBBLE_WGMMA_8(8), NIBBLE_WGMMA_8(16), NIBBLE_WGMMA_8(24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0), NIBBLE_WGMMA_8(8), NIBBLE_WGMMA_8(16), NIBBLE_WGMMA_8(24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

template <typename T>
__device__ __forceinline__ void Wgmma(float (&d)[64], const std::uint32_t (&a)[4],
                                      std::uint64_t b) {
  if constexpr (std::is_same_v<T, half>) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0), NIBBLE_WGMMA_8(8), NIBBLE_WGMMA_8(16), NIBBLE_WGMMA_8(24),
          NIBBLE_WGMMA_8(32), NIBBLE_WGMMA_8(40), NIBBLE_WGMMA_8(48), NIBBLE_WGMMA_8(56)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : NIBBLE_WGMMA_8(0), NIBBLE_WGMMA_8(8), NIBBLE_WGMMA_8(16), NIBBLE_WGMMA_8(24),
          NIBBLE_WGMMA_8(32), NIBBLE_WGMMA_8(40), NIBBLE_WGMMA_8(48), NIBBLE_WGMMA_8(56)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}

#undef NIBBLE_WGMMA_8

}  // namespace nibble::ptx
