// Products of any number of tokens, by whatever measured fastest: streamed codes while tokens are
// few, tiles of dequantized codes, or cuBLAS on 16-bit weights.
#include <cublas_v2.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/device.h"
#include "kernels/cuda/portable_product.h"
#include "kernels/cuda/product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kStreamTokens = 16;  // beyond, the stream would read the weights again
constexpr int kDenseTokens = 64;   // that cuBLAS gets at a time, where the cut is fixed
static_assert(kInvariantRows % kStreamTokens == 0 && kInvariantRows % kDenseTokens == 0);
constexpr std::int64_t kRawInCache = 32 << 20;  // bytes that stay in L2 from cuBLAS to the epilogue

cudaError_t Status(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return cudaSuccess;
  return status == CUBLAS_STATUS_ALLOC_FAILED ? cudaErrorMemoryAllocation : cudaErrorUnknown;
}

// out[m, n] = x[m, k] * w[n, k]^T, row-major; out of type T or f32.
cudaError_t Gemm(cublasContext* cublas, const ProductArgs& a, const void* w, void* out,
                 std::int64_t ldo, bool f32, cudaStream_t stream) {
  const float one = 1.0f, zero = 0.0f;
  const cudaDataType_t type = a.dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
  cublasStatus_t status = cublasSetStream(cublas, stream);
  if (status != CUBLAS_STATUS_SUCCESS) return Status(status);
  return Status(cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(a.w.shape.n), a.m,
                             static_cast<int>(a.w.shape.k), &one, w, type,
                             static_cast<int>(a.w.shape.k), a.x, type, static_cast<int>(a.ldx),
                             &zero, out, f32 ? CUDA_R_32F : type, static_cast<int>(ldo),
                             CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

// Tokens whose product is finished while it is still in L2.
int RawTokens(std::int64_t n) {
  return static_cast<int>(std::max<std::int64_t>(256, kRawInCache / (2 * n) / 256 * 256));
}

// Tokens [first, first + count) of the same product.
ProductArgs Tokens(const ProductArgs& args, int first, int count) {
  const std::int64_t n = args.w.shape.n;
  const auto move = [&](auto* at, std::int64_t elements) {
    return at == nullptr ? nullptr : at + first * elements;
  };
  const auto move_bytes = [&](auto* at, std::int64_t bytes) {  // behind a void
    using Bytes =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(at)>>, const char, char>;
    return move(static_cast<Bytes*>(at), bytes);
  };
  ProductArgs part = args;
  part.m = count;
  part.x = move_bytes(args.x, 2 * args.ldx);
  part.norm_in.square_sums = move(args.norm_in.square_sums, args.norm_in.count);
  part.out = move_bytes(args.out, args.ldo * (args.output == Output::kStoreF32 ? 4 : 2));
  part.residual = move(args.residual, n);
  part.norm_out.normed = move_bytes(args.norm_out.normed, 2 * n);
  part.norm_out.square_sums = move(args.norm_out.square_sums, (n + kTileRows - 1) / kTileRows);
  return part;
}

}  // namespace

std::int64_t RawBytes(int m, std::int64_t n) { return 2 * n * std::min(m, RawTokens(n)); }

cudaError_t DenseProduct(const ProductArgs& args, const void* w, const ProductScratch& scratch,
                         cudaStream_t stream) {
  if (args.m == 0) return cudaSuccess;
  if (args.cut != ProductCut::kFastest) {  // of one shape, for which cuBLAS has one kernel
    cudaError_t error = cudaSuccess;
    for (int first = 0; first < args.m && error == cudaSuccess; first += kDenseTokens) {
      ProductArgs part = Tokens(args, first, kDenseTokens);
      part.cut = ProductCut::kFastest;
      error = DenseProduct(part, w, scratch, stream);
    }
    return error;
  }
  if (args.m < 0 || args.x == nullptr || w == nullptr || scratch.cublas == nullptr ||
      (args.output == Output::kGlu && args.w.shape.n % 32 != 0) ||
      (args.output == Output::kResidual ? args.residual == nullptr : args.out == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const bool plain = args.norm_in.square_sums == nullptr && args.bias == nullptr &&
                     (args.output == Output::kStore || args.output == Output::kStoreF32);
  const bool f32 = args.output == Output::kStoreF32;
  if (plain || f32) {
    if (!plain && args.ldo != args.w.shape.n) return cudaErrorInvalidValue;  // finished in place
    const cudaError_t error = Gemm(scratch.cublas, args, w, args.out, args.ldo, f32, stream);
    if (error != cudaSuccess || plain) return error;
    return FinishProduct(args, {args.out, true}, {stream, true});
  }
  if (scratch.raw == nullptr) return cudaErrorInvalidValue;
  const int most = RawTokens(args.w.shape.n);
  for (int first = 0; first < args.m; first += most) {
    const ProductArgs part = Tokens(args, first, std::min(most, args.m - first));
    cudaError_t error =
        Gemm(scratch.cublas, part, w, scratch.raw, args.w.shape.n, /*f32=*/false, stream);
    if (error == cudaSuccess) error = FinishProduct(part, {scratch.raw, false}, {stream, true});
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t TiledProduct(const ProductArgs& args, const TilePlan& plan,
                         const TileWorkspace& workspace, cudaStream_t stream) {
  const cudaError_t error = TileProduct(args, plan, workspace, stream);
  if (error != cudaSuccess || plan.splits == 1 || plan.shared) return error;
  return FinishProduct(args, {workspace.partials, true, plan.splits}, {stream, true});
}

namespace {

// The stream reads weights once for 16 tokens: up to there it is the fastest
// (tests/bench/results/cuda_h200.md).
bool PrefersStream(const ProductArgs& args) {
  return args.m <= kStreamTokens && SupportsStream(args.w.shape);
}

// Microseconds of a dense product on an H200: the weights' way from memory or the arithmetic, the
// larger one smoothly, and an epilogue that reads the product again; twice as dear where cuBLAS has
// several slices of tokens.
float DenseMicroseconds(const ProductArgs& args) {
  const auto n = static_cast<float>(args.w.shape.n), k = static_cast<float>(args.w.shape.k),
             m = static_cast<float>(args.m);
  const float read = 2 * n * k / 4.2e6f, multiply = 2 * m * n * k / 690e6f;
  const float product = 3.5f + std::sqrt(std::hypot(read * read, multiply * multiply));
  const bool plain =
      args.output == Output::kStore && args.bias == nullptr && args.norm_in.square_sums == nullptr;
  const float bytes = args.m <= RawTokens(args.w.shape.n) ? 5.5f : 10;  // an element
  return plain ? product : product + 1.5f + bytes * m * n / 5e6f;
}

// Of DequantizePacked.
float ExpandMicroseconds(const PackedShape& shape) {
  return 2.0f + static_cast<float>(shape.Bytes() + 2 * shape.n * shape.k) / 3.5e6f;
}

enum class Path : std::uint8_t {
  kStream,
  kTiles,
  kExpanded,  // cuBLAS by the copy that the caller keeps
  kExpand,    // and by one made for this product
};

Path ChoosePath(const ProductArgs& args, const ProductScratch& scratch, float tiles_us) {
  if (PrefersStream(args)) return Path::kStream;
  if (scratch.cublas == nullptr || scratch.raw == nullptr) return Path::kTiles;
  const float dense_us = DenseMicroseconds(args);
  if (args.expanded != nullptr) return dense_us < tiles_us ? Path::kExpanded : Path::kTiles;
  return scratch.weights != nullptr && dense_us + ExpandMicroseconds(args.w.shape) < tiles_us
             ? Path::kExpand
             : Path::kTiles;
}

// The same for devices without warpgroup products.
Path ChoosePortablePath(const ProductArgs& args, const ProductScratch& scratch) {
  // Up to where codes are quicker than the copy, and than making one: by the bytes that each reads.
  constexpr int kMostTokens = 64, kMostWithoutCopy = 192;
  if (args.m <= kStreamTokens && SupportsStream(args.w.shape)) return Path::kStream;
  if (scratch.cublas == nullptr || scratch.raw == nullptr) return Path::kTiles;
  if (args.expanded != nullptr) return args.m > kMostTokens ? Path::kExpanded : Path::kTiles;
  return scratch.weights != nullptr && args.m > kMostWithoutCopy ? Path::kExpand : Path::kTiles;
}

}  // namespace

cudaError_t Product(const ProductArgs& args, const ProductScratch& scratch, cudaStream_t stream) {
  if (args.m == 0) return cudaSuccess;
  DeviceTraits traits;
  cudaError_t error = CurrentDevice(&traits);
  if (error != cudaSuccess) return error;

  const bool portable = !traits.has_warpgroups();
  TileWorkspace workspace;
  if (scratch.weights != nullptr) {
    workspace = {static_cast<float*>(scratch.weights), 2 * args.w.shape.n * args.w.shape.k,
                 scratch.flags};
  }
  Path path = Path::kTiles;
  TilePlan tiles;
  ProductArgs product = args;
  if (args.cut == ProductCut::kStream && SupportsStream(args.w.shape)) {
    path = Path::kStream;
    product.m = (args.m + kStreamTokens - 1) / kStreamTokens * kStreamTokens;
  } else if (portable && args.cut == ProductCut::kFastest) {
    path = ChoosePortablePath(args, scratch);
  } else if (args.cut == ProductCut::kFastest) {
    tiles = ChooseTiles(args, workspace, traits.sms);
    path = ChoosePath(args, scratch, tiles.us);
  }
  if (path == Path::kExpanded) return DenseProduct(args, args.expanded, scratch, stream);
  if (path == Path::kExpand) {
    if (scratch.weights == nullptr) return cudaErrorInvalidValue;
    error = DequantizePacked(args.w, args.dtype, scratch.weights, stream);
    return error != cudaSuccess ? error : DenseProduct(args, scratch.weights, scratch, stream);
  }
  if (path == Path::kTiles && portable) {
    const PortableWorkspace sums = {workspace.partials, workspace.partial_bytes};
    const auto most =  // tokens whose sums there is room for
        sums.partials == nullptr ? args.m : static_cast<int>(args.w.shape.k / 2);
    for (int first = 0; first < args.m && error == cudaSuccess; first += most) {
      const ProductArgs part = Tokens(args, first, std::min(most, args.m - first));
      error = PortableProduct(part, sums, traits.sms, stream);
    }
    return error;
  }
  const bool whole_norm = args.output == Output::kResidual && args.norm_out.eps > 0;
  if (whole_norm) product.norm_out = {};
  error = path == Path::kStream ? StreamProduct(product, stream, {0, scratch.flags})
                                : TiledProduct(product, tiles, workspace, stream);
  if (error != cudaSuccess || !whole_norm) return error;
  ProductArgs norm = args;  // of the stream as it is
  norm.bias = nullptr, norm.norm_in = {};
  return FinishProduct(norm, {}, {stream, true});
}

}  // namespace nibble::cuda
