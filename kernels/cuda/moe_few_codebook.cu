// Few tokens' products with experts of 4-bit codebooks.
#include "kernels/cuda/moe_few.cuh"

namespace nibble::cuda {

FewLauncher FindFewCodebook(DType dtype) { return FewByType<CodeKind::kCodebook, 4>(dtype); }

}  // namespace nibble::cuda
