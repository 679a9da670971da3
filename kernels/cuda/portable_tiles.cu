// Portable tiles of 4 and 8 bits and of codebooks.
#include "kernels/cuda/portable_tiles.cuh"

namespace nibble::cuda {

PortableLauncher FindPortableTiles(const PackedShape& shape, DType dtype) {
  if (shape.kind == CodeKind::kCodebook) return PortableByType<CodeKind::kCodebook, 4>(dtype);
  switch (shape.bits) {
    case 4: return PortableByType<CodeKind::kInteger, 4>(dtype);
    case 8: return PortableByType<CodeKind::kInteger, 8>(dtype);
    default: return FindPortablePlanes(shape.bits, dtype);
  }
}

}  // namespace nibble::cuda
