// Random packed matrices with their exact values, and the encodings that tests go through.
#pragma once

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::test {

struct TestMatrix {
  PackedMatrix packed;
  DeviceArray<std::uint8_t> blocks;
  std::vector<float> values;  // f32[n, k] in source row order
};

inline TestMatrix RandomMatrix(PackedShape shape, int file_group, bool alternate,
                               std::mt19937& rng) {
  TestMatrix matrix;
  const std::int64_t row_bytes = (shape.k * shape.bits + 7) / 8;
  const std::int64_t groups = (shape.k + file_group - 1) / file_group;
  std::vector<std::uint8_t> codes(shape.n * row_bytes + 8);
  for (auto& byte : codes) byte = static_cast<std::uint8_t>(rng());
  const int levels = 1 << shape.bits;
  std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
  const int exponent = -9;
  std::vector<float> scales(shape.n * groups), offsets;
  for (auto& s : scales) s = F16ToF32(F32ToF16(uniform(rng))) * 0x1p-9f;
  if (shape.offset != OffsetMode::kConstant) offsets.resize(scales.size());
  for (auto& z : offsets) {
    z = shape.offset == OffsetMode::kZeros
            ? static_cast<float>(rng() % levels)
            : F16ToF32(F32ToF16((uniform(rng) - 1.0f) * levels / 2)) * 0x1p-9f;
  }
  matrix.packed.shape = shape;
  matrix.packed.zero = levels / 2;
  matrix.packed.multiplier = 0x1p-9f;
  if (shape.kind == CodeKind::kCodebook) {
    for (auto& entry : matrix.packed.table) entry = Bf16ToF32(F32ToBf16(uniform(rng) - 1.0f));
  }
  RowSource source{
      codes.data(), row_bytes, scales.data(), offsets.empty() ? nullptr : offsets.data(),
      file_group,   groups,    exponent,      alternate};
  matrix.values.resize(shape.n * shape.k);
  ParallelFor(shape.n, [&](std::int64_t n) {
    for (std::int64_t k = 0; k < shape.k; ++k) {
      const int q = CodeAt(codes.data() + n * row_bytes, k, shape.bits);
      const std::int64_t g = n * groups + k / file_group;
      float v = 0;
      if (shape.kind == CodeKind::kCodebook) {
        v = matrix.packed.table[q] * scales[g];
      } else if (shape.offset == OffsetMode::kBias) {
        v = std::fma(scales[g], static_cast<float>(q - matrix.packed.zero), offsets[g]);
      } else {
        v = scales[g] * (q - (shape.offset == OffsetMode::kZeros ? offsets[g] : levels / 2));
      }
      matrix.values[n * shape.k + k] = v;
    }
  });
  // Device packing, from device copies of the rows.
  const DeviceArray<std::uint8_t> d_codes(codes);
  const DeviceArray<float> d_scales(scales), d_offsets(offsets);
  RowSource device = source;
  device.codes = d_codes.get();
  device.scales = d_scales.get();
  device.offsets = offsets.empty() ? nullptr : d_offsets.get();
  matrix.blocks = DeviceArray<std::uint8_t>(shape.Bytes());
  NIBBLE_CUDA_OK(PackBlocks(shape, device, matrix.blocks.get(), nullptr));
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  matrix.packed.blocks = matrix.blocks.get();
  return matrix;
}

struct Encoding {
  const char* name;
  CodeKind kind;
  int bits, group, file_group;
  OffsetMode offset;
};

inline constexpr Encoding kEncodings[] = {
    {"int4 g128", CodeKind::kInteger, 4, 128, 128, OffsetMode::kConstant},
    {"int4 g128 zeros", CodeKind::kInteger, 4, 128, 128, OffsetMode::kZeros},
    {"int4 g128 of 256", CodeKind::kInteger, 4, 128, 256, OffsetMode::kConstant},
    {"int4 g64", CodeKind::kInteger, 4, 64, 64, OffsetMode::kConstant},
    {"int4 g32 bias", CodeKind::kInteger, 4, 32, 32, OffsetMode::kBias},
    {"int4 g16 zeros", CodeKind::kInteger, 4, 16, 16, OffsetMode::kZeros},
    {"int8 g128", CodeKind::kInteger, 8, 128, 128, OffsetMode::kConstant},
    {"int8 g32", CodeKind::kInteger, 8, 32, 32, OffsetMode::kConstant},
    {"int2 g128 zeros", CodeKind::kInteger, 2, 128, 128, OffsetMode::kZeros},
    {"int2 g16 bias", CodeKind::kInteger, 2, 16, 16, OffsetMode::kBias},
    {"int3 g128", CodeKind::kInteger, 3, 128, 128, OffsetMode::kConstant},
    {"int3 g16", CodeKind::kInteger, 3, 16, 16, OffsetMode::kConstant},
    {"int5 g32 bias", CodeKind::kInteger, 5, 32, 32, OffsetMode::kBias},
    {"int6 g16", CodeKind::kInteger, 6, 16, 16, OffsetMode::kConstant},
    {"codebook g64", CodeKind::kCodebook, 4, 64, 64, OffsetMode::kConstant},
    {"codebook g32", CodeKind::kCodebook, 4, 32, 32, OffsetMode::kConstant},
};

inline std::string Name(const Encoding& e, DType dtype, std::int64_t n, std::int64_t k, int m) {
  return std::string(e.name) + (dtype == DType::kF16 ? " f16" : " bf16") +
         " n=" + std::to_string(n) + " k=" + std::to_string(k) + " m=" + std::to_string(m);
}

// x * w^T in f64.
inline std::vector<float> Reference(const std::vector<float>& x, const std::vector<float>& w, int m,
                                    std::int64_t n, std::int64_t k) {
  std::vector<float> out(m * n);
  ParallelFor(n, [&](std::int64_t row) {
    for (int token = 0; token < m; ++token) {
      double sum = 0;
      for (std::int64_t i = 0; i < k; ++i) sum += double{x[token * k + i]} * w[row * k + i];
      out[token * n + row] = static_cast<float>(sum);
    }
  });
  return out;
}

}  // namespace nibble::cuda::test
