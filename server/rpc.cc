#include "server/rpc.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/engine/served_model.h"
#include "server/errors.h"

namespace nibble {
namespace {

constexpr int kMaxRequestBytes = 4 << 20;
constexpr int kMaxConcurrentStreams = 1024;  // of one connection
// A proxy that lets larger headers through would let one client harm the others: gRPC 1.51 drops
// what exceeds this without keeping the header compression state that the connection's streams
// share.
constexpr int kMaxMetadataBytes = 32 << 10;
constexpr int kMaxReflectionThreads = 256;  // the reflection service is synchronous
constexpr int kKeepaliveTimeMs =
    30'000;  // a half-open connection is closed after this and the timeout
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinClientPingIntervalMs = 5'000;
constexpr absl::Duration kDeadlineSlack = absl::Milliseconds(20);

}  // namespace

// Registers methods by name, without generated code behind them.
class RpcServer::RawService final : public grpc::Service {
 public:
  // `paths` must outlive this: gRPC keeps the pointers.
  explicit RawService(std::vector<std::string> paths) : paths_(std::move(paths)) {
    for (std::size_t i = 0; i < paths_.size(); ++i) {
      AddMethod(new grpc::internal::RpcServiceMethod(
          paths_[i].c_str(), grpc::internal::RpcMethod::SERVER_STREAMING, nullptr));
      MarkMethodRaw(static_cast<int>(i));
    }
  }
  void Request(int index, grpc::ServerContext* context, grpc::ByteBuffer* request,
               grpc::ServerAsyncWriter<grpc::ByteBuffer>* writer,
               grpc::ServerCompletionQueue* queue, void* tag) {
    RequestAsyncServerStreaming(index, context, request, writer, queue, queue, tag);
  }

 private:
  const std::vector<std::string> paths_;
};

Call::Call(RpcServer* server, std::size_t method, std::size_t queue)
    : server_(server), method_(method), queue_(queue) {}

void Call::Accept(RpcServer* server, std::size_t method, std::size_t queue) {
  const std::shared_ptr<Call> call(new Call(server, method, queue));
  call->accept_tag_.pin = call;
  call->rpc_->context.AsyncNotifyWhenDone(&call->done_tag_);
  const RpcServer::Entry& entry = server->methods_[method];
  entry.service->Request(entry.index, &call->rpc_->context, &call->rpc_->request,
                         &call->rpc_->writer, server->queues_[queue].get(), &call->accept_tag_);
}

void Call::Complete(void* tag, bool ok) {
  auto* completed = static_cast<Tag*>(tag);
  Call& call = *completed->call;
  std::shared_ptr<Call> pin;
  {
    // Other threads set the pin of a wake. gRPC's queue orders that too, but no race detector sees
    // into it.
    const std::lock_guard lock(call.wake_mutex_);
    pin = std::move(completed->pin);
  }
  (call.*completed->complete)(ok);
}

void Call::OnAccepted(bool ok) {
  if (!ok) return;  // the server is shutting down; the done tag never comes
  server_->CallBegan();
  done_tag_.pin = shared_from_this();
  Accept(server_, method_, queue_);
  handler_ = server_->methods_[method_].method.handler(*this);
  handler_->OnRequest(rpc_->request);
  rpc_->request.Clear();
}

void Call::Write(const google::protobuf::MessageLite& message) {
  const std::size_t size = message.ByteSizeLong();
  grpc::Slice slice(size);
  message.SerializeWithCachedSizesToArray(const_cast<std::uint8_t*>(slice.begin()));
  const grpc::ByteBuffer bytes(&slice, 1);
  writing_ = true;
  write_tag_.pin = shared_from_this();
  rpc_->writer.Write(bytes, &write_tag_);
}

void Call::Finish(const absl::Status& status) {
  if (finishing_) return;
  finishing_ = true;
  status_ = status;
  if (handler_ != nullptr) handler_->OnFinish(status_);
  if (!writing_) SendStatus();
}

void Call::SendStatus() {
  status_sent_ = true;
  if (const auto delay = RetryOf(status_)) {
    rpc_->context.AddTrailingMetadata("grpc-retry-pushback-ms",
                                      absl::StrCat(absl::ToInt64Milliseconds(*delay)));
  }
  finish_tag_.pin = shared_from_this();
  rpc_->writer.Finish(ToGrpcStatus(status_), &finish_tag_);
}

void Call::OnWriteDone(bool ok) {
  writing_ = false;
  if (!ok) OnClientGone();
  if (finishing_) {
    if (!status_sent_) SendStatus();
  } else {
    handler_->OnWritten();
  }
}

void Call::OnFinished(bool) {
  finished_ = true;
  EndIfOver();
}

void Call::OnDone(bool) {
  done_ = true;
  if (rpc_->context.IsCancelled()) OnClientGone();
  EndIfOver();
}

void Call::OnClientGone() {
  if (gone_ || finished_) return;
  gone_ = true;
  if (finishing_) return;
  handler_->OnCancel();
  Finish(deadline_is_due()
             ? WithReason(absl::DeadlineExceededError("the call's deadline has passed"), "DEADLINE")
             : WithReason(absl::CancelledError("the client cancelled the call"), "CANCELLED"));
}

void Call::Wake() {
  const std::lock_guard lock(wake_mutex_);
  if (wake_pending_ || ended_) return;
  wake_pending_ = true;
  wake_tag_.pin = shared_from_this();
  // An alarm that is due puts its tag on the queue: gRPC's way to run something on the queue's
  // thread.
  alarm_.Set(server_->queues_[queue_].get(), gpr_time_0(GPR_CLOCK_MONOTONIC), &wake_tag_);
}

void Call::OnWakeDone(bool) {
  {
    const std::lock_guard lock(wake_mutex_);
    wake_pending_ = false;
  }
  if (!finishing_ && handler_ != nullptr) handler_->OnWake();
  EndIfOver();
}

// gRPC's objects go back here, on the queue's thread, whoever else still holds the call.
void Call::EndIfOver() {
  if (!finished_ || !done_) return;
  {
    const std::lock_guard lock(wake_mutex_);
    if (wake_pending_ || ended_) return;
    ended_ = true;
  }
  handler_.reset();
  rpc_.reset();
  server_->CallEnded();
}

absl::Time Call::deadline() const {
  const auto deadline = rpc_->context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

bool Call::deadline_is_due() const { return deadline() <= absl::Now() + kDeadlineSlack; }

std::string Call::peer() const { return rpc_->context.peer(); }

std::vector<std::string> Call::metadata(absl::string_view key) const {
  std::vector<std::string> values;
  const auto range =
      rpc_->context.client_metadata().equal_range(grpc::string_ref(key.data(), key.size()));
  for (auto entry = range.first; entry != range.second; ++entry)
    values.emplace_back(entry->second.data(), entry->second.size());
  return values;
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcServerOptions& options,
                                                            std::vector<RpcService> services) {
  std::unique_ptr<RpcServer> server(new RpcServer);
  grpc::ServerBuilder builder;
  for (RpcService& service : services) {
    std::vector<std::string> paths;
    for (const RpcMethod& method : service.methods)
      paths.push_back(absl::StrCat("/", service.name, "/", method.name));
    server->services_.push_back(std::make_unique<RawService>(std::move(paths)));
    for (std::size_t i = 0; i < service.methods.size(); ++i) {
      server->methods_.push_back(
          {server->services_.back().get(), static_cast<int>(i), std::move(service.methods[i])});
    }
    builder.RegisterService(server->services_.back().get());
  }
  int port = 0;
  builder.AddListeningPort(options.listen, options.credentials, &port);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  // A compressed message is inflated before its size is checked, so four megabytes could become
  // four gigabytes.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                             0);  // a second daemon on the port is an error
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxConcurrentStreams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingIntervalMs);
  if (options.max_connection_age.has_value()) {
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONNECTION_AGE_MS,
        static_cast<int>(absl::ToInt64Milliseconds(*options.max_connection_age)));
  }
  grpc::ResourceQuota quota("nibble");
  quota.SetMaxThreads(kMaxReflectionThreads);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  for (int i = 0; i < options.queues; ++i) server->queues_.push_back(builder.AddCompletionQueue());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || port == 0) {
    server->server_.reset();
    server->queues_.clear();
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", options.listen, ": the address is in use, unknown or not permitted"));
  }
  server->address_ = options.listen;
  if (!absl::StartsWith(options.listen, "unix:")) {
    server->address_ = absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port);
  }
  for (std::size_t queue = 0; queue < server->queues_.size(); ++queue) {
    for (std::size_t method = 0; method < server->methods_.size(); ++method) {
      Call::Accept(server.get(), method, queue);
    }
    server->threads_.emplace_back(
        [raw = server.get(), queue] { raw->Serve(raw->queues_[queue].get()); });
  }
  return server;
}

void RpcServer::Serve(grpc::ServerCompletionQueue* queue) {
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) Call::Complete(tag, ok);
}

void RpcServer::CallBegan() {
  const std::lock_guard lock(mutex_);
  ++live_calls_;
}

void RpcServer::CallEnded() {
  const std::lock_guard lock(mutex_);
  if (--live_calls_ == 0) all_ended_.notify_all();
}

void RpcServer::Shutdown(absl::Time deadline) {
  if (server_ == nullptr) return;
  server_->Shutdown(absl::ToChronoTime(deadline));
  {
    // A queue must not be shut down before the last call stops setting alarms on it.
    std::unique_lock lock(mutex_);
    all_ended_.wait(lock, [this] { return live_calls_ == 0; });
  }
  for (const auto& queue : queues_) queue->Shutdown();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  server_.reset();
}

RpcServer::~RpcServer() { Shutdown(absl::Now()); }

absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (bytes.Dump(&slices).ok()) {
    flat.reserve(bytes.Length());
    for (const grpc::Slice& slice : slices)
      flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  if (message->ParseFromString(flat)) return absl::OkStatus();
  return MalformedMessage(*message->GetDescriptor(), flat);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(rpc.code()), rpc.message(),
                      rpc.SerializeAsString());
}

}  // namespace nibble
