// A daemon's life: loading, health, reflection, administration, replacing under load, draining.
#include <atomic>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>

#include "grpcpp/generic/generic_stub.h"
#include "tests/server/daemon_test.h"

namespace nibble {
namespace {

using ::grpc::health::v1::HealthCheckRequest;
using ::grpc::health::v1::HealthCheckResponse;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class LifeTest : public DaemonTest {
 protected:
  // SERVICE_UNKNOWN for NOT_FOUND.
  HealthCheckResponse::ServingStatus Health(const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    grpc::ClientContext context;
    const grpc::Status status = health_->Check(&context, request, &response);
    if (status.error_code() == grpc::StatusCode::NOT_FOUND)
      return HealthCheckResponse::SERVICE_UNKNOWN;
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }

  struct LoadResult {
    grpc::Status status;
    std::vector<std::string> stages;
    v1::Model model;
  };
  LoadResult Load(const std::string& name, const std::string& path, v1::ReplacePolicy policy = {}) {
    v1::LoadModelRequest request;
    request.set_name(name);
    request.set_path(path);
    request.set_replace_policy(policy);
    grpc::ClientContext context;
    LoadResult result;
    const auto reader = admin_->LoadModel(&context, request);
    for (v1::LoadModelResponse response; reader->Read(&response);) {
      if (response.has_progress()) result.stages.push_back(response.progress().stage());
      if (response.has_model()) result.model = response.model();
    }
    result.status = reader->Finish();
    return result;
  }

  grpc::Status Unload(const std::string& name) {
    v1::UnloadModelRequest request;
    request.set_name(name);
    v1::UnloadModelResponse response;
    grpc::ClientContext context;
    return admin_->UnloadModel(&context, request, &response);
  }

  std::vector<std::string> ListedModels() {
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    EXPECT_TRUE(models_stub_->ListModels(&context, {}, &response).ok());
    std::vector<std::string> names;
    for (const v1::Model& model : response.models()) names.push_back(model.name());
    return names;
  }
};

TEST_F(LifeTest, HealthFollowsTheModels) {
  ASSERT_NO_FATAL_FAILURE(Open({"tiny=" + MakeModel("tiny")}));
  EXPECT_EQ(Health(""), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Health("live"), HealthCheckResponse::SERVING);
  EXPECT_EQ(Health("tiny"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Health("nibble.v1.GenerationService"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Health("nibble.v1.ModelService"), HealthCheckResponse::SERVING);
  EXPECT_EQ(Health("absent"), HealthCheckResponse::SERVICE_UNKNOWN);
  EXPECT_THAT(Get(daemon_->http_address(), "/readyz"), StartsWith("HTTP/1.1 503"));

  ASSERT_TRUE(daemon_->LoadModels(nullptr).ok());

  for (const char* service :
       {"", "live", "tiny", "nibble.v1.GenerationService", "grpc.health.v1.Health"}) {
    EXPECT_EQ(Health(service), HealthCheckResponse::SERVING) << service;
  }
  EXPECT_THAT(Get(daemon_->http_address(), "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get(daemon_->http_address(), "/status"), HasSubstr("\"tiny\""));
}

TEST_F(LifeTest, HealthKnowsAdminServiceWhereItIsServed) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  EXPECT_EQ(Health("nibble.v1.AdminService"), HealthCheckResponse::SERVING);
  ASSERT_NO_FATAL_FAILURE(Serve({"--admin-listen="}));
  EXPECT_EQ(Health("nibble.v1.AdminService"), HealthCheckResponse::SERVICE_UNKNOWN);
}

TEST_F(LifeTest, WatchTellsEachChange) {
  ASSERT_NO_FATAL_FAILURE(Open({"tiny=" + MakeModel("tiny")}));
  HealthCheckRequest ready, unknown;
  unknown.set_service("later");
  grpc::ClientContext first, second;
  const auto watch = health_->Watch(&first, ready);
  const auto watch_unknown = health_->Watch(&second, unknown);
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  ASSERT_TRUE(watch_unknown->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);

  ASSERT_TRUE(daemon_->LoadModels(nullptr).ok());
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);

  ASSERT_TRUE(Load("later", "tiny").status.ok());
  do {
    ASSERT_TRUE(watch_unknown->Read(&response));
  } while (response.status() == HealthCheckResponse::NOT_SERVING);  // while it loads
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);

  daemon_->Stop();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  daemon_.reset();
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// One exchange with the reflection service, whose stubs Debian does not ship. `field` is the
// request's: 4 is file_containing_symbol, 7 list_services.
std::string Reflect(const std::shared_ptr<grpc::Channel>& channel, int field,
                    const std::string& value) {
  const std::string bytes{static_cast<char>(field << 3 | 2), static_cast<char>(value.size())};
  const grpc::Slice slice(bytes + value);
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto next = [&queue] {
    void* tag;
    bool ok = false;
    queue.Next(&tag, &ok);
    return ok;
  };
  call->StartCall(nullptr);
  next();
  call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
  next();
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  std::string text;
  std::vector<grpc::Slice> slices;
  if (next() && response.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices)
      text.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  return text;
}

TEST_F(LifeTest, ReflectionListsAndDescribes) {
  ASSERT_NO_FATAL_FAILURE(Open({}));
  const std::string services = Reflect(channel_, 7, "*");
  for (const char* name :
       {"nibble.v1.GenerationService", "nibble.v1.ModelService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(services, HasSubstr(name));
  }
  EXPECT_THAT(services, ::testing::Not(HasSubstr("nibble.v1.AdminService")));
  EXPECT_THAT(Reflect(channel_, 4, "grpc.health.v1.Health"), HasSubstr("HealthCheckRequest"));
  EXPECT_THAT(Reflect(channel_, 4, "nibble.v1.GenerationService"), HasSubstr("logit_bias"));
}

TEST_F(LifeTest, AdminServiceIsOnItsOwnPortOnly) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const auto stub = v1::AdminService::NewStub(channel_);
  grpc::ClientContext context;
  v1::PlanLoadResponse response;
  EXPECT_EQ(stub->PlanLoad(&context, {}, &response).error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(LifeTest, AdministratorsPlanLoadAndUnload) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  MakeModel("other", {.seed = 2});
  v1::PlanLoadRequest plan;
  plan.set_path("other");
  plan.mutable_options()->set_max_context(512);
  v1::PlanLoadResponse planned;
  grpc::ClientContext context;
  const grpc::Status status = admin_->PlanLoad(&context, plan, &planned);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(planned.plan().max_context(), 512u);
  EXPECT_GT(planned.plan().weights_bytes(), 0);

  const LoadResult loaded = Load("", "other");
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.error_message();
  EXPECT_EQ(loaded.model.name(), "other");
  EXPECT_EQ(loaded.model.state(), v1::MODEL_STATE_SERVING);
  EXPECT_THAT(ListedModels(), ::testing::ElementsAre("tiny", "other"));
  v1::GenerateRequest request = Ask("hi", 3);
  request.set_model("other");
  EXPECT_TRUE(Generate(request).status.ok());

  const LoadResult again = Load("other", "other");
  EXPECT_EQ(again.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);

  ASSERT_TRUE(Unload("other").ok());
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Unload("other").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Unload("").error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  ASSERT_TRUE(Unload("tiny").ok());  // on purpose, so the daemon is no less ready
  EXPECT_EQ(Health(""), HealthCheckResponse::SERVING);
  EXPECT_THAT(ListedModels(), ::testing::IsEmpty());
}

TEST_F(LifeTest, AnUnloadWaitsForATimeWithinADay) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  for (const auto& [seconds, nanos] :
       {std::pair{std::int64_t{-1}, 0}, {86401, 0}, {INT64_MIN, 0}, {5, INT32_MIN}}) {
    v1::UnloadModelRequest request;
    request.set_name("tiny");
    request.mutable_drain_timeout()->set_seconds(seconds);
    request.mutable_drain_timeout()->set_nanos(nanos);
    v1::UnloadModelResponse response;
    grpc::ClientContext context;
    const grpc::Status status = admin_->UnloadModel(&context, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << seconds << " " << nanos;
    EXPECT_THAT(DetailsOf(status).fields, ::testing::ElementsAre("drain_timeout"));
  }
  EXPECT_TRUE(Generate(Ask("hi", 2)).status.ok());
}

TEST_F(LifeTest, AdministratorsStayBelowTheModelRoot) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  for (const char* path : {"/etc", "../", "/", "tiny/../../x"}) {
    const LoadResult result = Load("x", path);
    EXPECT_EQ(result.status.error_code(), grpc::StatusCode::PERMISSION_DENIED) << path;
    EXPECT_EQ(DetailsOf(result.status).reason, "PATH_NOT_ALLOWED") << path;
  }
  EXPECT_EQ(Load("x", "absent").status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Load("-x", "tiny").status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Load("nibble.v1.GenerationService", "tiny").status.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(ListedModels(), ::testing::ElementsAre("tiny"));
}

TEST_F(LifeTest, NoFileOfACheckpointMayLeadOutOfTheModelRoot) {
  namespace fs = std::filesystem;
  ASSERT_NO_FATAL_FAILURE(Serve());
  const TempDir outside;
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json",
                           "tokenizer_config.json", "generation_config.json"}) {
    SCOPED_TRACE(file);
    fs::remove_all(models_.File("linked"));
    MakeModel("linked");
    if (fs::exists(models_.File("linked/") + file)) {
      fs::rename(models_.File("linked/") + file, outside.File(file));
    } else {
      outside.Write(file, "{}");
    }
    fs::create_symlink(outside.File(file), models_.File("linked/") + file);
    for (const char* path : {"linked", "linked/model.safetensors"}) {
      const LoadResult result = Load("linked", path);
      EXPECT_EQ(result.status.error_code(), grpc::StatusCode::PERMISSION_DENIED) << path;
      EXPECT_EQ(DetailsOf(result.status).reason, "PATH_NOT_ALLOWED") << path;
      EXPECT_THAT(result.status.error_message(), HasSubstr(file)) << path;
    }
    // The same link is no obstacle where it stays inside.
    fs::remove(models_.File("linked/") + file);
    fs::create_directory(models_.File("blobs"));
    fs::copy_file(outside.File(file), models_.File("blobs/0123"),
                  fs::copy_options::overwrite_existing);
    fs::create_symlink("../blobs/0123", models_.File("linked/") + file);
    for (const char* path : {"linked", "linked/model.safetensors"}) {
      const LoadResult result = Load("linked", path);
      EXPECT_TRUE(result.status.ok()) << path << ": " << result.status.error_message();
      EXPECT_TRUE(Unload("linked").ok());
    }
  }
}

TEST_F(LifeTest, ABrokenCheckpointIsRefusedAndNothingElseSuffers) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  std::filesystem::create_directory(models_.File("broken"));
  models_.Write("broken/config.json", "{\"architectures\": [\"LlamaForCausalLM\"]}");
  EXPECT_FALSE(Load("broken", "broken").status.ok());
  EXPECT_TRUE(Generate(Ask("hi", 2)).status.ok());
  EXPECT_EQ(Health(""), HealthCheckResponse::SERVING);
}

TEST_F(LifeTest, ReplacingUnderLoadLosesNoRequest) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  MakeModel("second", {.seed = 2});
  const std::string before = Generate(Ask("prompt", 40)).text;
  std::atomic<bool> stop{false};
  std::atomic<int> answered{0};
  std::vector<std::thread> clients;
  std::mutex mutex;
  std::set<std::string> texts;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back([&] {
      while (!stop) {
        const Answer answer = Generate(Ask("prompt", 40));
        EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
        ++answered;
        const std::lock_guard lock(mutex);
        texts.insert(answer.text);
      }
    });
  }
  EXPECT_TRUE(Eventually([&] { return answered > 5; }));

  const LoadResult loaded = Load("tiny", "second", v1::REPLACE_POLICY_LOAD_THEN_DRAIN);

  EXPECT_TRUE(loaded.status.ok()) << loaded.status.error_message();
  const int at_switch = answered;
  EXPECT_TRUE(Eventually([&] { return answered > at_switch + 5; }));
  stop = true;
  for (std::thread& client : clients) client.join();
  const std::string after = Generate(Ask("prompt", 40)).text;
  EXPECT_NE(before, after);
  EXPECT_EQ(texts, (std::set<std::string>{before, after}));  // each answer is one model's alone
}

TEST_F(LifeTest, DrainRefusesNewWorkAndFinishesTheOld) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Ask("hello", 400));
  v1::GenerateResponse event;
  ASSERT_TRUE(running->Read(&event));

  std::thread drain([this] { daemon_->Drain(absl::Seconds(30)); });
  ASSERT_TRUE(Eventually([this] { return Health("") == HealthCheckResponse::NOT_SERVING; }));
  EXPECT_EQ(Health("live"), HealthCheckResponse::SERVING);
  const Answer refused = Generate(Ask("more", 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(refused.status).reason, "DRAINING");
  EXPECT_TRUE(DetailsOf(refused.status).retry);

  int finished = 0;
  while (running->Read(&event)) finished += event.has_finished();
  EXPECT_TRUE(running->Finish().ok());
  EXPECT_EQ(finished, 1);
  drain.join();
}

TEST_F(LifeTest, DrainEndsWhatTakesTooLong) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  grpc::ClientContext context;
  const auto running = generation_->Generate(&context, Ask("hello", 16000));
  v1::GenerateResponse event;
  ASSERT_TRUE(running->Read(&event));

  daemon_->Drain(absl::Milliseconds(50));
  daemon_.reset();

  while (running->Read(&event)) {
  }
  EXPECT_EQ(running->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(LifeTest, StopCancelsLoading) {
  ASSERT_NO_FATAL_FAILURE(Open({"tiny=" + MakeModel("tiny")}));
  const absl::Status loaded =
      daemon_->LoadModels([this](const std::string&, const std::string&, std::int64_t,
                                 std::int64_t) { daemon_->Stop(); });
  EXPECT_FALSE(loaded.ok());
  EXPECT_TRUE(daemon_->Wait().ok());
}

TEST_F(LifeTest, APortInUseIsAnError) {
  ASSERT_NO_FATAL_FAILURE(Open({}));
  ServeOptions options = options_;
  options.listen = daemon_->grpc_address();
  Daemon second(options);
  const absl::Status started = second.Start();
  EXPECT_EQ(started.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(started.message()), HasSubstr(options.listen));
}

TEST_F(LifeTest, UnixSocketsServe) {
  const std::string address = "unix:" + models_.File("s");
  ASSERT_NO_FATAL_FAILURE(Serve({"--listen=" + address}));
  EXPECT_EQ(daemon_->grpc_address(), address);
  EXPECT_TRUE(Generate(Ask("hi", 2)).status.ok());
}

}  // namespace
}  // namespace nibble
