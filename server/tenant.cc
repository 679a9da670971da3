#include "server/tenant.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/engine/served_model.h"
#include "runtime/text/unicode.h"
#include "server/errors.h"
#include "server/wire.h"

namespace nibble {
namespace {

constexpr char kReason[] = "TENANT_NOT_AUTHENTICATED";

}  // namespace

absl::StatusOr<std::string> ParseMetadataKey(absl::string_view text) {
  const bool shaped =
      !text.empty() && text.size() <= kMaxLabelBytes &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) {
        return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || c == '_' || c == '.';
      });
  if (!shaped || absl::StartsWith(text, "grpc-") || absl::EndsWith(text, "-bin")) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), " is no name of textual metadata: 1 to ", kMaxLabelBytes,
                     " of a-z, 0-9, '-', '_' and '.', without grpc- before or -bin behind"));
  }
  return std::string(text);
}

absl::Status TakeTenant(absl::string_view key, const std::vector<std::string>& values,
                        v1::GenerateRequest* request) {
  if (values.size() != 1 || values[0].empty() || values[0].size() > kMaxLabelBytes ||
      !IsValidUtf8(values[0])) {
    return WithReason(
        absl::UnauthenticatedError(absl::StrCat(
            "the call must carry the metadata ", key, " once, of 1 to ", kMaxLabelBytes,
            " bytes, as the proxy that authenticates it sets it; "
            "there are ",
            values.size())),
        kReason);
  }
  if (!request->tenant().empty() && request->tenant() != values[0]) {
    return WithReason(absl::PermissionDeniedError(absl::StrCat(
                          "tenant ", Quote(request->tenant()), " is not whom the metadata ", key,
                          " authenticates; leave the field empty")),
                      kReason);
  }
  request->set_tenant(values[0]);
  return absl::OkStatus();
}

}  // namespace nibble
