// The subcommands: arguments, units, and each of them run against a tiny model or a daemon that
// serves one.
#include <fstream>
#include <sstream>
#include <thread>

#include "server/cli/answer_printer.h"
#include "server/cli/chat_file.h"
#include "server/cli/checkpoint_report.h"
#include "server/cli/command_line.h"
#include "server/cli/commands.h"
#include "server/cli/generate_flags.h"
#include "server/cli/measure.h"
#include "server/cli/recorder.h"
#include "server/cli/units.h"
#include "tests/server/daemon_test.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

TEST(UnitsTest, ReadAsPeopleWriteThem) {
  EXPECT_EQ(ShowBytes(0), "0 B");
  EXPECT_EQ(ShowBytes(1023), "1023 B");
  EXPECT_EQ(ShowBytes(512), "512 B");
  EXPECT_EQ(ShowBytes(92'798'976), "88.5 MiB");
  EXPECT_EQ(ShowBytes(3'365'443'200), "3.13 GiB");
  EXPECT_EQ(ShowBytes(std::int64_t{5} << 50), "5,120 TiB");
  EXPECT_EQ(ShowBytes(1023 * 1024), "1,023 KiB");
  EXPECT_EQ(ShowCount(0), "0");
  EXPECT_EQ(ShowCount(999), "999");
  EXPECT_EQ(ShowCount(-1000), "-1,000");
  EXPECT_EQ(ShowCount(1234567), "1,234,567");
  EXPECT_EQ(ShowMagnitude(134'515'008), "135 M");
  EXPECT_EQ(ShowMagnitude(7'241'732'096), "7.24 B");
  EXPECT_EQ(ShowMagnitude(999), "999");
  EXPECT_EQ(ShowRate(0.834), "0.83");
  EXPECT_EQ(ShowRate(34.06), "34.1");
  EXPECT_EQ(ShowRate(1234.4), "1,234");
  EXPECT_EQ(ShowRate(std::numeric_limits<double>::quiet_NaN()), "-");
  EXPECT_EQ(ShowTime(absl::Microseconds(420)), "0.42 ms");
  EXPECT_EQ(ShowTime(absl::Milliseconds(56)), "56.0 ms");
  EXPECT_EQ(ShowTime(absl::Milliseconds(1240)), "1.24 s");
  EXPECT_EQ(ShowTime(absl::Seconds(125)), "2 min 5 s");
  EXPECT_EQ(ShowTime(absl::InfiniteDuration()), "-");
}

TEST(MeasureTest, MedianOfOddAndEvenSamples) {
  EXPECT_EQ(SpreadOf({3, 1, 2}).median, 2);
  EXPECT_EQ(SpreadOf({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(SpreadOf({4, 1, 2, 3}).low, 1);
  EXPECT_EQ(SpreadOf({4, 1, 2, 3}).high, 4);
}

TEST(MeasureTest, DecodeIsCountedWhileAllRun) {
  const absl::Time t = absl::UnixEpoch();
  const Timeline first = {
      {t, 1}, {t + absl::Seconds(1), 1}, {t + absl::Seconds(2), 1}, {t + absl::Seconds(3), 1}};
  const Timeline second = {{t + absl::Seconds(1), 1},
                           {t + absl::Seconds(2), 1},
                           {t + absl::Seconds(3), 1},
                           {t + absl::Seconds(4), 1}};
  // From 1 s to 3 s each of them gets two more tokens.
  EXPECT_DOUBLE_EQ(RateWhileAllRun({first, second}), 2.0);
  EXPECT_DOUBLE_EQ(RateWhileAllRun({first}), 1.0);
  EXPECT_EQ(RateWhileAllRun({first, {{t + absl::Seconds(9), 1}, {t + absl::Seconds(10), 1}}}), 0);
  EXPECT_EQ(RateWhileAllRun({first, {}}), 0);
}

ChunkEvent Tokens(std::vector<std::int32_t> ids) {
  ChunkEvent chunk;
  chunk.token_ids = std::move(ids);
  return chunk;
}

TEST(RecorderTest, CountsTokensAndSaysWhyAStreamEnded) {
  const auto stream = std::make_shared<TokenStream>(1 << 20);
  const auto recorder = std::make_shared<Recorder>(stream);
  stream->SetWaker(recorder);
  std::thread engine([&] {
    stream->Push(StartedEvent{});
    stream->Push(Tokens({1}));
    stream->Push(Tokens({2, 3}));
  });
  EXPECT_TRUE(recorder->WaitFor(3).ok());
  engine.join();
  EXPECT_FALSE(recorder->ended());
  stream->Close(absl::AbortedError("too slow"));
  EXPECT_TRUE(recorder->ended());
  EXPECT_TRUE(recorder->WaitFor(3).ok());
  EXPECT_TRUE(absl::IsAborted(recorder->WaitFor(4)));
  EXPECT_TRUE(absl::IsAborted(recorder->Wait().status()));
  const Timeline timeline = recorder->Stop();
  ASSERT_EQ(timeline.size(), 2u);
  EXPECT_EQ(timeline[0].second, 1);
  EXPECT_EQ(timeline[1].second, 2);
  EXPECT_LE(timeline[0].first, timeline[1].first);
}

TEST(RecorderTest, StopCancels) {
  const auto stream = std::make_shared<TokenStream>(1 << 20);
  const auto recorder = std::make_shared<Recorder>(stream);
  stream->SetWaker(recorder);
  stream->SetCancelHook([&] { stream->Close(absl::CancelledError("by the reader")); });
  stream->Push(Tokens({1}));
  EXPECT_EQ(recorder->Stop().size(), 1u);
  EXPECT_TRUE(stream->cancelled());
}

TEST(ChatFileTest, MessagesAndToolsAsOpenAiWritesThem) {
  v1::Chat chat;
  ASSERT_TRUE(AddMessages(R"([{"role": "user", "content": "Hi", "name": "Ann"},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
       "function": {"name": "f", "arguments": {"z": 1, "a": 2.0}}}, {"name": "g", "arguments": "{}"}]},
      {"role": "tool", "tool_call_id": "1", "content": "ok"}])",
                          &chat)
                  .ok());
  ASSERT_TRUE(AddTools(R"([{"type": "function", "function": {"name": "f"}}])", &chat).ok());
  ASSERT_EQ(chat.messages_size(), 3);
  EXPECT_EQ(chat.messages(0).name(), "Ann");
  ASSERT_EQ(chat.messages(1).tool_calls_size(), 2);
  EXPECT_EQ(chat.messages(1).tool_calls(0).id(), "1");
  EXPECT_EQ(chat.messages(1).tool_calls(0).arguments_json(), R"({"z": 1, "a": 2.0})");
  EXPECT_EQ(chat.messages(1).tool_calls(1).name(), "g");
  EXPECT_EQ(chat.messages(2).tool_call_id(), "1");
  EXPECT_THAT(chat.tools_json(), ElementsAre(R"({"type": "function", "function": {"name": "f"}})"));
}

TEST(ChatFileTest, ErrorsNameMessageAndKey) {
  const auto error = [](const char* json) {
    v1::Chat chat;
    return std::string(AddMessages(json, &chat).message());
  };
  EXPECT_THAT(error("{}"), HasSubstr("array"));
  EXPECT_THAT(error(R"([{"role": "user"}, {"content": "x"}])"),
              HasSubstr("messages[1] has no role"));
  EXPECT_THAT(error(R"([{"role": 1}])"), HasSubstr("messages[0].role must be a string"));
  EXPECT_THAT(error(R"([{"role": "user", "images": []}])"), HasSubstr("\"images\""));
  EXPECT_THAT(error(R"([{"role": "user", "content": "x"},])"), HasSubstr("invalid JSON"));
  EXPECT_THAT(error(R"([{"role": "assistant", "tool_calls": [{"index": 0}]}])"),
              HasSubstr("tool_calls[0]"));
}

struct Ran {
  int exit = -1;
  std::string out, err;
};

using Command = int (*)(int, char**);

Ran RunCommand(Command command, std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Ran ran;
  ran.exit = command(static_cast<int>(arguments.size()), argv.data());
  ran.out = ::testing::internal::GetCapturedStdout();
  ran.err = ::testing::internal::GetCapturedStderr();
  return ran;
}

TEST(CliTest, HelpNamesTheCommandAndEndsWell) {
  for (const auto& [command, name] : {std::pair<Command, const char*>{RunPlan, "nibble plan"},
                                      {RunInspect, "nibble inspect"},
                                      {RunGenerate, "nibble generate"},
                                      {RunBench, "nibble bench"},
                                      {RunHealth, "nibble health"}}) {
    const Ran ran = RunCommand(command, {"--help"});
    EXPECT_EQ(ran.exit, kDone) << name;
    EXPECT_THAT(ran.out, HasSubstr(name));
    EXPECT_THAT(ran.err, IsEmpty());
  }
}

TEST(CliTest, WrongUsageIsTwoAndSaysWhatIsMeant) {
  EXPECT_THAT(RunCommand(RunPlan, {}).err, HasSubstr("MODEL"));
  EXPECT_EQ(RunCommand(RunPlan, {}).exit, kUsage);
  const Ran misspelt = RunCommand(RunPlan, {"x.gguf", "--kv-memroy=1GiB"});
  EXPECT_EQ(misspelt.exit, kUsage);
  EXPECT_THAT(misspelt.err,
              AllOf(HasSubstr("--kv-memroy"), HasSubstr("did you mean --kv-memory?")));
  EXPECT_THAT(RunCommand(RunPlan, {"a.gguf", "b.gguf"}).err,
              HasSubstr("one argument too many: b.gguf"));
  EXPECT_THAT(RunCommand(RunPlan, {"x.gguf", "--kv-memory=lots"}).err, HasSubstr("--kv-memory: "));
  EXPECT_THAT(RunCommand(RunPlan, {"x.gguf", "--kv-dtype=f11"}).err, HasSubstr("--kv-dtype: "));
  EXPECT_THAT(RunCommand(RunPlan, {"x.gguf", "--threads=-3"}).err, HasSubstr("--threads"));
  EXPECT_EQ(RunCommand(RunBench, {"x.gguf", "--batches=0"}).exit, kUsage);
  EXPECT_EQ(RunCommand(RunHealth, {"--timeout=soon"}).exit, kUsage);
  EXPECT_EQ(RunCommand(RunHealth, {"--tls-cert=/nowhere"}).exit, kUsage);
  EXPECT_THAT(RunCommand(RunGenerate, {"hello"}).err,
              AllOf(HasSubstr("--server"), HasSubstr("--model")));
  EXPECT_EQ(RunCommand(RunGenerate, {"hello", "--server=x", "--messages=/nowhere.json"}).exit,
            kUsage);
  EXPECT_EQ(RunCommand(RunGenerate, {"hello", "--server=x", "--temperature=warm"}).exit, kUsage);
}

TEST(CliTest, AModelThatIsNotThereIsThree) {
  for (const Command command : {RunPlan, RunInspect, RunBench}) {
    const Ran ran = RunCommand(command, {"/nowhere/model.gguf"});
    EXPECT_EQ(ran.exit, kModelUnusable);
    EXPECT_THAT(ran.err, HasSubstr("/nowhere/model.gguf"));
  }
  EXPECT_EQ(RunCommand(RunGenerate, {"hello", "--model=/nowhere"}).exit, kModelUnusable);
}

absl::StatusOr<v1::GenerateRequest> RequestOf(std::vector<std::string> arguments,
                                              const std::string& standard_input = "") {
  CLI::App app("", "test");
  GenerateFlags flags;
  flags.AddTo(app);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  EXPECT_FALSE(ParseArguments(app, static_cast<int>(arguments.size()), argv.data()).has_value());
  std::istringstream input(standard_input);
  return flags.ToRequest(input);
}

TEST(GenerateFlagsTest, WhatIsUnsetStaysUnset) {
  const auto request = RequestOf({"once upon"});
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->text(), "once upon");
  EXPECT_FALSE(request->sampling().has_temperature());
  EXPECT_FALSE(request->sampling().has_seed());
  EXPECT_FALSE(request->stopping().has_max_tokens());
  EXPECT_FALSE(request->output().final_only());
}

TEST(GenerateFlagsTest, FlagsReachTheirFields) {
  const auto request = RequestOf({"--temperature", "0", "--top-k=5", "--seed=7", "--max-tokens=3",
                                  "--stop", "a b", "--stop=c", "hi", "-n", "2"});
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->text(), "hi");  // --stop takes one text, not what follows it
  EXPECT_TRUE(request->sampling().has_temperature());
  EXPECT_EQ(request->sampling().temperature(), 0);
  EXPECT_EQ(request->sampling().top_k(), 5u);
  EXPECT_EQ(request->sampling().seed(), 7u);
  EXPECT_EQ(request->stopping().max_tokens(), 3u);
  EXPECT_THAT(request->stopping().stop_strings(), ElementsAre("a b", "c"));
  EXPECT_EQ(request->output().num_outputs(), 2u);
  EXPECT_TRUE(request->output().final_only());
}

TEST(GenerateFlagsTest, ChatsComeFromPromptSystemAndFile) {
  TempDir dir;
  std::ofstream(dir.File("chat.json"))
      << R"([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])";
  const auto request =
      RequestOf({"--system=S", "--messages=" + dir.File("chat.json"), "-"}, "from a pipe\n");
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->chat().messages_size(), 4);
  EXPECT_EQ(request->chat().messages(0).role(), "system");
  EXPECT_EQ(request->chat().messages(2).content(), "2");
  EXPECT_EQ(request->chat().messages(3).content(), "from a pipe");
  EXPECT_EQ(RequestOf({}, "piped text")->text(), "piped text");
  EXPECT_EQ(RequestOf({}, "").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(InspectTest, TensorsOfAllLayersAreOneGroup) {
  const auto groups = GroupTensors({{"blk.0.q", "F16", {2, 3}, 12},
                                    {"blk.10.q", "F16", {2, 3}, 12},
                                    {"blk.2.q", "F32", {2, 3}, 24},
                                    {"model.layers.1.mlp.experts.3.w", "F16", {1}, 2},
                                    {"model.layers.1.mlp.experts.4.w", "F16", {1}, 2},
                                    {"output", "F16", {4}, 8}});
  ASSERT_EQ(groups.size(), 5u);
  EXPECT_EQ(groups[0].pattern, "blk.{0-10}.q");
  EXPECT_EQ(groups[0].count, 2);
  EXPECT_EQ(groups[0].bytes, 24);
  EXPECT_EQ(groups[1].pattern, "blk.2.q");
  EXPECT_EQ(groups[2].pattern, "model.layers.1.mlp.experts.3.w");
  EXPECT_EQ(groups[4].pattern, "output");
  EXPECT_EQ(ShowShape({576, 1536}), "576 x 1,536");
}

// The subcommands that open a model, over a tiny one.
class ModelCommandTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteTinyModel(path_); }
  std::vector<std::string> With(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {path_, "--device=cpu", "--threads=1", "--compute=f32",
                                          "--kv-memory=64MiB"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  TempDir dir_;
  const std::string path_ = dir_.File("tiny");
};

TEST_F(ModelCommandTest, PlanAddsUp) {
  const Ran ran = RunCommand(RunPlan, With({"--json"}));
  ASSERT_EQ(ran.exit, kDone) << ran.err;
  const auto json = ParseJson(ran.out);
  ASSERT_TRUE(json.ok()) << ran.out;
  const Json& plan = *json->Find("plan");
  std::int64_t sum = 0;
  for (const char* part : {"weights_bytes", "expanded_bytes", "kv_bytes", "workspace_bytes",
                           "graphs_bytes", "other_bytes"})
    sum += plan.Find(part)->AsInt64();
  EXPECT_EQ(plan.Find("total_bytes")->AsInt64(), sum);
  EXPECT_EQ(json->Find("architecture")->AsString(), "llama");
  const Ran text = RunCommand(RunPlan, With({}));
  EXPECT_EQ(text.exit, kDone);
  EXPECT_THAT(text.out, AllOf(HasSubstr("KV cache"), HasSubstr("of a budget of"),
                              HasSubstr("largest batch")));
}

TEST_F(ModelCommandTest, PlanThatDoesNotFitNamesTheFlag) {
  const Ran ran = RunCommand(RunPlan, {path_, "--device=cpu", "--memory=1MiB"});
  EXPECT_EQ(ran.exit, kModelUnusable);
  EXPECT_THAT(ran.err, HasSubstr("--memory"));
}

TEST_F(ModelCommandTest, InspectListsWhatIsThere) {
  const Ran ran = RunCommand(RunInspect, {path_, "--json"});
  ASSERT_EQ(ran.exit, kDone) << ran.out << ran.err;
  const auto json = ParseJson(ran.out);
  ASSERT_TRUE(json.ok()) << ran.out;
  EXPECT_TRUE(json->Find("servable")->AsBool());
  EXPECT_TRUE(json->Find("chat_template")->AsBool());
  EXPECT_EQ(json->Find("model")->Find("layers")->AsInt64(), 2);
  EXPECT_EQ(json->Find("tensors")->AsArray().size(), 20u);
  EXPECT_EQ(json->Find("bits_per_weight")->AsDouble(), 32.0);
  const Ran text = RunCommand(RunInspect, {path_});
  EXPECT_THAT(text.out, AllOf(HasSubstr("model.layers.{0-1}.mlp.up_proj.weight"),
                              HasSubstr("can be served")));
}

TEST_F(ModelCommandTest, InspectTellsEverythingThatIsRefused) {
  std::ofstream(dir_.File("tiny/config.json")) << R"({"model_type": "unheard_of"})";
  std::ofstream(dir_.File("tiny/tokenizer_config.json")) << R"({"chat_template": "{% if %}"})";
  std::ofstream(dir_.File("tiny/tokenizer.json")) << "{}";
  const Ran ran = RunCommand(RunInspect, {path_});
  EXPECT_EQ(ran.exit, kModelUnusable);
  EXPECT_THAT(ran.out, AllOf(HasSubstr("cannot be served"), HasSubstr("unheard_of"),
                             HasSubstr("tokenizer: "), HasSubstr("chat template: ")));
}

TEST_F(ModelCommandTest, BenchMeasuresWhatWasAsked) {
  const Ran ran = RunCommand(RunBench, With({"--prompts=8,32", "--batches=1,3",
                                             "--output-tokens=200", "--repeats=2", "--json"}));
  ASSERT_EQ(ran.exit, kDone) << ran.err;
  const auto json = ParseJson(ran.out);
  ASSERT_TRUE(json.ok()) << ran.out;
  ASSERT_EQ(json->Find("prefill")->AsArray().size(), 2u);
  ASSERT_EQ(json->Find("decode")->AsArray().size(), 2u);
  const Json& three = json->Find("decode")->AsArray()[1];
  EXPECT_EQ(three.Find("batch")->AsInt64(), 3);
  EXPECT_GT(three.Find("tokens_per_second")->Find("median")->AsDouble(), 0);
  EXPECT_GE(three.Find("tokens_per_second")->Find("high")->AsDouble(),
            three.Find("tokens_per_second")->Find("low")->AsDouble());
  EXPECT_EQ(RunCommand(RunBench, With({"--batches=4096"})).exit, kUsage);
  EXPECT_EQ(RunCommand(RunBench, With({"--prompts=16384"})).exit, kUsage);
}

TEST(BenchTest, SyntheticModelsNeedNoFile) {
  const Ran ran =
      RunCommand(RunBench, {"--synthetic=tiny", "--quant=q4_k_m", "--device=cpu", "--threads=1",
                            "--kv-memory=64MiB", "--prompts=16", "--prompt-batches=1,3",
                            "--batches=2", "--contexts=8,16", "--output-tokens=100", "--requests=5",
                            "--request-input=8", "--request-output=12", "--repeats=1", "--json"});
  ASSERT_EQ(ran.exit, kDone) << ran.err;
  const auto json = ParseJson(ran.out);
  ASSERT_TRUE(json.ok()) << ran.out;
  EXPECT_EQ(json->Find("format")->AsString(), "synthetic q4_k_m");
  ASSERT_EQ(json->Find("prefill")->AsArray().size(), 2u);
  EXPECT_EQ(json->Find("prefill")->AsArray()[1].Find("prompts")->AsInt64(), 3);
  ASSERT_EQ(json->Find("decode")->AsArray().size(), 2u);
  EXPECT_EQ(json->Find("decode")->AsArray()[1].Find("context")->AsInt64(), 16);
  EXPECT_GT(json->Find("decode")->AsArray()[1].Find("bandwidth_share")->AsDouble(), 0);
  const Json& batch = json->Find("throughput")->AsArray()[0];
  EXPECT_GT(batch.Find("tokens_per_second")->AsDouble(),
            batch.Find("output_tokens_per_second")->AsDouble());
  const Json& weights = *json->Find("memory")->Find("weights");
  EXPECT_EQ(weights.Find("planned")->AsInt64(), weights.Find("actual")->AsInt64());
  EXPECT_GE(json->Find("ready_seconds")->AsDouble(), json->Find("load_seconds")->AsDouble());

  const Ran unknown = RunCommand(RunBench, {"--synthetic=llama-9", "--device=cpu"});
  EXPECT_EQ(unknown.exit, kUsage);
  EXPECT_THAT(unknown.err, HasSubstr("llama-3-8b"));
  EXPECT_EQ(RunCommand(RunBench, {}).exit, kUsage);
  EXPECT_EQ(RunCommand(RunBench, {"--synthetic=tiny", "--quantize=nf4"}).exit, kModelUnusable);
}

TEST_F(ModelCommandTest, GenerateHereIsReproducible) {
  const std::vector<std::string> ask = {"--model=" + path_, "--device=cpu",      "--threads=1",
                                        "--compute=f32",    "--kv-memory=64MiB", "--max-tokens=8",
                                        "--seed=3",         "--quiet",           "hello"};
  const Ran first = RunCommand(RunGenerate, ask);
  EXPECT_EQ(first.exit, kDone) << first.err;
  EXPECT_THAT(first.out, Not(IsEmpty()));
  EXPECT_EQ(RunCommand(RunGenerate, ask).out, first.out);
}

// The subcommands that talk to a daemon.
class ServerCommandTest : public DaemonTest {
 protected:
  std::string Server() const { return "--server=" + daemon_->grpc_address(); }
};

TEST_F(ServerCommandTest, GenerateStreamsWhatTheDaemonAnswers) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  v1::GenerateRequest request = Ask("hello", 6);
  request.mutable_sampling()->set_temperature(0);
  const std::string expected = Generate(request).text;
  const Ran ran = RunCommand(
      RunGenerate, {Server(), "hello", "--max-tokens=6", "--temperature=0", "--ignore-eos"});
  EXPECT_EQ(ran.exit, kDone) << ran.err;
  EXPECT_EQ(ran.out, expected);
}

TEST_F(ServerCommandTest, GenerateAsJsonIsOneEventALine) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const Ran ran = RunCommand(RunGenerate, {Server(), "--chat", "hi", "--max-tokens=4",
                                           "--ignore-eos", "--json", "--request-id=mine"});
  ASSERT_EQ(ran.exit, kDone) << ran.err;
  std::istringstream lines(ran.out);
  std::vector<Json> events;
  for (std::string line; std::getline(lines, line);) {
    const auto json = ParseJson(line);
    ASSERT_TRUE(json.ok()) << line;
    events.push_back(*json);
  }
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events.front().Find("started")->Find("request_id")->AsString(), "mine");
  EXPECT_EQ(events.back().Find("finished")->Find("completion_tokens")->AsInt64(), 4);
}

TEST_F(ServerCommandTest, GenerateWithSeveralOutputsNamesThem) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const Ran ran = RunCommand(RunGenerate, {Server(), "hello", "--max-tokens=3", "-n", "2"});
  EXPECT_EQ(ran.exit, kDone) << ran.err;
  EXPECT_THAT(ran.out, AllOf(HasSubstr("--- output 0\n"), HasSubstr("--- output 1\n")));
}

TEST_F(ServerCommandTest, GenerateSaysWhatTheDaemonRefuses) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  const Ran field = RunCommand(RunGenerate, {Server(), "hello", "--temperature=-1", "--top-p=7"});
  EXPECT_EQ(field.exit, kUsage);
  EXPECT_THAT(field.err, AllOf(StartsWith("nibble generate: "), HasSubstr("sampling.temperature"),
                               HasSubstr("sampling.top_p")));
  const Ran name = RunCommand(RunGenerate, {Server(), "hello", "--model=other"});
  EXPECT_EQ(name.exit, kFailed);
  EXPECT_THAT(name.err, HasSubstr("other"));
  const Ran nobody = RunCommand(RunGenerate, {"--server=127.0.0.1:1", "hello", "--timeout=5s"});
  EXPECT_EQ(nobody.exit, kFailed);
  EXPECT_THAT(nobody.err, Not(IsEmpty()));
}

TEST_F(ServerCommandTest, HealthIsTheExitStatus) {
  ASSERT_NO_FATAL_FAILURE(Serve());
  EXPECT_EQ(RunCommand(RunHealth, {Server()}).exit, kDone);
  EXPECT_EQ(RunCommand(RunHealth, {Server()}).out, "SERVING\n");
  EXPECT_EQ(RunCommand(RunHealth, {Server(), "--service=tiny"}).exit, kDone);
  EXPECT_EQ(RunCommand(RunHealth, {Server(), "--service=live", "--json"}).exit, kDone);
  const Ran unknown = RunCommand(RunHealth, {Server(), "--service=other"});
  EXPECT_EQ(unknown.exit, kFailed);
  EXPECT_THAT(unknown.err, HasSubstr("other"));
  const Ran nobody = RunCommand(RunHealth, {"--server=127.0.0.1:1", "--timeout=2s"});
  EXPECT_EQ(nobody.exit, kFailed);
  EXPECT_THAT(nobody.err, HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace nibble
