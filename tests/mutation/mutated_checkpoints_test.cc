// Checkpoints made wrong, taken the whole way that the daemon takes them: each is served, or
// refused with a reason that names what is wrong; none crashes, hangs or takes memory out of
// proportion.
//
//   NIBBLE_MUTANTS=N     how many (1000)
//   NIBBLE_MUTANT=I      only number I, told in full; "all" tells all
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/base/log.h"
#include "runtime/engine/load_model.h"
#include "runtime/engine/vocabulary.h"
#include "runtime/model/loader.h"
#include "runtime/text/chat_template.h"
#include "tests/mutation/mutator.h"
#include "tests/mutation/seeds.h"
#include "tests/support/greedy.h"
#include "tests/support/temp_dir.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

#if defined(__SANITIZE_ADDRESS__)
// One allocation above the memory budget ends the test with a stack trace. The quarantine would
// count as growth.
extern "C" const char* __asan_default_options() {
  return "max_allocation_size_mb=600:quarantine_size_mb=8";
}
extern "C" const char* __ubsan_default_options() { return "halt_on_error=1:print_stacktrace=1"; }
#endif

namespace nibble {
namespace {

constexpr std::uint64_t kSeed = 20240611;
constexpr std::int64_t kBudget = std::int64_t{512} << 20;
constexpr double kMaxSeconds = kSanitized ? 40.0 : 8.0;
// Files are at most a few MB, the KV pool is 1 MiB, a step 512 tokens.
constexpr std::int64_t kMaxGrowth = std::int64_t{kSanitized ? 192 : 64} << 20;

// What a hang or a crash leaves to be read.
char current[1024];
extern "C" void Tell(int signal) {
  const char end[] = "\n";
  (void)!::write(STDERR_FILENO, current, ::strnlen(current, sizeof(current)));
  (void)!::write(STDERR_FILENO, end, 1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

// A line "KEY:   N kB" of /proc/self/status, in bytes.
std::int64_t ProcessBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kib = 0;
    if (word == key + ":" && status >> kib) return kib << 10;
  }
  return 0;
}

// Sets VmHWM back to what is resident now.
bool ForgetPeak() { return static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5"); }

// A path, a quoted or dotted name, a key or a number.
bool NamesSomething(absl::string_view message) {
  if (message.size() < 12) return false;
  for (std::size_t i = 0; i + 1 < message.size(); ++i) {
    if (absl::StrContains("\"_/0123456789", message.substr(i, 1))) return true;
    if (message[i] == '.' && absl::ascii_isalnum(static_cast<unsigned char>(message[i + 1])))
      return true;
  }
  return false;
}

// Of the test that runs.
int Failures() {
  return ::testing::UnitTest::GetInstance()->current_test_info()->result()->total_part_count();
}

struct Outcome {
  std::string stage;  // that refused; "served" otherwise
  absl::Status status;
  bool bad_logits = false;
};

class MutatedCheckpointsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    BackendOptions options;
    options.device = "cpu";
    options.threads = 2;
    options.compute = Compute::kF32;
    auto backend = OpenBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    seeds_ = AllSeeds();
    ConfigureLog(LogFormat::kText, LogLevel::kError);
  }

  Outcome Take(const SeedCheckpoint& checkpoint, LoadQuantization quantize) {
    const TempDir dir;
    for (const auto& [name, content] : checkpoint.files) dir.Write(name, content);
    Outcome outcome;
    outcome.status =
        Load(checkpoint.gguf ? dir.File(checkpoint.entry()) : dir.path(), quantize, &outcome);
    if (outcome.status.ok()) outcome.stage = "served";
    return outcome;
  }

  // Stages in the daemon's order.
  absl::Status Load(const std::string& path, LoadQuantization quantize, Outcome* outcome) {
    outcome->stage = "open";
    ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(path));
    outcome->stage = "format";
    ASSIGN_OR_RETURN(const std::unique_ptr<WeightFormat> format, OpenFormat(*checkpoint, quantize));
    outcome->stage = "config";
    ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(*checkpoint));
    outcome->stage = "plan";
    PlanOptions options;
    options.compute = Compute::kF32;
    options.memory_bytes = kBudget;
    options.kv_bytes = 1 << 20;
    options.max_batch = 4;
    ASSIGN_OR_RETURN(const MemoryPlan plan,
                     PlanMemory(config, *checkpoint, *format, *backend_, options));
    EXPECT_LE(plan.total_bytes(), kBudget);
    outcome->stage = "load";
    ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner,
                     LoadRunner(config, *checkpoint, *format, plan, *backend_, nullptr));
    EXPECT_LE(runner->memory().weights_bytes, plan.weights_bytes);
    outcome->stage = "tokenizer";
    ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, LoadTokenizer(*checkpoint));
    outcome->stage = "generation_config";
    RETURN_IF_ERROR(ReadGenerationConfig(*checkpoint, config, *tokenizer).status());
    TryTemplate(*checkpoint);
    outcome->stage = "tokens";
    return Serve(*runner, plan, config.vocab, *tokenizer, outcome);
  }

  // A template that does not parse costs the chats alone.
  static void TryTemplate(const Checkpoint& checkpoint) {
    const auto source = FindChatTemplate(checkpoint);
    EXPECT_TRUE(source.ok() || NamesSomething(source.status().message())) << source.status();
    if (!source.ok() || !source->has_value()) return;
    const auto parsed = ChatTemplate::Parse(**source);
    EXPECT_TRUE(parsed.ok() || !parsed.status().message().empty());
  }

  static absl::Status Serve(Runner& runner, const MemoryPlan& plan, std::int32_t vocab,
                            const Tokenizer& tokenizer, Outcome* outcome) {
    ASSIGN_OR_RETURN(std::vector<std::int32_t> prompt,
                     tokenizer.Encode("the ant in a the\xc3\xa9\n<s>", {}));
    // Ids without an embedding are refused where requests come in.
    std::erase_if(prompt, [&](std::int32_t id) { return id < 0 || id >= vocab; });
    prompt.resize(std::min<std::size_t>(prompt.size(), 8));
    if (prompt.empty()) prompt.push_back(0);
    const std::int32_t room =
        std::min(plan.limits.max_context, plan.kv.num_pages * plan.kv.page_tokens);
    prompt.resize(std::min<std::size_t>(prompt.size(), static_cast<std::size_t>(room)));
    const int count = std::min(4, room - static_cast<int>(prompt.size()) + 1);
    GreedySequence sequence(runner, plan.kv);
    std::vector<std::int32_t> tokens;
    ASSIGN_OR_RETURN(RowResult row, sequence.Append(prompt));
    while (!(outcome->bad_logits = row.bad_logits)) {
      EXPECT_GE(row.token, 0);
      EXPECT_LT(row.token, vocab);
      if (row.token < 0 || row.token >= vocab) break;
      tokens.push_back(row.token);
      if (static_cast<int>(tokens.size()) >= count) break;
      ASSIGN_OR_RETURN(row, sequence.Append({&tokens.back(), 1}));
    }
    tokenizer.Decode(tokens, /*skip_special=*/true);
    return absl::OkStatus();
  }

  std::unique_ptr<Backend> backend_;
  std::vector<SeedCheckpoint> seeds_;
};

TEST_F(MutatedCheckpointsTest, SeedsAreServed) {
  for (const SeedCheckpoint& seed : seeds_) {
    const Outcome outcome = Take(seed, LoadQuantization::kNone);
    EXPECT_EQ(outcome.stage, "served") << seed.name << ": " << outcome.status;
    EXPECT_FALSE(outcome.bad_logits) << seed.name;
  }
}

TEST_F(MutatedCheckpointsTest, MutantsAreServedOrRefused) {
  const char* wanted = std::getenv("NIBBLE_MUTANTS");
  const char* only = std::getenv("NIBBLE_MUTANT");
  const int count = wanted != nullptr ? std::atoi(wanted) : 1000;
  ASSERT_GT(count, 0);
  for (const int signal : {SIGALRM, SIGABRT}) std::signal(signal, Tell);
  if (!kSanitized) {  // what is reserved and never touched counts too
    const auto limit = static_cast<rlim_t>(ProcessBytes("VmSize") + (std::int64_t{1} << 30));
    const rlimit address_space = {limit, RLIM_INFINITY};
    ASSERT_EQ(::setrlimit(RLIMIT_AS, &address_space), 0);
  }
  Take(seeds_[0], LoadQuantization::kNone);  // the first measures the device, which takes memory
  std::map<std::string, int> stages;
  std::int64_t worst_growth = 0;
  double worst_seconds = 0;
  int bad_logits = 0;
  for (int i = 0; i < count && Failures() < 20; ++i) {
    if (only != nullptr && only != std::string("all") && i != std::atoi(only)) continue;
    Mutator mutator(kSeed + static_cast<std::uint64_t>(i));
    SeedCheckpoint mutant = seeds_[static_cast<std::size_t>(i) % seeds_.size()];
    const std::string of = mutant.name;
    const std::string what = absl::StrCat("mutant ", i, " of ", of, ": ", mutator.Mutate(mutant));
    std::snprintf(current, sizeof(current), "%s", what.c_str());
    const auto quantize = mutator.Below(6) == 0 ? static_cast<LoadQuantization>(mutator.Below(5))
                                                : LoadQuantization::kNone;
    const int failures = Failures();
    const bool peaks = ForgetPeak();
    const std::int64_t before = ProcessBytes("VmRSS");
    const auto start = std::chrono::steady_clock::now();
    ::alarm(120);
    const Outcome outcome = Take(mutant, quantize);
    ::alarm(0);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const std::int64_t growth = peaks ? ProcessBytes("VmHWM") - before : 0;

    if (!outcome.status.ok()) {
      EXPECT_TRUE(NamesSomething(outcome.status.message())) << what << ": " << outcome.status;
    }
    EXPECT_LE(took.count(), kMaxSeconds) << what;
    EXPECT_LE(growth, kMaxGrowth) << what;
    EXPECT_EQ(Failures(), failures) << what << ": " << outcome.stage << ": " << outcome.status;
    ++stages[outcome.stage];
    bad_logits += outcome.bad_logits ? 1 : 0;
    worst_growth = std::max(worst_growth, growth);
    worst_seconds = std::max(worst_seconds, took.count());
    if (only != nullptr) {
      std::printf("%s (%.1f MiB, %.2f s)\n  %s: %s\n", what.c_str(),
                  static_cast<double>(growth) / (1 << 20), took.count(), outcome.stage.c_str(),
                  outcome.status.ToString().c_str());
    }
  }
  std::printf("%d mutants of %zu checkpoints:", count, seeds_.size());
  for (const auto& [stage, times] : stages) std::printf(" %s %d", stage.c_str(), times);
  std::printf("; %d of the served ended by bad logits; at most %.1f MiB and %.2f s each\n",
              bad_logits, static_cast<double>(worst_growth) / (1 << 20), worst_seconds);
  if (only == nullptr && !HasFailure()) {
    EXPECT_LE(stages["open"], count / 2) << "too few mutants get past the first parser";
    EXPECT_GE(stages["served"], count / 20);
  }
}

}  // namespace
}  // namespace nibble
