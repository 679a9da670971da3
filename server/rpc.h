// The gRPC server: completion queues of our own behind calls that read like reactors.
//
// Every method is raw (bytes in, bytes out) and registered as server-streaming: one kind of call
// serves unary and streaming methods alike, requests are parsed by us (a string that is no UTF-8 is
// INVALID_ARGUMENT, not the UNIMPLEMENTED of generated handlers), and no thread belongs to a
// request. gRPC 1.51's callback API is not used because it wakes late after an idle second;
// tests/bench/results/idle_latency.md has the figures.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/protobuf/message.h"
#include "grpcpp/alarm.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/support/async_stream.h"
#include "grpcpp/support/byte_buffer.h"
#include "runtime/engine/token_stream.h"

namespace nibble {

class Call;

// What a method does with one call. Owned by its Call. Every method runs on the one thread that
// serves the call's queue, must not block, and may call the Call's methods.
class CallHandler {
 public:
  virtual ~CallHandler() = default;
  virtual void OnRequest(const grpc::ByteBuffer& request) = 0;  // once, first
  virtual void OnWake() {}                                      // after Call::Wake, once or more
  virtual void OnWritten() {}  // the write in flight is done; another may start
  virtual void OnCancel() {}  // the client is gone or the deadline passed; the Call finishes itself
  // The call ends now with this status: once for every call, cancelled ones included.
  virtual void OnFinish(const absl::Status& status) { (void)status; }
};

// One RPC in progress. Owns itself until gRPC has let go of it. All methods but Wake belong to the
// queue's thread.
class Call final : public StreamWaker, public std::enable_shared_from_this<Call> {
 public:
  // Schedules OnWake on the queue's thread. Any thread; does nothing once the call has ended.
  void Wake() override;

  // Sends one message. REQUIRES: writable().
  void Write(const google::protobuf::MessageLite& message);
  bool writable() const { return !writing_ && !finishing_; }

  // Ends the call, after the write in flight. The first call wins. Without a message written
  // before, the answer is Trailers-Only, which client retry policies need.
  void Finish(const absl::Status& status);
  bool finishing() const { return finishing_; }

  // The client's deadline; InfiniteFuture when it set none.
  absl::Time deadline() const;
  // Whether the deadline has passed, or passes before the client's clock and ours could tell it
  // from a cancel.
  bool deadline_is_due() const;
  std::string peer() const;
  // What the client sent under this key.
  std::vector<std::string> metadata(absl::string_view key) const;
  std::weak_ptr<StreamWaker> waker() { return weak_from_this(); }

 private:
  friend class RpcServer;
  struct Method;
  struct Tag {
    Call* call;
    void (Call::*complete)(bool ok);
    std::shared_ptr<Call> pin;  // keeps the call while gRPC holds the tag
  };
  struct Rpc {  // what gRPC needs; given back on the queue's thread
    grpc::ServerContext context;
    grpc::ServerAsyncWriter<grpc::ByteBuffer> writer{&context};
    grpc::ByteBuffer request;
  };

  Call(class RpcServer* server, std::size_t method, std::size_t queue);
  static void Accept(RpcServer* server, std::size_t method, std::size_t queue);
  static void Complete(void* tag, bool ok);

  void OnAccepted(bool ok);
  void OnDone(bool ok);
  void OnWriteDone(bool ok);
  void OnFinished(bool ok);
  void OnWakeDone(bool ok);
  void OnClientGone();
  void SendStatus();
  void EndIfOver();

  RpcServer* const server_;
  const std::size_t method_, queue_;
  std::unique_ptr<Rpc> rpc_ = std::make_unique<Rpc>();
  std::unique_ptr<CallHandler> handler_;
  bool writing_ = false, finishing_ = false, status_sent_ = false;
  bool finished_ = false, done_ = false, gone_ = false;
  absl::Status status_;
  Tag accept_tag_{this, &Call::OnAccepted, nullptr};
  Tag done_tag_{this, &Call::OnDone, nullptr};
  Tag write_tag_{this, &Call::OnWriteDone, nullptr};
  Tag finish_tag_{this, &Call::OnFinished, nullptr};
  Tag wake_tag_{this, &Call::OnWakeDone, nullptr};

  std::mutex wake_mutex_;  // guards what follows
  bool wake_pending_ = false;
  bool ended_ = false;
  grpc::Alarm alarm_;
};

struct RpcMethod {
  std::string name;  // "Generate"
  std::function<std::unique_ptr<CallHandler>(Call&)> handler;
};
struct RpcService {
  std::string name;  // "nibble.v1.GenerationService"
  std::vector<RpcMethod> methods;
};

struct RpcServerOptions {
  std::string listen;  // HOST:PORT or unix:PATH; port 0 picks one
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::optional<absl::Duration> max_connection_age;
  int queues = 2;  // threads that serve calls
};

// One listening port, its services and its threads. Start and Shutdown belong to one thread.
class RpcServer {
 public:
  // Unavailable when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcServerOptions& options,
                                                          std::vector<RpcService> services);
  ~RpcServer();  // Shutdown(now), unless it has been

  // HOST:PORT with the port that was bound, or unix:PATH.
  const std::string& address() const { return address_; }

  // Accepts nothing more, lets calls end until the deadline, cancels the rest, joins.
  void Shutdown(absl::Time deadline);

 private:
  friend class Call;
  class RawService;

  RpcServer() = default;
  void Serve(grpc::ServerCompletionQueue* queue);
  void CallBegan();
  void CallEnded();

  struct Entry {
    RawService* service;
    int index;
    RpcMethod method;
  };
  std::string address_;
  std::vector<std::unique_ptr<RawService>> services_;
  std::vector<Entry> methods_;
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::thread> threads_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable all_ended_;
  int live_calls_ = 0;
};

// The message of a request, or InvalidArgument that names the field where the bytes go wrong.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

// What goes into grpc-status, grpc-message and grpc-status-details-bin.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace nibble
