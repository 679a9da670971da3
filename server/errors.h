// Errors as clients see them: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo, small
// enough for trailers.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/rpc/status.pb.h"

namespace nibble {

inline constexpr int kMaxViolations = 16;
inline constexpr std::size_t kMaxQuotedBytes = 64;
inline constexpr std::size_t kMaxErrorBytes =
    4096;  // message and details, as they are encoded on the wire

// Collects what is wrong with the fields of one request.
class Violations {
 public:
  // `field` is a path: "sampling.top_p", "chat.messages[2].role".
  void Add(absl::string_view field, absl::string_view description);
  bool empty() const { return count_ == 0; }
  // OK when nothing is wrong; else InvalidArgument that carries a BadRequest (the first 16
  // violations).
  absl::Status ToStatus(absl::string_view reason = "INVALID_FIELD") const;

 private:
  struct Violation {
    std::string field, description;
  };
  std::vector<Violation> violations_;
  int count_ = 0;
};

// One violation.
absl::Status InvalidField(absl::string_view field, absl::string_view description);

// The same InvalidArgument with a BadRequest that blames `field`; any other status as it is.
absl::Status BlameField(absl::Status status, absl::string_view field);

// A client's text in an error message: quoted, escaped, cut to 64 bytes.
std::string Quote(absl::string_view text);

// Why `bytes` are no message of this type: names the string field that is no UTF-8, if that is it.
absl::Status MalformedMessage(const google::protobuf::Descriptor& type, absl::string_view bytes);

// The reason that ErrorInfo names: the one attached to the status, else one that follows from its
// code.
std::string ErrorReasonOf(const absl::Status& status);

// REQUIRES: !status.ok(). An internal error without a reason is logged under an id and only the id
// is shown.
google::rpc::Status ToRpcStatus(const absl::Status& status);

}  // namespace nibble
