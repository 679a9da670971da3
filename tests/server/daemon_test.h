// A whole daemon over a tiny model in the test's process, and C++ clients for it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "nibble/v1/admin.grpc.pb.h"
#include "nibble/v1/generation.grpc.pb.h"
#include "nibble/v1/models.grpc.pb.h"
#include "server/daemon.h"
#include "server/options.h"
#include "tests/server/http_client.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {

// What a google.rpc.Status in the trailers said.
struct ErrorDetails {
  std::string reason;
  std::vector<std::string> fields;
  bool retry = false;
};

inline ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status rpc;
  rpc.ParseFromString(status.error_details());
  EXPECT_EQ(rpc.code(), static_cast<int>(status.error_code()));
  for (const auto& any : rpc.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) details.reason = info.reason();
    if (any.UnpackTo(&retry)) details.retry = true;
    if (any.UnpackTo(&bad_request)) {
      for (const auto& violation : bad_request.field_violations())
        details.fields.push_back(violation.field());
    }
  }
  return details;
}

class DaemonTest : public ::testing::Test {
 protected:
  void TearDown() override { daemon_.reset(); }

  // Writes a tiny model and names its directory.
  std::string MakeModel(const std::string& name, const TinyModelOptions& options = {}) {
    WriteTinyModel(models_.File(name), options);
    return models_.File(name);
  }

  // A daemon on ports of its own; `flags` come after those every test needs.
  void Open(std::vector<std::string> flags) {
    std::vector<std::string> arguments{"--listen=127.0.0.1:0",
                                       "--http=127.0.0.1:0",
                                       "--admin-listen=127.0.0.1:0",
                                       "--model-root=" + models_.path(),
                                       "--device=cpu",
                                       "--threads=1",
                                       "--compute=f32",
                                       "--kv-memory=64MiB",
                                       "--drain-timeout=20s"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const auto options = ParseServeOptions(arguments, {});
    ASSERT_TRUE(options.ok()) << options.status();
    options_ = *options;
    daemon_ = std::make_unique<Daemon>(options_);
    const absl::Status started = daemon_->Start();
    ASSERT_TRUE(started.ok()) << started;
    channel_ = Connect(daemon_->grpc_address());
    generation_ = v1::GenerationService::NewStub(channel_);
    models_stub_ = v1::ModelService::NewStub(channel_);
    health_ = grpc::health::v1::Health::NewStub(channel_);
    admin_ = v1::AdminService::NewStub(Connect(daemon_->admin_address()));
  }

  // With the model `tiny` loaded.
  void Serve(std::vector<std::string> flags = {}) {
    flags.push_back("tiny=" + MakeModel("tiny"));
    ASSERT_NO_FATAL_FAILURE(Open(std::move(flags)));
    const absl::Status loaded = daemon_->LoadModels(nullptr);
    ASSERT_TRUE(loaded.ok()) << loaded;
  }

  static std::shared_ptr<grpc::Channel> Connect(const std::string& address,
                                                const grpc::ChannelArguments& arguments = {}) {
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }

  static v1::GenerateRequest Ask(const std::string& text, std::uint32_t max_tokens) {
    v1::GenerateRequest request;
    request.set_text(text);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(max_tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    return request;
  }

  struct Answer {
    grpc::Status status;
    std::vector<v1::GenerateResponse> events;
    std::string text;  // of all chunks
    std::vector<std::uint32_t> token_ids;
  };

  // Reads a stream to its end. `on_event` may cancel the context.
  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext* context,
                  const std::function<void(const v1::GenerateResponse&)>& on_event = nullptr) {
    Answer answer;
    const auto reader = generation_->Generate(context, request);
    for (v1::GenerateResponse event; reader->Read(&event);) {
      answer.text += event.chunk().text();
      for (const std::uint32_t id : event.chunk().token_ids()) answer.token_ids.push_back(id);
      answer.events.push_back(event);
      if (on_event) on_event(event);
    }
    answer.status = reader->Finish();
    return answer;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, &context);
  }

  // One sample of /metrics: "name{labels}" as the text format spells it; -1 when it is not there.
  double Metric(const std::string& series) {
    const std::string page = Get(daemon_->http_address(), "/metrics");
    const std::size_t at = page.find("\n" + series + " ");
    return at == std::string::npos ? -1 : std::stod(page.substr(at + series.size() + 2));
  }

  // Waits for what another thread brings about; false after ten seconds.
  static bool Eventually(const std::function<bool()>& condition) {
    for (const absl::Time end = absl::Now() + absl::Seconds(10); absl::Now() < end;) {
      if (condition()) return true;
      absl::SleepFor(absl::Milliseconds(2));
    }
    return false;
  }

  // No KV block is held by a sequence.
  bool AllBlocksFree() { return Metric("nibble_kv_blocks{model=\"tiny\",state=\"used\"}") == 0; }

  TempDir models_;
  ServeOptions options_;
  std::unique_ptr<Daemon> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> models_stub_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace nibble
