// Streamed products of 4-bit affine weights. Groups of 128 (GPTQ, AWQ), 64, 32 (Q4_0, Q4_1, Q4_K)
// and 16.
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {

StreamLauncher FindStreamInt4(DType dtype, int group, bool offsets, int token_tiles) {
  switch (group) {
    case 128: return StreamByOffsets<4, 128>(dtype, offsets, token_tiles);
    case 64: return StreamByOffsets<4, 64>(dtype, offsets, token_tiles);
    case 32: return StreamByOffsets<4, 32>(dtype, offsets, token_tiles);
    case 16: return StreamByOffsets<4, 16>(dtype, offsets, token_tiles);
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
