// Tests that need a GPU of ours, and how far its answers are from others.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/device/backend.h"

namespace nibble {

inline std::unique_ptr<Backend> OpenForTest(const char* device, Compute compute) {
  BackendOptions options;
  options.device = device;
  options.threads = 2;
  options.compute = compute;
  auto backend = OpenBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return backend.ok() ? *std::move(backend) : nullptr;
}

// The largest difference between log-probabilities, in parts of their range in the row.
// Infinite: not as many rows, or none.
inline double Worst(const std::vector<RowResult>& expected, const std::vector<RowResult>& rows) {
  double worst = expected.size() == rows.size() && !rows.empty() ? 0.0 : INFINITY;
  for (std::size_t r = 0; r < std::min(expected.size(), rows.size()); ++r) {
    if (rows[r].bad_logits || rows[r].top.size() != expected[r].top.size()) return INFINITY;
    double range = 1.0 + std::abs(expected[r].logprob);
    for (const TopLogprob& top : expected[r].top)
      range = std::max(range, std::abs(double{top.logprob}));
    worst = std::max(worst, std::abs(double{expected[r].logprob} - rows[r].logprob) / range);
    for (std::size_t i = 0; i < rows[r].top.size(); ++i) {
      worst = std::max(
          worst, std::abs(double{expected[r].top[i].logprob} - rows[r].top[i].logprob) / range);
    }
  }
  return worst;
}

// Defines `name`, the backend of cuda:0; skips the test where there is none.
#define NIBBLE_REQUIRE_CUDA(name, wanted)                                                \
  std::unique_ptr<::nibble::Backend> name;                                               \
  {                                                                                      \
    ::nibble::BackendOptions cuda_options;                                               \
    cuda_options.device = "cuda";                                                        \
    cuda_options.compute = wanted;                                                       \
    auto opened_cuda = ::nibble::OpenBackend(cuda_options);                              \
    if (!opened_cuda.ok()) GTEST_SKIP() << "no GPU: " << opened_cuda.status().message(); \
    name = *std::move(opened_cuda);                                                      \
  }                                                                                      \
  static_assert(true)

}  // namespace nibble
