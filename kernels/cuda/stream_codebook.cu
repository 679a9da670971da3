// Streamed products of 4-bit codebooks. Groups of 64 (NF4, FP4 of bitsandbytes) and 32 (IQ4_NL,
// IQ4_XS, MXFP4).
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {

StreamLauncher FindStreamCodebook(DType dtype, int group, int token_tiles) {
  switch (group) {
    case 64: return StreamByType<CodeKind::kCodebook, 4, 64, false>(dtype, token_tiles);
    case 32: return StreamByType<CodeKind::kCodebook, 4, 32, false>(dtype, token_tiles);
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
