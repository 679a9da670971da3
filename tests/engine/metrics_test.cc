#include "runtime/metrics.h"

#include <algorithm>
#include <set>
#include <sstream>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using testing::Not;

std::vector<std::string> SeriesOf(const std::string& text, const std::string& name) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name + "{", 0) == 0 || line.rfind(name + " ", 0) == 0) found.push_back(line);
  }
  return found;
}

// The values of `label` over the series of `name`.
std::set<std::string> LabelValues(const std::string& text, const std::string& name,
                                  const std::string& label) {
  std::set<std::string> values;
  for (const std::string& series : SeriesOf(text, name)) {
    const std::size_t at = series.find(label + "=\"");
    if (at == std::string::npos) continue;
    const std::size_t begin = at + label.size() + 2;
    values.insert(series.substr(begin, series.find('"', begin) - begin));
  }
  return values;
}

TEST(MetricsTest, EverySeriesIsThereAtZeroFromLoadAndGoneAfterUnload) {
  Metrics metrics({"1.0", "abc", "cpu"});
  const std::string before = metrics.Scrape();
  EXPECT_THAT(before, HasSubstr("nibble_build_info{"));
  EXPECT_THAT(before, HasSubstr("process_resident_memory_bytes"));
  EXPECT_THAT(before, HasSubstr("process_cpu_seconds_total"));
  EXPECT_THAT(before, Not(HasSubstr("model=\"m\"")));
  auto model = metrics.ForModel("m");
  const std::string loaded = metrics.Scrape();
  for (const char* name : {"nibble_requests_total",
                           "nibble_requests_running",
                           "nibble_requests_waiting",
                           "nibble_prompt_tokens_total",
                           "nibble_output_tokens_total",
                           "nibble_time_to_first_token_seconds_count",
                           "nibble_inter_token_seconds_count",
                           "nibble_queue_seconds_count",
                           "nibble_prefill_seconds_count",
                           "nibble_decode_seconds_count",
                           "nibble_request_seconds_count",
                           "nibble_step_tokens_count",
                           "nibble_step_seconds_count",
                           "nibble_queue_limit",
                           "nibble_slots",
                           "nibble_model_load_seconds",
                           "nibble_kv_blocks",
                           "nibble_preemptions_total",
                           "nibble_recomputed_tokens_total",
                           "nibble_model_state",
                           "vllm:num_requests_running",
                           "vllm:num_requests_waiting",
                           "vllm:kv_cache_usage_perc",
                           "vllm:lora_requests_info",
                           "vllm:cache_config_info",
                           "vllm:prompt_tokens_total",
                           "vllm:generation_tokens_total",
                           "vllm:request_success_total",
                           "vllm:num_preemptions_total",
                           "vllm:prefix_cache_queries_total",
                           "vllm:prefix_cache_hits_total",
                           "vllm:time_to_first_token_seconds_bucket",
                           "vllm:inter_token_latency_seconds_bucket",
                           "vllm:request_time_per_output_token_seconds_count",
                           "vllm:e2e_request_latency_seconds_count",
                           "vllm:request_queue_time_seconds_count",
                           "vllm:request_inference_time_seconds_count",
                           "vllm:request_prefill_time_seconds_count",
                           "vllm:request_decode_time_seconds_count",
                           "vllm:request_prompt_tokens_count",
                           "vllm:request_generation_tokens_count",
                           "vllm:request_max_num_generation_tokens_count",
                           "vllm:request_params_n_count",
                           "vllm:request_params_max_tokens_count",
                           "vllm:iteration_tokens_total_count"}) {
    EXPECT_FALSE(SeriesOf(loaded, name).empty()) << name;
  }
  EXPECT_EQ(LabelValues(loaded, "nibble_prompt_tokens_total", "source"),
            (std::set<std::string>{"cached", "computed"}));
  EXPECT_EQ(LabelValues(loaded, "nibble_step_tokens_count", "phase"),
            (std::set<std::string>{"decode", "prefill"}));
  EXPECT_EQ(LabelValues(loaded, "nibble_kv_blocks", "state"),
            (std::set<std::string>{"cached", "free", "used"}));
  EXPECT_EQ(LabelValues(loaded, "nibble_model_state", "state"),
            (std::set<std::string>{"draining", "failed", "loading", "serving"}));
  EXPECT_EQ(LabelValues(loaded, "vllm:request_success_total", "finished_reason"),
            (std::set<std::string>{"abort", "length", "stop"}));
  const auto reasons = LabelValues(loaded, "nibble_requests_total", "reason");
  EXPECT_TRUE(reasons.count("QUEUE_FULL") && reasons.count("NONE") && reasons.count("_OTHER"));

  model.reset();
  const std::string after = metrics.Scrape();
  EXPECT_THAT(after, Not(HasSubstr("\"m\"")));
}

TEST(MetricsTest, BucketsAreSupersetsOfVllms) {
  const auto contains = [](const buckets::Boundaries& ours, const buckets::Boundaries& theirs) {
    return std::is_sorted(ours.begin(), ours.end()) &&
           std::includes(ours.begin(), ours.end(), theirs.begin(), theirs.end());
  };
  EXPECT_TRUE(
      contains(buckets::kFirstToken, {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                      1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560}));
  EXPECT_TRUE(contains(buckets::kInterToken, {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1,
                                              2.5, 5, 7.5, 10, 20, 40, 80}));
  EXPECT_TRUE(contains(buckets::kRequest, {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                           30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}));
  EXPECT_TRUE(contains(buckets::kStepTokens,
                       {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}));
  EXPECT_TRUE(contains(buckets::kOutputs, {1, 2, 5, 10, 20}));
  EXPECT_LT(buckets::kInterToken.front(), 0.001);
}

TEST(MetricsTest, OutcomesOutsideTheTableDoNotMakeSeries) {
  Metrics metrics({"1.0", "", ""});
  auto model = metrics.ForModel("m");
  const std::size_t series = SeriesOf(metrics.Scrape(), "nibble_requests_total").size();
  model->CountRejected(absl::StatusCode::kInternal, "something a client sent");
  model->CountRejected(static_cast<absl::StatusCode>(77), "NAN_LOGITS");
  metrics.CountUnknownModel(absl::StatusCode::kNotFound, "MODEL_NOT_FOUND");
  EXPECT_EQ(model->requests.Value(absl::StatusCode::kInternal, "something else"), 1);
  EXPECT_EQ(model->requests.Value(absl::StatusCode::kUnknown, ""), 1);
  const std::string text = metrics.Scrape();
  EXPECT_EQ(SeriesOf(text, "nibble_requests_total").size(), series);
  EXPECT_THAT(text, Not(HasSubstr("something")));
  EXPECT_THAT(
      text, testing::ContainsRegex(
                "nibble_requests_total\\{[^}]*code=\"NOT_FOUND\"[^}]*model=\"_OTHER\"[^}]*\\} 1"));
}

TEST(MetricsTest, TheSchedulerGaugesOfVllmAreOneSeriesAProcess) {
  Metrics metrics({"1.0", "", ""});
  auto first = metrics.ForModel("first");
  auto second = metrics.ForModel("second");
  first->SetKvShape(64);
  first->ChangeRunning(2);
  second->ChangeRunning(3);
  second->ChangeWaiting(4);
  first->ChangeKvBlocks(10, 5, 85);
  second->ChangeKvBlocks(30, 10, 60);
  const std::string text = metrics.Scrape();
  for (const char* name :
       {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info", "vllm:lora_requests_info"}) {
    EXPECT_EQ(SeriesOf(text, name).size(), 1u) << name;
  }
  EXPECT_THAT(SeriesOf(text, "vllm:num_requests_running")[0], testing::EndsWith(" 5"));
  EXPECT_THAT(SeriesOf(text, "vllm:num_requests_waiting")[0], testing::EndsWith(" 4"));
  EXPECT_THAT(SeriesOf(text, "vllm:kv_cache_usage_perc")[0], testing::EndsWith(" 0.3"));
  EXPECT_THAT(SeriesOf(text, "vllm:cache_config_info")[0],
              testing::AllOf(HasSubstr("num_gpu_blocks=\"200\""), HasSubstr("block_size=\"64\"")));
}

TEST(MetricsTest, HealthAndLimitsAreWhatWasTold) {
  Metrics metrics({"1.0", "", ""});
  EXPECT_THAT(SeriesOf(metrics.Scrape(), "nibble_live"), testing::ElementsAre("nibble_live 0"));
  metrics.SetHealth(/*live=*/true, /*ready=*/false);
  auto model = metrics.ForModel("m");
  model->SetLimits(/*max_queue=*/7, /*max_slots=*/3);
  model->load_seconds->Set(1.5);
  const std::string text = metrics.Scrape();
  EXPECT_THAT(SeriesOf(text, "nibble_live"), testing::ElementsAre("nibble_live 1"));
  EXPECT_THAT(SeriesOf(text, "nibble_ready"), testing::ElementsAre("nibble_ready 0"));
  EXPECT_THAT(SeriesOf(text, "nibble_queue_limit"),
              testing::ElementsAre("nibble_queue_limit{model=\"m\"} 7"));
  EXPECT_THAT(SeriesOf(text, "nibble_slots"), testing::ElementsAre("nibble_slots{model=\"m\"} 3"));
  EXPECT_THAT(SeriesOf(text, "nibble_model_load_seconds"),
              testing::ElementsAre("nibble_model_load_seconds{model=\"m\"} 1.5"));
}

TEST(MetricsTest, StepSecondsAreKeptByPhase) {
  Metrics metrics({"1.0", "", ""});
  auto model = metrics.ForModel("m");
  model->StepTook(/*prefill=*/true, 0.25);
  model->StepTook(/*prefill=*/false, 0.5);
  model->StepTook(/*prefill=*/false, 0.5);
  const std::string text = metrics.Scrape();
  EXPECT_THAT(
      SeriesOf(text, "nibble_step_seconds_sum"),
      testing::UnorderedElementsAre("nibble_step_seconds_sum{model=\"m\",phase=\"prefill\"} 0.25",
                                    "nibble_step_seconds_sum{model=\"m\",phase=\"decode\"} 1"));
}

TEST(MetricsTest, AnonymousMemoryIsPartOfWhatIsResident) {
  Metrics metrics({"1.0", "", ""});
  const std::string text = metrics.Scrape();
  const auto value = [&](const std::string& name) {
    const auto series = SeriesOf(text, name);
    return series.size() == 1 ? std::stod(series[0].substr(name.size() + 1)) : -1;
  };
  EXPECT_GT(value("process_resident_anonymous_memory_bytes"), 0);
  EXPECT_LT(value("process_resident_anonymous_memory_bytes"),
            value("process_resident_memory_bytes"));
}

TEST(MetricsTest, RevisionsOfANameShareTheirSeries) {
  Metrics metrics({"1.0", "", ""});
  auto old_revision = metrics.ForModel("m");
  old_revision->TokensPushed(3);
  auto new_revision = metrics.ForModel("m");
  EXPECT_EQ(old_revision, new_revision);
  old_revision.reset();
  new_revision->TokensPushed(4);
  EXPECT_EQ(new_revision->output_tokens->Value(), 7);
}

TEST(MetricsTest, ModelsComeAndGoWhileOthersScrape) {
  Metrics metrics({"1.0", "", ""});
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 30; ++round) {
        auto model = metrics.ForModel(i == 2 ? "b" : "a");
        model->TokensPushed(1);
        model->SetState(1);
        model->SetMemory("kv", "planned", "cpu", round);
      }
    });
  }
  for (int i = 0; i < 10; ++i) EXPECT_THAT(metrics.Scrape(), HasSubstr("nibble_build_info"));
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(SeriesOf(metrics.Scrape(), "nibble_output_tokens_total").empty());
}

}  // namespace
}  // namespace nibble
