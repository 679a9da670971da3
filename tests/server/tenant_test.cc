// Whose a call is, by its metadata.
#include "server/tenant.h"

#include "gtest/gtest.h"
#include "runtime/engine/served_model.h"
#include "server/options.h"
#include "tests/server/daemon_test.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(TenantTest, TheMetadataSaysIt) {
  for (const char* named : {"", "a"}) {
    v1::GenerateRequest request;
    request.set_tenant(named);
    EXPECT_EQ(TakeTenant("x-tenant", {"a"}, &request), absl::OkStatus()) << named;
    EXPECT_EQ(request.tenant(), "a");
  }
}

TEST(TenantTest, NoneAndSeveralAreNotAuthenticated) {
  for (const std::vector<std::string>& values :
       {std::vector<std::string>{}, {""}, {"a", "a"}, {std::string(129, 'a')}, {"\xFF"}}) {
    v1::GenerateRequest request;
    const absl::Status status = TakeTenant("x-tenant", values, &request);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(ReasonOf(status), "TENANT_NOT_AUTHENTICATED");
    EXPECT_THAT(std::string(status.message()), HasSubstr("x-tenant"));
  }
}

TEST(TenantTest, NobodyAsksForAnother) {
  v1::GenerateRequest request;
  request.set_tenant("b");
  const absl::Status status = TakeTenant("x-tenant", {"a"}, &request);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(status), "TENANT_NOT_AUTHENTICATED");
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"b\""));
}

TEST(TenantTest, TheKeyIsOneOfTextualMetadata) {
  for (const char* key : {"x-tenant", "tenant", "a_b.c-1"}) {
    const auto options = ParseServeOptions({absl::StrCat("--tenant-metadata=", key), "/m"}, {});
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ(options->tenant_metadata, key);
  }
  for (const char* key : {"X-Tenant", "x-tenant-bin", "grpc-tenant", "a b", ":path"}) {
    EXPECT_EQ(
        ParseServeOptions({absl::StrCat("--tenant-metadata=", key), "/m"}, {}).status().code(),
        absl::StatusCode::kInvalidArgument)
        << key;
  }
  EXPECT_THAT(
      std::string(
          ParseServeOptions({"--tenant-metadata=x", "--http-prompt", "/m"}, {}).status().message()),
      HasSubstr("--tenant-metadata exclude"));
}

using TenantDaemonTest = DaemonTest;

TEST_F(TenantDaemonTest, CallsWithoutATenantAreRefusedAndCounted) {
  ASSERT_NO_FATAL_FAILURE(Serve({"--tenant-metadata=x-tenant"}));
  grpc::ClientContext named;
  named.AddMetadata("x-tenant", "a");
  EXPECT_TRUE(Generate(Ask("hi", 2), &named).status.ok());

  const Answer refused = Generate(Ask("hi", 2));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(DetailsOf(refused.status).reason, "TENANT_NOT_AUTHENTICATED");
  EXPECT_FALSE(DetailsOf(refused.status).retry);
  EXPECT_TRUE(refused.events.empty());

  grpc::ClientContext other;
  other.AddMetadata("x-tenant", "a");
  v1::GenerateRequest request = Ask("hi", 2);
  request.set_tenant("b");
  EXPECT_EQ(Generate(request, &other).status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  for (const char* code : {"UNAUTHENTICATED", "PERMISSION_DENIED"}) {
    EXPECT_EQ(Metric(absl::StrCat("nibble_requests_total{code=\"", code,
                                  "\",model=\"tiny\",reason=\"TENANT_NOT_AUTHENTICATED\"}")),
              1)
        << code;
  }
}

}  // namespace
}  // namespace nibble
