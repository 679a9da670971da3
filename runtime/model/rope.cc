// Frequencies of the rotary embedding (Su et al. 2021, arXiv 2104.09864) and of its extensions to
// longer contexts: position interpolation (Chen et al. 2023, arXiv 2306.15595), NTK-aware scaling
// (bloc97 2023), YaRN (Peng et al. 2023, arXiv 2309.00071), LongRoPE (Ding et al. 2024, arXiv
// 2402.13753), Llama 3 (arXiv 2407.21783).
#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/model/config.h"

namespace nibble {
namespace {

using Kind = RopeScaling::Kind;

double YarnMagnitude(double factor, double scale) {
  return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

// Chosen once for `max_context` and never while a sequence grows: cached keys keep the angles they
// were given.
double DynamicTheta(const RopeConfig& rope, std::int64_t max_context) {
  const double original = static_cast<double>(rope.scaling.original_context);
  const double length = std::max(static_cast<double>(max_context), original);
  const double factor = rope.scaling.factor;
  const double dim = rope.dim;
  if (dim <= 2) return rope.theta;
  return rope.theta * std::pow(factor * length / original - (factor - 1.0), dim / (dim - 2.0));
}

// Long wavelengths are stretched by `factor`, short ones kept, those between blended.
double Llama3Frequency(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const double context = static_cast<double>(scaling.original_context);
  if (wavelength < context / scaling.high_freq_factor) return frequency;
  if (wavelength > context / scaling.low_freq_factor) return frequency / scaling.factor;
  const double blend = (context / wavelength - scaling.low_freq_factor) /
                       (scaling.high_freq_factor - scaling.low_freq_factor);
  return frequency * ((1.0 - blend) / scaling.factor + blend);
}

// The part of dimension j that is interpolated: 0 below `low`, 1 above `high`.
double YarnRamp(std::int64_t j, const RopeConfig& rope) {
  const RopeScaling& scaling = rope.scaling;
  const double dim = rope.dim;
  const auto dimension_of = [&](double rotations) {
    const double context = static_cast<double>(scaling.original_context);
    return dim * std::log(context / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = dimension_of(scaling.beta_fast);
  double high = dimension_of(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  return std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
}

float AttentionFactor(const RopeScaling& scaling) {
  if (scaling.attention_factor) return static_cast<float>(*scaling.attention_factor);
  const double factor = scaling.factor;
  if (scaling.kind == Kind::kYarn) {
    if (scaling.mscale && scaling.mscale_all_dim) {
      return static_cast<float>(YarnMagnitude(factor, *scaling.mscale) /
                                YarnMagnitude(factor, *scaling.mscale_all_dim));
    }
    return static_cast<float>(YarnMagnitude(factor, 1.0));
  }
  if (scaling.kind == Kind::kLongRope && factor > 1.0) {
    const double original = static_cast<double>(scaling.original_context);
    return static_cast<float>(std::sqrt(1.0 + std::log(factor) / std::log(original)));
  }
  return 1.0f;
}

}  // namespace

RopeTable BuildRopeTable(const RopeConfig& rope, std::int64_t max_context) {
  const RopeScaling& scaling = rope.scaling;
  const double theta =
      scaling.kind == Kind::kDynamic ? DynamicTheta(rope, max_context) : rope.theta;
  const std::vector<double>& divisors =
      max_context > scaling.original_context ? scaling.long_factor : scaling.short_factor;
  RopeTable table;
  table.attention_factor = AttentionFactor(scaling);
  for (std::int64_t j = 0; j < rope.dim / 2; ++j) {
    double frequency = 1.0 / std::pow(theta, 2.0 * static_cast<double>(j) / rope.dim);
    switch (scaling.kind) {
      case Kind::kNone:
      case Kind::kDynamic: break;
      case Kind::kLinear: frequency /= scaling.factor; break;
      case Kind::kLlama3: frequency = Llama3Frequency(frequency, scaling); break;
      case Kind::kYarn: {
        const double ramp = YarnRamp(j, rope);
        frequency = frequency / scaling.factor * ramp + frequency * (1.0 - ramp);
        break;
      }
      case Kind::kLongRope: frequency /= divisors[j]; break;
    }
    if (!scaling.frequency_divisors.empty()) frequency /= scaling.frequency_divisors[j];
    table.inv_freq.push_back(static_cast<float>(frequency));
  }
  return table;
}

}  // namespace nibble
