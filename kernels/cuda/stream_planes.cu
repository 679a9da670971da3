// Streamed products of weights in bit planes: 2 bits (GPTQ 128, Q2_K 16), 3 (GPTQ 128, Q3_K 16), 5
// (Q5_0, Q5_K 32) and 6 (Q6_K 16).
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {
namespace {

template <typename T>
StreamLauncher ByGroup(int bits, int group, bool offsets, int token_tiles) {
  switch (bits * 1000 + group) {
    case 2128: return StreamByOffsets<T, 2, 128>(offsets, token_tiles);
    case 2016: return StreamByOffsets<T, 2, 16>(offsets, token_tiles);
    case 3128: return StreamByOffsets<T, 3, 128>(offsets, token_tiles);
    case 3016: return StreamByOffsets<T, 3, 16>(offsets, token_tiles);
    case 5032: return StreamByOffsets<T, 5, 32>(offsets, token_tiles);
    case 6016: return StreamByOffsets<T, 6, 16>(offsets, token_tiles);
    default: return nullptr;
  }
}

}  // namespace

StreamLauncher FindStreamPlanes(DType dtype, int bits, int group, bool offsets, int token_tiles) {
  return dtype == DType::kF16 ? ByGroup<half>(bits, group, offsets, token_tiles)
                              : ByGroup<__nv_bfloat16>(bits, group, offsets, token_tiles);
}

}  // namespace nibble::cuda
