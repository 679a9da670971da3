// Random weights of every encoding, as a checkpoint could hold them.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

class WeightMaker {
 public:
  explicit WeightMaker(std::uint32_t seed) : random_(seed) {}

  LinearWeight DenseWeight(std::int64_t n, std::int64_t k, DType dtype, float scale = 0.1f) {
    return {n, k, Dense{dtype, Numbers(n * k, dtype, scale)}, {}};
  }

  LinearWeight AffineWeight(std::int64_t n, std::int64_t k, int bits, std::int64_t group,
                            ScaleKind scales, OffsetKind offset, bool permuted = false) {
    Affine affine;
    affine.bits = bits;
    affine.group = group;
    const std::int64_t groups = (k + group - 1) / group;
    affine.codes = Codes(n, k, bits);
    affine.scales = MakeScales(n, groups, scales);
    switch (offset) {
      case OffsetKind::kZeroCodes:
        affine.offset = ZeroCodes{Bytes(n * groups, 0, (1 << bits) - 1)};
        break;
      case OffsetKind::kBias: {
        const DType dtype = std::get<FlatScales>(affine.scales).dtype;
        affine.offset = BiasOffset{dtype, Numbers(n * groups, dtype, 0.05f)};
        break;
      }
      case OffsetKind::kTwoLevel: affine.offset = TwoLevelOffset{TwoLevel(n, groups, 0, 63)}; break;
      default: affine.offset = ConstantOffset{1 << (bits - 1)};
    }
    if (permuted) {
      for (std::int64_t i = 0; i < k; ++i)
        affine.permutation.push_back(static_cast<std::int32_t>(i));
      std::shuffle(affine.permutation.begin(), affine.permutation.end(), random_);
    }
    return {n, k, std::move(affine), {}};
  }

  LinearWeight CodebookWeight(std::int64_t n, std::int64_t k, std::int64_t group, ScaleKind scales,
                              bool integers = false) {
    Codebook book;
    book.group = group;
    for (int i = 0; i < 16; ++i) {
      book.table[static_cast<std::size_t>(i)] =
          integers ? static_cast<float>(i * i - 100) : Normal(0.5f);
    }
    book.codes = Codes(n, k, 4);
    book.scales = MakeScales(n, (k + group - 1) / group, scales);
    return {n, k, std::move(book), {}};
  }

  LinearWeight Row8Weight(std::int64_t n, std::int64_t k, DType dtype, ActivationQuant activation,
                          bool per_tensor = false, bool zeros = false) {
    Row8 row8;
    row8.dtype = dtype;
    row8.codes = dtype == DType::kI8 ? Bytes(n * k, 0, 255) : Bytes(n * k, 0, 0x70);
    for (std::int64_t i = 0; i < (per_tensor ? 1 : n); ++i)
      row8.scales.push_back(0.001f + 0.001f * Uniform());
    if (zeros) {
      for (std::int64_t i = 0; i < n; ++i)
        row8.zeros.push_back(static_cast<std::int32_t>(i % 9) - 4);
    }
    row8.activation = activation;
    row8.static_scale = 0.03f;
    row8.static_zero = dtype == DType::kI8 ? 5 : 0;
    return {n, k, std::move(row8), {}};
  }

  void AddBias(LinearWeight& weight) {
    for (std::int64_t i = 0; i < weight.n; ++i) weight.bias.push_back(Normal(1.0f));
  }

  float Normal(float scale) { return std::normal_distribution<float>(0.0f, scale)(random_); }
  float Uniform() { return std::uniform_real_distribution<float>()(random_); }

 private:
  HostBuffer Bytes(std::int64_t n, int low, int high) {
    HostBuffer out(static_cast<std::size_t>(n));
    std::uniform_int_distribution<int> byte(low, high);
    for (auto& b : out.As<std::uint8_t>()) b = static_cast<std::uint8_t>(byte(random_));
    return out;
  }

  HostBuffer Codes(std::int64_t n, std::int64_t k, int bits) {
    return Bytes(n * CodeRowBytes(k, bits), 0, 255);
  }

  HostBuffer Numbers(std::int64_t n, DType dtype, float scale) {
    HostBuffer out(static_cast<std::size_t>(n * BitsOf(dtype) / 8));
    for (std::int64_t i = 0; i < n; ++i) {
      const float value = Normal(scale);
      const auto at = static_cast<std::size_t>(i);
      if (dtype == DType::kF32)
        out.As<float>()[at] = value;
      else
        out.As<std::uint16_t>()[at] = dtype == DType::kF16 ? F32ToF16(value) : F32ToBf16(value);
    }
    return out;
  }

  TwoLevelScales TwoLevel(std::int64_t n, std::int64_t groups, int low, int high) {
    TwoLevelScales out;
    out.super = Numbers(n * ((groups + 7) / 8), DType::kF16, 0.001f);
    out.codes = Bytes(n * groups, low, high);
    return out;
  }

  Scales MakeScales(std::int64_t n, std::int64_t groups, ScaleKind kind) {
    switch (kind) {
      case ScaleKind::kTwoLevel: return TwoLevel(n, groups, 0, 63);
      case ScaleKind::kE8M0: return FlatScales{DType::kF8E8M0, Bytes(n * groups, 115, 125)};
      case ScaleKind::kF32: return FlatScales{DType::kF32, Numbers(n * groups, DType::kF32, 0.02f)};
      case ScaleKind::kBF16:
        return FlatScales{DType::kBF16, Numbers(n * groups, DType::kBF16, 0.02f)};
      default: return FlatScales{DType::kF16, Numbers(n * groups, DType::kF16, 0.02f)};
    }
  }

  std::mt19937 random_;
};

struct NamedWeight {
  std::string name;
  LinearWeight weight;
};

// One of each encoding and variant, of n by k.
inline std::vector<NamedWeight> EveryEncoding(std::int64_t n, std::int64_t k, std::uint32_t seed) {
  WeightMaker make(seed);
  std::vector<NamedWeight> all;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    all.push_back({NameOf(dtype), make.DenseWeight(n, k, dtype)});
  }
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    const std::string name = "int" + std::to_string(bits);
    all.push_back({name + " f16 zeros g32",
                   make.AffineWeight(n, k, bits, 32, ScaleKind::kF16, OffsetKind::kZeroCodes)});
    all.push_back({name + " f32 constant g128",
                   make.AffineWeight(n, k, bits, 128, ScaleKind::kF32, OffsetKind::kConstant)});
    all.push_back({name + " two-level g16",
                   make.AffineWeight(n, k, bits, 16, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel)});
  }
  all.push_back(
      {"int4 bias g32", make.AffineWeight(n, k, 4, 32, ScaleKind::kF16, OffsetKind::kBias)});
  all.push_back(
      {"int8 bf16 bias g64", make.AffineWeight(n, k, 8, 64, ScaleKind::kBF16, OffsetKind::kBias)});
  all.push_back({"int8 constant g32",
                 make.AffineWeight(n, k, 8, 32, ScaleKind::kF16, OffsetKind::kConstant)});
  all.push_back(
      {"int4 row", make.AffineWeight(n, k, 4, k, ScaleKind::kF16, OffsetKind::kConstant)});
  all.push_back(
      {"int4 g20", make.AffineWeight(n, k, 4, 20, ScaleKind::kF16, OffsetKind::kZeroCodes)});
  all.push_back({"int4 act-order",
                 make.AffineWeight(n, k, 4, 32, ScaleKind::kF16, OffsetKind::kZeroCodes, true)});
  all.push_back({"codebook f32 g64", make.CodebookWeight(n, k, 64, ScaleKind::kF32)});
  all.push_back({"codebook e8m0 g32", make.CodebookWeight(n, k, 32, ScaleKind::kE8M0)});
  all.push_back({"codebook integers g32", make.CodebookWeight(n, k, 32, ScaleKind::kF16, true)});
  all.push_back(
      {"codebook two-level g32", make.CodebookWeight(n, k, 32, ScaleKind::kTwoLevel, true)});
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    const std::string name = NameOf(dtype);
    all.push_back({name, make.Row8Weight(n, k, dtype, ActivationQuant::kNone)});
    all.push_back({name + " dynamic", make.Row8Weight(n, k, dtype, ActivationQuant::kDynamic)});
    all.push_back({name + " static", make.Row8Weight(n, k, dtype, ActivationQuant::kStatic, true)});
  }
  all.push_back(
      {"I8 zeros", make.Row8Weight(n, k, DType::kI8, ActivationQuant::kNone, false, true)});
  all.push_back({"I8 outliers", make.Row8Weight(n, k, DType::kI8, ActivationQuant::kOutlierSplit)});
  for (std::size_t i = 0; i < all.size(); i += 3) make.AddBias(all[i].weight);
  return all;
}

}  // namespace nibble
