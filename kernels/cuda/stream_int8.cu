// Streamed products of 8-bit affine weights. Groups of 128 (GPTQ, compressed-tensors) and 32
// (Q8_0).
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {
namespace {

template <typename T>
StreamLauncher ByGroup(int group, bool offsets, int token_tiles) {
  switch (group) {
    case 128: return StreamByOffsets<T, 8, 128>(offsets, token_tiles);
    case 32: return StreamByOffsets<T, 8, 32>(offsets, token_tiles);
    default: return nullptr;
  }
}

}  // namespace

StreamLauncher FindStreamInt8(DType dtype, int group, bool offsets, int token_tiles) {
  return dtype == DType::kF16 ? ByGroup<half>(group, offsets, token_tiles)
                              : ByGroup<__nv_bfloat16>(group, offsets, token_tiles);
}

}  // namespace nibble::cuda
