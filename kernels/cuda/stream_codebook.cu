// Streamed products of 4-bit codebooks. Groups of 64 (NF4, FP4 of bitsandbytes) and 32 (IQ4_NL,
// IQ4_XS, MXFP4).
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {
namespace {

template <typename T>
StreamLauncher ByGroup(int group, int token_tiles) {
  switch (group) {
    case 64: return StreamByTokens<T, CodeKind::kCodebook, 4, 64, false>(token_tiles);
    case 32: return StreamByTokens<T, CodeKind::kCodebook, 4, 32, false>(token_tiles);
    default: return nullptr;
  }
}

}  // namespace

StreamLauncher FindStreamCodebook(DType dtype, int group, int token_tiles) {
  return dtype == DType::kF16 ? ByGroup<half>(group, token_tiles)
                              : ByGroup<__nv_bfloat16>(group, token_tiles);
}

}  // namespace nibble::cuda
