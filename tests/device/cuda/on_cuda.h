// Tests that need a GPU of ours.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

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
