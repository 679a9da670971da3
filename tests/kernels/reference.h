// Plain loops for what the vector kernels compute, in double; the formulas and nothing else.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kernels/sampling.h"

namespace nibble::reference {

inline std::vector<float> Random(std::size_t n, std::uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

inline std::vector<float> RmsNorm(std::span<const float> x, std::span<const float> weight,
                                  float eps) {
  double squares = 0;
  for (float v : x) squares += double{v} * v;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<float> out;
  for (std::size_t i = 0; i < x.size(); ++i)
    out.push_back(static_cast<float>(x[i] * scale * weight[i]));
  return out;
}

inline double Silu(double x) { return x / (1.0 + std::exp(-x)); }
inline double GeluTanh(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

// One query over keys and values [count, head_dim] at positions 0 .. count - 1.
struct Attention {
  int head_dim;
  double scale;
  int window;
  double softcap;
  const float* sink;  // or null
};
inline std::vector<float> Attend(const Attention& a, const float* q, int position,
                                 const std::vector<float>& keys, const std::vector<float>& values) {
  std::vector<double> scores;
  std::vector<int> visible;
  for (int p = 0; p <= position; ++p) {
    if (a.window > 0 && position - p >= a.window) continue;
    double s = 0;
    for (int d = 0; d < a.head_dim; ++d)
      s += double{q[d]} * keys[static_cast<std::size_t>(p * a.head_dim + d)];
    s *= a.scale;
    if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
    scores.push_back(s);
    visible.push_back(p);
  }
  double max = *std::max_element(scores.begin(), scores.end());
  if (a.sink != nullptr) max = std::max(max, double{*a.sink});
  double sum = a.sink != nullptr ? std::exp(*a.sink - max) : 0.0;
  for (double& s : scores) sum += s = std::exp(s - max);
  std::vector<float> out;
  for (int d = 0; d < a.head_dim; ++d) {
    double y = 0;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      y += scores[i] / sum * values[static_cast<std::size_t>(visible[i] * a.head_dim + d)];
    }
    out.push_back(static_cast<float>(y));
  }
  return out;
}

// The token that a full sort draws, after bias, penalties and bans were applied to `logits`.
inline int Sample(const std::vector<float>& logits, const SamplingParams& p, int output_position) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (IsGreedy(p)) return order[0];
  std::vector<double> mass;
  for (int id : order)
    mass.push_back(std::exp((double{logits[id]} - logits[order[0]]) / p.temperature));
  std::size_t kept = order.size();
  if (p.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(p.top_k));
  if (p.top_p < 1.0f) {
    const double total =
        std::accumulate(mass.begin(), mass.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
    double sum = 0;
    std::size_t n = 0;
    while (n < kept && (n == 0 || sum < p.top_p * total)) sum += mass[n++];
    kept = n;
  }
  while (kept > 1 && mass[kept - 1] < p.min_p) --kept;
  const double total =
      std::accumulate(mass.begin(), mass.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  const double target =
      total * UniformAt(p.seed, p.output_index, static_cast<std::uint32_t>(output_position));
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    sum += mass[i];
    if (sum > target) return order[i];
  }
  return order[kept - 1];
}

}  // namespace nibble::reference
