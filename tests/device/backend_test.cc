#include "runtime/device/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

TEST(BackendTest, OpensTheCpu) {
  BackendOptions options;
  options.device = "cpu";
  options.threads = 2;
  const auto backend = OpenBackend(options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  const DeviceInfo& info = (*backend)->info();
  EXPECT_EQ(info.name, "cpu");
  EXPECT_THAT(info.description, testing::HasSubstr("2 threads"));
  EXPECT_GT(info.memory_bytes, std::int64_t{1} << 20);
  EXPECT_GT(info.memory_bandwidth, 1e8);
  EXPECT_GT(info.flops, 1e8);
  EXPECT_EQ((*backend)->DefaultKvDType(Compute::kF32), DType::kF32);
  EXPECT_EQ((*backend)->DefaultKvDType(Compute::kAuto), DType::kF16);
}

TEST(BackendTest, NamesTheDevicesThereAre) {
  BackendOptions options;
  options.device = "tpu";
  const absl::Status status = OpenBackend(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("cpu, cuda"));
}

TEST(BackendTest, RefusesThreadCounts) {
  BackendOptions options;
  options.device = "cpu";
  options.threads = -1;
  EXPECT_EQ(OpenBackend(options).status().code(), absl::StatusCode::kInvalidArgument);
}

#ifndef NIBBLE_HAVE_CUDA
TEST(BackendTest, SaysHowToGetCuda) {
  for (const char* device : {"cuda", "cuda:1"}) {
    BackendOptions options;
    options.device = device;
    const absl::Status status = OpenBackend(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("NIBBLE_CUDA=ON"));
  }
}
#endif

}  // namespace
}  // namespace nibble
