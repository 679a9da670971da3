#include "runtime/engine/token_stream.h"

#include <thread>

#include "gtest/gtest.h"
#include "runtime/engine/served_model.h"

namespace nibble {
namespace {

ChunkEvent Chunk(std::size_t bytes) { return {.text = std::string(bytes, 'x')}; }

TEST(TokenStreamTest, EventsComeInOrderAndTheEndLast) {
  TokenStream stream(1000);
  EXPECT_TRUE(stream.Push(StartedEvent{.model = "m"}));
  EXPECT_TRUE(stream.Push(Chunk(3)));
  stream.Close(absl::OkStatus());
  std::optional<absl::Status> end;
  EXPECT_TRUE(std::holds_alternative<StartedEvent>(*stream.Pop(&end)));
  EXPECT_FALSE(end.has_value());
  EXPECT_TRUE(std::holds_alternative<ChunkEvent>(*stream.Pop(&end)));
  EXPECT_FALSE(stream.Pop(&end).has_value());
  EXPECT_EQ(end, absl::OkStatus());
}

TEST(TokenStreamTest, OnlyChunksOverflowAndReadingMakesRoom) {
  TokenStream stream(1000);
  EXPECT_TRUE(stream.Push(Chunk(400)));
  EXPECT_TRUE(stream.Push(Chunk(400)));
  EXPECT_FALSE(stream.Push(Chunk(400)));
  EXPECT_TRUE(stream.Push(FinishedEvent{})) << "room for it is reserved";
  stream.PushHeld(Chunk(4000));
  std::optional<absl::Status> end;
  (void)stream.Pop(&end);
  EXPECT_FALSE(stream.Push(Chunk(400))) << "the held one counts";
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(stream.Pop(&end).has_value());
  EXPECT_TRUE(stream.Push(Chunk(400)));
}

TEST(TokenStreamTest, TheFirstCloseWinsAndLateEventsAreDropped) {
  TokenStream stream(1000);
  stream.Close(absl::CancelledError("first"));
  stream.Close(absl::OkStatus());
  EXPECT_TRUE(stream.Push(Chunk(1)));
  std::optional<absl::Status> end;
  EXPECT_FALSE(stream.Pop(&end).has_value());
  EXPECT_EQ(end, absl::CancelledError("first"));
}

TEST(TokenStreamTest, CancelCallsTheHookOnce) {
  TokenStream stream(1000);
  int calls = 0;
  stream.SetCancelHook([&] { ++calls; });
  stream.Cancel();
  stream.Cancel();
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(stream.cancelled());
  TokenStream closed(1000);
  closed.SetCancelHook([&] { ++calls; });
  closed.Close(absl::OkStatus());
  closed.Cancel();
  EXPECT_EQ(calls, 1) << "an ended stream wakes nobody";
}

TEST(TokenStreamTest, TheWakerMayBeGone) {
  struct Waker : StreamWaker {
    int wakes = 0;
    void Wake() override { ++wakes; }
  };
  TokenStream stream(1000);
  auto waker = std::make_shared<Waker>();
  stream.SetWaker(waker);
  stream.Push(Chunk(1));
  EXPECT_EQ(waker->wakes, 1);
  waker.reset();
  stream.Push(Chunk(1));
  stream.Close(absl::OkStatus());
}

TEST(TokenStreamTest, AWakerMayReadAndCancelWhileItIsWoken) {
  struct Waker : StreamWaker {
    TokenStream* stream = nullptr;
    int events = 0;
    void Wake() override {
      std::optional<absl::Status> end;
      while (stream->Pop(&end).has_value()) ++events;
      stream->Cancel();
    }
  };
  TokenStream stream(100'000);
  auto waker = std::make_shared<Waker>();
  waker->stream = &stream;
  stream.SetWaker(waker);
  std::thread pusher([&] {
    for (int i = 0; i < 500; ++i) stream.Push(Chunk(1));
  });
  pusher.join();
  EXPECT_EQ(waker->events, 500);
}

TEST(StatusReasonTest, ReasonsAndRetriesRideOnTheStatus) {
  absl::Status status =
      WithRetry(WithReason(absl::UnavailableError("x"), "DRAINING"), absl::Milliseconds(1500));
  EXPECT_EQ(ReasonOf(status), "DRAINING");
  EXPECT_EQ(RetryOf(status), absl::Milliseconds(1500));
  EXPECT_EQ(status.message(), "x");
  EXPECT_EQ(ReasonOf(absl::InternalError("y")), "");
  EXPECT_FALSE(RetryOf(absl::InternalError("y")).has_value());
  EXPECT_TRUE(WithReason(absl::OkStatus(), "DRAINING").ok());
}

}  // namespace
}  // namespace nibble
