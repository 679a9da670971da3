#include "runtime/model/random_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/dtype.h"

namespace nibble {
namespace {

constexpr std::size_t kSamples = 4096;  // different numbers of one weight, drawn again and again

std::int64_t GroupsOf(const LinearSpec& spec) { return (spec.k + spec.group - 1) / spec.group; }

// splitmix64: a nanosecond for eight bytes.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

class Maker {
 public:
  Maker(const LinearSpec& spec, std::uint64_t seed)
      : spec_(spec), random_(seed), normal_(static_cast<std::uint32_t>(seed)) {
    sigma_ = 1.0 / std::sqrt(static_cast<double>(spec.k));
  }

  LinearWeight Make(const std::array<float, 16>& table) {
    LinearWeight weight{spec_.n, spec_.k, {}, {}};
    switch (spec_.kind) {
      case EncodingKind::kDense: weight.encoding = MakeDense(); break;
      case EncodingKind::kAffine: weight.encoding = MakeAffine(); break;
      case EncodingKind::kCodebook: weight.encoding = MakeCodebook(table); break;
      case EncodingKind::kRow8: weight.encoding = MakeRow8(); break;
    }
    for (std::int64_t i = 0; spec_.has_bias && i < spec_.n; ++i)
      weight.bias.push_back(static_cast<float>(0.1 * Normal()));
    return weight;
  }

 private:
  double Normal() { return std::normal_distribution<double>()(normal_); }

  HostBuffer RandomBytes(std::int64_t size) {
    HostBuffer out(static_cast<std::size_t>(size));
    std::byte* at = out.data();
    for (; size >= 8; size -= 8, at += 8) {
      const std::uint64_t word = random_.Next();
      std::memcpy(at, &word, sizeof(word));
    }
    const std::uint64_t word = random_.Next();
    std::memcpy(at, &word, static_cast<std::size_t>(size));
    return out;
  }

  // `count` of the samples, whose number is a power of two of at most 2^16.
  template <typename T>
  HostBuffer Draw(std::int64_t count, const std::vector<T>& samples) {
    HostBuffer out(static_cast<std::size_t>(count) * sizeof(T));
    const std::uint64_t mask = samples.size() - 1;
    std::uint64_t word = 0;
    auto values = out.As<T>();
    for (std::size_t i = 0; i < values.size(); ++i, word >>= 16) {
      if (i % 4 == 0) word = random_.Next();
      values[i] = samples[word & mask];
    }
    return out;
  }

  // One of `count` numbers that `make` gives, in `dtype`.
  template <typename Make>
  HostBuffer Numbers(std::int64_t count, DType dtype, Make make) {
    if (dtype == DType::kF32) {
      std::vector<float> samples(kSamples);
      for (float& sample : samples) sample = static_cast<float>(make());
      return Draw(count, samples);
    }
    std::vector<std::uint16_t> samples(kSamples);
    for (std::uint16_t& sample : samples) {
      const auto value = static_cast<float>(make());
      sample = dtype == DType::kF16 ? F32ToF16(value) : F32ToBf16(value);
    }
    return Draw(count, samples);
  }

  // About `mean`, within a quarter.
  double Near(double mean) { return mean * (0.75 + 0.5 * random_.Uniform()); }

  template <typename Make>
  HostBuffer Codes8(std::int64_t count, Make make) {
    std::vector<std::uint8_t> samples(kSamples);
    for (std::uint8_t& sample : samples) sample = static_cast<std::uint8_t>(make());
    return Draw(count, samples);
  }

  Dense MakeDense() {
    return {spec_.dtype,
            Numbers(spec_.n * spec_.k, spec_.dtype, [this] { return sigma_ * Normal(); })};
  }

  // Scale codes of four bits, which every two-level format can hold, about `mean` in all.
  TwoLevelScales TwoLevel(double mean) {
    constexpr int kLow = 8, kHigh = 15;
    TwoLevelScales scales;
    scales.groups_per_super = spec_.groups_per_super;
    const std::int64_t groups = GroupsOf(spec_);
    const std::int64_t supers = (groups + spec_.groups_per_super - 1) / spec_.groups_per_super;
    scales.super =
        Numbers(spec_.n * supers, DType::kF16, [&] { return Near(mean / ((kLow + kHigh) / 2.0)); });
    scales.codes =
        Codes8(spec_.n * groups, [&] { return kLow + random_.Next() % (kHigh - kLow + 1); });
    return scales;
  }

  Scales MakeScales(double mean) {
    const std::int64_t count = spec_.n * GroupsOf(spec_);
    const auto near = [&] { return Near(mean); };
    switch (spec_.scales) {
      case ScaleKind::kTwoLevel: return TwoLevel(mean);
      case ScaleKind::kE8M0: {
        const int exponent = 127 + static_cast<int>(std::lround(std::log2(mean)));
        return FlatScales{DType::kF8E8M0, Codes8(count, [&] { return exponent; })};
      }
      case ScaleKind::kF32: return FlatScales{DType::kF32, Numbers(count, DType::kF32, near)};
      case ScaleKind::kBF16: return FlatScales{DType::kBF16, Numbers(count, DType::kBF16, near)};
      default: return FlatScales{DType::kF16, Numbers(count, DType::kF16, near)};
    }
  }

  Affine MakeAffine() {
    const int top = (1 << spec_.bits) - 1;
    const double spread = std::sqrt(((top + 1.0) * (top + 1.0) - 1) / 12);  // of uniform codes
    const double scale = sigma_ / spread;
    const std::int64_t groups = spec_.n * GroupsOf(spec_);
    Affine affine;
    affine.bits = spec_.bits;
    affine.group = spec_.group;
    affine.codes = RandomBytes(spec_.n * CodeRowBytes(spec_.k, spec_.bits));
    affine.scales = MakeScales(scale);
    switch (spec_.offset) {
      case OffsetKind::kZeroCodes:
        affine.offset = ZeroCodes{Codes8(groups, [&] { return top / 2 + random_.Next() % 2; })};
        break;
      case OffsetKind::kBias: {
        const DType dtype = std::get<FlatScales>(affine.scales).dtype;
        affine.offset =
            BiasOffset{dtype, Numbers(groups, dtype, [&] { return Near(-scale * top / 2); })};
        break;
      }
      case OffsetKind::kTwoLevel: affine.offset = TwoLevelOffset{TwoLevel(scale * top / 2)}; break;
      default: affine.offset = ConstantOffset{(top + 1) / 2};
    }
    if (spec_.permuted) {
      affine.permutation.resize(static_cast<std::size_t>(spec_.k));
      std::iota(affine.permutation.begin(), affine.permutation.end(), 0);
      std::shuffle(affine.permutation.begin(), affine.permutation.end(), normal_);
    }
    return affine;
  }

  Codebook MakeCodebook(const std::array<float, 16>& table) {
    double square = 0;
    for (const float entry : table) square += double{entry} * entry / 16;
    Codebook book;
    book.table = table;
    book.group = spec_.group;
    book.codes = RandomBytes(spec_.n * CodeRowBytes(spec_.k, 4));
    book.scales = MakeScales(sigma_ / std::sqrt(square));
    return book;
  }

  // The largest code is at four standard deviations: 127 of int8, 448 of fp8.
  Row8 MakeRow8() {
    Row8 row8;
    row8.dtype = spec_.dtype;
    row8.activation = spec_.activation;
    row8.static_scale = spec_.activation == ActivationQuant::kStatic ? 4.0f / 127 : 0.0f;
    double largest = 127;
    if (spec_.dtype == DType::kI8) {
      row8.codes = Codes8(spec_.n * spec_.k, [&] {
        return std::clamp(std::lround(Normal() * largest / 4), -127L, 127L);
      });
    } else {
      largest = 448;
      row8.codes = Codes8(spec_.n * spec_.k, [&] { return ToE4m3(Normal() * largest / 4); });
    }
    for (std::int64_t i = 0; i < spec_.n; ++i)
      row8.scales.push_back(static_cast<float>(Near(4 * sigma_ / largest)));
    return row8;
  }

  static std::uint8_t ToE4m3(double value) {
    const double magnitude = std::min(std::abs(value), 448.0);
    const std::uint8_t sign = value < 0 ? 0x80 : 0;
    const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -6, -6);
    // Three bits behind the point; a carry of the fraction runs into the exponent, as it must.
    const long fraction = std::lround(std::ldexp(magnitude, 3 - exponent));
    const long bits = fraction + (exponent + 6) * 8;
    return sign | static_cast<std::uint8_t>(std::min(bits, 0x7EL));
  }

  const LinearSpec& spec_;
  Random random_;
  std::mt19937 normal_;
  double sigma_;
};

HostBuffer CopyOf(const HostBuffer& buffer) {
  HostBuffer out(buffer.size());
  if (!buffer.empty()) std::memcpy(out.data(), buffer.data(), buffer.size());
  return out;
}

TwoLevelScales CopyOf(const TwoLevelScales& scales) {
  return {CopyOf(scales.super), CopyOf(scales.codes), scales.groups_per_super};
}

struct Copier {
  Scales operator()(const FlatScales& scales) const {
    return FlatScales{scales.dtype, CopyOf(scales.data)};
  }
  Scales operator()(const TwoLevelScales& scales) const { return CopyOf(scales); }

  Offset operator()(const ConstantOffset& offset) const { return offset; }
  Offset operator()(const ZeroCodes& offset) const { return ZeroCodes{CopyOf(offset.zeros)}; }
  Offset operator()(const BiasOffset& offset) const {
    return BiasOffset{offset.dtype, CopyOf(offset.data)};
  }
  Offset operator()(const TwoLevelOffset& offset) const {
    return TwoLevelOffset{CopyOf(offset.minimum)};
  }

  using Encoding = decltype(LinearWeight::encoding);
  Encoding operator()(const Dense& dense) const { return Dense{dense.dtype, CopyOf(dense.data)}; }
  Encoding operator()(const Affine& affine) const {
    return Affine{affine.bits,
                  affine.group,
                  CopyOf(affine.codes),
                  std::visit(*this, affine.scales),
                  std::visit(*this, affine.offset),
                  affine.permutation};
  }
  Encoding operator()(const Codebook& book) const {
    return Codebook{book.table, book.group, CopyOf(book.codes), std::visit(*this, book.scales)};
  }
  Encoding operator()(const Row8& row8) const {
    return Row8{row8.dtype,      CopyOf(row8.codes), row8.scales,      row8.zeros,
                row8.activation, row8.static_scale,  row8.static_zero, row8.outlier_threshold};
  }
};

}  // namespace

LinearWeight RandomWeight(const LinearSpec& spec, const std::array<float, 16>& table,
                          std::uint64_t seed) {
  return Maker(spec, seed).Make(table);
}

LinearWeight CopyOf(const LinearWeight& weight) {
  return {weight.n, weight.k, std::visit(Copier{}, weight.encoding), weight.bias};
}

}  // namespace nibble
