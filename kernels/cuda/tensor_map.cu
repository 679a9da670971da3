#include "kernels/cuda/tensor_map.h"

namespace nibble::cuda {
namespace {

// The driver's encoder, found without linking the driver.
using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
EncodeTiled FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<EncodeTiled>(function)
             : nullptr;
}

// A matrix of `rows` rows, row_bytes apart, of `columns` elements.
cudaError_t Encode(CUtensorMap* map, CUtensorMapDataType type, const void* base,
                   std::int64_t columns, std::int64_t rows, std::int64_t row_bytes, int box_columns,
                   int box_rows, CUtensorMapSwizzle swizzle) {
  static const EncodeTiled encode = FindEncoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  return encode(map, type, 2, const_cast<void*>(base), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t EncodeSwizzledHalves(CUtensorMap* map, const void* base, std::int64_t columns,
                                 std::int64_t rows, std::int64_t row_bytes, int box_rows) {
  // Bits are copied as they are: the type of 16-bit integers serves both floats.
  return Encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, base, columns, rows, row_bytes, 64, box_rows,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

cudaError_t EncodeBytes(CUtensorMap* map, const void* base, std::int64_t row_bytes,
                        std::int64_t rows, int box_bytes, int box_rows) {
  // Boxes have 256 elements at most: the largest elements there are.
  return Encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT64, base, row_bytes / 8, rows, row_bytes,
                box_bytes / 8, box_rows, CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace nibble::cuda
