// Tile products of weights in bit planes: 2, 3, 5 and 6 bits, any group.
#include "kernels/cuda/wgmma_product.cuh"

namespace nibble::cuda {

TileLauncher FindTilesPlanes(const TileInstance& instance, int bits) {
  switch (bits) {
    case 2: return TilesByType<CodeKind::kInteger, 2, true>(instance);
    case 3: return TilesByType<CodeKind::kInteger, 3, true>(instance);
    case 5: return TilesByType<CodeKind::kInteger, 5, true>(instance);
    case 6: return TilesByType<CodeKind::kInteger, 6, true>(instance);
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
