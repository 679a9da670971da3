// Tile products of 4-bit codebooks, any group.
#include "kernels/cuda/wgmma_product.cuh"

namespace nibble::cuda {

TileLauncher FindTilesCodebook(const TileInstance& instance) {
  return TilesByType<CodeKind::kCodebook, 4, true>(instance);
}

}  // namespace nibble::cuda
