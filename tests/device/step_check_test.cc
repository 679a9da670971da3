#include "runtime/device/step_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/device/tiny_program.h"

namespace nibble {
namespace {

StepChecker MakeChecker() {
  const TinyModel model;
  return StepChecker(model.limits, TinyModel::kVocab, model.kv);
}

struct BadCase {
  const char* says;  // part of the message
  std::function<void(StepInput&)> spoil;
};

TEST(StepCheckTest, NamesWhatIsWrong) {
  static const std::vector<std::int32_t> kNone,
      kOne = {1}, kHuge = {301}, kFar = {9, 10, 11}, kZero = {0, 0}, kSlots = {40}, kPages = {64},
      kFromSlot = {StepInput::kFromSlot, 2, 3}, kQuery = {2}, kContext = {513};
  static const std::vector<std::pair<std::int32_t, float>> kNanBias = {{1, std::nanf("")}};
  const std::vector<BadCase> cases = {
      {"no tokens", [](StepInput& in) { in.tokens = kNone; }},
      {"positions", [](StepInput& in) { in.positions = kOne; }},
      {"token 301",
       [](StepInput& in) {
         in.tokens = std::span(kHuge);
         in.positions = kOne;
         in.query_lengths = kOne;
         in.context_lengths = kOne;
       }},
      {"position 9", [](StepInput& in) { in.positions = kFar; }},
      {"slot 40", [](StepInput& in) { in.slots = kSlots; }},
      {"page 64", [](StepInput& in) { in.block_tables = kPages; }},
      {"no last token", [](StepInput& in) { in.tokens = kFromSlot; }},
      {"query lengths", [](StepInput& in) { in.query_lengths = {}; }},
      {"context of 513", [](StepInput& in) { in.context_lengths = kContext; }},
      {"block table offsets", [](StepInput& in) { in.block_table_offsets = kZero; }},
  };
  for (const BadCase& c : cases) {
    StepBuilder step;
    step.Begin(0);
    step.Append(0, 0, {1, 2, 3});
    step.Sample();
    StepInput input = step.Input();
    EXPECT_TRUE(MakeChecker().Accept(input).ok());
    c.spoil(input);
    const absl::Status status = MakeChecker().Accept(input);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.says;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.says));
  }

  StepBuilder biased;
  biased.Begin(0);
  biased.last_init().logit_bias = kNanBias;
  biased.Append(0, 0, {1});
  EXPECT_THAT(std::string(MakeChecker().Accept(biased.Input()).message()),
              testing::HasSubstr("logit bias"));

  StepBuilder row;
  row.Begin(0);
  row.Append(0, 0, {1});
  row.Sample();
  row.last_row().slot = 2;
  EXPECT_THAT(std::string(MakeChecker().Accept(row.Input()).message()),
              testing::HasSubstr("names slot 2"));

  StepBuilder twice;
  twice.Begin(0);
  twice.Append(0, 0, {1});
  twice.Append(0, 1, {1});
  EXPECT_THAT(std::string(MakeChecker().Accept(twice.Input()).message()),
              testing::HasSubstr("slot 0 twice"));
}

TEST(StepCheckTest, RemembersSlotsInLaunchOrder) {
  StepChecker checker = MakeChecker();
  StepBuilder unknown;
  unknown.Append(0, 0, {1});
  EXPECT_THAT(std::string(checker.Accept(unknown.Input()).message()),
              testing::HasSubstr("never begun"));

  StepBuilder first;
  first.Begin(0);
  first.Append(0, 0, {1, 2});
  first.Sample();
  EXPECT_TRUE(checker.Accept(first.Input()).ok());
  StepBuilder next;
  next.Append(0, 2, {StepInput::kFromSlot});
  EXPECT_TRUE(checker.Accept(next.Input()).ok());

  StepBuilder again;  // a new sequence in the slot has no last token
  again.Begin(0);
  again.Append(0, 0, {StepInput::kFromSlot});
  EXPECT_FALSE(checker.Accept(again.Input()).ok());
  EXPECT_TRUE(checker.Accept(next.Input()).ok());  // a refused step changes nothing
}

}  // namespace
}  // namespace nibble
