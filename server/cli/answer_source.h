// An answer as it comes, from a daemon or from a model in this process.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "nibble/v1/generation.grpc.pb.h"
#include "runtime/engine/served_model.h"
#include "runtime/engine/token_stream.h"

namespace nibble {

// Lets a thread wait for streams to have something new. Any thread.
class StreamSignal final : public StreamWaker {
 public:
  void Wake() override;
  // Returns once Wake was called since the last return.
  void Wait();

 private:
  std::mutex mutex_;  // guards woken_
  std::condition_variable woken_now_;
  bool woken_ = false;
};

// One reader's thread; Cancel from any.
class AnswerSource {
 public:
  virtual ~AnswerSource() = default;
  // Waits for the next event. False: there are no more, and Finish says why.
  virtual bool Next(v1::GenerateResponse* response) = 0;
  virtual absl::Status Finish() = 0;
  virtual void Cancel() = 0;
};

// From a daemon. `timeout` may be infinite.
std::unique_ptr<AnswerSource> AskServer(const std::shared_ptr<grpc::Channel>& channel,
                                        const v1::GenerateRequest& request, absl::Duration timeout);

// From a model that is loaded here, through the validator that stands behind the daemon's door.
// What it refuses, Finish tells.
std::unique_ptr<AnswerSource> AskModel(std::shared_ptr<const ServedModel> model,
                                       const v1::GenerateRequest& request, absl::Duration timeout);

}  // namespace nibble
