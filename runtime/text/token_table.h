// Token ids and their texts, both ways.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nibble {

inline constexpr std::int32_t kNoToken = -1;

// Texts and ids are unique. Filled once, then immutable and thread-safe.
class TokenTable {
 public:
  TokenTable() = default;
  TokenTable(TokenTable&&) = default;
  TokenTable& operator=(TokenTable&&) = default;

  // Sizes the tables: `count` tokens of `text_bytes` together, ids below `id_limit`.
  // InvalidArgument when the ids are far apart or too many for a vocabulary. Call first, once.
  absl::Status Reserve(std::int64_t count, std::int64_t text_bytes, std::int64_t id_limit);
  // InvalidArgument names a text or an id that is taken. REQUIRES: within what was reserved.
  absl::Status Add(std::int32_t id, absl::string_view text);

  std::int32_t Find(absl::string_view text) const {  // kNoToken when absent
    const auto found = ids_.find(text);
    return found == ids_.end() ? kNoToken : found->second;
  }
  bool Has(std::int32_t id) const {
    return id >= 0 && id < id_limit() && entries_[static_cast<std::size_t>(id)].offset != kAbsent;
  }
  absl::string_view Text(std::int32_t id) const;  // empty for ids that are not there
  std::int32_t id_limit() const { return static_cast<std::int32_t>(entries_.size()); }
  std::int64_t count() const { return static_cast<std::int64_t>(ids_.size()); }
  std::int64_t memory_bytes() const;

 private:
  static constexpr std::uint32_t kAbsent = 0xFFFFFFFF;
  struct Entry {
    std::uint32_t offset = kAbsent;
    std::uint32_t length = 0;
  };
  std::vector<char> texts_;  // never reallocated: ids_ points into it
  std::vector<Entry> entries_;
  absl::flat_hash_map<absl::string_view, std::int32_t> ids_;
};

}  // namespace nibble
