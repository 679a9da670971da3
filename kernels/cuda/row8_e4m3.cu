// Products of e4m3 rows.
#include "kernels/cuda/row8_product.cuh"

namespace nibble::cuda {

Row8Launcher FindRow8E4m3(DType dtype, int tokens) {
  return dtype == DType::kF16 ? Row8OfTokens<half, float>(tokens)
                              : Row8OfTokens<__nv_bfloat16, float>(tokens);
}

}  // namespace nibble::cuda
