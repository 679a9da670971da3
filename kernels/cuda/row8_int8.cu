// Products of int8 rows.
#include "kernels/cuda/row8_product.cuh"

namespace nibble::cuda {

Row8Launcher FindRow8Int8(DType dtype, int tokens) {
  return dtype == DType::kF16 ? Row8OfTokens<half, std::int32_t>(tokens)
                              : Row8OfTokens<__nv_bfloat16, std::int32_t>(tokens);
}

}  // namespace nibble::cuda
