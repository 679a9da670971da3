// Few tokens' products with experts of 8-bit codes.
#include "kernels/cuda/moe_few.cuh"

namespace nibble::cuda {

FewLauncher FindFewInt8(DType dtype) { return FewByType<CodeKind::kInteger, 8>(dtype); }

}  // namespace nibble::cuda
