// Tile products of 8-bit affine weights: one group a unit (128 columns), or finer.
#include "kernels/cuda/wgmma_product.cuh"

namespace nibble::cuda {

TileLauncher FindTilesInt8(const TileInstance& instance, bool fine) {
  return fine ? TilesByType<CodeKind::kInteger, 8, true>(instance)
              : TilesByType<CodeKind::kInteger, 8, false>(instance);
}

}  // namespace nibble::cuda
