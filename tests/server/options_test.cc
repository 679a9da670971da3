#include "server/options.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string ErrorOf(const std::vector<std::string>& arguments,
                    const std::vector<std::string>& environment = {}) {
  const auto options = ParseServeOptions(arguments, environment);
  return options.ok() ? "OK" : std::string(options.status().message());
}

TEST(ServeOptionsTest, DefaultsAreTheDocumentedOnes) {
  const auto options = ParseServeOptions({"/models/smol.gguf"}, {});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->listen, "[::]:50051");
  EXPECT_EQ(options->http, "[::]:8080");
  EXPECT_EQ(options->admin_listen, "");
  EXPECT_EQ(options->max_queue, 256);
  EXPECT_EQ(options->max_itl, absl::Milliseconds(50));
  EXPECT_EQ(options->drain_timeout, absl::Seconds(30));
  EXPECT_EQ(options->models[0].name, "smol");
}

TEST(ServeOptionsTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  TempDir dir;
  dir.Write(
      "c.yaml",
      "max-queue: 1\nthreads: 1\nlisten: file:1\nmodels:\n  - path: /m\n    kv-memory: 1GiB\n");
  const auto options = ParseServeOptions({"--config", dir.File("c.yaml"), "--max-queue=3"},
                                         {"NIBBLE_MAX_QUEUE=2", "NIBBLE_THREADS=2", "HOME=/"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->max_queue, 3);
  EXPECT_EQ(options->threads, 2);
  EXPECT_EQ(options->listen, "file:1");
  EXPECT_EQ(options->models[0].kv_memory, MemorySize(std::int64_t{1} << 30));
  EXPECT_THAT(options->config_text, HasSubstr("max-queue: \"3\"  # command line\n"));
  EXPECT_THAT(options->config_text, HasSubstr("threads: \"2\"  # NIBBLE_THREADS\n"));
  EXPECT_THAT(options->config_text, HasSubstr("http: \"[::]:8080\"  # default\n"));
}

TEST(ServeOptionsTest, AFileSaysOfAModelWhatTheCommandLineCan) {
  TempDir dir;
  dir.Write("c.yaml",
            "models:\n  - path: /m\n    name: chat\n    device: cuda:1\n    kv-memory: 1GiB\n"
            "    max-context: 4096\n");
  const auto options = ParseServeOptions({"--config", dir.File("c.yaml")}, {});
  ASSERT_TRUE(options.ok()) << options.status();
  const ModelOption& model = options->models[0];
  EXPECT_EQ(model.name, "chat");
  EXPECT_EQ(model.path, "/m");
  EXPECT_EQ(model.device, "cuda:1");
  EXPECT_EQ(model.kv_memory, MemorySize(std::int64_t{1} << 30));
  EXPECT_EQ(model.max_context, 4096);
}

TEST(ServeOptionsTest, AddressesAreHostAndPort) {
  for (const char* address : {"--listen=unix:/run/s", "--admin-listen=unix:/run/s", "--http=off",
                              "--http=:80", "--listen=[::1]:0", "--listen=localhost:65535"}) {
    EXPECT_EQ(ErrorOf({address, "/m"}), "OK") << address;
  }
  for (const char* address : {"--listen=localhost", "--listen=off", "--http=unix:/run/s",
                              "--http=1:2:65536", "--admin-listen=:-1", "--http=a:b"}) {
    const std::string flag(address, std::string(address).find('='));
    EXPECT_THAT(ErrorOf({address, "/m"}), HasSubstr(flag + ": ")) << address;
  }
}

TEST(ServeOptionsTest, ConnectionsLiveFromASecondToWhatMillisecondsOfGrpcHold) {
  EXPECT_EQ(ErrorOf({"--max-connection-age=1s", "/m"}), "OK");
  EXPECT_EQ(ErrorOf({"--max-connection-age=576h", "/m"}), "OK");
  for (const char* age : {"0", "10ms", "577h", "-1s"}) {
    EXPECT_THAT(ErrorOf({absl::StrCat("--max-connection-age=", age), "/m"}),
                HasSubstr("--max-connection-age: "))
        << age;
  }
}

TEST(ServeOptionsTest, PrintedConfigurationIsAConfiguration) {
  const auto options = ParseServeOptions({"--print-config", "a=/m/x", "--memory", "40%"}, {});
  ASSERT_TRUE(options.ok()) << options.status();
  TempDir dir;
  dir.Write("c.yaml", options->config_text);
  const auto again = ParseServeOptions({"--config", dir.File("c.yaml")}, {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->models[0].name, "a");
  EXPECT_TRUE(std::holds_alternative<Percent>(*again->memory));
}

TEST(ServeOptionsTest, PromptsOverHttpExcludeClientCertificates) {
  EXPECT_EQ(ErrorOf({"--http-prompt", "--http-prompt-hosts=gpu-1,gpu-2.corp", "/m"}), "OK");
  EXPECT_EQ(ErrorOf({"/m"}, {"NIBBLE_HTTP_PROMPT=true"}), "OK");
  const std::string both =
      ErrorOf({"--http-prompt", "--tls-cert=c", "--tls-key=k", "--tls-client-ca=a", "/m"});
  EXPECT_THAT(both, HasSubstr("--http-prompt"));
  EXPECT_THAT(both, HasSubstr("--tls-client-ca"));
  EXPECT_THAT(ErrorOf({"--http-prompt", "--http=off", "/m"}), HasSubstr("needs --http"));
  EXPECT_THAT(ErrorOf({"--http-prompt-hosts=a", "/m"}), HasSubstr("without --http-prompt"));
  EXPECT_THAT(ErrorOf({"--http-prompt", "--http-prompt-hosts=a:80", "/m"}), HasSubstr("a:80"));
  const auto over_tls =
      ParseServeOptions({"--http-prompt", "--tls-cert=c", "--tls-key=k", "/m"}, {});
  ASSERT_TRUE(over_tls.ok()) << over_tls.status();
  EXPECT_THAT(over_tls->warnings, ElementsAre(HasSubstr("plain text")));
}

TEST(ServeOptionsTest, UnknownNamesSuggestTheNearest) {
  EXPECT_THAT(ErrorOf({"--kv-memry", "1G", "/m"}), HasSubstr("did you mean --kv-memory?"));
  EXPECT_THAT(ErrorOf({"-x", "/m"}), HasSubstr("there is no flag \"-x\""));
  TempDir dir;
  dir.Write("c.yaml", "max_queue: 4\n");
  EXPECT_THAT(ErrorOf({"--config", dir.File("c.yaml"), "/m"}),
              HasSubstr("c.yaml:1: there is no setting"));
  EXPECT_THAT(ErrorOf({"--config", dir.File("c.yaml"), "/m"}),
              HasSubstr("did you mean max-queue?"));
}

TEST(ServeOptionsTest, BrokenFilesAreRefused) {
  TempDir dir;
  for (const char* text :
       {"listen: [1, 2]\n", "- a\n", "listen: a\nlisten: b\n", "models: x\n", "a: b: c\n",
        "models:\n  - name: x\n", "models:\n  - path: /m\n    kv-memry: 1\n"}) {
    dir.Write("c.yaml", text);
    EXPECT_THAT(ErrorOf({"--config", dir.File("c.yaml"), "/m"}), HasSubstr("c.yaml")) << text;
  }
  EXPECT_NE(ErrorOf({"--config", dir.File("absent.yaml"), "/m"}), "OK");
}

TEST(ServeOptionsTest, UnknownVariablesWarnAndKubernetesOnesDoNot) {
  const auto options =
      ParseServeOptions({"/m"}, {"NIBBLE_LISTN=x", "NIBBLE_PORT=tcp://10.0.0.1:50051",
                                 "NIBBLE_PORT_50051_TCP_ADDR=10.0.0.1", "NIBBLE_SERVICE_HOST=h"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->warnings, ElementsAre(HasSubstr("did you mean NIBBLE_LISTEN?")));
}

TEST(ServeOptionsTest, ErrorsNameWhoSaidIt) {
  EXPECT_THAT(ErrorOf({"--max-queue", "0", "/m"}), HasSubstr("--max-queue: \"0\""));
  EXPECT_THAT(ErrorOf({"/m"}, {"NIBBLE_MAX_ITL=fast"}), HasSubstr("NIBBLE_MAX_ITL: \"fast\""));
  EXPECT_THAT(ErrorOf({"--threads"}), HasSubstr("--threads needs a value"));
  EXPECT_THAT(ErrorOf({}), HasSubstr("no MODEL"));
  EXPECT_THAT(ErrorOf({"--tls-cert", "c", "/m"}), HasSubstr("go together"));
  EXPECT_THAT(ErrorOf({"/a/m", "/b/m"}), HasSubstr("two models have the name"));
  EXPECT_THAT(ErrorOf({"--device", "tpu", "/m"}), HasSubstr("--device"));
}

TEST(ModelOptionTest, ReadsNameAndSettings) {
  const auto model =
      ParseModelOption("chat=/m/a=b,c,kv-memory=500MB,max-context=4096,device=cuda:1");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->name, "chat");
  EXPECT_EQ(model->path, "/m/a=b,c");
  EXPECT_EQ(model->kv_memory, MemorySize(std::int64_t{500'000'000}));
  EXPECT_EQ(model->max_context, 4096);
  EXPECT_EQ(model->device, "cuda:1");
  ServeOptions options;
  options.device = "cuda";
  EXPECT_EQ(MakeLoadSpec(options, *model, 0).backend.device, "cuda:1");
  EXPECT_EQ(MakeLoadSpec(options, *ParseModelOption("/m/x"), 0).backend.device, "cuda");
}

TEST(ModelOptionTest, NamesComeFromThePath) {
  EXPECT_EQ(ParseModelOption("/m/Qwen2.5-0.5B/")->name, "Qwen2.5-0.5B");
  EXPECT_EQ(ParseModelOption("/m/x.Q4_K_M.gguf")->name, "x.Q4_K_M");
  EXPECT_FALSE(ParseModelOption("/m/with space").ok());
  EXPECT_FALSE(ParseModelOption("x=").ok());
  EXPECT_FALSE(ParseModelOption("/m,kv-memry=1G").ok());
  EXPECT_FALSE(ParseModelOption("/m,device=gpu").ok());
}

TEST(ByteSizeTest, HumanSizes) {
  EXPECT_EQ(*ParseByteSize("2GiB"), std::int64_t{2} << 30);
  EXPECT_EQ(*ParseByteSize("500MB"), 500'000'000);
  EXPECT_EQ(*ParseByteSize("1.5G"), std::int64_t{3} << 29);
  EXPECT_EQ(*ParseByteSize("1048576"), 1 << 20);
  for (const char* bad : {"", "G", "-1", "0", "nan", "1e999", "1XB", "99999999999TiB", "1..5G"}) {
    EXPECT_FALSE(ParseByteSize(bad).ok()) << bad;
  }
  EXPECT_DOUBLE_EQ(std::get<Percent>(*ParseMemorySize("40%")).value, 40);
  for (const char* bad : {"0%", "101%", "nan%", "%"})
    EXPECT_FALSE(ParseMemorySize(bad).ok()) << bad;
}

}  // namespace
}  // namespace nibble
