// How long a step takes, learnt from the steps that ran.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/device/step.h"

namespace nibble {

// What the time of a step depends on.
struct StepShape {
  Phase phase = Phase::kDecode;
  std::int64_t tokens = 0;
  std::int64_t attended = 0;  // sum over the tokens of the keys each sees

  // Adds the tokens at positions [begin, begin + count) of one sequence.
  void Add(std::int64_t begin, std::int64_t count) {
    tokens += count;
    attended += count * begin + count * (count + 1) / 2;
  }
};

// seconds = base + a * tokens + b * attended, one such line a phase, with coefficients that are not
// negative: weighted least squares of the relative error, where an observation counts half after
// some 35 newer ones. One thread.
class CostModel {
 public:
  void Observe(const StepShape& shape, double seconds);
  // A guess of what such a step takes: counts a tenth of an observation, and not as one.
  void Presume(const StepShape& shape, double seconds);

  // Whether any step of the phase was seen; without, Estimate and Bound are 0.
  bool Knows(Phase phase) const { return Line(phase).observations > 0; }
  // Whether so many were seen that a request may be refused by what they tell: the few of a start
  // on a busy machine can make a prompt look ten times as long as it is.
  bool IsSettled(Phase phase) const { return Line(phase).observations >= kSettled; }
  double Estimate(const StepShape& shape) const;
  // The estimate and what steps recently took beyond theirs; more for steps of over twice as many
  // tokens as any that was seen, in proportion, so that what is not known yet is felt for.
  double Bound(const StepShape& shape) const;

 private:
  static constexpr std::int64_t kSettled = 32;

  struct Fit {
    std::array<std::array<double, 3>, 3> gram{};  // sum of w x x'
    std::array<double, 3> moment{};               // sum of w x seconds
    std::array<double, 3> coefficient{};
    double excess = 0.0;  // decaying maximum of seconds / estimate - 1
    std::int64_t observations = 0;
    std::int64_t most_tokens = 0;  // of any step seen
  };
  const Fit& Line(Phase phase) const { return fits_[static_cast<std::size_t>(phase)]; }
  static void Record(Fit& fit, const StepShape& shape, double seconds, double weight);
  static void Solve(Fit& fit);

  std::array<Fit, 2> fits_;
};

}  // namespace nibble
