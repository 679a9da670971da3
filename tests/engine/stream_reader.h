// Reads a stream to its end on the calling thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "gtest/gtest.h"
#include "runtime/engine/token_stream.h"
#include "tests/engine/engine_harness.h"

namespace nibble {

class StreamReader : public StreamWaker {
 public:
  // Before Submit.
  static std::shared_ptr<StreamReader> Attach(std::shared_ptr<TokenStream> stream) {
    auto reader = std::make_shared<StreamReader>(std::move(stream));
    reader->stream_->SetWaker(reader);
    return reader;
  }
  explicit StreamReader(std::shared_ptr<TokenStream> stream) : stream_(std::move(stream)) {}

  void Wake() override {
    std::lock_guard lock(mutex_);
    woken_ = true;
    changed_.notify_all();
  }

  // Until `enough` says so, or the end. A test that waits a minute has failed.
  const Seen& ReadUntil(const std::function<bool(const Seen&)>& enough) {
    while (true) {
      nibble::Drain(*stream_, seen_);
      if (seen_.end.has_value() || enough(seen_)) return seen_;
      std::unique_lock lock(mutex_);
      if (!changed_.wait_for(lock, std::chrono::seconds(60), [&] { return woken_; })) {
        ADD_FAILURE() << "a stream that says nothing";
        return seen_;
      }
      woken_ = false;
    }
  }
  const Seen& ReadAll() {
    return ReadUntil([](const Seen&) { return false; });
  }
  TokenStream& stream() { return *stream_; }

 private:
  const std::shared_ptr<TokenStream> stream_;
  Seen seen_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;
};

}  // namespace nibble
