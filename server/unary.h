// Handlers of methods that answer once.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "server/prepare_pool.h"
#include "server/rpc.h"

namespace nibble {

template <typename Request, typename Response>
using UnaryFunction = std::function<absl::Status(const Request&, Response*)>;

// Answers on the gRPC thread: for methods that only look something up.
template <typename Request, typename Response>
class UnaryHandler final : public CallHandler {
 public:
  UnaryHandler(Call& call, const UnaryFunction<Request, Response>& function)
      : call_(call), function_(function) {}

  void OnRequest(const grpc::ByteBuffer& bytes) override {
    Request request;
    Response response;
    absl::Status status = ParseRequest(bytes, &request);
    if (status.ok()) status = function_(request, &response);
    if (status.ok()) call_.Write(response);
    call_.Finish(status);
  }

 private:
  Call& call_;
  const UnaryFunction<Request, Response>& function_;
};

// Answers from a pool's thread: for methods that tokenize or read files. The function runs to its
// end even when the client has gone.
template <typename Request, typename Response>
class PooledUnaryHandler final : public CallHandler {
 public:
  PooledUnaryHandler(Call& call, PreparePool* pool,
                     const UnaryFunction<Request, Response>& function)
      : call_(call), pool_(pool), function_(function) {}

  void OnRequest(const grpc::ByteBuffer& bytes) override {
    absl::Status status = ParseRequest(bytes, &work_->request);
    if (status.ok()) {
      status = pool_->Submit([work = work_, function = function_, waker = call_.waker()] {
        absl::Status result = function(work->request, &work->response);
        {
          const std::lock_guard lock(work->mutex);
          work->result = std::move(result);
        }
        if (const auto waking = waker.lock()) waking->Wake();
      });
    }
    if (!status.ok()) call_.Finish(status);
  }

  void OnWake() override {
    std::optional<absl::Status> result;
    {
      const std::lock_guard lock(work_->mutex);
      result = work_->result;
    }
    if (!result.has_value()) return;
    if (result->ok()) call_.Write(work_->response);
    call_.Finish(*result);
  }

 private:
  struct Work {
    Request request;
    Response response;
    std::mutex mutex;  // guards result; once it is there, the pool no longer touches the rest
    std::optional<absl::Status> result;
  };
  Call& call_;
  PreparePool* pool_;
  const UnaryFunction<Request, Response>& function_;
  const std::shared_ptr<Work> work_ = std::make_shared<Work>();
};

template <typename Request, typename Response>
RpcMethod Unary(std::string name, UnaryFunction<Request, Response> function) {
  return {std::move(name),
          [function = std::move(function)](Call& call) -> std::unique_ptr<CallHandler> {
            return std::make_unique<UnaryHandler<Request, Response>>(call, function);
          }};
}

template <typename Request, typename Response>
RpcMethod PooledUnary(std::string name, PreparePool* pool,
                      UnaryFunction<Request, Response> function) {
  return {std::move(name),
          [pool, function = std::move(function)](Call& call) -> std::unique_ptr<CallHandler> {
            return std::make_unique<PooledUnaryHandler<Request, Response>>(call, pool, function);
          }};
}

}  // namespace nibble
