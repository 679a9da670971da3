#include "runtime/text/detokenizer.h"

#include <algorithm>

#include "runtime/text/unicode.h"

namespace nibble {

std::string Detokenizer::Push(std::int32_t id) {
  std::string text;
  if (!keep_special_ && tokenizer_->IsSpecial(id)) return text;
  std::string bytes = tokenizer_->TokenBytes(id);
  if (bytes.empty()) return text;
  if (std::exchange(first_, false)) bytes = tokenizer_->FirstTokenBytes(id);
  if (tokenizer_->JoinsByteRun(id)) {
    AppendLossyUtf8(held_, &text);
    held_.clear();
    run_.Push(bytes, &text);
  } else {
    run_.End(&text);
    held_ += bytes;
    const std::size_t tail = IncompleteTail(held_);
    AppendLossyUtf8(absl::string_view(held_).substr(0, held_.size() - tail), &text);
    held_.erase(0, held_.size() - tail);
  }
  StripStart(&text);
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  AppendLossyUtf8(held_, &text);
  held_.clear();
  run_.End(&text);
  StripStart(&text);
  return text;
}

void Detokenizer::StripStart(std::string* text) {
  if (!at_start_ || text->empty()) return;
  at_start_ = false;
  if (tokenizer_->StripsLeadingSpace() && text->front() == ' ') text->erase(0, 1);
}

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size());
}

StopMatcher::Result StopMatcher::Push(std::string_view piece) {
  Result result;
  held_ += piece;
  std::size_t begin = 0;
  std::size_t end = std::string::npos;
  for (std::size_t i = 0; i < stops_.size(); ++i) {
    const std::size_t at = stops_[i].empty() ? std::string::npos : held_.find(stops_[i]);
    if (at == std::string::npos) continue;
    const std::size_t at_end = at + stops_[i].size();
    if (at_end > end || (at_end == end && at >= begin)) continue;
    begin = at;
    end = at_end;
    result.matched = static_cast<int>(i);
  }
  const std::size_t shown = result.matched >= 0 ? begin : ShownBytes();
  result.text = held_.substr(0, shown);
  held_.erase(0, result.matched >= 0 ? held_.size() : shown);
  return result;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

// All but the longest tail that some stop string begins with.
std::size_t StopMatcher::ShownBytes() const {
  const std::size_t tail = longest_ == 0 ? 0 : longest_ - 1;
  for (std::size_t at = held_.size() > tail ? held_.size() - tail : 0; at < held_.size(); ++at) {
    const std::string_view rest = std::string_view(held_).substr(at);
    for (const std::string& stop : stops_) {
      if (stop.size() > rest.size() && std::string_view(stop).substr(0, rest.size()) == rest)
        return at;
    }
  }
  return held_.size();
}

}  // namespace nibble
