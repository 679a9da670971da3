// The blocks (pages) of one KV pool: who holds them, and which are kept for their content.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nibble {

class BlockPool;

// The blocks of one sequence in order of position; gives them back when destroyed. Move-only. The
// first `num_shared()` of them are known to the pool by content. One thread, the pool's.
class BlockList {
 public:
  BlockList() = default;
  ~BlockList() { Clear(); }
  BlockList(BlockList&& other) noexcept { *this = std::move(other); }
  BlockList& operator=(BlockList&& other) noexcept;

  const std::vector<std::int32_t>& ids() const { return ids_; }
  std::int32_t size() const { return static_cast<std::int32_t>(ids_.size()); }
  bool empty() const { return ids_.empty(); }
  std::int32_t num_shared() const { return num_shared_; }
  void Clear();

 private:
  friend class BlockPool;
  BlockPool* pool_ = nullptr;
  std::vector<std::int32_t> ids_;
  std::int32_t num_shared_ = 0;
  std::uint64_t chain_ = 0;  // the entry of block num_shared_ - 1; 0: none
};

// Knows ids only: what a block holds, and on which device, is the Runner's. A block is
//   used    held by one or more lists,
//   cached  held by none, but full of committed tokens: found again by Match, until evicted
//           (least recently used first),
//   free    neither.
// A block that goes back may be handed out at once: the engine keeps a sequence's list until the
// last launched step that reads or writes its blocks has been collected. One thread.
//
// Content is found by a hash chained from block to block, starting at the salt, and then compared
// token by token: equal hashes of unequal prompts never share.
class BlockPool {
 public:
  BlockPool(std::int32_t num_blocks, std::int32_t block_tokens);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Appends `count` blocks, evicting cached ones where needed; false, and nothing changed, when
  // there are fewer.
  bool Extend(BlockList& list, std::int32_t count);

  // The longest run of cached or shared blocks that holds a prefix of `tokens`, whole blocks only.
  BlockList Match(absl::string_view salt, std::span<const std::int32_t> tokens);

  // Makes the full blocks of `list` known by content. `tokens` are those whose keys and values the
  // list holds and which were committed: a launched step that was not collected, or a row that was
  // not a number, has none here.
  void Commit(BlockList& list, absl::string_view salt, std::span<const std::int32_t> tokens);

  // Forgets all content that no list holds.
  void DropCached();

  std::int32_t total() const { return static_cast<std::int32_t>(blocks_.size()); }
  std::int32_t used() const { return total() - available(); }
  std::int32_t cached() const { return static_cast<std::int32_t>(lru_.size()); }
  std::int32_t free() const { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t available() const { return cached() + free(); }
  std::int32_t block_tokens() const { return block_tokens_; }
  std::int32_t BlocksFor(std::int64_t tokens) const {
    return static_cast<std::int32_t>((tokens + block_tokens_ - 1) / block_tokens_);
  }

  // Internal names what is wrong: counts, lists and the index must agree. O(blocks); for tests.
  absl::Status CheckIntegrity() const;

 private:
  friend class BlockList;

  // What a block is known by. `parent` is the entry before it in the chain, 0 for the first.
  struct Key {
    std::uint64_t parent = 0;
    std::string salt;  // of the first block only
    std::vector<std::int32_t> tokens;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const;
  };
  struct Entry {
    std::uint64_t serial = 0;  // never used twice, so a child of an evicted parent is never found
    std::int32_t block = -1;
  };
  using Index = std::unordered_map<Key, Entry, KeyHash>;

  struct Block {
    std::int32_t holders = 0;
    Index::value_type* entry = nullptr;          // null: not known by content
    std::list<std::int32_t>::iterator in_lru{};  // valid while cached
  };

  Key MakeKey(std::uint64_t parent, absl::string_view salt, std::span<const std::int32_t> tokens,
              std::int32_t index) const;
  void Hold(std::int32_t block);
  void Release(const std::vector<std::int32_t>& blocks);
  std::int32_t TakeOne();

  const std::int32_t block_tokens_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> free_;  // a stack
  std::list<std::int32_t> lru_;     // front: evicted first
  Index index_;
  std::uint64_t last_serial_ = 0;
  std::int64_t held_lists_ = 0;  // references from lists, for the integrity check
};

}  // namespace nibble
