// Portable tiles of 2, 3, 5 and 6 bits.
#include "kernels/cuda/portable_tiles.cuh"

namespace nibble::cuda {

PortableLauncher FindPortablePlanes(int bits, DType dtype) {
  switch (bits) {
    case 2: return PortableByType<CodeKind::kInteger, 2>(dtype);
    case 3: return PortableByType<CodeKind::kInteger, 3>(dtype);
    case 5: return PortableByType<CodeKind::kInteger, 5>(dtype);
    case 6: return PortableByType<CodeKind::kInteger, 6>(dtype);
    default: return nullptr;
  }
}

}  // namespace nibble::cuda
