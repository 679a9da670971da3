#include "server/http_prompt.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "google/protobuf/util/json_util.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/text/unicode.h"
#include "server/errors.h"
#include "server/generation_job.h"
#include "server/wire_response.h"

namespace nibble {
namespace {

constexpr absl::Duration kTimeLimit = absl::Minutes(5);  // of one answer
constexpr std::size_t kPieceBytes = 64 << 10;            // events that wait are sent together

// The host of "NAME", "NAME:PORT", "[ADDRESS]:PORT", lower-case; empty for what is none of these.
std::string HostWithoutPort(absl::string_view host) {
  if (!absl::StartsWith(host, "[")) return absl::AsciiStrToLower(host.substr(0, host.find(':')));
  const std::size_t end = host.find(']');
  return end == absl::string_view::npos ? "" : std::string(host.substr(1, end - 1));
}

bool IsAddress(const std::string& host) {
  in6_addr buffer{};
  return inet_pton(AF_INET, host.c_str(), &buffer) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &buffer) == 1;
}

absl::Status Forbidden(absl::string_view message) {
  return WithReason(absl::PermissionDeniedError(message), "FORBIDDEN_ORIGIN");
}

unsigned HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition: return 400;
    case absl::StatusCode::kPermissionDenied: return 403;
    case absl::StatusCode::kNotFound: return 404;
    case absl::StatusCode::kResourceExhausted: return 429;
    case absl::StatusCode::kUnimplemented: return 501;
    case absl::StatusCode::kUnavailable: return 503;
    case absl::StatusCode::kDeadlineExceeded: return 504;
    default: return 500;
  }
}

std::string ErrorJson(const absl::Status& status) {
  Json error;
  error.Set("code", absl::StatusCodeToString(status.code()));
  error.Set("reason", ErrorReasonOf(status));
  error.Set("message", ToRpcStatus(status).message());
  Json object;
  object.Set("error", std::move(error));
  return DumpJson(object);
}

// One server-sent event; JSON has no line breaks.
void AppendEvent(const v1::GenerateResponse& response, std::string* out) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(response, &json, options).ok()) return;
  absl::StrAppend(out, "data: ", json, "\n\n");
}

class PromptAnswer final : public AnswerStream {
 public:
  PromptAnswer(const ServingState* state, PreparePool* pool, const std::string& body,
               std::weak_ptr<StreamWaker> waker) {
    refused_ = Start(state, pool, body, std::move(waker));
    if (!refused_.ok()) state->CountRefused(job_->proto.model(), refused_);
  }
  // The client left, or has it all.
  ~PromptAnswer() override {
    if (refused_.ok() && !ended_) job_->stream->Cancel();
  }

  std::optional<Beginning> Begin() override {
    if (!refused_.ok()) return Beginning{.answer = ErrorAnswer(refused_)};
    std::optional<absl::Status> end;
    first_ = job_->stream->Pop(&end);
    if (first_.has_value()) {
      return Beginning{.answer = {.content_type = "text/event-stream; charset=utf-8"},
                       .streams = true};
    }
    if (!end.has_value()) return std::nullopt;
    ended_ = true;
    if (!end->ok()) return Beginning{.answer = ErrorAnswer(*end)};
    return Beginning{.answer = {.content_type = "text/event-stream; charset=utf-8"}};
  }

  Piece Next() override {
    Piece piece;
    std::optional<absl::Status> end;
    while (piece.text.size() < kPieceBytes) {
      std::optional<StreamEvent> event = std::exchange(first_, std::nullopt);
      if (!event.has_value()) event = job_->stream->Pop(&end);
      if (!event.has_value()) break;
      for (const v1::GenerateResponse& response : ToResponses(*event, job_->proto.request_id()))
        AppendEvent(response, &piece.text);
    }
    if (end.has_value()) {
      ended_ = piece.last = true;
      if (!end->ok()) absl::StrAppend(&piece.text, "event: error\ndata: ", ErrorJson(*end), "\n\n");
    }
    return piece;
  }

 private:
  absl::Status Start(const ServingState* state, PreparePool* pool, const std::string& body,
                     std::weak_ptr<StreamWaker> waker) {
    ASSIGN_OR_RETURN(job_->proto, ParsePrompt(body));
    job_->deadline = absl::Now() + kTimeLimit;
    return SubmitGeneration(state, pool, job_, std::move(waker));
  }

  const std::shared_ptr<GenerationJob> job_ = std::make_shared<GenerationJob>();
  absl::Status refused_;
  std::optional<StreamEvent> first_;  // taken by Begin
  bool ended_ = false;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseHostNames(absl::string_view text) {
  std::vector<std::string> names;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    part = absl::StripAsciiWhitespace(part);
    const bool shaped = !part.empty() && part.size() <= 253 &&
                        std::all_of(part.begin(), part.end(), [](unsigned char c) {
                          return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
                        });
    if (!shaped) {
      return absl::InvalidArgumentError(
          absl::StrCat(Quote(part), " is no host name; give names without ports, separated by ,"));
    }
    names.push_back(absl::AsciiStrToLower(part));
  }
  return names;
}

absl::Status CheckPromptHead(const HttpHead& head, const std::vector<std::string>& host_names) {
  if (head.prompt_header != "1")
    return Forbidden("POST /prompt needs the header X-Nibble-Prompt: 1");
  const std::string type = absl::AsciiStrToLower(absl::StripAsciiWhitespace(
      absl::string_view(head.content_type).substr(0, head.content_type.find(';'))));
  if (type != "application/json")
    return Forbidden("POST /prompt needs the header Content-Type: application/json");
  const bool same_site =
      head.fetch_site.empty() || head.fetch_site == "same-origin" || head.fetch_site == "none";
  const bool same_origin = head.origin.empty() ||
                           head.origin == absl::StrCat("http://", head.host) ||
                           head.origin == absl::StrCat("https://", head.host);
  if (!same_site || !same_origin)
    return Forbidden(absl::StrCat("a page of ", Quote(head.origin), " may not send prompts here"));
  const std::string host = HostWithoutPort(head.host);
  const bool known = host == "localhost" || IsAddress(host) ||
                     std::find(host_names.begin(), host_names.end(), host) != host_names.end();
  if (!known) {
    return Forbidden(
        absl::StrCat("prompts are not taken under the host name ", Quote(host),
                     ": use the server's IP address, or start it with --http-prompt-hosts ",
                     host.substr(0, 64)));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::GenerateRequest> ParsePrompt(const std::string& body) {
  if (!IsValidUtf8(body)) {
    return WithReason(absl::InvalidArgumentError("the body is not valid UTF-8"),
                      "MALFORMED_MESSAGE");
  }
  v1::GenerateRequest request;
  if (const auto parsed = google::protobuf::util::JsonStringToMessage(body, &request);
      !parsed.ok()) {
    return WithReason(absl::InvalidArgumentError(
                          absl::StrCat("the body is no nibble.v1.GenerateRequest as JSON: ",
                                       std::string(parsed.message()).substr(0, 512))),
                      "MALFORMED_MESSAGE");
  }
  Violations violations;
  static const auto* taken =
      new std::vector<std::string>{"model", "text", "chat", "sampling", "stopping"};
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  request.GetReflection()->ListFields(request, &fields);
  for (const auto* field : fields) {
    const std::string name(field->name());
    if (std::find(taken->begin(), taken->end(), name) == taken->end())
      violations.Add(name, "is not taken over HTTP; use gRPC");
  }
  v1::StoppingOptions& stopping = *request.mutable_stopping();
  if (!stopping.has_max_tokens()) stopping.set_max_tokens(kDefaultHttpTokens);
  if (stopping.max_tokens() > kMaxHttpTokens) {
    violations.Add("stopping.max_tokens",
                   absl::StrCat("must be at most ", kMaxHttpTokens, " over HTTP, is ",
                                stopping.max_tokens(), "; use gRPC for longer answers"));
  }
  RETURN_IF_ERROR(violations.ToStatus());
  return request;
}

HttpAnswer ErrorAnswer(const absl::Status& status) {
  HttpAnswer answer{.status = HttpStatusOf(status.code()),
                    .content_type = "application/json",
                    .body = ErrorJson(status) + "\n"};
  if (const std::optional<absl::Duration> delay = RetryOf(status)) {
    answer.retry_after_seconds = static_cast<int>(
        std::max<std::int64_t>(1, absl::ToInt64Seconds(absl::Ceil(*delay, absl::Seconds(1)))));
  }
  return answer;
}

std::unique_ptr<AnswerStream> AnswerPrompt(const ServingState* state, PreparePool* pool,
                                           const std::string& body,
                                           std::weak_ptr<StreamWaker> waker) {
  return std::make_unique<PromptAnswer>(state, pool, body, std::move(waker));
}

}  // namespace nibble
