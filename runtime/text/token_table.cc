#include "runtime/text/token_table.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxTokens = 8 << 20;
constexpr std::int64_t kMaxTextBytes = std::int64_t{1} << 30;
constexpr std::int64_t kMaxHoles = 1 << 16;  // ids without a token

}  // namespace

absl::Status TokenTable::Reserve(std::int64_t count, std::int64_t text_bytes,
                                 std::int64_t id_limit) {
  if (count > kMaxTokens || text_bytes > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary: ", count, " tokens of ", text_bytes,
                                                   " bytes together; the limits are ", kMaxTokens,
                                                   " and ", kMaxTextBytes));
  }
  if (id_limit > 2 * count + kMaxHoles) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary: the largest id is ", id_limit - 1,
                                                   " but there are only ", count, " tokens"));
  }
  texts_.reserve(static_cast<std::size_t>(text_bytes));
  entries_.resize(static_cast<std::size_t>(id_limit));
  ids_.reserve(static_cast<std::size_t>(count));
  return absl::OkStatus();
}

absl::Status TokenTable::Add(std::int32_t id, absl::string_view text) {
  if (id < 0 || id >= id_limit() || texts_.size() + text.size() > texts_.capacity()) {
    return absl::InternalError("vocabulary: a token outside what was reserved");
  }
  Entry& entry = entries_[static_cast<std::size_t>(id)];
  if (entry.offset != kAbsent) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary: id ", id, " has two tokens, \"",
                                                   absl::CHexEscape(Text(id)), "\" and \"",
                                                   absl::CHexEscape(text), "\""));
  }
  const std::size_t offset = texts_.size();
  texts_.insert(texts_.end(), text.begin(), text.end());
  const auto [found, inserted] =
      ids_.emplace(absl::string_view(texts_.data() + offset, text.size()), id);
  if (!inserted) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary: token \"", absl::CHexEscape(text),
                                                   "\" has two ids, ", found->second, " and ", id));
  }
  entry = {static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(text.size())};
  return absl::OkStatus();
}

absl::string_view TokenTable::Text(std::int32_t id) const {
  if (!Has(id)) return {};
  const Entry& entry = entries_[static_cast<std::size_t>(id)];
  return {texts_.data() + entry.offset, entry.length};
}

std::int64_t TokenTable::memory_bytes() const {
  const std::size_t slot = sizeof(std::pair<absl::string_view, std::int32_t>) + 1;
  return static_cast<std::int64_t>(texts_.capacity() + entries_.capacity() * sizeof(Entry) +
                                   ids_.capacity() * slot);
}

}  // namespace nibble
