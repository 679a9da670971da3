#include "runtime/engine/cost_model.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace nibble {
namespace {

constexpr double kDecay = 0.98;  // of an old observation's weight, a step
constexpr double kExcessDecay = 0.95;
constexpr double kGuessWeight = 0.1;
constexpr double kRidge = 1e-6;  // of the diagonal: collinear steps leave the smallest solution

std::array<double, 3> Features(const StepShape& shape) {
  return {1.0, static_cast<double>(shape.tokens), static_cast<double>(shape.attended)};
}

// Gaussian elimination over the features in `mask`; nothing when singular.
std::optional<std::array<double, 3>> SolveSubset(const std::array<std::array<double, 3>, 3>& gram,
                                                 const std::array<double, 3>& moment, int mask) {
  std::array<std::array<double, 4>, 3> rows{};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      const bool both = (mask >> i & 1) && (mask >> j & 1);
      rows[i][j] = both ? gram[i][j] * (i == j ? 1.0 + kRidge : 1.0) : (i == j ? 1.0 : 0.0);
    }
    rows[i][3] = (mask >> i & 1) ? moment[i] : 0.0;
  }
  for (int column = 0; column < 3; ++column) {
    int pivot = column;
    for (int row = column + 1; row < 3; ++row) {
      if (std::abs(rows[row][column]) > std::abs(rows[pivot][column])) pivot = row;
    }
    if (!(std::abs(rows[pivot][column]) > 0.0)) return std::nullopt;
    std::swap(rows[pivot], rows[column]);
    for (int row = 0; row < 3; ++row) {
      if (row == column) continue;
      const double factor = rows[row][column] / rows[column][column];
      for (int k = column; k < 4; ++k) rows[row][k] -= factor * rows[column][k];
    }
  }
  return std::array<double, 3>{rows[0][3] / rows[0][0], rows[1][3] / rows[1][1],
                               rows[2][3] / rows[2][2]};
}

}  // namespace

// Of the seven subsets of features, the one with the least squared error whose coefficients are not
// negative.
void CostModel::Solve(Fit& fit) {
  // Scaled to a unit diagonal: attended is millions where the base is one.
  std::array<double, 3> scale{};
  for (int i = 0; i < 3; ++i) scale[i] = fit.gram[i][i] > 0 ? 1.0 / std::sqrt(fit.gram[i][i]) : 1.0;
  std::array<std::array<double, 3>, 3> gram{};
  std::array<double, 3> moment{};
  for (int i = 0; i < 3; ++i) {
    moment[i] = fit.moment[i] * scale[i];
    for (int j = 0; j < 3; ++j) gram[i][j] = fit.gram[i][j] * scale[i] * scale[j];
  }
  // Tokens alone before the base alone: where only one size was seen, larger steps are taken to
  // cost more.
  double best = 0.0;
  bool found = false;
  for (int mask : {2, 3, 6, 7, 1, 4, 5}) {
    const auto solution = SolveSubset(gram, moment, mask);
    if (!solution.has_value()) continue;
    const std::array<double, 3>& c = *solution;
    if (!(c[0] >= 0 && c[1] >= 0 && c[2] >= 0)) continue;
    double error = 0.0;  // c'Gc - 2c'm, the squared error less a constant
    for (int i = 0; i < 3; ++i) {
      error -= 2.0 * c[i] * moment[i];
      for (int j = 0; j < 3; ++j) error += c[i] * gram[i][j] * c[j];
    }
    if (found && !(error < best - 1e-9)) continue;
    found = true;
    best = error;
    for (int i = 0; i < 3; ++i) fit.coefficient[i] = c[i] * scale[i];
  }
}

void CostModel::Record(Fit& fit, const StepShape& shape, double seconds, double weight) {
  const std::array<double, 3> x = Features(shape);
  weight /= seconds * seconds;
  for (int i = 0; i < 3; ++i) {
    fit.moment[i] = fit.moment[i] * kDecay + weight * x[i] * seconds;
    for (int j = 0; j < 3; ++j) fit.gram[i][j] = fit.gram[i][j] * kDecay + weight * x[i] * x[j];
  }
  Solve(fit);
}

void CostModel::Observe(const StepShape& shape, double seconds) {
  if (!(seconds > 0.0) || !std::isfinite(seconds)) return;
  Fit& fit = fits_[static_cast<std::size_t>(shape.phase)];
  if (fit.observations > 0) {
    const double expected = Estimate(shape);
    if (expected > 0)
      fit.excess = std::max(fit.excess * kExcessDecay, std::min(seconds / expected - 1.0, 1.0));
  }
  ++fit.observations;
  fit.most_tokens = std::max(fit.most_tokens, shape.tokens);
  Record(fit, shape, seconds, 1.0);
}

void CostModel::Presume(const StepShape& shape, double seconds) {
  if (!(seconds > 0.0) || !std::isfinite(seconds)) return;
  Record(fits_[static_cast<std::size_t>(shape.phase)], shape, seconds, kGuessWeight);
}

double CostModel::Estimate(const StepShape& shape) const {
  const std::array<double, 3> x = Features(shape);
  const std::array<double, 3>& c = Line(shape.phase).coefficient;
  return c[0] * x[0] + c[1] * x[1] + c[2] * x[2];
}

double CostModel::Bound(const StepShape& shape) const {
  const Fit& fit = Line(shape.phase);
  const double reach = static_cast<double>(shape.tokens) /
                       (2.0 * static_cast<double>(std::max<std::int64_t>(fit.most_tokens, 1)));
  return Estimate(shape) * (1.0 + fit.excess) * std::max(reach, 1.0);
}

}  // namespace nibble
