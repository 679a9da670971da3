// Requests from the wire to the runtime: the one validator, behind every front door. No gRPC here,
// so that it can be fuzzed. Any thread; the functions that tokenize or read files say so.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "nibble/v1/admin.pb.h"
#include "nibble/v1/generation.pb.h"
#include "runtime/engine/model_hub.h"
#include "runtime/engine/request.h"
#include "runtime/engine/served_model.h"

namespace nibble {

inline constexpr int kMaxNumOutputs = 128;
inline constexpr int kMaxStopStrings = 16;
inline constexpr std::size_t kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 128;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr std::size_t kMaxLabelBytes = 128;  // request_id, cache_salt, tenant, model
inline constexpr int kMaxTools = 128;

// Everything of the request but its prompt's tokens (token ids are taken). InvalidArgument lists
// every field that is wrong; Unimplemented for a constraint. The seed is resolved: random where
// unset.
absl::StatusOr<Request> ValidateGenerate(const v1::GenerateRequest& proto,
                                         const ServedModel& model);

// Nothing where the message breaks a Duration's own rules.
std::optional<absl::Duration> ToDuration(const google::protobuf::Duration& proto);

// The prompt's tokens: tokenizes text, renders chats, truncates. Takes time.
absl::StatusOr<std::vector<std::int32_t>> PreparePrompt(const v1::GenerateRequest& proto,
                                                        const ServedModel& model, absl::Time now);

absl::StatusOr<std::vector<std::int32_t>> Tokenize(const v1::TokenizeRequest& proto,
                                                   const ServedModel& model, absl::Time now);
absl::StatusOr<std::string> Detokenize(const v1::DetokenizeRequest& proto,
                                       const ServedModel& model);

// What a chat template sees of a chat: messages, tools, add_generation_prompt and the chat's own
// variables.
absl::StatusOr<Json> ChatVariables(const v1::Chat& chat);

// `spec` holds the daemon's own settings and takes what the options set.
absl::Status ApplyLoadOptions(const v1::LoadOptions& options, LoadSpec* spec);

// The path of an admin request, absolute: by its spelling it lies below `root`, which a relative
// one is taken from; else PermissionDenied.
absl::StatusOr<std::string> PathBelow(const std::string& root, absl::string_view path);
// Where such a path leads. PermissionDenied when that is not below `root` after all symbolic links
// are followed; NotFound when nothing is there. Touches the file system.
absl::StatusOr<std::string> ContainPath(const std::string& root, absl::string_view path);

// The name of a model that is given none: the last component of its path, without .gguf or
// .safetensors.
std::string DefaultModelName(absl::string_view path);

}  // namespace nibble
