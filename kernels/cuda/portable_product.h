// Products of many tokens on devices without warpgroup products.
#pragma once

#include "kernels/cuda/ops.h"

namespace nibble::cuda {

// The epilogue of ProductArgs included. `partials`, of partial_bytes, takes f32[splits, m, n] where
// the columns are split or the epilogue is a kernel of its own; null: neither can be.
struct PortableWorkspace {
  float* partials = nullptr;
  std::int64_t partial_bytes = 0;
};
cudaError_t PortableProduct(const ProductArgs& args, const PortableWorkspace& workspace, int sms,
                            cudaStream_t stream);
// GroupedProduct's contract.
cudaError_t PortableGroupedProduct(const GroupedProductArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda
