#include "runtime/cache/block_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

// One round of a 64-bit mixer (the finalizer of SplitMix64).
std::uint64_t Mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) + 0x9E3779B97F4A7C15u;
  hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9u;
  hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EBu;
  return hash ^ (hash >> 31);
}

}  // namespace

BlockList& BlockList::operator=(BlockList&& other) noexcept {
  if (this == &other) return *this;
  Clear();
  pool_ = std::exchange(other.pool_, nullptr);
  ids_ = std::exchange(other.ids_, {});
  num_shared_ = std::exchange(other.num_shared_, 0);
  chain_ = std::exchange(other.chain_, 0);
  return *this;
}

void BlockList::Clear() {
  if (pool_ != nullptr) pool_->Release(ids_);
  pool_ = nullptr;
  ids_.clear();
  num_shared_ = 0;
  chain_ = 0;
}

std::size_t BlockPool::KeyHash::operator()(const Key& key) const {
  std::uint64_t hash = Mix(key.parent, std::hash<std::string>()(key.salt));
  for (std::int32_t token : key.tokens) hash = Mix(hash, static_cast<std::uint32_t>(token));
  return hash;
}

BlockPool::BlockPool(std::int32_t num_blocks, std::int32_t block_tokens)
    : block_tokens_(block_tokens), blocks_(static_cast<std::size_t>(num_blocks)) {
  for (std::int32_t id = num_blocks - 1; id >= 0; --id) free_.push_back(id);
}

BlockPool::~BlockPool() = default;

void BlockPool::Hold(std::int32_t id) {
  Block& block = blocks_[id];
  if (block.holders++ == 0)
    lru_.erase(block.in_lru);  // it was cached: Match finds nothing else unheld
  ++held_lists_;
}

void BlockPool::Release(const std::vector<std::int32_t>& ids) {
  // The tail first, so that it is evicted before the prefix that leads to it.
  for (auto id = ids.rbegin(); id != ids.rend(); ++id) {
    Block& block = blocks_[*id];
    --held_lists_;
    if (--block.holders > 0) continue;
    if (block.entry == nullptr) {
      free_.push_back(*id);
    } else {
      block.in_lru = lru_.insert(lru_.end(), *id);
    }
  }
}

std::int32_t BlockPool::TakeOne() {
  std::int32_t id;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else {
    id = lru_.front();
    lru_.pop_front();
    index_.erase(blocks_[id].entry->first);
    blocks_[id].entry = nullptr;
  }
  blocks_[id].holders = 1;
  ++held_lists_;
  return id;
}

bool BlockPool::Extend(BlockList& list, std::int32_t count) {
  if (count > available()) return false;
  list.pool_ = this;
  for (std::int32_t i = 0; i < count; ++i) list.ids_.push_back(TakeOne());
  return true;
}

BlockPool::Key BlockPool::MakeKey(std::uint64_t parent, absl::string_view salt,
                                  std::span<const std::int32_t> tokens, std::int32_t index) const {
  const auto block = tokens.subspan(static_cast<std::size_t>(index) * block_tokens_,
                                    static_cast<std::size_t>(block_tokens_));
  return {parent, index == 0 ? std::string(salt) : std::string(), {block.begin(), block.end()}};
}

BlockList BlockPool::Match(absl::string_view salt, std::span<const std::int32_t> tokens) {
  BlockList list;
  list.pool_ = this;
  const auto full = static_cast<std::int32_t>(tokens.size() / block_tokens_);
  while (list.num_shared_ < full) {
    const auto found = index_.find(MakeKey(list.chain_, salt, tokens, list.num_shared_));
    if (found == index_.end()) break;
    Hold(found->second.block);
    list.ids_.push_back(found->second.block);
    list.chain_ = found->second.serial;
    ++list.num_shared_;
  }
  return list;
}

void BlockPool::Commit(BlockList& list, absl::string_view salt,
                       std::span<const std::int32_t> tokens) {
  const auto full = std::min(static_cast<std::int32_t>(tokens.size() / block_tokens_), list.size());
  while (list.num_shared_ < full) {
    const std::int32_t id = list.ids_[list.num_shared_];
    const auto [at, inserted] =
        index_.try_emplace(MakeKey(list.chain_, salt, tokens, list.num_shared_));
    if (inserted) {
      at->second = {++last_serial_, id};
      blocks_[id].entry = &*at;
    }
    // Else another sequence computed the same: its block is the one to be found, this one stays
    // private.
    list.chain_ = at->second.serial;
    ++list.num_shared_;
  }
}

void BlockPool::DropCached() {
  for (std::int32_t id : lru_) {
    index_.erase(blocks_[id].entry->first);
    blocks_[id].entry = nullptr;
    free_.push_back(id);
  }
  lru_.clear();
}

absl::Status BlockPool::CheckIntegrity() const {
  std::vector<int> seen(blocks_.size(), 0);
  for (std::int32_t id : free_) {
    ++seen[id];
    if (blocks_[id].entry != nullptr)
      return absl::InternalError(absl::StrCat("free block ", id, " is in the index"));
  }
  for (auto at = lru_.begin(); at != lru_.end(); ++at) {
    ++seen[*at];
    if (blocks_[*at].entry == nullptr || blocks_[*at].in_lru != at) {
      return absl::InternalError(absl::StrCat("cached block ", *at, " is not in the index"));
    }
  }
  std::int64_t holders = 0;
  std::size_t known = 0;
  for (std::size_t id = 0; id < blocks_.size(); ++id) {
    const Block& block = blocks_[id];
    holders += block.holders;
    if (block.holders < 0 || (block.holders > 0 ? 1 : 0) + seen[id] != 1) {
      return absl::InternalError(absl::StrCat("block ", id, " has ", block.holders,
                                              " holders and is in ", seen[id],
                                              " of the free and cached lists"));
    }
    if (block.entry == nullptr) continue;
    ++known;
    if (block.entry->second.block != static_cast<std::int32_t>(id)) {
      return absl::InternalError(
          absl::StrCat("the index takes block ", id, " for ", block.entry->second.block));
    }
  }
  if (known != index_.size()) {
    return absl::InternalError(
        absl::StrCat(known, " blocks are known by content, the index has ", index_.size()));
  }
  if (holders != held_lists_) {
    return absl::InternalError(
        absl::StrCat(holders, " references counted, ", held_lists_, " are held"));
  }
  return absl::OkStatus();
}

}  // namespace nibble
