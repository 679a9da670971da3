// Cuts a product of 8-bit rows into tiles, describes its tensors to the copy engine, launches it.
#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/row8_product.cuh"
#include "kernels/cuda/tensor_map.h"

namespace nibble::cuda {
namespace {

constexpr int kSharedLimit = 227 * 1024;

bool Valid(const Row8ProductArgs& args) {
  const ProductArgs& a = args.product;
  const bool inputs = args.x.outliers == nullptr || a.x != nullptr;
  const bool code =
      args.w.code == DType::kI8 || (args.w.code == DType::kF8E4M3 && args.x.outliers == nullptr);
  return a.m > 0 && SupportsRow8(a.w.shape.n, a.w.shape.k) && inputs && code &&
         args.w.codes != nullptr && args.w.scales != nullptr && args.x.codes != nullptr &&
         args.x.scales != nullptr && Aligned(args.w.codes) && Aligned(args.x.codes) &&
         a.norm_in.square_sums == nullptr && (a.output != Output::kGlu || a.w.shape.n % 32 == 0) &&
         (a.output == Output::kResidual ? a.residual : a.out) != nullptr;
}

// Measured on an H200 (tests/bench/results/cuda_h200.md): tiles that hold all tokens, up to 128; of
// small matrices half as many, for more tiles.
Row8Plan Complete(Row8Plan plan, int m, std::int64_t weights) {
  if (plan.tokens == 0) {
    plan.tokens = m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128;
    if (m > 32 && m <= 256 && weights <= 1 << 24) plan.tokens /= 2;
  }
  const int most =
      (kSharedLimit - kRow8StagedBytes - 1024) / Row8StageBytes(plan.tokens);  // 1024: barriers
  plan.stages = plan.stages == 0 ? most : std::min(plan.stages, most);
  return plan;
}

// Whether cutting the last tiles anew saves more than bringing their sums together costs, about as
// much as kSumUnits units.
bool SharingPays(int items, int workers, int units) {
  constexpr double kSumUnits = 5.0;
  const double rounds = (items + workers - 1) / workers;
  return (rounds - static_cast<double>(items) / workers) * units > kSumUnits;
}

}  // namespace

bool SupportsRow8(std::int64_t n, std::int64_t k) {
  DeviceTraits device;
  return CurrentDevice(&device) == cudaSuccess && device.has_warpgroups() && n > 0 && n % 16 == 0 &&
         k > 0 && k % 16 == 0 && k <= kMostRow8Columns;
}

cudaError_t Row8Product(const Row8ProductArgs& args, const ProductScratch& scratch,
                        cudaStream_t stream, Row8Plan plan) {
  const ProductArgs& a = args.product;
  if (a.m == 0) return cudaSuccess;
  if (!Valid(args)) return cudaErrorInvalidValue;
  plan = Complete(plan, a.m, a.w.shape.n * a.w.shape.k);
  const Row8Launcher launcher = args.w.code == DType::kI8 ? FindRow8Int8(a.dtype, plan.tokens)
                                                          : FindRow8E4m3(a.dtype, plan.tokens);
  if (launcher == nullptr || plan.stages < 2) return cudaErrorInvalidValue;
  DeviceTraits device;
  cudaError_t error = CurrentDevice(&device);
  if (error != cudaSuccess) return error;

  Row8Launch launch = {};
  Row8Params& p = launch.params;
  p = {EpilogueParamsOf(a, /*vector_elements=*/8)};
  p.codes = args.w.codes;
  p.scales = args.w.scales;
  p.offsets = args.w.offsets;
  p.x_scales = args.x.scales;
  p.k = static_cast<int>(a.w.shape.k);
  p.units = (p.k + 127) / 128;
  p.row_items = (p.n + kRow8Rows - 1) / kRow8Rows;
  p.token_items = (p.m + plan.tokens - 1) / plan.tokens;
  p.stages = plan.stages;
  p.stream_once = p.token_items == 1;
  p.inputs = a.x;
  p.ld_inputs = a.ldx;
  p.threshold = args.threshold;
  p.outliers = args.x.outliers;
  // Bytes in pairs: the maps are of 16-bit elements.
  error = EncodeSwizzledHalves(&p.w, p.codes, p.k / 2, p.n, p.k, kRow8Rows);
  if (error == cudaSuccess)
    error = EncodeSwizzledHalves(&p.x, args.x.codes, p.k / 2, p.m, p.k, plan.tokens);
  if (error != cudaSuccess) return error;

  // All tiles are shared, or what is left after whole rounds and one round more.
  const int items = p.row_items * p.token_items, workers = std::min(device.sms, kProductFlags);
  launch.blocks = std::min(workers, items);
  if (scratch.flags != nullptr && scratch.weights != nullptr &&
      args.scratch_bytes >= std::int64_t{4} * kRow8Rows * plan.tokens * workers) {
    p.partials = scratch.weights;
    p.flags = scratch.flags;
    const int left = items % workers;
    if (left > 0 && SharingPays(items, workers, p.units)) {
      launch.blocks = workers;
      p.shared_tiles = items < workers ? items : left + workers;
    }
  }
  launch.shared_bytes = plan.stages * (Row8StageBytes(plan.tokens) + 16) + kRow8StagedBytes;
  launch.options = {stream, a.dependent};
  return launcher(launch);
}

}  // namespace nibble::cuda
