#include "server/generation_service.h"

#include <deque>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nibble/v1/generation.pb.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/generation_job.h"
#include "server/tenant.h"
#include "server/unary.h"
#include "server/wire.h"
#include "server/wire_response.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxMergedBytes = 1 << 20;
constexpr std::size_t kMaxUnaryResponseBytes = 4 << 20;  // what clients accept by default

absl::Status CheckSize(const google::protobuf::MessageLite& response, absl::string_view field) {
  const std::size_t bytes = response.ByteSizeLong();
  if (bytes <= kMaxUnaryResponseBytes) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("would be answered with ", bytes, " bytes, more than ",
                                          kMaxUnaryResponseBytes, ": send it in parts"));
}

// One Generate. The request is prepared on the pool, answered by the model's engine, and both speak
// through the TokenStream: every error, the validator's too, closes it, so that there is one way
// out.
class GenerateHandler final : public CallHandler {
 public:
  GenerateHandler(Call& call, const ServingState* state, PreparePool* pool,
                  std::shared_ptr<const std::string> tenant_metadata)
      : call_(call), state_(state), pool_(pool), tenant_metadata_(std::move(tenant_metadata)) {}

  void OnRequest(const grpc::ByteBuffer& bytes) override {
    const absl::Status status = Start(bytes);
    if (!status.ok()) call_.Finish(status);
  }
  void OnWake() override { Pump(); }
  void OnWritten() override { Pump(); }
  void OnCancel() override {
    // A client whose deadline has passed cancels a moment before ours does: the engine then ends
    // the request by its deadline, and counts what the client counted.
    if (given_to_pool_ && !call_.deadline_is_due()) job_->stream->Cancel();
  }
  void OnFinish(const absl::Status& status) override {
    // What the engine took in, the engine counts; the job counts what it refuses.
    if (!given_to_pool_) state_->CountRefused(job_->proto.model(), status);
  }

 private:
  absl::Status Start(const grpc::ByteBuffer& bytes) {
    RETURN_IF_ERROR(ParseRequest(bytes, &job_->proto));
    if (const std::string& key = *tenant_metadata_; !key.empty())
      RETURN_IF_ERROR(TakeTenant(key, call_.metadata(key), &job_->proto));
    job_->deadline = call_.deadline();
    RETURN_IF_ERROR(SubmitGeneration(state_, pool_, job_, call_.waker()));
    given_to_pool_ = true;
    return absl::OkStatus();
  }

  // Writes what there is, one response at a time; ends the call when the stream has ended.
  void Pump() {
    while (call_.writable()) {
      if (!responses_.empty()) {
        call_.Write(responses_.front());
        responses_.pop_front();
        return;
      }
      std::optional<absl::Status> end;
      const std::optional<StreamEvent> event = NextEvent(&end);
      if (event.has_value()) {
        for (v1::GenerateResponse& response : ToResponses(*event, job_->proto.request_id())) {
          responses_.push_back(std::move(response));
        }
      } else {
        if (end.has_value()) call_.Finish(*end);
        return;
      }
    }
  }

  // Chunks of one output that have queued up while a write was in flight become one.
  std::optional<StreamEvent> NextEvent(std::optional<absl::Status>* end) {
    std::optional<StreamEvent> event = std::exchange(next_event_, std::nullopt);
    if (!event.has_value()) event = job_->stream->Pop(end);
    auto* chunk = event.has_value() ? std::get_if<ChunkEvent>(&*event) : nullptr;
    for (std::size_t bytes = 0; chunk != nullptr && bytes < kMaxMergedBytes;) {
      std::optional<absl::Status> ignored;  // an end is told again by the next Pop
      next_event_ = job_->stream->Pop(&ignored);
      auto* next = next_event_.has_value() ? std::get_if<ChunkEvent>(&*next_event_) : nullptr;
      if (next == nullptr || next->output_index != chunk->output_index) break;
      bytes += EventBytes(*next_event_);
      chunk->text += next->text;
      chunk->token_ids.insert(chunk->token_ids.end(), next->token_ids.begin(),
                              next->token_ids.end());
      std::move(next->logprobs.begin(), next->logprobs.end(), std::back_inserter(chunk->logprobs));
      next_event_.reset();
    }
    return event;
  }

  Call& call_;
  const ServingState* state_;
  PreparePool* pool_;
  const std::shared_ptr<const std::string> tenant_metadata_;
  std::shared_ptr<GenerationJob> job_ = std::make_shared<GenerationJob>();
  bool given_to_pool_ = false;
  std::optional<StreamEvent> next_event_;       // taken, but not merged
  std::deque<v1::GenerateResponse> responses_;  // of one event
};

}  // namespace

RpcService MakeGenerationService(const ServingState* state, PreparePool* pool,
                                 std::string tenant_metadata) {
  RpcService service{kGenerationService, {}};
  service.methods.push_back(
      {"Generate",
       [state, pool, key = std::make_shared<const std::string>(std::move(tenant_metadata))](
           Call& call) -> std::unique_ptr<CallHandler> {
         return std::make_unique<GenerateHandler>(call, state, pool, key);
       }});
  service.methods.push_back(PooledUnary<v1::TokenizeRequest, v1::TokenizeResponse>(
      "Tokenize", pool,
      [state](const v1::TokenizeRequest& request, v1::TokenizeResponse* response) -> absl::Status {
        RETURN_IF_ERROR(state->CheckAccepting());
        ASSIGN_OR_RETURN(const auto model, state->Find(request.model()));
        ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                         Tokenize(request, *model, absl::Now()));
        response->set_model(model->info.name);
        response->mutable_token_ids()->Add(ids.begin(), ids.end());
        return CheckSize(*response, request.has_chat() ? "chat" : "text");
      }));
  service.methods.push_back(PooledUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      "Detokenize", pool,
      [state](const v1::DetokenizeRequest& request,
              v1::DetokenizeResponse* response) -> absl::Status {
        RETURN_IF_ERROR(state->CheckAccepting());
        ASSIGN_OR_RETURN(const auto model, state->Find(request.model()));
        ASSIGN_OR_RETURN(*response->mutable_text(), Detokenize(request, *model));
        response->set_model(model->info.name);
        return CheckSize(*response, "token_ids");
      }));
  return service;
}

}  // namespace nibble
