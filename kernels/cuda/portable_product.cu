// Cuts a portable tile product (portable_tiles.cuh) and launches it.
#include <algorithm>

#include "kernels/cuda/portable_product.h"
#include "kernels/cuda/portable_tiles.cuh"
#include "kernels/cuda/product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kLeastUnits = 4;  // of a split
constexpr int kBlocksAnSm = 3;  // that a cut aims at

PortableLaunch LaunchOf(const ProductArgs& args, cudaStream_t stream) {
  PortableLaunch launch = {};
  PortableParams& p = launch.params;
  p = {PackedParamsOf(args.w), EpilogueParamsOf(args, /*vector_elements=*/8)};
  // Scales that were brought to the top of f16's range leave room below for the codes.
  launch.by = args.w.multiplier == 1.0f ? 1.0f : 0x1p-9f;
  p.multiplier /= launch.by;
  p.x = static_cast<const char*>(args.x);
  p.x_stride = args.ldx * 2;
  p.k = static_cast<int>(args.w.shape.k);
  p.splits = 1;
  launch.grid = dim3((p.tiles + kPortableWarps - 1) / kPortableWarps,
                     (args.m + kPortableTokens - 1) / kPortableTokens);
  launch.options = {stream, args.dependent};
  return launch;
}

}  // namespace

cudaError_t PortableProduct(const ProductArgs& args, const PortableWorkspace& workspace, int sms,
                            cudaStream_t stream) {
  if (!IsProduct(args)) return cudaErrorInvalidValue;
  const PortableLauncher launcher = FindPortableTiles(args.w.shape, args.dtype);
  if (launcher == nullptr) return cudaErrorNotSupported;
  PortableLaunch launch = LaunchOf(args, stream);
  const int blocks = static_cast<int>(launch.grid.x * launch.grid.y);
  const std::int64_t sums = std::int64_t{4} * args.m * args.w.shape.n;
  const auto most = static_cast<int>(
      std::min<std::int64_t>(args.w.shape.Units() / kLeastUnits, workspace.partial_bytes / sums));
  const int splits = args.cut == ProductCut::kFastest
                         ? std::clamp(kBlocksAnSm * sms / blocks, 1, std::max(most, 1))
                         : 1;
  const bool whole = args.bias == nullptr && args.norm_in.square_sums == nullptr &&
                     args.output != Output::kResidual;
  if (whole && splits == 1) return launcher(launch);
  if (workspace.partial_bytes < sums) return cudaErrorInvalidValue;
  launch.params.splits = launch.grid.z = splits;
  launch.params.output = Output::kStoreF32;
  launch.params.out = workspace.partials;
  launch.params.ldo = args.w.shape.n;
  const cudaError_t error = launcher(launch);
  if (error != cudaSuccess) return error;
  return FinishProduct(args, {workspace.partials, true, splits}, {stream, true});
}

cudaError_t PortableGroupedProduct(const GroupedProductArgs& args, cudaStream_t stream) {
  if (!IsProduct(args.product)) return cudaErrorInvalidValue;
  const PortableLauncher launcher = FindPortableTiles(args.product.w.shape, args.product.dtype);
  if (launcher == nullptr) return cudaErrorNotSupported;
  PortableLaunch launch = LaunchOf(args.product, stream);
  launch.params.experts = args.experts;
  launch.params.group_offsets = args.offsets;
  // How many tiles of tokens experts have, only the device knows.
  launch.grid.y += static_cast<unsigned>(std::min(args.experts, args.product.m));
  return launcher(launch);
}

}  // namespace nibble::cuda
