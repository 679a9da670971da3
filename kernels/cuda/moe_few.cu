// Chooses and launches few tokens' products with experts.
#include "kernels/cuda/moe_few.cuh"

namespace nibble::cuda {
namespace {

FewLauncher FindFew(const PackedShape& shape, DType dtype) {
  if (shape.group < 32) return nullptr;
  if (shape.kind == CodeKind::kCodebook) return FindFewCodebook(dtype);
  return shape.bits == 4 ? FindFewInt4(dtype) : shape.bits == 8 ? FindFewInt8(dtype) : nullptr;
}

cudaError_t LaunchFewExperts(const FewExpertsArgs& args, bool glu, LaunchOptions options) {
  if (args.tokens == 0) return cudaSuccess;
  const PackedShape& shape = args.w.shape;
  const FewLauncher launcher = FindFew(shape, args.dtype);
  if (launcher == nullptr) return cudaErrorNotSupported;
  const int rows = glu ? 2 * kTileRows : kTileRows;
  if (args.tokens < 0 || args.tokens > kFewTokens || shape.n <= 0 || shape.n % rows != 0 ||
      shape.k % 8 != 0 || args.ldx % 8 != 0 || args.x == nullptr || args.out == nullptr ||
      !Aligned(args.x) || args.experts < 1 || args.experts > kMostExperts || args.top_k < 1 ||
      args.top_k > std::min(args.experts, kFewRanks)) {
    return cudaErrorInvalidValue;
  }
  FewLaunch launch = {};
  launch.glu = glu;
  launch.options = options;
  FewParams& p = launch.params;
  p = {PackedParamsOf(args.w)};
  p.x = static_cast<const char*>(args.x);
  p.x_stride = args.ldx * 2;
  p.k = static_cast<int>(shape.k);
  p.out = args.out;
  p.ldo = args.ldo;
  p.routes = args.routes;
  p.tokens = args.tokens;
  p.experts = args.experts;
  p.top_k = args.top_k;
  p.gate = args.gate;
  return launcher(launch);
}

}  // namespace

cudaError_t FewExpertsGlu(const FewExpertsArgs& args, LaunchOptions options) {
  return LaunchFewExperts(args, /*glu=*/true, options);
}

cudaError_t FewExpertsSum(const FewExpertsArgs& args, LaunchOptions options) {
  return LaunchFewExperts(args, /*glu=*/false, options);
}

bool SupportsFewExperts(const PackedShape& shape) {
  DeviceTraits device;
  return shape.n % kTileRows == 0 && shape.k % 8 == 0 && FindFew(shape, DType::kF16) != nullptr &&
         CurrentDevice(&device) == cudaSuccess &&
         std::max(FewGluBytes(shape.kind, static_cast<int>(shape.Units())),
                  FewSumBytes(shape.kind, shape.bits, kFewTokens, kFewRanks)) <=
             device.shared_bytes;
}

}  // namespace nibble::cuda
