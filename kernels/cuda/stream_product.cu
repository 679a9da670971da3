// Chooses how a streamed product is cut and launches it.
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kSharedLimit = 227 * 1024;

StreamLauncher FindStream(const PackedShape& shape, DType dtype, int token_tiles) {
  if (shape.kind == CodeKind::kCodebook) return FindStreamCodebook(dtype, shape.group, token_tiles);
  const bool offsets = shape.offset != OffsetMode::kConstant;
  if (shape.bits == 4) return FindStreamInt4(dtype, shape.group, offsets, token_tiles);
  if (shape.bits == 8) return FindStreamInt8(dtype, shape.group, offsets, token_tiles);
  return FindStreamPlanes(dtype, shape.bits, shape.group, offsets, token_tiles);
}

// Shared memory: norms of the inputs, sums, pair table, activations, partial sums, exchange.
// Chooses `flush`; false when it does not fit.
bool PlaceShared(const ProductArgs& args, int token_tiles, StreamGeometry* geometry) {
  StreamParams& p = geometry->params;
  const int block_units = (p.units + geometry->cluster - 1) / geometry->cluster;
  const bool codebook = args.w.shape.kind == CodeKind::kCodebook;
  const int sum_bytes =
      codebook ? 0 : block_units * (kUnitColumns / args.w.shape.group) * token_tiles * 32;
  p.sums_offset = 128;
  p.table_offset = p.sums_offset + sum_bytes;
  p.x_offset = (p.table_offset + (codebook ? kPairTableBytes : 0) + 127) / 128 * 128;
  p.x_row_bytes = block_units * 256 + 16;
  p.partial_offset = p.x_offset + args.m * p.x_row_bytes;
  const int tile_bytes = kStreamWarps * args.m * kPartialStride * 4;
  const int exchange_bytes = geometry->cluster > 1 ? args.m * 64 : 0;
  const auto buffers = [&](int flush) { return flush >= p.tiles_per_cluster ? 1 : 2; };
  const auto total = [&](int flush) {
    return p.partial_offset + buffers(flush) * flush * (tile_bytes + exchange_bytes);
  };
  p.flush = p.tiles_per_cluster + p.tiles_per_cluster % 2;
  while (p.flush > 2 && (total(p.flush) > kSharedLimit || p.flush * args.m > 4000)) p.flush -= 2;
  if (total(p.flush) > kSharedLimit) return false;
  p.buffer_floats = p.flush * tile_bytes / 4;
  p.exchange_offset = p.partial_offset + buffers(p.flush) * p.flush * tile_bytes;
  geometry->shared_bytes = total(p.flush);
  return true;
}

cudaError_t LaunchPass(const ProductArgs& args, StreamPlan plan, int sms, cudaStream_t stream) {
  const PackedShape& shape = args.w.shape;
  const int units = static_cast<int>(shape.Units()), tiles = static_cast<int>(shape.Tiles());
  const int token_tiles = args.m <= 8 ? 1 : 2;
  const StreamLauncher launch = FindStream(shape, args.dtype, token_tiles);
  if (launch == nullptr) return cudaErrorNotSupported;

  StreamGeometry geometry = {};
  StreamParams& p = geometry.params;
  p.blocks = args.w.blocks;
  p.block_bytes = shape.BlockBytes();
  p.units = units;
  p.tiles = tiles;
  p.offset = shape.offset;
  p.zero = static_cast<float>(shape.offset == OffsetMode::kConstant ? args.w.zero : 0);
  p.multiplier = args.w.multiplier;
  for (int i = 0; i < 16; ++i) p.table[i] = args.w.table[i];
  p.x = static_cast<const char*>(args.x);
  p.x_stride = args.ldx * 2;
  p.m = args.m;
  p.k = static_cast<int>(shape.k);
  p.n = static_cast<int>(shape.n);
  p.norm_in = args.norm_in;
  p.bias = args.bias;
  p.output = args.output;
  p.gate = args.gate;
  p.out = args.out;
  p.ldo = args.ldo;
  p.residual = args.residual;
  p.norm_out = args.norm_out;

  // A larger cluster where there are too few tiles to give every SM one, or the activations need
  // more room.
  int cluster = plan.cluster != 0 ? plan.cluster : 1;
  if (plan.cluster == 0) {
    while (cluster < 8 && tiles * cluster * 2 <= sms && units >= cluster * 16) cluster *= 2;
  }
  p.by_m = (65536 + args.m - 1) / args.m;
  for (; cluster <= 8; cluster *= 2) {
    p.cluster_shift = cluster == 1 ? 0 : cluster == 2 ? 1 : cluster == 4 ? 2 : 3;
    // GPCs hold 14 to 18 SMs, so not every SM finds a place in a cluster of 4 or 8.
    const int clusters = cluster <= 2   ? sms / cluster
                         : cluster == 4 ? (sms - 8) / 4
                                        : (sms - 16) / 8;
    const int tile_step = args.output == Output::kGlu ? 2 : 1;
    p.tiles_per_cluster = (tiles + clusters - 1) / clusters;
    p.tiles_per_cluster += p.tiles_per_cluster % tile_step;
    geometry.cluster = cluster;
    geometry.blocks = (tiles + p.tiles_per_cluster - 1) / p.tiles_per_cluster * cluster;
    if (PlaceShared(args, token_tiles, &geometry)) return launch(geometry, args.dependent, stream);
    if (plan.cluster != 0) break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

bool SupportsStream(const PackedShape& shape) {
  return FindStream(shape, DType::kF16, 1) != nullptr;
}

cudaError_t StreamProduct(const ProductArgs& args, cudaStream_t stream, StreamPlan plan) {
  if (args.m == 0) return cudaSuccess;
  const PackedShape& shape = args.w.shape;
  if (args.m < 0 || shape.k % 8 != 0 || args.ldx % 8 != 0 || shape.n <= 0 || args.x == nullptr ||
      reinterpret_cast<std::uintptr_t>(args.x) % 16 != 0 ||
      (args.output == Output::kGlu && shape.n % 32 != 0) ||
      (args.output == Output::kResidual ? args.residual == nullptr : args.out == nullptr)) {
    return cudaErrorInvalidValue;
  }
  int device = 0, sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  constexpr int kPassTokens = 16;
  for (int begin = 0; begin < args.m; begin += kPassTokens) {
    ProductArgs pass = args;
    pass.m = std::min(kPassTokens, args.m - begin);
    const std::int64_t out_bytes = args.output == Output::kStoreF32 ? 4 : 2;
    pass.x = static_cast<const char*>(args.x) + begin * args.ldx * 2;
    if (args.out != nullptr) pass.out = static_cast<char*>(args.out) + begin * args.ldo * out_bytes;
    if (args.residual != nullptr) pass.residual = args.residual + begin * shape.n;
    if (args.norm_out.normed != nullptr) {
      pass.norm_out.normed = static_cast<char*>(args.norm_out.normed) + begin * shape.n * 2;
    }
    if (args.norm_out.square_sums != nullptr) pass.norm_out.square_sums += begin * shape.Tiles();
    if (args.norm_in.square_sums != nullptr) pass.norm_in.square_sums += begin * args.norm_in.count;
    error = LaunchPass(pass, plan, sms, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace nibble::cuda
