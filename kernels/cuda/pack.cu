// Packing on the device at load, and unpacking for the products that want dense weights.
#include <algorithm>

#include "kernels/cuda/dequantize.cuh"
#include "kernels/cuda/launch.cuh"

namespace nibble::cuda {
namespace {

// One warp a block of the packed stream; lanes as in PackBlockLane. grid.x over blocks.
__global__ void PackKernel(PackedShape shape, RowSource source, std::uint8_t* blocks,
                           std::int64_t count) {
  const std::int64_t index =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (index >= count) return;
  const std::int64_t tile = index / shape.Units(), unit = index % shape.Units();
  PackBlockLane(
      shape, source, tile, unit, threadIdx.x % 32,
      [](float v) { return __half_as_ushort(__float2half_rn(v)); },
      blocks + index * shape.BlockBytes());
}

constexpr int kUnpackWarps = 8;
constexpr int kStagedStride =
    kUnitColumns + 8;  // elements a row: 4-byte stores of a fragment do not conflict

// out T[n, k] = weights by the rule, times `up`. A warp unpacks one block at a time as the product
// kernels do, stages it as rows and stores those; the next block's codes are on their way
// meanwhile.
template <typename T, CodeKind kKind, int kBits>
__global__ void __launch_bounds__(32 * kUnpackWarps)
    UnpackKernel(const __grid_constant__ PackedMatrix w, const OffsetRule rule, float up, T* out) {
  using Codes = CodesOf<T, kKind, kBits>;
  __shared__ __align__(16) T staged[kUnpackWarps][kTileRows * kStagedStride];
  extern __shared__ __align__(16) std::uint32_t pairs[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (Codes::kTable) {
    Codes::FillTable(pairs, w.table.data());
    __syncthreads();
  }
  const std::uint32_t lane_table = ptx::SharedAddress(pairs) + lane * 4;
  const std::uint64_t policy = ptx::EvictFirstPolicy();
  const PackedShape& shape = w.shape;
  const std::int64_t units = shape.Units(), blocks = shape.Tiles() * units;
  const std::int64_t stride = std::int64_t{gridDim.x} * kUnpackWarps;
  const int block_bytes = shape.BlockBytes(), group_steps = shape.group / 16;
  T* mine = staged[warp];
  std::int64_t index = std::int64_t{blockIdx.x} * kUnpackWarps + warp;
  Codes next[2];
  const auto load = [&] {
    if (index >= blocks) return;
    next[0].Load(w.blocks + index * block_bytes, lane, policy);
    next[1].Load(w.blocks + index * block_bytes + Codes::kAtomBytes, lane, policy);
  };
  load();
  while (index < blocks) {
    const Codes codes[2] = {next[0], next[1]};
    const std::int64_t row0 = index / units * kTileRows,
                       column = index % units * kUnitColumns + lane % 16 * 8;
    const auto* tables = reinterpret_cast<const std::uint32_t*>(w.blocks + index * block_bytes +
                                                                2 * Codes::kAtomBytes + g * 4);
    index += stride;
    load();
    Dequantizer<T, Codes> numbers;
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      if (step % group_steps == 0) {
        const std::uint32_t scales = *tables;
        std::uint32_t offsets = 0;
        if (shape.offset != OffsetMode::kConstant) offsets = tables[shape.TableBytes() / 4];
        numbers.Set(scales, offsets, rule);
        tables += 8;
      }
      std::uint32_t a[4];
      numbers.Fragment(codes[step / 4], step % 4, lane_table, a);
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        if (up != 1.0f) {
          const float2 v = UnpackPair<T>(a[pair]);
          a[pair] = PackPair<T>(v.x * up, v.y * up);
        }
        *reinterpret_cast<std::uint32_t*>(mine + (g + 8 * (pair & 1)) * kStagedStride + step * 16 +
                                          2 * t + 8 * (pair >> 1)) = a[pair];
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kTileRows; i += 2) {
      const int row = i + lane / 16;
      if (row0 + row < shape.n && column < shape.k) {
        *reinterpret_cast<uint4*>(out + (row0 + row) * shape.k + column) =
            *reinterpret_cast<const uint4*>(mine + row * kStagedStride + lane % 16 * 8);
      }
    }
    __syncwarp();
  }
}

template <typename T, CodeKind kKind, int kBits>
cudaError_t LaunchUnpack(const PackedMatrix& w, void* out, LaunchOptions options) {
  const std::int64_t blocks = w.shape.Tiles() * w.shape.Units();
  const auto grid = static_cast<unsigned>(
      std::min<std::int64_t>((blocks + kUnpackWarps - 1) / kUnpackWarps, 132 * 6));
  const std::size_t table = kKind == CodeKind::kCodebook ? kPairTableBytes : 0;
  const auto kernel = UnpackKernel<T, kKind, kBits>;
  if (table > 0) {  // beside the static staging more than the default limit
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kPairTableBytes);
    if (error != cudaSuccess) return error;
  }
  // In f16, scales that were brought to the top of the range leave room below for the codes.
  const float by = std::is_same_v<T, half> && w.multiplier != 1.0f ? 0x1p-9f : w.multiplier;
  const OffsetRule rule = RuleOf<T>(w.shape.offset, static_cast<float>(w.zero), by);
  kernel<<<grid, 32 * kUnpackWarps, table, options.stream>>>(w, rule, w.multiplier / by,
                                                             static_cast<T*>(out));
  return cudaGetLastError();
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
  PackKernel<<<static_cast<unsigned>((count + 7) / 8), 256, 0, stream>>>(shape, source, blocks,
                                                                         count);
  return cudaGetLastError();
}

cudaError_t DequantizePacked(const PackedMatrix& w, DType dtype, void* out, cudaStream_t stream) {
  if (w.shape.k % 8 != 0 || w.shape.n <= 0) return cudaErrorInvalidValue;
  const LaunchOptions options{stream, false};
  return ByDType(dtype, [&]<typename T>() {
    if (w.shape.kind == CodeKind::kCodebook)
      return LaunchUnpack<T, CodeKind::kCodebook, 4>(w, out, options);
    switch (w.shape.bits) {
      case 2: return LaunchUnpack<T, CodeKind::kInteger, 2>(w, out, options);
      case 3: return LaunchUnpack<T, CodeKind::kInteger, 3>(w, out, options);
      case 4: return LaunchUnpack<T, CodeKind::kInteger, 4>(w, out, options);
      case 5: return LaunchUnpack<T, CodeKind::kInteger, 5>(w, out, options);
      case 6: return LaunchUnpack<T, CodeKind::kInteger, 6>(w, out, options);
      case 8: return LaunchUnpack<T, CodeKind::kInteger, 8>(w, out, options);
      default: return cudaErrorInvalidValue;
    }
  });
}

}  // namespace nibble::cuda
