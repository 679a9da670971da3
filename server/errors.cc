#include "server/errors.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/unknown_field_set.h"
#include "google/rpc/error_details.pb.h"
#include "runtime/base/log.h"
#include "runtime/engine/served_model.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr std::size_t kMaxMessageBytes = 1024;
constexpr std::size_t kMaxDescriptionBytes = 192;
constexpr int kMaxMalformedDepth = 16;

// The longest prefix of valid UTF-8 that has at most `limit` bytes and ends with a whole character.
absl::string_view CutAtCharacter(absl::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text;
  std::size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

// The path of the first string field that holds bytes which are no UTF-8; "" when there is none.
std::string FindBadUtf8(const Descriptor& type, absl::string_view bytes, int depth) {
  UnknownFieldSet fields;
  if (depth > kMaxMalformedDepth ||
      !fields.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return "";
  std::vector<int> seen(static_cast<std::size_t>(type.field_count()));
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& value = fields.field(i);
    const FieldDescriptor* field = type.FindFieldByNumber(value.number());
    if (field == nullptr || value.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    std::string name(field->name());  // a string_view in newer protobufs
    if (field->is_repeated())
      absl::StrAppend(&name, "[", seen[static_cast<std::size_t>(field->index())]++, "]");
    if (field->type() == FieldDescriptor::TYPE_STRING && !IsValidUtf8(value.length_delimited()))
      return name;
    if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      const std::string inner =
          FindBadUtf8(*field->message_type(), value.length_delimited(), depth + 1);
      if (!inner.empty()) return absl::StrCat(name, ".", inner);
    }
  }
  return "";
}

// Bytes of grpc-message, which escapes whatever is not printable ASCII as %XX.
std::size_t PercentEncodedSize(absl::string_view message) {
  std::size_t size = 0;
  for (const char c : message) size += (c >= ' ' && c <= '~' && c != '%') ? 1 : 3;
  return size;
}

std::size_t WireSize(const google::rpc::Status& status) {
  return PercentEncodedSize(status.message()) + (status.ByteSizeLong() + 2) / 3 * 4;
}

const char* DefaultReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument: return "INVALID_FIELD";
    case absl::StatusCode::kNotFound: return "MODEL_NOT_FOUND";
    case absl::StatusCode::kAlreadyExists: return "MODEL_EXISTS";
    case absl::StatusCode::kFailedPrecondition: return "MODEL_UNUSABLE";
    case absl::StatusCode::kResourceExhausted:
      return RetryOf(status).has_value() ? "QUEUE_FULL" : "INSUFFICIENT_MEMORY";
    case absl::StatusCode::kUnavailable: return "DRAINING";
    case absl::StatusCode::kDeadlineExceeded: return "DEADLINE";
    case absl::StatusCode::kCancelled: return "CANCELLED";
    case absl::StatusCode::kAborted: return "SLOW_CONSUMER";
    case absl::StatusCode::kUnimplemented: return "UNSUPPORTED";
    case absl::StatusCode::kPermissionDenied: return "PATH_NOT_ALLOWED";
    default: return "INTERNAL";
  }
}

// Logs what a client should not see and returns what it may: an id that finds the record.
std::string HideInternals(const absl::Status& status) {
  const std::string id = absl::StrCat(absl::Hex(std::random_device{}(), absl::kZeroPad8));
  LogError("internal error", {{"error_id", id}, {"status", status.ToString()}});
  return absl::StrCat("internal error; the server's log has it as error_id ", id);
}

}  // namespace

void Violations::Add(absl::string_view field, absl::string_view description) {
  ++count_;
  if (violations_.size() < kMaxViolations) {
    violations_.push_back(
        {std::string(field), std::string(CutAtCharacter(description, kMaxDescriptionBytes))});
  }
}

absl::Status Violations::ToStatus(absl::string_view reason) const {
  if (count_ == 0) return absl::OkStatus();
  google::rpc::BadRequest bad_request;
  for (const Violation& violation : violations_) {
    auto* added = bad_request.add_field_violations();
    added->set_field(violation.field);
    added->set_description(violation.description);
  }
  std::string message = absl::StrCat(violations_[0].field, ": ", violations_[0].description);
  if (count_ > 1) absl::StrAppend(&message, "; and ", count_ - 1, " more");
  absl::Status status = WithReason(absl::InvalidArgumentError(message), reason);
  status.SetPayload(kBadRequestUrl, absl::Cord(bad_request.SerializeAsString()));
  return status;
}

absl::Status InvalidField(absl::string_view field, absl::string_view description) {
  Violations violations;
  violations.Add(field, description);
  return violations.ToStatus();
}

absl::Status BlameField(absl::Status status, absl::string_view field) {
  if (!absl::IsInvalidArgument(status) || status.GetPayload(kBadRequestUrl).has_value())
    return status;
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field(std::string(field));
  const std::string message(status.message());
  violation->set_description(std::string(CutAtCharacter(
      IsValidUtf8(message) ? message : absl::CHexEscape(message), kMaxDescriptionBytes)));
  status.SetPayload(kBadRequestUrl, absl::Cord(bad_request.SerializeAsString()));
  return status;
}

std::string Quote(absl::string_view text) {
  const std::string cut(text.substr(0, kMaxQuotedBytes));
  std::string escaped = IsValidUtf8(cut) ? absl::Utf8SafeCEscape(cut) : absl::CHexEscape(cut);
  if (escaped.size() > kMaxQuotedBytes)
    escaped = std::string(CutAtCharacter(escaped, kMaxQuotedBytes));
  return absl::StrCat("\"", escaped, text.size() > kMaxQuotedBytes ? "..." : "", "\"");
}

absl::Status MalformedMessage(const Descriptor& type, absl::string_view bytes) {
  const std::string field = FindBadUtf8(type, bytes, 0);
  if (!field.empty()) {
    Violations violations;
    violations.Add(field, "is not valid UTF-8");
    return violations.ToStatus("MALFORMED_MESSAGE");
  }
  return WithReason(absl::InvalidArgumentError(
                        absl::StrCat("the ", bytes.size(), " bytes of the request do not parse as ",
                                     type.full_name(), "; is the client built from other protos?")),
                    "MALFORMED_MESSAGE");
}

std::string ErrorReasonOf(const absl::Status& status) {
  std::string reason = ReasonOf(status);
  return reason.empty() ? DefaultReason(status) : reason;
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(status.code()));
  std::string message(status.message());
  const bool unexplained =
      ReasonOf(status).empty() && (absl::IsInternal(status) || absl::IsUnknown(status));
  if (unexplained) message = HideInternals(status);
  if (!IsValidUtf8(message)) message = absl::CHexEscape(message);
  rpc.set_message(std::string(CutAtCharacter(message, kMaxMessageBytes)));

  google::rpc::ErrorInfo info;
  info.set_reason(ErrorReasonOf(status));
  info.set_domain("nibble");
  rpc.add_details()->PackFrom(info);

  // A client may try again where a retry can help: the status says so itself, or it is UNAVAILABLE.
  std::optional<absl::Duration> delay = RetryOf(status);
  if (!delay.has_value() && absl::IsUnavailable(status)) delay = absl::Seconds(1);
  if (delay.has_value()) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(*delay));
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int>(absl::ToInt64Nanoseconds(*delay % absl::Seconds(1))));
    rpc.add_details()->PackFrom(retry);
  }

  if (const auto payload = status.GetPayload(kBadRequestUrl)) {
    google::rpc::BadRequest bad_request;
    if (bad_request.ParseFromString(std::string(*payload))) {
      auto* detail = rpc.add_details();
      for (detail->PackFrom(bad_request);
           WireSize(rpc) >= kMaxErrorBytes && bad_request.field_violations_size() > 1;
           detail->PackFrom(bad_request)) {
        bad_request.mutable_field_violations()->RemoveLast();
      }
    }
  }
  while (WireSize(rpc) >= kMaxErrorBytes && !rpc.message().empty()) {
    rpc.set_message(std::string(CutAtCharacter(rpc.message(), rpc.message().size() / 2)));
  }
  return rpc;
}

}  // namespace nibble
