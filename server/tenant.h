// Whose a call is, where that is not for the request to say.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nibble/v1/generation.pb.h"

namespace nibble {

// The key of --tenant-metadata: a name of textual metadata that gRPC leaves to applications.
absl::StatusOr<std::string> ParseMetadataKey(absl::string_view text);

// Makes the call's metadata under `key`, of which these are the values, the request's tenant.
// Unauthenticated unless there is exactly one, of 1 to 128 bytes; PermissionDenied where the
// request names another tenant.
absl::Status TakeTenant(absl::string_view key, const std::vector<std::string>& values,
                        v1::GenerateRequest* request);

}  // namespace nibble
