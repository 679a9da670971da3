// Tile products of 4-bit affine weights: one group a unit (128 columns), or finer.
#include "kernels/cuda/wgmma_product.cuh"

namespace nibble::cuda {

TileLauncher FindTilesInt4(const TileInstance& instance, bool fine) {
  return fine ? TilesByType<CodeKind::kInteger, 4, true>(instance)
              : TilesByType<CodeKind::kInteger, 4, false>(instance);
}

}  // namespace nibble::cuda
