// What the files of the products share.
#pragma once

#include "kernels/cuda/product_params.cuh"

namespace nibble::cuda {

// What every product by packed weights asks of its arguments.
inline bool IsProduct(const ProductArgs& args) {
  const PackedShape& shape = args.w.shape;
  return args.m > 0 && shape.n > 0 && shape.k % 8 == 0 && args.ldx % 8 == 0 && args.x != nullptr &&
         Aligned(args.x) && (args.output != Output::kGlu || shape.n % 32 == 0) &&
         (args.output == Output::kResidual ? args.residual : args.out) != nullptr;
}

// How a tile product is cut.
struct TilePlan {
  int tokens = 128;  // of a tile: 16, 32, 64 or 128
  int splits = 1;    // of the columns: more work items than there are tiles
  // How what several SMs have of one tile comes together. False: a kernel of its own adds partial
  // sums f32[splits, m, n]. True: they swap sums as they end, through flags; and with one split the
  // tiles that do not go round evenly are cut anew, wherever that falls.
  bool shared = false;
  float us = 0.0f;  // what ChooseTiles expects
};

struct TileWorkspace {
  float* partials = nullptr;
  std::int64_t partial_bytes = 0;
  std::uint32_t* flags = nullptr;  // kProductFlags; null: nothing is shared
};

// The cut for a product, within the workspace.
TilePlan ChooseTiles(const ProductArgs& args, const TileWorkspace& workspace, int sms);

// The product of many tokens through warpgroup products (sm_90a), whole: its kernel and, when
// split, the one that adds the partial sums.
cudaError_t TiledProduct(const ProductArgs& args, const TilePlan& plan,
                         const TileWorkspace& workspace, cudaStream_t stream);

// Its kernel alone.
cudaError_t TileProduct(const ProductArgs& args, const TilePlan& plan,
                        const TileWorkspace& workspace, cudaStream_t stream);

// What a product has left for its epilogue: T[m, n], or the sum of f32[splits, m, n], without
// norm and bias. Null: nothing, of kResidual only the norm is left.
struct RawProduct {
  const void* data = nullptr;
  bool f32 = false;
  int splits = 1;
};

// The epilogue of ProductArgs by a kernel of its own.
cudaError_t FinishProduct(const ProductArgs& args, const RawProduct& raw, LaunchOptions options);

}  // namespace nibble::cuda
