#include "server/wire_response.h"

#include "gtest/gtest.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

// A chunk that exceeds a response many times over.
ChunkEvent HugeChunk() {
  ChunkEvent chunk;
  chunk.output_index = 3;
  for (int i = 0; i < 700'000; ++i)
    chunk.text += "\xE2\x82\xAC";  // 3 bytes: no cut may fall inside
  for (int i = 0; i < 20'000; ++i) {
    chunk.token_ids.push_back(i);
    TokenLogprob logprob{.token = i, .logprob = -1.0f, .bytes = "tok"};
    for (int j = 0; j < 20; ++j)
      logprob.top.push_back({.token = j, .logprob = -2.0f, .bytes = "top"});
    chunk.logprobs.push_back(logprob);
  }
  return chunk;
}

TEST(ToResponsesTest, HugeChunksAreCutAndLoseNothing) {
  const ChunkEvent chunk = HugeChunk();

  const auto responses = ToResponses(chunk, "id");

  std::string text;
  int next_token = 0;
  for (const v1::GenerateResponse& response : responses) {
    ASSERT_LE(response.ByteSizeLong(), kMaxResponseBytes);
    ASSERT_EQ(response.chunk().output_index(), 3u);
    ASSERT_TRUE(IsValidUtf8(response.chunk().text()));
    text += response.chunk().text();
    ASSERT_EQ(response.chunk().token_ids_size(), response.chunk().logprobs_size());
    for (int i = 0; i < response.chunk().token_ids_size(); ++i) {
      ASSERT_EQ(response.chunk().token_ids(i), static_cast<std::uint32_t>(next_token));
      ASSERT_EQ(response.chunk().logprobs(i).token_id(), static_cast<std::uint32_t>(next_token++));
    }
  }
  EXPECT_EQ(text, chunk.text);
  EXPECT_EQ(next_token, 20'000);
}

TEST(ToResponsesTest, FirstPromptTokenHasNoLogprob) {
  PromptEvent prompt;
  prompt.token_ids = {5, 6};
  prompt.logprobs = {{.token = 5}, {.token = 6, .logprob = -0.5f}};

  const auto responses = ToResponses(prompt, "id");

  ASSERT_EQ(responses.size(), 1u);
  EXPECT_FALSE(responses[0].prompt().logprobs(0).has_logprob());
  EXPECT_FLOAT_EQ(responses[0].prompt().logprobs(1).logprob(), -0.5f);

  prompt.offset = 10;
  EXPECT_TRUE(ToResponses(prompt, "id")[0].prompt().logprobs(0).has_logprob());
}

TEST(ToResponsesTest, LongPromptsKeepTheirOffsets) {
  PromptEvent prompt;
  prompt.offset = 7;
  for (int i = 0; i < 400'000; ++i) prompt.token_ids.push_back(i);

  std::uint32_t next = 7;
  for (const v1::GenerateResponse& response : ToResponses(prompt, "id")) {
    ASSERT_LE(response.ByteSizeLong(), kMaxResponseBytes);
    ASSERT_EQ(response.prompt().offset(), next);
    next += static_cast<std::uint32_t>(response.prompt().token_ids_size());
  }
  EXPECT_EQ(next, 400'007u);
}

TEST(ToResponsesTest, EmptyChunksAndEndsComeThrough) {
  EXPECT_EQ(ToResponses(ChunkEvent{}, "id").size(), 1u);
  FinishedEvent finished;
  finished.reason = FinishReason::kLength;
  finished.completion_tokens = 4;
  finished.timing.queue = absl::Milliseconds(1500);
  const auto responses = ToResponses(finished, "id");
  EXPECT_EQ(responses[0].finished().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(responses[0].finished().timing().queue().seconds(), 1);
  EXPECT_EQ(responses[0].finished().timing().queue().nanos(), 500'000'000);
  EXPECT_EQ(ToResponses(StartedEvent{}, "label")[0].started().request_id(), "label");
}

}  // namespace
}  // namespace nibble
