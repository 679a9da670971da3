#include "runtime/text/bpe_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

// Up to here scanning for the best pair beats a heap.
constexpr std::size_t kShortSegment = 48;
constexpr std::uint32_t kNoRank = 0xFFFFFFFF;

}  // namespace

// Turns one piece into symbols, cut where no merge can join, and each segment into tokens.
class BpeModel::PieceEncoder {
 public:
  PieceEncoder(const BpeModel& model, absl::string_view piece, Scratch& scratch,
               std::vector<std::int32_t>* ids)
      : model_(model), piece_(piece), scratch_(scratch), ids_(ids) {
    scratch_.symbols.clear();
  }

  void Run() {
    const bool bytes = model_.options_.byte_level;
    const bool affixes = !model_.affixed_.empty();
    for (std::size_t at = 0; at < piece_.size();) {
      const std::size_t begin = at;
      std::uint32_t code;
      std::int32_t symbol;
      if (bytes) {
        code = static_cast<unsigned char>(piece_[at++]);
        symbol = model_.byte_symbols_[code];
      } else {
        code = NextCharacter(piece_, &at);
        if (affixes) {
          symbol = Affixed(begin, at);
        } else {
          const auto found = model_.characters_.find(code);
          symbol = found == model_.characters_.end() ? kNoToken : found->second;
        }
      }
      if (symbol != kNoToken) {
        Known(symbol, code, begin, at);
      } else {
        Unknown(piece_.substr(begin, at - begin));
      }
    }
    if (pending_unk_) FlushUnk();
    FlushSegment();
  }

 private:
  std::int32_t Affixed(std::size_t begin, std::size_t end) {
    std::string& text = scratch_.affixed;
    text.clear();
    if (begin > 0) text += model_.options_.continuing_prefix;
    text.append(piece_.data() + begin, end - begin);
    if (end == piece_.size()) text += model_.options_.end_suffix;
    const auto found = model_.affixed_.find(text);
    return found == model_.affixed_.end() ? kNoToken : found->second;
  }

  void Known(std::int32_t symbol, std::uint32_t code, std::size_t begin, std::size_t end) {
    if (pending_unk_) FlushUnk();
    if (!scratch_.symbols.empty() && !model_.MayJoin(last_code_, code)) FlushSegment();
    if (scratch_.symbols.empty()) segment_begin_ = begin;
    scratch_.symbols.push_back(symbol);
    segment_end_ = end;
    last_code_ = code;
  }

  // Bytes do not end a run of unknowns, which comes after them: so has the reference it.
  void Unknown(absl::string_view character) {
    const BpeOptions& options = model_.options_;
    if (!options.byte_level && options.byte_fallback && model_.HasBytes(character)) {
      for (const char byte : character)
        Standalone(model_.byte_symbols_[static_cast<unsigned char>(byte)]);
      return;
    }
    if (options.unk == kNoToken) return;
    if (pending_unk_ && !options.fuse_unk) Standalone(options.unk);
    pending_unk_ = true;
  }

  void FlushUnk() {
    Standalone(model_.options_.unk);
    pending_unk_ = false;
  }

  // A token that is not made of the text's characters; merges hardly ever name one.
  void Standalone(std::int32_t id) {
    if (model_.cuts_) {
      FlushSegment();
      ids_->push_back(id);
    } else {
      scratch_.symbols.push_back(id);
    }
  }

  void FlushSegment() {
    std::vector<std::int32_t>& symbols = scratch_.symbols;
    if (symbols.empty()) return;
    if (symbols.size() > 1) {
      const absl::string_view text = piece_.substr(segment_begin_, segment_end_ - segment_begin_);
      if (model_.cuts_ && !model_.options_.ignore_merges && text.size() <= model_.longest_whole_) {
        const auto whole = model_.wholes_.find(text);
        if (whole != model_.wholes_.end()) {
          ids_->push_back(whole->second);
          symbols.clear();
          return;
        }
      }
      model_.MergeSegment(scratch_);
    }
    for (const std::int32_t symbol : symbols) {
      if (symbol < model_.loose_base_) {
        ids_->push_back(symbol);
      } else {
        Loose(model_.loose_characters_[static_cast<std::size_t>(symbol - model_.loose_base_)]);
      }
    }
    symbols.clear();
  }

  // A character that might have become part of a token, and did not.
  void Loose(absl::string_view character) {
    const BpeOptions& options = model_.options_;
    if (options.byte_fallback && model_.HasBytes(character)) {
      for (const char byte : character)
        ids_->push_back(model_.byte_symbols_[static_cast<unsigned char>(byte)]);
    } else if (options.unk != kNoToken) {
      ids_->push_back(options.unk);
    }
  }

  const BpeModel& model_;
  const absl::string_view piece_;
  Scratch& scratch_;
  std::vector<std::int32_t>* ids_;
  bool pending_unk_ = false;
  std::uint32_t last_code_ = 0;
  std::size_t segment_begin_ = 0;
  std::size_t segment_end_ = 0;
};

void BpeModel::Encode(absl::string_view piece, Scratch& scratch,
                      std::vector<std::int32_t>* ids) const {
  if (piece.size() <= longest_whole_) {
    const auto whole = wholes_.find(piece);
    if (whole != wholes_.end()) {
      ids->push_back(whole->second);
      return;
    }
  }
  EncodeByMerging(piece, scratch, ids);
}

void BpeModel::EncodeByMerging(absl::string_view piece, Scratch& scratch,
                               std::vector<std::int32_t>* ids) const {
  PieceEncoder(*this, piece, scratch, ids).Run();
}

bool BpeModel::HasBytes(absl::string_view character) const {
  return std::all_of(character.begin(), character.end(), [&](char byte) {
    return byte_symbols_[static_cast<unsigned char>(byte)] != kNoToken;
  });
}

void BpeModel::MergeSegment(Scratch& scratch) const {
  if (scratch.symbols.size() <= kShortSegment) {
    MergeShort(scratch);
  } else {
    MergeLong(scratch);
  }
}

// ranks[i] and wholes[i] belong to the pair (symbols[i], symbols[i + 1]).
void BpeModel::MergeShort(Scratch& scratch) const {
  std::vector<std::int32_t>& symbols = scratch.symbols;
  std::size_t count = symbols.size();
  scratch.ranks.resize(count);
  scratch.wholes.resize(count);
  std::uint32_t* ranks = scratch.ranks.data();
  std::int32_t* wholes = scratch.wholes.data();
  const auto look_up = [&](std::size_t i) {
    const Merge* merge = Find(symbols[i], symbols[i + 1]);
    ranks[i] = merge == nullptr ? kNoRank : merge->rank;
    wholes[i] = merge == nullptr ? kNoToken : merge->whole;
  };
  for (std::size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    const std::size_t best =
        static_cast<std::size_t>(std::min_element(ranks, ranks + count - 1) - ranks);
    if (ranks[best] == kNoRank) break;
    symbols[best] = wholes[best];
    std::copy(symbols.begin() + best + 2, symbols.begin() + count, symbols.begin() + best + 1);
    std::copy(ranks + best + 1, ranks + count - 1, ranks + best);
    std::copy(wholes + best + 1, wholes + count - 1, wholes + best);
    --count;
    if (best > 0) look_up(best - 1);
    if (best + 1 < count) look_up(best);
  }
  symbols.resize(count);
}

// A heap of candidate pairs over a linked list; a candidate whose symbols have changed since is
// dropped.
void BpeModel::MergeLong(Scratch& scratch) const {
  using Candidate = Scratch::Candidate;
  std::vector<std::int32_t>& symbols = scratch.symbols;
  const auto count = static_cast<std::int32_t>(symbols.size());
  scratch.next.resize(symbols.size());
  scratch.previous.resize(symbols.size());
  std::vector<Candidate>& heap = scratch.heap;
  heap.clear();
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](std::int32_t left, std::int32_t right) {
    const Merge* merge = Find(symbols[left], symbols[right]);
    if (merge == nullptr) return false;
    heap.push_back({merge->rank, static_cast<std::uint32_t>(left), symbols[left], symbols[right]});
    return true;
  };
  const auto push = [&](std::int32_t left, std::int32_t right) {
    if (candidate(left, right)) std::push_heap(heap.begin(), heap.end(), later);
  };
  for (std::int32_t i = 0; i < count; ++i) {
    scratch.previous[i] = i - 1;
    scratch.next[i] = i + 1 < count ? i + 1 : -1;
    if (i + 1 < count) candidate(i, i + 1);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  constexpr std::int32_t kGone = -2;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate top = heap.back();
    heap.pop_back();
    const auto left = static_cast<std::int32_t>(top.position);
    if (symbols[left] != top.left) continue;
    const std::int32_t right = scratch.next[left];
    if (right < 0 || symbols[right] != top.right) continue;
    symbols[left] = Find(top.left, top.right)->whole;
    symbols[right] = kGone;
    const std::int32_t after = scratch.next[right];
    scratch.next[left] = after;
    if (after >= 0) scratch.previous[after] = left;
    if (scratch.previous[left] >= 0) push(scratch.previous[left], left);
    if (after >= 0) push(left, after);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), kGone), symbols.end());
}

std::int64_t BpeModel::memory_bytes() const {
  std::size_t bytes =
      sizeof(*this) + merges_.capacity() * (sizeof(std::uint64_t) + sizeof(Merge) + 1) +
      characters_.capacity() * 9 + joints_.capacity() * 8 + byte_symbols_.capacity() * 4 +
      whole_texts_.capacity() + wholes_.capacity() * (sizeof(absl::string_view) + 9);
  for (const std::string& character : loose_characters_)
    bytes += sizeof(character) + character.size();
  for (const auto& [text, id] : affixed_) bytes += sizeof(text) + text.size() + sizeof(id) + 1;
  return static_cast<std::int64_t>(bytes);
}

}  // namespace nibble
