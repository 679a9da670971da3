// Few tokens' products with experts of 4-bit codes.
#include "kernels/cuda/moe_few.cuh"

namespace nibble::cuda {

FewLauncher FindFewInt4(DType dtype) { return FewByType<CodeKind::kInteger, 4>(dtype); }

}  // namespace nibble::cuda
