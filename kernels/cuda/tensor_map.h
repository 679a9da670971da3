// Descriptions of tensors for the copy engine (TMA), made on the host.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace nibble::cuda {

// A matrix of 16-bit elements, row_bytes (a multiple of 16) from row to row; boxes of box_rows rows
// of 64 columns, written to shared memory in rows of 128 swizzled bytes. Columns and rows outside
// arrive as zeros. cudaErrorNotSupported: the driver knows no tensor maps.
cudaError_t EncodeSwizzledHalves(CUtensorMap* map, const void* base, std::int64_t columns,
                                 std::int64_t rows, std::int64_t row_bytes, int box_rows);

// Rows of row_bytes bytes, one after the other; boxes of box_rows rows of box_bytes bytes (each a
// multiple of 16, boxes of at most 2048), written one row after the other.
cudaError_t EncodeBytes(CUtensorMap* map, const void* base, std::int64_t row_bytes,
                        std::int64_t rows, int box_bytes, int box_rows);

}  // namespace nibble::cuda
