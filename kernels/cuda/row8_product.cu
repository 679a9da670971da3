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

Row8Params ParamsOf(const Row8ProductArgs& args) {
  Row8Params p = {EpilogueParamsOf(args.product, /*vector_elements=*/8)};
  p.codes = args.w.codes;
  p.scales = args.w.scales;
  p.offsets = args.w.offsets;
  p.x_scales = args.x.scales;
  p.k = static_cast<int>(args.product.w.shape.k);
  p.units = (p.k + 127) / 128;
  p.inputs = args.product.x;
  p.ld_inputs = args.product.ldx;
  p.threshold = args.threshold;
  p.outliers = args.x.outliers;
  return p;
}

// How long a product takes an H200 in microseconds (tests/bench/results/cuda_h200.md), by tokens of
// a tile: a unit of 128 columns, a tile's rest, and what sharing tiles adds.
struct TileCost {
  int tokens;
  float unit, tile, sharing;
};
constexpr TileCost kTileCosts[] = {{16, 0.20f, 1.5f, 2.0f},
                                   {32, 0.215f, 2.3f, 4.0f},
                                   {64, 0.25f, 3.0f, 6.0f},
                                   {128, 0.31f, 6.9f, 12.0f}};

// What SMs that share tiles hand each other.
std::int64_t SharedBytes(int tokens, int workers) {
  return std::int64_t{4} * kRow8Rows * tokens * workers;
}

// Chooses what the plan leaves open. sharing_bytes: that there are for SharedBytes.
Row8Plan Complete(Row8Plan plan, const Row8Params& p, int sms, std::int64_t sharing_bytes) {
  const float weights = static_cast<float>(p.n) * static_cast<float>(p.k) / 4.2e6f;
  Row8Plan best;
  float best_us = 0.0f;
  for (const TileCost& cost : kTileCosts) {
    if (plan.tokens != 0 && plan.tokens != cost.tokens) continue;
    const int token_items = (p.m + cost.tokens - 1) / cost.tokens;
    const int items = (p.n + kRow8Rows - 1) / kRow8Rows * token_items;
    // Once from memory, again from L2.
    const float streaming = weights * (1.0f + 0.3f * static_cast<float>(token_items - 1)) + 2.0f;
    const float tile = static_cast<float>(p.units) * cost.unit + cost.tile;
    const bool may_share = items % sms != 0 && SharedBytes(cost.tokens, sms) <= sharing_bytes;
    for (int share : {-1, 1}) {
      if (may_share ? plan.share * share < 0 : share > 0) continue;
      const float rounds = share > 0 ? static_cast<float>(items) / static_cast<float>(sms)
                                     : static_cast<float>((items + sms - 1) / sms);
      const float us = std::max(streaming, rounds * tile) + (share > 0 ? cost.sharing : 0.0f);
      if (best_us == 0.0f || us < best_us) best_us = us, best = {cost.tokens, 0, share};
    }
  }
  const int fixed = kRow8StagedBytes + 1024 +  // barriers
                    (p.outliers != nullptr ? OutlierBytes(best.tokens, p.k) : 0);
  const int most = (kSharedLimit - fixed) / Row8StageBytes(best.tokens);
  best.stages = plan.stages == 0 ? most : std::min(plan.stages, most);
  return best;
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
  DeviceTraits device;
  cudaError_t error = CurrentDevice(&device);
  if (error != cudaSuccess) return error;
  Row8Launch launch = {};
  Row8Params& p = launch.params;
  p = ParamsOf(args);
  const int workers = std::min(device.sms, kProductFlags);
  const bool may_share = scratch.flags != nullptr && scratch.weights != nullptr;
  plan = Complete(plan, p, workers, may_share ? args.scratch_bytes : 0);
  const Row8Launcher launcher = args.w.code == DType::kI8 ? FindRow8Int8(a.dtype, plan.tokens)
                                                          : FindRow8E4m3(a.dtype, plan.tokens);
  if (launcher == nullptr || plan.stages < 2) return cudaErrorInvalidValue;

  p.row_items = (p.n + kRow8Rows - 1) / kRow8Rows;
  p.token_items = (p.m + plan.tokens - 1) / plan.tokens;
  p.stages = plan.stages;
  p.stream_once = p.token_items == 1;
  // Bytes in pairs: the maps are of 16-bit elements.
  error = EncodeSwizzledHalves(&p.w, p.codes, p.k / 2, p.n, p.k, kRow8Rows);
  if (error == cudaSuccess)
    error = EncodeSwizzledHalves(&p.x, args.x.codes, p.k / 2, p.m, p.k, plan.tokens);
  if (error != cudaSuccess) return error;

  // All tiles are shared, or what is left after whole rounds and one round more.
  const int items = p.row_items * p.token_items;
  launch.blocks = std::min(workers, items);
  if (plan.share > 0) {
    p.partials = scratch.weights;
    p.flags = scratch.flags;
    launch.blocks = workers;
    p.shared_tiles = items < workers ? items : items % workers + workers;
  }
  const bool outliers = p.outliers != nullptr;
  launch.threads = outliers ? kRow8OutlierThreads : kRow8Threads;
  launch.shared_bytes = plan.stages * (Row8StageBytes(plan.tokens) + 16) + kRow8StagedBytes +
                        (outliers ? OutlierBytes(plan.tokens, p.k) : 0);
  launch.options = {stream, a.dependent};
  return launcher(launch);
}

}  // namespace nibble::cuda
