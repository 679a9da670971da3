#include "server/cli/answer_source.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "server/cli/client.h"
#include "server/wire.h"
#include "server/wire_response.h"

namespace nibble {
namespace {

// The terminal may be slow, or held; an answer of this size is more than people wait for.
constexpr std::size_t kMaxStreamBytes = 64 << 20;

class ServerAnswer final : public AnswerSource {
 public:
  ServerAnswer(const std::shared_ptr<grpc::Channel>& channel, const v1::GenerateRequest& request,
               absl::Duration timeout)
      : stub_(v1::GenerationService::NewStub(channel)) {
    SetDeadline(context_, timeout);
    reader_ = stub_->Generate(&context_, request);
  }

  bool Next(v1::GenerateResponse* response) override { return reader_->Read(response); }
  absl::Status Finish() override { return FromGrpc(reader_->Finish()); }
  void Cancel() override { context_.TryCancel(); }

 private:
  const std::unique_ptr<v1::GenerationService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
};

class ModelAnswer final : public AnswerSource {
 public:
  ModelAnswer(std::shared_ptr<const ServedModel> model, const v1::GenerateRequest& request,
              absl::Duration timeout)
      : model_(std::move(model)), request_id_(request.request_id()) {
    stream_->SetWaker(signal_);
    end_ = Submit(request, timeout);
    if (end_->ok()) end_.reset();
  }

  bool Next(v1::GenerateResponse* response) override {
    while (responses_.empty()) {
      if (end_.has_value()) return false;
      const std::optional<StreamEvent> event = stream_->Pop(&end_);
      if (event.has_value()) {
        for (v1::GenerateResponse& one : ToResponses(*event, request_id_))
          responses_.push_back(std::move(one));
      } else if (!end_.has_value()) {
        signal_->Wait();
      }
    }
    *response = std::move(responses_.front());
    responses_.pop_front();
    return true;
  }
  absl::Status Finish() override { return *end_; }
  void Cancel() override { stream_->Cancel(); }

 private:
  absl::Status Submit(const v1::GenerateRequest& proto, absl::Duration timeout) {
    ASSIGN_OR_RETURN(Request request, ValidateGenerate(proto, *model_));
    ASSIGN_OR_RETURN(request.prompt, PreparePrompt(proto, *model_, absl::Now()));
    request.deadline = absl::Now() + timeout;
    return model_->Submit(std::move(request), stream_);
  }

  const std::shared_ptr<const ServedModel> model_;
  const std::string request_id_;
  const std::shared_ptr<StreamSignal> signal_ = std::make_shared<StreamSignal>();
  const std::shared_ptr<TokenStream> stream_ = std::make_shared<TokenStream>(kMaxStreamBytes);
  std::deque<v1::GenerateResponse> responses_;  // of one event
  std::optional<absl::Status> end_;
};

}  // namespace

void StreamSignal::Wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  woken_now_.notify_one();
}

void StreamSignal::Wait() {
  std::unique_lock lock(mutex_);
  woken_now_.wait(lock, [this] { return woken_; });
  woken_ = false;
}

std::unique_ptr<AnswerSource> AskServer(const std::shared_ptr<grpc::Channel>& channel,
                                        const v1::GenerateRequest& request,
                                        absl::Duration timeout) {
  return std::make_unique<ServerAnswer>(channel, request, timeout);
}

std::unique_ptr<AnswerSource> AskModel(std::shared_ptr<const ServedModel> model,
                                       const v1::GenerateRequest& request, absl::Duration timeout) {
  return std::make_unique<ModelAnswer>(std::move(model), request, timeout);
}

}  // namespace nibble
