#include "server/generation_job.h"

#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/wire.h"

namespace nibble {
namespace {

// What may wait for a reader before it counts as too slow. An answer that comes in one piece is as
// large as it is.
constexpr std::size_t kMaxStreamBytes = 1 << 20;
constexpr std::size_t kMaxFinalOnlyBytes = 64 << 20;

std::string GenerateRequestId() {
  std::random_device device;
  return absl::StrCat("req-", absl::Hex(device(), absl::kZeroPad8),
                      absl::Hex(device(), absl::kZeroPad8));
}

const char* PromptField(const v1::GenerateRequest& request) {
  return request.has_text() ? "text" : request.has_tokens() ? "tokens.ids" : "chat";
}

absl::Status CheckWanted(const GenerationJob& job) {
  if (job.deadline <= absl::Now()) {
    return WithReason(
        absl::DeadlineExceededError("the deadline passed before the prompt was prepared"),
        "DEADLINE");
  }
  if (job.stream->cancelled())
    return WithReason(absl::CancelledError("the client cancelled the call"), "CANCELLED");
  return absl::OkStatus();
}

absl::Status Submit(const GenerationJob& job) {
  RETURN_IF_ERROR(CheckWanted(job));
  ASSIGN_OR_RETURN(Request request, ValidateGenerate(job.proto, *job.model));
  absl::StatusOr<std::vector<std::int32_t>> prompt =
      PreparePrompt(job.proto, *job.model, absl::Now());
  if (!prompt.ok()) return BlameField(std::move(prompt).status(), PromptField(job.proto));
  request.prompt = *std::move(prompt);
  RETURN_IF_ERROR(CheckWanted(job));
  request.deadline = job.deadline;
  return BlameField(job.model->Submit(std::move(request), job.stream), PromptField(job.proto));
}

// On a thread of the pool.
void Prepare(const ServingState& state, GenerationJob& job) {
  absl::Status status = Submit(job);
  if (absl::IsUnavailable(status)) {
    // The model may have been replaced since it was found: its successor takes the request.
    const auto found = state.Find(job.proto.model());
    if (found.ok() && *found != job.model) {
      job.model = *found;
      status = Submit(job);
    }
  }
  if (status.ok()) return;
  job.model->metrics->CountRejected(status.code(), ErrorReasonOf(status));
  job.stream->Close(status);
}

}  // namespace

absl::Status SubmitGeneration(const ServingState* state, PreparePool* pool,
                              std::shared_ptr<GenerationJob> job,
                              std::weak_ptr<StreamWaker> waker) {
  RETURN_IF_ERROR(state->CheckAccepting());
  ASSIGN_OR_RETURN(job->model, state->Find(job->proto.model()));
  if (job->proto.request_id().empty()) job->proto.set_request_id(GenerateRequestId());
  job->stream = std::make_shared<TokenStream>(job->proto.output().final_only() ? kMaxFinalOnlyBytes
                                                                               : kMaxStreamBytes);
  job->stream->SetWaker(std::move(waker));
  return pool->Submit([state, job = std::move(job)] { Prepare(*state, *job); });
}

}  // namespace nibble
