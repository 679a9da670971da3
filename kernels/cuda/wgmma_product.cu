// Cuts a tile product into items, describes its tensors to the copy engine and launches it.
#include <algorithm>
#include <iterator>

#include "kernels/cuda/device.h"
#include "kernels/cuda/portable_product.h"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma_product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kSharedLimit = 227 * 1024;
constexpr int kMostStages = 12;

TileLauncher FindTiles(const PackedShape& shape, const TileInstance& instance) {
  if (shape.kind == CodeKind::kCodebook) return FindTilesCodebook(instance);
  const bool fine = shape.group != kUnitColumns;
  if (shape.bits == 4) return FindTilesInt4(instance, fine);
  if (shape.bits == 8) return FindTilesInt8(instance, fine);
  return FindTilesPlanes(instance, shape.bits);
}

// Partial sums of shared tiles: one tile a worker.
std::int64_t SharedBytes(int tokens, int workers) {
  return std::int64_t{4} * kTileRowsOfBlock * tokens * workers;
}

// `experts` 0: one matrix; otherwise that many, packed one after the other.
cudaError_t LaunchTileProduct(const ProductArgs& args, const TilePlan& plan,
                              const TileWorkspace& workspace, int experts,
                              const std::int32_t* group_offsets, cudaStream_t stream) {
  const PackedShape& shape = args.w.shape;
  const TileLauncher launcher = FindTiles(shape, {args.dtype, plan.tokens, experts > 0});
  if (launcher == nullptr) return cudaErrorNotSupported;
  if (!IsProduct(args) || !Aligned(args.w.blocks) || plan.splits < 1 ||
      plan.splits > shape.Units() || (plan.shared && workspace.flags == nullptr) ||
      (plan.splits > 1 && !plan.shared &&
       workspace.partial_bytes < 4 * shape.n * args.m * plan.splits)) {
    return cudaErrorInvalidValue;
  }
  DeviceTraits device;
  cudaError_t error = CurrentDevice(&device);
  if (error != cudaSuccess) return error;

  TileLaunch launch = {};
  TileParams& p = launch.params;
  p = {PackedParamsOf(args.w), EpilogueParamsOf(args, /*vector_elements=*/8)};
  const int code_bytes = 2 * shape.AtomBytes();
  p.table_bytes = p.block_bytes - code_bytes;
  p.row_items = (p.tiles + 15) / 16;
  p.token_items = (args.m + plan.tokens - 1) / plan.tokens;
  p.splits = plan.splits;
  p.group_begins = shape.group == 16   ? 0xff
                   : shape.group == 32 ? 0x55
                   : shape.group == 64 ? 0x11
                                       : 1;
  // Scales that were brought to the top of f16's range leave room below for the codes.
  const float down = args.w.multiplier == 1.0f ? 1.0f : 0x1p-9f;
  p.rule = args.dtype == DType::kF16 ? RuleOf<half>(shape.offset, p.zero, down)
                                     : RuleOf<__nv_bfloat16>(shape.offset, p.zero, down);
  p.multiplier /= down;
  p.stream_once = p.token_items == 1;
  p.partials = workspace.partials;
  p.experts = experts;
  p.group_offsets = group_offsets;

  error = EncodeSwizzledHalves(&p.x, args.x, shape.k, args.m, args.ldx * 2, plan.tokens);
  const std::int64_t tile_row_bytes = std::int64_t{p.units} * p.block_bytes;
  const std::int64_t all_tiles = std::int64_t{p.tiles} * std::max(experts, 1);
  if (error == cudaSuccess)
    error = EncodeBytes(&p.codes, args.w.blocks, tile_row_bytes, all_tiles, code_bytes, 16);
  if (error == cudaSuccess)
    error = EncodeBytes(&p.tables, args.w.blocks, tile_row_bytes, all_tiles, p.table_bytes, 16);
  if (error != cudaSuccess) return error;

  p.stage_bytes = (plan.tokens * kUnitColumns * 2 + 16 * p.block_bytes + 1023) / 1024 * 1024;
  const int fixed = (shape.kind == CodeKind::kCodebook ? kPairTableBytes : 0) + kStagedBytes +
                    2 * plan.tokens * 4 + kMostStages * 16 + (experts > 0 ? 4 * (experts + 1) : 0);
  p.stages = std::min(kMostStages, (kSharedLimit - fixed) / p.stage_bytes);
  if (p.stages < 2) return cudaErrorNotSupported;
  launch.shared_bytes = p.stages * p.stage_bytes + fixed;
  // How many items experts have, only the device knows.
  const int items = experts > 0 ? p.row_items * (p.token_items + std::min(experts, args.m))
                                : p.row_items * p.token_items * p.splits;
  launch.blocks = std::min(device.sms, items);
  if (plan.shared) {
    p.flags = workspace.flags;
    const int workers = std::min(device.sms, kProductFlags);
    if (plan.splits > 1) {  // whose parts wait for each other: all must run at once
      if (items > workers) return cudaErrorInvalidValue;
    } else {  // all tiles, or what is left after whole rounds and one round more
      launch.blocks = workers;
      const int left = items % workers;
      p.shared_tiles = items < workers ? items : left == 0 ? 0 : left + workers;
    }
    if (workspace.partial_bytes < SharedBytes(plan.tokens, launch.blocks))
      return cudaErrorInvalidValue;
  }
  launch.dependent = args.dependent;
  launch.stream = stream;
  return launcher(launch);
}

// Microseconds a unit (128 columns) of a tile of 256 rows takes an H200's SM, by tokens of the tile
// (tests/bench/results/cuda_tiles_h200.csv).
struct UnitCost {
  int bits;  // 0: planes
  bool codebook, fine;
  float at16, at32, at64, at128;
};
constexpr UnitCost kUnitCosts[] = {
    {4, false, false, 0.65f, 0.71f, 0.87f, 1.50f}, {4, false, true, 0.89f, 0.96f, 1.11f, 1.73f},
    {4, true, true, 0.88f, 0.92f, 1.07f, 1.64f},   {8, false, false, 0.74f, 0.83f, 1.00f, 1.57f},
    {8, false, true, 0.93f, 0.98f, 1.15f, 1.80f},  {0, false, false, 0.96f, 1.00f, 1.17f, 1.62f},
    {0, false, true, 1.24f, 1.29f, 1.45f, 2.05f}};
float UnitMicroseconds(const PackedShape& shape, DType dtype, int tokens) {
  const bool codebook = shape.kind == CodeKind::kCodebook;
  const bool fine = codebook || shape.group != kUnitColumns;
  const int bits = shape.bits == 4 || shape.bits == 8 ? shape.bits : 0;
  const auto* cost =
      std::find_if(std::begin(kUnitCosts), std::end(kUnitCosts) - 1, [&](const auto& each) {
        return each.bits == bits && each.codebook == codebook && each.fine == fine;
      });
  // A weight in bf16 takes an instruction more, where it is made in f32 three.
  const bool in_f32 = shape.bits >= 6;
  const float more = dtype == DType::kF16 ? 1.0f
                     : tokens < 128       ? (in_f32 ? 1.35f : 1.2f)
                                          : (in_f32 ? 1.2f : 1.15f);
  return more * (tokens == 16   ? cost->at16
                 : tokens == 32 ? cost->at32
                 : tokens == 64 ? cost->at64
                                : cost->at128);
}

}  // namespace

TilePlan ChooseTiles(const ProductArgs& args, const TileWorkspace& workspace, int sms) {
  // What else a tile of some tokens costs: its epilogue, waiting for others that have parts of it,
  // and the way of those parts through L2 when every SM swaps.
  struct Cost {
    int tokens;
    float epilogue, wait, swap;
  };
  constexpr Cost kCosts[] = {{16, 2.4f, 1.0f, 3.7f},
                             {32, 4.2f, 1.1f, 4.9f},
                             {64, 5.9f, 1.3f, 5.6f},
                             {128, 6.0f, 2.0f, 5.7f}};
  constexpr float kStart = 1.0f;
  constexpr float kFinishKernel = 2.5f;         // instead of swapping
  constexpr float kFlopsAMicrosecond = 615e6f;  // that the card's power allows
  constexpr float kThrottled = 0.1f;            // slower where that lasts, by two tiles an SM
  const PackedShape& shape = args.w.shape;
  const std::int64_t units = shape.Units();
  const float least = 2.0f * static_cast<float>(shape.n) * static_cast<float>(shape.k) *
                      static_cast<float>(args.m) / kFlopsAMicrosecond;
  TilePlan best;
  for (const Cost& cost : kCosts) {
    const float unit = UnitMicroseconds(shape, args.dtype, cost.tokens);
    const std::int64_t tiles =
        (shape.Tiles() + 15) / 16 * ((args.m + cost.tokens - 1) / cost.tokens);
    const bool swaps = workspace.flags != nullptr && sms <= kProductFlags &&
                       workspace.partial_bytes >= SharedBytes(cost.tokens, sms);
    const auto consider = [&](TilePlan plan, float us) {
      plan.us = std::max(us, least) + kStart;
      if (best.us == 0.0f || plan.us < best.us) best = plan;
    };
    const auto each = static_cast<float>(units) * unit;
    const std::int64_t rounds = (tiles + sms - 1) / sms;
    const float an_sm = static_cast<float>(tiles) / static_cast<float>(sms);
    const float slower = 1 + kThrottled * std::clamp(an_sm - 1, 0.0f, 1.0f);
    consider({cost.tokens, 1, false}, slower * static_cast<float>(rounds) * (each + cost.epilogue));
    if (an_sm > 0.5f && swaps) {  // fewer than SMs: all hand parts on
      const float waits = 2 * cost.wait + (an_sm < 1 ? cost.swap : 0.0f);
      consider({cost.tokens, 1, true},
               slower * (an_sm * each + std::max(an_sm, 1.0f) * cost.epilogue) + waits);
    }
    const std::int64_t most = std::min(sms / tiles, units / 2);
    for (std::int64_t splits = 2; splits <= most; ++splits) {
      const float busy = static_cast<float>(splits * tiles) / static_cast<float>(sms);
      const float us = static_cast<float>((units + splits - 1) / splits) * unit +
                       cost.epilogue / static_cast<float>(splits) + cost.wait + busy * cost.swap;
      const TilePlan plan{cost.tokens, static_cast<int>(splits), swaps};
      if (swaps) {
        consider(plan, us);
      } else if (workspace.partial_bytes >= 4 * splits * args.m * shape.n) {
        consider(plan, us + kFinishKernel);
      }
    }
  }
  return best;
}

cudaError_t TileProduct(const ProductArgs& args, const TilePlan& plan,
                        const TileWorkspace& workspace, cudaStream_t stream) {
  return LaunchTileProduct(args, plan, workspace, 0, nullptr, stream);
}

cudaError_t GroupedProduct(const GroupedProductArgs& args, cudaStream_t stream) {
  const ProductArgs& product = args.product;
  if (product.m == 0) return cudaSuccess;
  if (args.offsets == nullptr || args.experts < 1 || args.experts > kMostExperts ||
      product.w.shape.n % kTileRows != 0 || product.norm_in.square_sums != nullptr ||
      product.bias != nullptr || (product.output == Output::kResidual)) {
    return cudaErrorInvalidValue;
  }
  DeviceTraits traits;
  if (const cudaError_t error = CurrentDevice(&traits); error != cudaSuccess) return error;
  if (!traits.has_warpgroups()) return PortableGroupedProduct(args, stream);
  // Tiles as large as an expert's even share of the rows fills.
  const int share = product.m / args.experts;
  TilePlan plan;
  plan.tokens = share >= 96 ? 128 : share >= 24 ? 64 : 16;
  if (product.cut == ProductCut::kStream) plan.tokens = 16;
  if (product.cut == ProductCut::kTiles) plan.tokens = 128;
  return LaunchTileProduct(product, plan, {}, args.experts, args.offsets, stream);
}

bool SupportsGrouped(const PackedShape& shape) {
  return FindTiles(shape, {DType::kF16, 16, true}) != nullptr && shape.n % kTileRows == 0;
}

}  // namespace nibble::cuda
