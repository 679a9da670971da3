#include "server/errors.h"

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "nibble/v1/generation.pb.h"
#include "runtime/engine/served_model.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

template <typename Detail>
std::optional<Detail> DetailOf(const google::rpc::Status& status) {
  for (const auto& any : status.details()) {
    Detail detail;
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

TEST(ToRpcStatusTest, CarriesTheReasonAndNoRetryWhereItCannotHelp) {
  const google::rpc::Status status =
      ToRpcStatus(WithReason(absl::FailedPreconditionError("needs 10 of 5"), "EXCEEDS_KV_POOL"));
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status)->reason(), "EXCEEDS_KV_POOL");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status)->domain(), "nibble");
  EXPECT_FALSE(DetailOf<google::rpc::RetryInfo>(status).has_value());
}

TEST(ToRpcStatusTest, RetryInfoComesWithUnavailableAndWhereAttached) {
  const auto delay = [](const absl::Status& status) {
    const auto retry = DetailOf<google::rpc::RetryInfo>(ToRpcStatus(status));
    return retry.has_value()
               ? retry->retry_delay().seconds() * 1000 + retry->retry_delay().nanos() / 1'000'000
               : -1;
  };
  EXPECT_EQ(delay(absl::UnavailableError("x")), 1000);
  EXPECT_EQ(delay(WithRetry(absl::ResourceExhaustedError("x"), absl::Milliseconds(2500))), 2500);
  EXPECT_EQ(delay(absl::ResourceExhaustedError("x")), -1);
}

TEST(ToRpcStatusTest, EveryReasonIsInTheProto) {
  for (int code = 1; code <= 16; ++code) {
    const std::string reason =
        ErrorReasonOf(absl::Status(static_cast<absl::StatusCode>(code), "x"));
    v1::ErrorReason parsed;
    EXPECT_TRUE(v1::ErrorReason_Parse("ERROR_REASON_" + reason, &parsed)) << reason;
  }
}

TEST(ToRpcStatusTest, UnexplainedInternalErrorsAreHidden) {
  const google::rpc::Status status = ToRpcStatus(absl::InternalError("open /secret/path failed"));
  EXPECT_THAT(status.message(), Not(HasSubstr("secret")));
  EXPECT_THAT(status.message(), HasSubstr("error_id"));
  EXPECT_EQ(ToRpcStatus(WithReason(absl::InternalError("NaN"), "NAN_LOGITS")).message(), "NaN");
}

TEST(ToRpcStatusTest, StaysSmallWhateverTheMessage) {
  std::string euros;
  for (int i = 0; i < 5000; ++i) euros += "\xE2\x82\xAC";
  for (const std::string& message : {std::string(100'000, 'x'), euros, std::string(5000, '\xFF')}) {
    const google::rpc::Status status = ToRpcStatus(absl::NotFoundError(message));
    EXPECT_TRUE(IsValidUtf8(status.message()));
    std::size_t encoded = 0;
    for (const char c : status.message()) encoded += (c >= ' ' && c <= '~') ? 1 : 3;
    EXPECT_LT(encoded + status.ByteSizeLong() * 4 / 3, kMaxErrorBytes);
  }
}

TEST(QuoteTest, CutsAndEscapes) {
  EXPECT_EQ(Quote("a\"b\n"), "\"a\\\"b\\n\"");
  EXPECT_LE(Quote(std::string(1000, '\x01')).size(), kMaxQuotedBytes + 5);
  EXPECT_TRUE(IsValidUtf8(Quote("\xFF\xFE")));
}

TEST(MalformedMessageTest, NamesTheFieldThatIsNoUtf8) {
  v1::GenerateRequest request;
  request.mutable_chat()->add_messages()->set_role("user");
  request.mutable_chat()->add_messages()->set_content("XX");
  std::string bytes = request.SerializeAsString();
  bytes.replace(bytes.find("XX"), 2, "\xFF\xFE");

  const absl::Status status = MalformedMessage(*v1::GenerateRequest::descriptor(), bytes);

  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorReasonOf(status), "MALFORMED_MESSAGE");
  const auto bad_request = DetailOf<google::rpc::BadRequest>(ToRpcStatus(status));
  ASSERT_TRUE(bad_request.has_value());
  EXPECT_EQ(bad_request->field_violations(0).field(), "chat.messages[1].content");
}

TEST(MalformedMessageTest, OtherGarbageIsRefusedToo) {
  EXPECT_EQ(MalformedMessage(*v1::GenerateRequest::descriptor(), "\xFF\xFF\xFF").code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
