// Streamed products of weights in bit planes: 2 bits (GPTQ 128, Q2_K 16), 3 (GPTQ 128, Q3_K 16), 5
// (Q5_0, Q5_K 32) and 6 (Q6_K 16).
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {

StreamLauncher FindStreamPlanes(DType dtype, int bits, int group, bool offsets, int token_tiles) {
  switch (bits * 1000 + group) {
    case 2128: return StreamByOffsets<2, 128>(dtype, offsets, token_tiles);
    case 2016: return StreamByOffsets<2, 16>(dtype, offsets, token_tiles);
    case 3128: return StreamByOffsets<3, 128>(dtype, offsets, token_tiles);
    case 3016: return StreamByOffsets<3, 16>(dtype, offsets, token_tiles);
    case 5032: return StreamByOffsets<5, 32>(dtype, offsets, token_tiles);
    case 6016: return StreamByOffsets<6, 16>(dtype, offsets, token_tiles);
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
