// Chooses how a streamed product is cut and launches it.
#include "kernels/cuda/device.h"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/stream_product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kPassTokens = 16;
constexpr int kUnitBytes = 2 * kUnitColumns;  // of a token's activations
// Activations of a block from which on it pays to copy them to two at once.
constexpr int kTwinBytes = 16 * 1024;

StreamLauncher FindStream(const PackedShape& shape, DType dtype, int token_tiles) {
  if (shape.kind == CodeKind::kCodebook) return FindStreamCodebook(dtype, shape.group, token_tiles);
  const bool offsets = shape.offset != OffsetMode::kConstant;
  if (shape.bits == 4) return FindStreamInt4(dtype, shape.group, offsets, token_tiles);
  if (shape.bits == 8) return FindStreamInt8(dtype, shape.group, offsets, token_tiles);
  return FindStreamPlanes(dtype, shape.bits, shape.group, offsets, token_tiles);
}

constexpr int RoundUp(int v, int to) { return (v + to - 1) / to * to; }

// Cuts the product's tiles and columns over the SMs and places shared memory: norms of the inputs,
// spans and factors, pair table, activations, partial sums. False when it does not fit.
bool Cut(const ProductArgs& args, int parts_shift, const DeviceTraits& device,
         StreamGeometry* geometry) {
  StreamParams& p = geometry->params;
  const int parts = 1 << parts_shift;
  int groups = device.sms >> parts_shift;
  const int units = (p.units + parts - 1) / parts;
  p.twins = device.has_clusters() && p.m * units * kUnitBytes >= kTwinBytes && groups >= 2;
  if (p.twins) groups &= ~1;
  const std::int64_t exchange = (std::int64_t{p.tiles} * p.m << parts_shift) * kTileRows;
  if (p.units < parts || groups == 0) return false;
  if (parts > 1 && (p.exchange == nullptr || exchange > kProductFlags)) return false;
  p.parts_shift = parts_shift;
  // Pairs of tiles are multiplied together; a single one where that gives every group its tile.
  p.group_tiles = (p.tiles + groups - 1) / groups;
  if (args.output == Output::kGlu) p.group_tiles = RoundUp(p.group_tiles, 2);
  groups = (p.tiles + p.group_tiles - 1) / p.group_tiles;
  geometry->blocks = (p.twins ? RoundUp(groups, 2) : groups) * parts;

  const int pairs = (p.group_tiles + 1) / 2;
  const int token_tiles = p.m <= 8 ? 1 : 2;
  p.x_row_bytes = units * kUnitBytes + 16;
  const int warps = StreamWarps(token_tiles);
  const int fetched_bytes = args.output == Output::kResidual ? 2 * 32 * warps * 16 : 0;
  const bool codebook = args.w.shape.kind == CodeKind::kCodebook;
  const int factor_bytes = p.bf16 && args.w.shape.bits == 8 ? units * token_tiles * 32 : 0;
  const int sum_bytes = codebook || token_tiles == 1
                            ? 0
                            : units * token_tiles * 32 * (kUnitColumns / args.w.shape.group);
  const int table_bytes = codebook ? kPairTableBytes : 0;
  const auto place = [&](int round_pairs) {
    p.round_pairs = round_pairs;
    p.barrier_offset = 64;
    p.fetched_offset = 80;
    p.spans_offset = p.fetched_offset + fetched_bytes;
    p.factors_offset = p.spans_offset + RoundUp(round_pairs * 8, 64);
    p.sums_offset = p.factors_offset + factor_bytes;
    p.table_offset = RoundUp(p.sums_offset + sum_bytes, 128);
    p.x_offset = p.table_offset + table_bytes;
    p.partial_offset = p.x_offset + RoundUp(p.m * p.x_row_bytes, 128);
    const int slots = warps + round_pairs - 1;
    geometry->shared_bytes = p.partial_offset + slots * 2 * p.m * kPartialStride * 4;
    return geometry->shared_bytes <= device.shared_bytes && 2 * round_pairs * p.m < 4096;
  };
  for (int rounds = 1; rounds <= pairs; ++rounds) {
    if (place((pairs + rounds - 1) / rounds)) return true;
  }
  return false;
}

// Microseconds on an H200 (tests/bench/results/cuda_h200.md) of what cuts differ by: the weights of
// an SM and the rounds of its warps, its activations from L2, and sums that meet there.
float Cost(const ProductArgs& args, const StreamGeometry& geometry) {
  const StreamParams& p = geometry.params;
  constexpr float kKilobyte = 1.0f / 1024;
  const int parts = 1 << p.parts_shift, units = (p.units + parts - 1) / parts;
  const int warps = StreamWarps(p.m <= 8 ? 1 : 2);
  const int rounds = ((p.group_tiles + 1) / 2 * units + warps - 1) / warps;
  const float weights = p.group_tiles * units * p.block_bytes * kKilobyte / 34;
  const float inputs = p.m * units * kUnitBytes * kKilobyte / (p.twins ? 80 : 35);
  const float sums = p.group_tiles * p.m * kTileRows * 4 * kKilobyte * 0.07f +
                     (args.output == Output::kGlu ? 1.2f : 0.4f);
  return weights + 0.6f * rounds + inputs + (parts == 1 ? 0.0f : sums);
}

cudaError_t LaunchPass(const ProductArgs& args, const StreamPlan& plan, const DeviceTraits& device,
                       cudaStream_t stream) {
  const PackedShape& shape = args.w.shape;
  StreamGeometry geometry = {};
  StreamParams& p = geometry.params;
  p = {PackedParamsOf(args.w), EpilogueParamsOf(args, /*vector_elements=*/4)};
  p.by_m = (65536 + args.m - 1) / args.m;
  p.x = static_cast<const char*>(args.x);
  p.x_stride = args.ldx * 2;
  p.bf16 = args.dtype == DType::kBF16;
  p.k = static_cast<int>(shape.k);
  p.exchange = plan.flags;

  StreamGeometry best;
  float best_cost = 0.0f;
  for (int shift = 0; 1 << shift <= kMostParts; ++shift) {
    if (plan.parts != 0 && plan.parts != 1 << shift) continue;
    if (!Cut(args, shift, device, &geometry)) continue;
    const float cost = Cost(args, geometry);
    if (best_cost == 0.0f || cost < best_cost) best = geometry, best_cost = cost;
  }
  const StreamLauncher launch = FindStream(shape, args.dtype, args.m <= 8 ? 1 : 2);
  if (launch == nullptr) return cudaErrorNotSupported;
  if (best_cost == 0.0f) return cudaErrorInvalidValue;
  return launch(best, args.dependent, stream);
}

// The first `tokens` of the tokens from `begin` on.
ProductArgs Tokens(const ProductArgs& args, int begin, int tokens) {
  ProductArgs pass = args;
  pass.m = tokens;
  const std::int64_t n = args.w.shape.n, out_bytes = args.output == Output::kStoreF32 ? 4 : 2;
  pass.x = static_cast<const char*>(args.x) + begin * args.ldx * 2;
  if (args.out != nullptr) pass.out = static_cast<char*>(args.out) + begin * args.ldo * out_bytes;
  if (args.residual != nullptr) pass.residual = args.residual + begin * n;
  if (args.norm_out.normed != nullptr)
    pass.norm_out.normed = static_cast<char*>(args.norm_out.normed) + begin * n * 2;
  if (args.norm_out.square_sums != nullptr)
    pass.norm_out.square_sums += begin * args.w.shape.Tiles();
  if (args.norm_in.square_sums != nullptr) pass.norm_in.square_sums += begin * args.norm_in.count;
  return pass;
}

}  // namespace

bool SupportsStream(const PackedShape& shape) {
  return FindStream(shape, DType::kF16, 1) != nullptr;
}

cudaError_t StreamProduct(const ProductArgs& args, cudaStream_t stream, StreamPlan plan) {
  if (args.m == 0) return cudaSuccess;
  if (!IsProduct(args)) return cudaErrorInvalidValue;
  DeviceTraits device;
  cudaError_t error = CurrentDevice(&device);
  // Fewer tokens a pass where the activations of 16 do not fit.
  int pass_tokens = kPassTokens;
  for (int begin = 0; begin < args.m && error == cudaSuccess;) {
    const int tokens = std::min(pass_tokens, args.m - begin);
    error = LaunchPass(Tokens(args, begin, tokens), plan, device, stream);
    if (error == cudaErrorInvalidValue && tokens > 1) {
      pass_tokens = tokens / 2;
      error = cudaSuccess;
    } else {
      begin += tokens;
    }
  }
  return error;
}

}  // namespace nibble::cuda
