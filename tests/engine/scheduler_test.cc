#include "runtime/engine/scheduler.h"

#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>

#include "gtest/gtest.h"

namespace nibble {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

struct Ask {
  std::int32_t prompt = 10;
  std::int32_t max_tokens = 10;
  std::int32_t priority = 0;
  std::string tenant;
  std::uint32_t num_outputs = 1;
  absl::Time deadline = absl::InfiniteFuture();
};

// A device with a clock: steps take what a true cost says, one after the other.
class Simulation {
 public:
  struct Options {
    SchedulerOptions scheduler;
    std::int32_t num_pages = 64;
    std::int32_t page_tokens = 4;
    int depth = 0;
    double base = 2e-3, per_token = 1e-4, per_key = 1e-8, noise = 0.0;
  };

  explicit Simulation(Options options)
      : options_(options),
        pool(options.num_pages, options.page_tokens),
        scheduler(options.scheduler, &pool) {
    // What a warm-up tells.
    for (int round = 0; round < 3; ++round) {
      for (Phase phase : {Phase::kPrefill, Phase::kDecode}) {
        for (std::int32_t tokens : {1, 8, 64}) {
          StepShape shape{.phase = phase};
          shape.Add(100 * round, tokens);
          scheduler.cost().Observe(shape, TrueSeconds(shape));
        }
      }
    }
  }

  RequestState* Add(const Ask& ask) {
    Request request;
    for (std::int32_t i = 0; i < ask.prompt; ++i)
      request.prompt.push_back(static_cast<std::int32_t>(random_() % 50000));
    return Add(ask, std::move(request));
  }

  RequestState* Add(const Ask& ask, Request request) {
    request.stopping.max_tokens = static_cast<std::uint32_t>(ask.max_tokens);
    request.priority = ask.priority;
    request.tenant = ask.tenant;
    request.output.num_outputs = ask.num_outputs;
    auto state = std::make_unique<RequestState>(
        ++last_id_, std::move(request), now, ask.deadline, options_.scheduler.limits.max_context,
        options_.num_pages * options_.page_tokens, std::vector<std::int32_t>{});
    RequestState* raw = state.get();
    requests[raw->id] = std::move(state);
    scheduler.Add(raw);
    return raw;
  }

  void Remove(RequestState* request) {
    scheduler.Remove(request);
    gone.insert(request->id);
    Sweep();
  }

  // One turn of an engine's loop; false when there was nothing to do.
  bool Turn() {
    std::optional<Batch> batch = scheduler.Next(now);
    for (RequestState* request : scheduler.TakeStarted()) {
      started.push_back(request->id);
      waits[request->id] = admissions++;
    }
    for (RequestState* request : scheduler.TakeRefused()) {
      refused.push_back(request->id);
      Remove(request);
    }
    const bool launched = batch.has_value();
    if (launched) {
      if (on_launch) on_launch(*batch);
      device_free_ = std::max(device_free_, now) + absl::Seconds(TrueSeconds(batch->shape));
      in_flight_.push_back({*std::move(batch), device_free_});
    }
    bool collected = false;
    while (!in_flight_.empty() &&
           (static_cast<int>(in_flight_.size()) > options_.depth || (!launched && !collected))) {
      Collect();
      collected = true;
    }
    const absl::Status status = scheduler.CheckIntegrity();
    EXPECT_EQ(status, absl::OkStatus());
    return launched || collected;
  }

  void RunUntilIdle() {
    for (int turn = 0; turn < 1'000'000; ++turn) {
      if (!Turn()) return;
    }
    FAIL() << "never idle";
  }

  double TrueSeconds(const StepShape& shape) {
    const double jitter = options_.noise * (static_cast<double>(random_() % 2001) / 1000.0 - 1.0);
    const std::int64_t tile =
        shape.phase == Phase::kPrefill ? options_.scheduler.limits.tile_tokens : 1;
    const std::int64_t worked = (shape.tokens + tile - 1) / tile * tile;
    return (options_.base + options_.per_token * static_cast<double>(worked) +
            options_.per_key * static_cast<double>(shape.attended)) *
           (1.0 + jitter);
  }

  // Whether this token ends its output.
  std::function<bool(const Sequence&)> ends = [](const Sequence&) { return false; };
  std::function<void(const Batch&)> on_launch;
  std::function<void(const Sequence&)> on_token;

  const Options options_;
  absl::Time now = kStart;
  BlockPool pool;
  Scheduler scheduler;
  std::map<std::uint64_t, std::unique_ptr<RequestState>> requests;
  std::set<std::uint64_t> gone;
  std::vector<std::uint64_t> started, refused, finished;
  std::map<std::uint64_t, std::int64_t> waits;
  std::int64_t admissions = 0;

 private:
  void Collect() {
    auto [batch, ready] = std::move(in_flight_.front());
    in_flight_.pop_front();
    now = std::max(now, ready);
    StepResult result{.id = batch.id, .seconds = TrueSeconds(batch.shape)};
    result.rows.resize(static_cast<std::size_t>(batch.rows));
    for (RowResult& row : result.rows) row.token = static_cast<std::int32_t>(random_() % 50000);
    for (const Outcome& outcome : scheduler.Commit(batch, result)) {
      Sequence& sequence = *outcome.sequence;
      if (sequence.state == Sequence::State::kEnded) continue;
      if (outcome.sampled == nullptr && !outcome.prompt_done) continue;
      if (on_token) on_token(sequence);
      const bool full =
          static_cast<std::int32_t>(sequence.outputs.size()) >= sequence.request->max_outputs;
      if (full || ends(sequence)) scheduler.End(&sequence);
    }
    for (auto& [id, request] : requests) {
      if (gone.count(id)) continue;
      const bool ended =
          std::all_of(request->sequences.begin(), request->sequences.end(),
                      [](const auto& s) { return s->state == Sequence::State::kEnded; });
      if (!ended) continue;
      finished.push_back(id);
      scheduler.Remove(request.get());
      gone.insert(id);
    }
    Sweep();
  }

  void Sweep() {
    for (auto id = gone.begin(); id != gone.end();) {
      const auto at = requests.find(*id);
      if (at == requests.end() || !at->second->idle()) {
        id = at == requests.end() ? gone.erase(id) : std::next(id);
        continue;
      }
      requests.erase(at);
      id = gone.erase(id);
    }
  }

  std::mt19937 random_{5};
  std::uint64_t last_id_ = 0;
  absl::Time device_free_ = kStart;
  std::deque<std::pair<Batch, absl::Time>> in_flight_;
};

Simulation::Options Small() {
  Simulation::Options options;
  options.scheduler.limits = {.max_tokens = 64,
                              .max_sequences = 8,
                              .max_slots = 8,
                              .max_logit_rows = 16,
                              .max_context = 200};
  return options;
}

TEST(SchedulerTest, APromptIsPrefilledThenDecodedToItsEnd) {
  Simulation simulation(Small());
  std::vector<std::string> steps;
  simulation.on_launch = [&](const Batch& batch) {
    steps.push_back(std::string(batch.phase == Phase::kPrefill ? "P" : "D") +
                    std::to_string(batch.shape.tokens));
  };
  simulation.Add({.prompt = 100, .max_tokens = 3});
  simulation.RunUntilIdle();
  EXPECT_EQ(steps, (std::vector<std::string>{"P64", "P36", "D1", "D1"}));
  EXPECT_EQ(simulation.finished.size(), 1u);
  EXPECT_EQ(simulation.pool.used(), 0);
}

TEST(SchedulerTest, ASequenceIsDecodedBeforeItsLastTokenIsSeen) {
  Simulation::Options options = Small();
  options.depth = 1;
  Simulation simulation(options);
  int unseen = 0, launched = 0;
  simulation.on_launch = [&](const Batch& batch) {
    ++launched;
    const Sequence& sequence = *batch.entries[0].sequence;
    if (batch.phase == Phase::kDecode && sequence.pending == 2) ++unseen;
  };
  simulation.Add({.prompt = 10, .max_tokens = 6});
  simulation.RunUntilIdle();
  EXPECT_EQ(launched, 6) << "no step more than the tokens it may have";
  EXPECT_EQ(unseen, 5);
}

TEST(SchedulerTest, OutputsShareTheFullBlocksOfTheirPrompt) {
  Simulation simulation(Small());
  std::int64_t prefilled = 0;
  simulation.on_launch = [&](const Batch& batch) {
    if (batch.phase == Phase::kPrefill) prefilled += batch.shape.tokens;
  };
  simulation.Add({.prompt = 42, .max_tokens = 4, .num_outputs = 3});
  simulation.RunUntilIdle();
  EXPECT_EQ(prefilled, 42 + 2 * 2)
      << "ten blocks of four are shared, two tokens are each output's own";
  EXPECT_EQ(simulation.finished.size(), 1u);
}

TEST(SchedulerTest, HigherPrioritiesGoFirst) {
  Simulation::Options options = Small();
  options.scheduler.limits.max_slots = 1;
  Simulation simulation(options);
  simulation.Add({.priority = 0});
  simulation.Add({.priority = 1});
  simulation.Add({.priority = -1});
  simulation.Add({.priority = 5});
  simulation.RunUntilIdle();
  EXPECT_EQ(simulation.started, (std::vector<std::uint64_t>{4, 2, 1, 3}));
}

TEST(SchedulerTest, NobodyStarvesBehindHigherPriorities) {
  Simulation::Options options = Small();
  options.scheduler.limits.max_slots = 1;
  Simulation simulation(options);
  simulation.Add({.priority = std::numeric_limits<std::int32_t>::min()});
  for (int i = 0; i < 200; ++i) {
    simulation.Add({.max_tokens = 1, .priority = 7});
    simulation.Add({.max_tokens = 1, .priority = 7});
    simulation.Turn();
  }
  EXPECT_LE(simulation.waits.at(1), WaitingQueue::kTurnOfTheOldest);
}

TEST(SchedulerTest, TenantsShareByTokensServed) {
  Simulation::Options options = Small();
  options.scheduler.limits.max_slots = 1;
  Simulation simulation(options);
  // One tenant sends twenty requests before the other sends five.
  for (int i = 0; i < 20; ++i) simulation.Add({.tenant = "many"});
  for (int i = 0; i < 5; ++i) simulation.Add({.tenant = "few"});
  simulation.RunUntilIdle();
  // Ids 21 to 25 are the second tenant's; they alternate with the first's.
  std::int64_t last = 0;
  for (std::uint64_t id = 21; id <= 25; ++id) last = std::max(last, simulation.waits.at(id));
  EXPECT_LE(last, 11);
}

TEST(SchedulerTest, PromptsThatCannotMeetTheirDeadlineAreRefusedUnseen) {
  Simulation simulation(Small());
  const auto hopeless = [&] {
    return Ask{.prompt = 150, .deadline = simulation.now + absl::Milliseconds(10)};
  };
  simulation.Add(hopeless());
  simulation.RunUntilIdle();
  EXPECT_TRUE(simulation.refused.empty()) << "a warm-up alone refuses nobody";
  for (int i = 0; i < 32; ++i) {
    StepShape shape{.phase = Phase::kPrefill};
    shape.Add(0, 1 + i % 8 * 8);
    simulation.scheduler.cost().Observe(shape, simulation.TrueSeconds(shape));
  }
  RequestState* late = simulation.Add(hopeless());
  const std::uint64_t id = late->id;
  simulation.Add({.prompt = 150, .deadline = simulation.now + absl::Seconds(10)});
  std::int64_t prefilled = 0;
  simulation.on_launch = [&](const Batch& batch) {
    if (batch.phase == Phase::kPrefill) prefilled += batch.shape.tokens;
  };
  simulation.RunUntilIdle();
  EXPECT_EQ(simulation.refused, std::vector<std::uint64_t>{id});
  EXPECT_EQ(prefilled, 150);
}

TEST(SchedulerTest, PromptsDoNotStallThoseWhoDecode) {
  for (int depth : {0, 1}) {
    SCOPED_TRACE(depth);
    Simulation::Options options = Small();
    options.depth = depth;
    options.scheduler.limits = {.max_tokens = 4096,
                                .max_sequences = 8,
                                .max_slots = 8,
                                .max_logit_rows = 16,
                                .max_context = 100'000};
    options.scheduler.max_itl = absl::Milliseconds(20);
    options.num_pages = 4000;
    options.page_tokens = 64;
    options.noise = 0.02;
    Simulation simulation(options);
    RequestState* chat = simulation.Add({.prompt = 20, .max_tokens = 100'000 - 20});
    const std::uint64_t chat_id = chat->id;
    for (int i = 0; i < 10; ++i) simulation.Turn();
    simulation.Add({.prompt = 60'000, .max_tokens = 1});
    absl::Time last = simulation.now;
    absl::Duration longest;
    std::int64_t chunks = 0, chunk_tokens = 0;
    simulation.on_launch = [&](const Batch& batch) {
      if (batch.phase != Phase::kPrefill) return;
      ++chunks;
      chunk_tokens += batch.shape.tokens;
    };
    simulation.on_token = [&](const Sequence& sequence) {
      if (sequence.request->id != chat_id) return;
      longest = std::max(longest, simulation.now - last);
      last = simulation.now;
    };
    while (simulation.finished.empty()) ASSERT_TRUE(simulation.Turn());
    EXPECT_LE(longest, absl::Milliseconds(20));
    EXPECT_EQ(chunk_tokens, 60'000);
    EXPECT_GE(longest, absl::Milliseconds(15)) << "the time there is gets used";
    EXPECT_LT(chunks, 60'000 / 16) << "chunks are larger than the least";
  }
}

TEST(SchedulerTest, SeveralStepsOfPromptsFitAGapThatMayBeLong) {
  for (const int itl_ms : {20, 200}) {
    SCOPED_TRACE(itl_ms);
    Simulation::Options options = Small();
    options.scheduler.limits = {.max_tokens = 128,
                                .max_sequences = 8,
                                .max_slots = 8,
                                .max_logit_rows = 16,
                                .max_context = 100'000};
    options.scheduler.max_itl = absl::Milliseconds(itl_ms);
    options.num_pages = 4000;
    options.page_tokens = 64;
    Simulation simulation(options);
    simulation.Add({.prompt = 20, .max_tokens = 100'000 - 20});
    for (int i = 0; i < 10; ++i) simulation.Turn();
    simulation.Add({.prompt = 6000, .max_tokens = 1});
    int together = 0, most = 0;  // steps of prompts between tokens
    simulation.on_launch = [&](const Batch& batch) {
      together = batch.phase == Phase::kPrefill ? together + 1 : 0;
      most = std::max(most, together);
    };
    absl::Time last = simulation.now;
    absl::Duration longest;
    simulation.on_token = [&](const Sequence&) {
      longest = std::max(longest, simulation.now - last);
      last = simulation.now;
    };
    while (simulation.finished.empty()) ASSERT_TRUE(simulation.Turn());
    EXPECT_LE(longest, absl::Milliseconds(itl_ms));
    EXPECT_EQ(most, itl_ms == 20 ? 1 : 11);  // of 15 ms and a little more each
  }
}

// Of a device whose time grows by whole tiles of tokens.
TEST(SchedulerTest, StepsThatTimeCutsShortEndOnWholeTiles) {
  Simulation::Options options = Small();
  options.depth = 1;
  options.scheduler.limits = {.max_tokens = 2048,
                              .max_sequences = 8,
                              .max_slots = 8,
                              .max_logit_rows = 16,
                              .max_context = 100'000,
                              .tile_tokens = 128};
  options.scheduler.max_itl = absl::Milliseconds(30);
  options.num_pages = 4000;
  options.page_tokens = 64;
  options.per_token = 2.2e-5, options.per_key = 1e-9;
  options.noise = 0.01;
  Simulation simulation(options);
  for (std::int32_t tokens : {256, 1024, 2048, 768, 896, 1024, 1152, 1280}) {  // as engines do
    StepShape shape{.phase = Phase::kPrefill};
    shape.Add(0, tokens);
    simulation.scheduler.cost().Observe(shape, simulation.TrueSeconds(shape));
  }
  RequestState* chat = simulation.Add({.prompt = 20, .max_tokens = 100'000 - 20});
  const std::uint64_t chat_id = chat->id;
  for (int i = 0; i < 10; ++i) simulation.Turn();
  for (int i = 0; i < 7; ++i) simulation.Add({.prompt = 2048, .max_tokens = 1});
  absl::Time last = simulation.now;
  absl::Duration longest;
  std::vector<std::int64_t> sizes;
  simulation.on_launch = [&](const Batch& batch) {
    if (batch.phase == Phase::kPrefill) sizes.push_back(batch.shape.tokens);
  };
  simulation.on_token = [&](const Sequence& sequence) {
    if (sequence.request->id != chat_id) return;
    longest = std::max(longest, simulation.now - last);
    last = simulation.now;
  };
  while (simulation.finished.size() < 7) ASSERT_TRUE(simulation.Turn());
  EXPECT_LE(longest, absl::Milliseconds(30));
  EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}), 7 * 2048);
  ASSERT_GT(sizes.size(), 5);
  for (std::size_t i = 0; i + 1 < sizes.size(); ++i) EXPECT_EQ(sizes[i] % 128, 0) << sizes[i];
  EXPECT_GE(*std::max_element(sizes.begin(), sizes.end()), 896) << "the time there is gets used";
}

TEST(SchedulerTest, NoStepOfASlowDeviceLastsForever) {
  Simulation::Options options = Small();
  options.scheduler.limits.max_tokens = 512;
  options.scheduler.limits.max_context = 2000;
  options.num_pages = 500;
  options.per_token = 0.05;  // twenty tokens a second
  Simulation simulation(options);
  simulation.Add({.prompt = 1500, .max_tokens = 1});
  std::int64_t longest = 0, prefilled = 0;
  simulation.on_launch = [&](const Batch& batch) {
    longest = std::max(longest, batch.shape.tokens);
    prefilled += batch.shape.tokens;
  };
  simulation.RunUntilIdle();
  EXPECT_LE(longest, 42);
  EXPECT_GE(longest, 35);
  EXPECT_EQ(prefilled, 1500);
}

TEST(SchedulerTest, AShortPromptDoesNotWaitBehindABook) {
  Simulation::Options options = Small();
  options.scheduler.limits.max_context = 4000;
  options.num_pages = 2000;
  Simulation simulation(options);
  simulation.Add({.prompt = 3000, .max_tokens = 1});
  simulation.Turn();
  simulation.Add({.prompt = 10, .max_tokens = 1});
  for (int i = 0; i < 3; ++i) simulation.Turn();
  EXPECT_EQ(simulation.finished, std::vector<std::uint64_t>{2});
}

TEST(SchedulerTest, PressurePreemptsTheNewestAndTheOldestGoesOn) {
  Simulation::Options options = Small();
  options.num_pages = 20;  // 80 tokens
  Simulation simulation(options);
  // Short answers teach it optimism; then three long ones want 3 * 58.
  for (int i = 0; i < 100; ++i) {
    simulation.Add({.prompt = 4, .max_tokens = 1});
    simulation.RunUntilIdle();
  }
  simulation.finished.clear();
  for (int i = 0; i < 3; ++i) simulation.Add({.prompt = 8, .max_tokens = 50});
  int preemptions_of_oldest = 0;
  simulation.on_token = [&](const Sequence& sequence) {
    if (sequence.request->id == 101) preemptions_of_oldest = sequence.preemptions;
    EXPECT_LE(sequence.preemptions, options.scheduler.max_preemptions);
  };
  simulation.RunUntilIdle();
  EXPECT_EQ(simulation.finished, (std::vector<std::uint64_t>{101, 102, 103}));
  EXPECT_EQ(preemptions_of_oldest, 0);
  EXPECT_GT(simulation.scheduler.preemptions(), 0);
  EXPECT_GT(simulation.scheduler.recomputed_tokens(), 0);
}

TEST(SchedulerTest, ReservedAdmissionNeverPreempts) {
  Simulation::Options options = Small();
  options.num_pages = 20;
  options.scheduler.admission = Admission::kReserved;
  Simulation simulation(options);
  for (int i = 0; i < 12; ++i) simulation.Add({.prompt = 8, .max_tokens = 30});
  simulation.RunUntilIdle();
  EXPECT_EQ(simulation.finished.size(), 12u);
  EXPECT_EQ(simulation.scheduler.preemptions(), 0);
}

TEST(SchedulerTest, DeterministicChunksEndAtFixedPlaces) {
  Simulation::Options options = Small();
  options.scheduler.fixed_chunk = 32;
  Simulation simulation(options);
  simulation.on_launch = [&](const Batch& batch) {
    if (batch.phase != Phase::kPrefill) return;
    for (const ScheduledSequence& entry : batch.entries) {
      EXPECT_EQ(entry.begin % 32, 0);
      EXPECT_TRUE(entry.count == 32 || entry.begin + entry.count == entry.sequence->prefill_target);
    }
  };
  Request twice;
  for (int i = 0; i < 77; ++i) twice.prompt.push_back(i);
  for (int i = 0; i < 5; ++i) simulation.Add({.prompt = 30 + 17 * i, .max_tokens = 20});
  simulation.Add({.max_tokens = 3}, twice);
  simulation.RunUntilIdle();
  simulation.Add({.max_tokens = 3}, twice);
  simulation.RunUntilIdle();
  EXPECT_EQ(simulation.finished.size(), 7u);
}

// Many requests with every trouble there is; the invariants are checked after each step.
struct StormCase {
  int depth;
  Admission admission;
};
class SchedulerStormTest : public testing::TestWithParam<StormCase> {};

TEST_P(SchedulerStormTest, EverybodyIsServedAndNothingLeaks) {
  Simulation::Options options = Small();
  options.depth = GetParam().depth;
  options.scheduler.admission = GetParam().admission;
  options.noise = 0.05;
  options.num_pages = 80;
  Simulation simulation(options);
  std::mt19937 random(17);
  simulation.ends = [&](const Sequence&) { return random() % 40 == 0; };
  std::int64_t tokens = 0;
  simulation.on_token = [&](const Sequence& sequence) {
    ++tokens;
    ASSERT_LE(sequence.preemptions, options.scheduler.max_preemptions);
  };
  constexpr int kRequests = 10'000;
  std::vector<std::vector<std::int32_t>> prefixes;
  for (int i = 0; i < 4; ++i) {
    prefixes.emplace_back();
    for (int token = 0; token < 40; ++token) prefixes.back().push_back(1000 * i + token);
  }
  std::int64_t sent = 0, cancelled = 0, overtaken = 0;
  absl::Time next_arrival = simulation.now;
  while (sent < kRequests || !simulation.requests.empty()) {
    while (sent < kRequests && simulation.now >= next_arrival &&
           simulation.scheduler.waiting() < 64) {
      Ask ask{
          .max_tokens = static_cast<std::int32_t>(random() % 60),
          .priority = static_cast<std::int32_t>(random() % 3),
          .tenant = std::string(1, static_cast<char>('a' + random() % 4)),
          .num_outputs = random() % 10 == 0 ? 1 + static_cast<std::uint32_t>(random() % 12) : 1};
      if (random() % 16 == 0) ask.deadline = simulation.now + absl::Milliseconds(random() % 400);
      Request request;
      if (random() % 2 == 0) request.prompt = prefixes[random() % 4];
      for (std::size_t i = 0, count = 1 + random() % 80; i < count; ++i) {
        request.prompt.push_back(static_cast<std::int32_t>(random() % 50000));
      }
      simulation.Add(ask, std::move(request));
      ++sent;
      next_arrival = next_arrival + absl::Milliseconds(random() % 80);
    }
    if (random() % 40 == 0 && !simulation.requests.empty()) {
      auto at = simulation.requests.lower_bound(random() % (static_cast<std::uint64_t>(sent) + 1));
      if (at != simulation.requests.end() && !simulation.gone.count(at->first)) {
        simulation.Remove(at->second.get());
        ++cancelled;
      }
    }
    // What the engine does at a deadline.
    std::vector<RequestState*> late;
    for (const auto& [id, request] : simulation.requests) {
      if (!simulation.gone.count(id) && simulation.now > request->deadline)
        late.push_back(request.get());
    }
    for (RequestState* request : late) simulation.Remove(request);
    if (!simulation.Turn()) {
      ASSERT_TRUE(simulation.scheduler.waiting() == 0) << "idle while somebody waits";
      simulation.now = std::max(simulation.now, next_arrival);
    }
    ASSERT_FALSE(HasFailure());
  }
  // Nobody was overtaken by more than the queue may hold, times the turns.
  for (const auto& [id, turn] : simulation.waits)
    overtaken = std::max(overtaken, turn - static_cast<std::int64_t>(id));
  EXPECT_LE(overtaken, 64 * WaitingQueue::kTurnOfTheOldest);
  EXPECT_EQ(simulation.pool.used(), 0);
  EXPECT_EQ(simulation.scheduler.running_requests(), 0);
  EXPECT_GT(simulation.finished.size(), 4000u);
  EXPECT_GT(cancelled, 200);
  EXPECT_GT(tokens, 100'000);
  if (GetParam().admission == Admission::kReserved) {
    EXPECT_EQ(simulation.scheduler.preemptions(), 0);
  } else {
    EXPECT_GT(simulation.scheduler.preemptions(), 0);
  }
  EXPECT_GT(simulation.scheduler.prefix_hits(), 0);
}

INSTANTIATE_TEST_SUITE_P(Storms, SchedulerStormTest,
                         testing::Values(StormCase{0, Admission::kOptimistic},
                                         StormCase{1, Admission::kOptimistic},
                                         StormCase{0, Admission::kReserved},
                                         StormCase{1, Admission::kReserved}));

TEST(CostModelTest, LearnsALineAndForgetsAnOldOne) {
  CostModel model;
  std::mt19937 random(3);
  const auto run = [&](double base, double per_token, double per_key, int steps) {
    for (int i = 0; i < steps; ++i) {
      StepShape shape{.phase = Phase::kPrefill};
      shape.Add(random() % 2000, 1 + random() % 512);
      model.Observe(shape, base + per_token * static_cast<double>(shape.tokens) +
                               per_key * static_cast<double>(shape.attended));
    }
  };
  EXPECT_FALSE(model.Knows(Phase::kPrefill));
  run(1e-2, 1e-4, 1e-7, 100);
  StepShape shape{.phase = Phase::kPrefill};
  shape.Add(1000, 300);
  const double expected = 1e-2 + 3e-2 + 1e-7 * static_cast<double>(shape.attended);
  EXPECT_NEAR(model.Estimate(shape), expected, 0.02 * expected);
  run(2e-2, 2e-4, 2e-7, 400);
  EXPECT_NEAR(model.Estimate(shape), 2 * expected, 0.05 * expected);
  EXPECT_FALSE(model.Knows(Phase::kDecode));
}

TEST(CostModelTest, OneSizeSeenMeansLargerStepsCostMore) {
  CostModel model;
  StepShape shape{.phase = Phase::kPrefill};
  shape.Add(0, 10);
  model.Observe(shape, 0.01);
  StepShape larger{.phase = Phase::kPrefill};
  larger.Add(0, 100);
  EXPECT_NEAR(model.Estimate(shape), 0.01, 1e-4);
  EXPECT_GT(model.Estimate(larger), 0.05);
}

TEST(CostModelTest, FarLargerStepsThanAnySeenAreBoundWithCare) {
  CostModel model;
  const auto prefill = [](std::int64_t begin, std::int64_t tokens) {
    StepShape shape{.phase = Phase::kPrefill};
    shape.Add(begin, tokens);
    return shape;
  };
  model.Observe(prefill(0, 16), 0.016);
  EXPECT_NEAR(model.Bound(prefill(0, 32)), 0.032, 1e-3);  // twice as many: as estimated
  EXPECT_NEAR(model.Bound(prefill(0, 64)), 2 * 0.064, 2e-3);
  EXPECT_NEAR(model.Bound(prefill(0, 512)), 16 * 0.512, 0.2);
  model.Observe(prefill(0, 256), 0.256);
  EXPECT_NEAR(model.Bound(prefill(0, 512)), 0.512, 1e-2);
}

TEST(CostModelTest, GuessesHoldUntilStepsTell) {
  CostModel model;
  const auto prefill = [](std::int64_t begin, std::int64_t tokens) {
    StepShape shape{.phase = Phase::kPrefill};
    shape.Add(begin, tokens);
    return shape;
  };
  model.Presume(prefill(0, 1), 0.010);
  EXPECT_FALSE(model.Knows(Phase::kPrefill));
  EXPECT_NEAR(model.Estimate(prefill(0, 4)), 0.040, 1e-3);

  model = CostModel();
  model.Observe(prefill(0, 16), 0.016);
  model.Observe(prefill(0, 64), 0.064);
  model.Presume(prefill(8000, 512), 5.0);  // attention to a long context
  EXPECT_GT(model.Estimate(prefill(8000, 512)), 2.5);
  EXPECT_NEAR(model.Estimate(prefill(0, 64)), 0.064, 0.01);
  for (int i = 0; i < 20; ++i) model.Observe(prefill(4000, 256), 0.3);
  EXPECT_NEAR(model.Estimate(prefill(4000, 256)), 0.3, 0.02);
}

TEST(CostModelTest, NonsenseIsIgnored) {
  CostModel model;
  StepShape shape{.phase = Phase::kDecode};
  shape.Add(10, 1);
  model.Observe(shape, 0.0);
  model.Observe(shape, std::numeric_limits<double>::quiet_NaN());
  model.Observe(shape, std::numeric_limits<double>::infinity());
  model.Presume(shape, 0.0);
  model.Presume(shape, std::numeric_limits<double>::infinity());
  EXPECT_FALSE(model.Knows(Phase::kDecode));
  EXPECT_EQ(model.Bound(shape), 0.0);
}

}  // namespace
}  // namespace nibble
