// Streamed products of 8-bit affine weights. Groups of 128 (GPTQ, compressed-tensors) and 32
// (Q8_0).
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {

StreamLauncher FindStreamInt8(DType dtype, int group, bool offsets, int token_tiles) {
  switch (group) {
    case 128: return StreamByOffsets<8, 128>(dtype, offsets, token_tiles);
    case 32: return StreamByOffsets<8, 32>(dtype, offsets, token_tiles);
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
