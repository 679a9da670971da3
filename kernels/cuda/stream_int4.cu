// Streamed products of 4-bit affine weights. Groups of 128 (GPTQ, AWQ), 64, 32 (Q4_0, Q4_1, Q4_K)
// and 16.
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {
namespace {

template <typename T>
StreamLauncher ByGroup(int group, bool offsets, int token_tiles) {
  switch (group) {
    case 128: return StreamByOffsets<T, 4, 128>(offsets, token_tiles);
#ifndef NIBBLE_CUDA_FEW_TILES
    case 64: return StreamByOffsets<T, 4, 64>(offsets, token_tiles);
    case 32: return StreamByOffsets<T, 4, 32>(offsets, token_tiles);
    case 16: return StreamByOffsets<T, 4, 16>(offsets, token_tiles);
#endif
    default: return nullptr;
  }
}

}  // namespace

StreamLauncher FindStreamInt4(DType dtype, int group, bool offsets, int token_tiles) {
  return dtype == DType::kF16 ? ByGroup<half>(group, offsets, token_tiles)
                              : ByGroup<__nv_bfloat16>(group, offsets, token_tiles);
}

}  // namespace nibble::cuda
