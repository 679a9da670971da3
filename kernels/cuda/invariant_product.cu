// Products whose rows get the same bits in any company: one kernel and one order of sums a matrix.
#include "kernels/cuda/product.cuh"

namespace nibble::cuda {
namespace {

constexpr int kPassRows = 16;   // of a streamed pass
constexpr int kPieceRows = 64;  // of a dense product, so that cuBLAS is asked for one shape only
static_assert(kInvariantRows % kPassRows == 0 && kInvariantRows % kPieceRows == 0);

int RoundUp(int count, int step) { return (count + step - 1) / step * step; }

}  // namespace

ProductArgs RowsOf(const ProductArgs& args, int begin, int count) {
  ProductArgs rows = args;
  const auto advance = [begin](auto* pointer, std::int64_t row_bytes) {
    using Pointer = decltype(pointer);
    if (pointer == nullptr) return pointer;
    return reinterpret_cast<Pointer>(reinterpret_cast<std::uintptr_t>(pointer) +
                                     static_cast<std::uintptr_t>(begin * row_bytes));
  };
  const std::int64_t out_bytes = args.output == Output::kStoreF32 ? 4 : 2;
  rows.m = count;
  rows.x = advance(args.x, args.ldx * 2);
  rows.out = advance(args.out, args.ldo * out_bytes);
  rows.residual = advance(args.residual, args.w.shape.n * 4);
  rows.norm_in.square_sums = advance(args.norm_in.square_sums, args.norm_in.count * std::int64_t{4});
  rows.norm_out.normed = advance(args.norm_out.normed, args.w.shape.n * 2);
  rows.norm_out.square_sums = advance(args.norm_out.square_sums, args.w.shape.Tiles() * 4);
  return rows;
}

cudaError_t InvariantProduct(const ProductArgs& args, cudaStream_t stream) {
  ProductArgs whole = args;
  whole.cut = ProductCut::kFastest;
  if (args.cut == ProductCut::kStream && SupportsStream(args.w.shape)) {
    whole.m = RoundUp(args.m, kPassRows);
    return StreamProduct(whole, stream);
  }
  // One tile size, each tile from its first column to its last.
  return TiledProduct(whole, {.tokens = 128, .splits = 1, .shared = false}, {}, stream);
}

cudaError_t InvariantDenseProduct(const ProductArgs& args, const void* w,
                                  const ProductScratch& scratch, cudaStream_t stream) {
  for (int begin = 0; begin < args.m; begin += kPieceRows) {
    ProductArgs piece = RowsOf(args, begin, kPieceRows);
    piece.cut = ProductCut::kFastest;
    const cudaError_t error = DenseProduct(piece, w, scratch, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace nibble::cuda
