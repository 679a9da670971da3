// Packing on the device at load, and unpacking for the products that want dense weights.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

// One warp a block of the packed stream; lanes as in PackBlockLane. grid.x over blocks.
__global__ void PackKernel(PackedShape shape, RowSource source, std::uint8_t* blocks, std::int64_t count) {
  const std::int64_t index = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= count) return;
  const std::int64_t tile = index / shape.Units(), unit = index % shape.Units();
  PackBlockLane(
      shape, source, tile, unit, threadIdx.x % 32,
      [](float v) { return __half_as_ushort(__float2half_rn(v)); }, blocks + index * shape.BlockBytes());
}

// The code of element (row, column) of an atom: PackLane backwards.
__device__ int UnpackCode(const std::uint8_t* atom, int bits, CodeKind kind, int row, int column) {
  const int step = column / 16, in_step = column % 16;
  const int lane = row % 8 * 4 + in_step % 8 / 2;
  const int pair = row / 8 + in_step / 8 * 2, half = in_step % 2;
  const auto word_at = [&](int byte) {
    return *reinterpret_cast<const std::uint32_t*>(atom + byte);
  };
  if (kind == CodeKind::kCodebook) return word_at((lane * 4 + step) * 4) >> (8 * pair + 4 * half) & 15;
  const int index = step * 4 + pair;
  int code = 0, low = 0, plane_byte = 0;
  while (low < bits) {
    const int left = bits - low;
    const int plane = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const int pairs_a_word = 16 / plane;
    const std::uint32_t word = word_at(plane_byte + PlaneWordByte(plane, lane, index / pairs_a_word));
    const int shift = 16 * half + plane * (index % pairs_a_word);
    code |= static_cast<int>((word >> shift) & ((1u << plane) - 1)) << low;
    low += plane;
    plane_byte += 128 * plane;
  }
  return code;
}

// out T[n, k]: one thread two columns of a row. grid (columns / 512, rows).
template <typename T>
__global__ void DequantizeKernel(PackedMatrix w, T* out) {
  const PackedShape& shape = w.shape;
  const int n = blockIdx.y;
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * 2;
  if (k >= shape.k) return;
  const int unit = k / kUnitColumns, row = n % kTileRows;
  const std::uint8_t* block = w.blocks + (n / kTileRows * shape.Units() + unit) * shape.BlockBytes();
  const std::uint8_t* atom = block + k / kAtomColumns % 2 * shape.AtomBytes();
  const int group = k % kUnitColumns / shape.group;
  const auto table = [&](int index) {
    return __half2float(*reinterpret_cast<const half*>(block + 2 * shape.AtomBytes() + index * shape.TableBytes() +
                                                       group * 32 + row % 8 * 4 + row / 8 * 2));
  };
  const float scale = table(0);
  float zero = static_cast<float>(w.zero), bias = 0.0f;
  if (shape.offset == OffsetMode::kZeros) zero = table(1);
  if (shape.offset == OffsetMode::kBias) zero = 0.0f, bias = table(1);
  float values[2];
  for (int i = 0; i < 2; ++i) {
    const int code = UnpackCode(atom, shape.bits, shape.kind, row, k % kAtomColumns + i);
    const float v = shape.kind == CodeKind::kCodebook ? w.table[code] * scale : fmaf(scale, code - zero, bias);
    values[i] = v * w.multiplier;
  }
  *reinterpret_cast<std::uint32_t*>(out + static_cast<std::int64_t>(n) * shape.k + k) =
      PackPair<T>(values[0], values[1]);
}

}  // namespace

cudaError_t PackBlocks(const PackedShape& shape, const RowSource& source, std::uint8_t* blocks,
                       cudaStream_t stream) {
  if (shape.n <= 0 || shape.k <= 0 || source.codes == nullptr || source.scales == nullptr ||
      (shape.offset != OffsetMode::kConstant && source.offsets == nullptr) ||
      source.file_group % shape.group != 0 || (source.alternate_halves && shape.n % 32 != 0)) {
    return cudaErrorInvalidValue;
  }
  const std::int64_t count = shape.Tiles() * shape.Units();
  PackKernel<<<static_cast<unsigned>((count + 7) / 8), 256, 0, stream>>>(shape, source, blocks, count);
  return cudaGetLastError();
}

cudaError_t DequantizePacked(const PackedMatrix& w, DType dtype, void* out, cudaStream_t stream) {
  if (w.shape.k % 2 != 0 || w.shape.n <= 0 || w.shape.n > 65535 * 16LL) return cudaErrorInvalidValue;
  const unsigned columns = static_cast<unsigned>((w.shape.k + 511) / 512);
  const int kRows = 65535;  // of one launch
  for (std::int64_t first = 0; first < w.shape.n; first += kRows / kTileRows * kTileRows) {
    PackedMatrix part = w;
    part.blocks += first / kTileRows * w.shape.Units() * w.shape.BlockBytes();
    part.shape.n = std::min<std::int64_t>(w.shape.n - first, kRows / kTileRows * kTileRows);
    const dim3 grid(columns, static_cast<unsigned>(part.shape.n));
    if (dtype == DType::kF16) {
      DequantizeKernel<half><<<grid, 256, 0, stream>>>(part, static_cast<half*>(out) + first * w.shape.k);
    } else {
      DequantizeKernel<__nv_bfloat16>
          <<<grid, 256, 0, stream>>>(part, static_cast<__nv_bfloat16*>(out) + first * w.shape.k);
    }
  }
  return cudaGetLastError();
}

}  // namespace nibble::cuda
