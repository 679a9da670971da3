// Byte-pair encoding of one piece of text, in O(n log n) whatever the piece.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/text/token_table.h"

namespace nibble {

struct BpeOptions {
  bool byte_level = false;  // start from bytes (spelled in the byte alphabet) instead of characters
  bool byte_fallback = false;     // a character without a token becomes its <0xHH> tokens
  bool fuse_unk = false;          // neighbouring unknowns are one
  bool ignore_merges = false;     // a piece that is a token stays whole
  std::int32_t unk = kNoToken;    // for what has no token; kNoToken: dropped
  std::string continuing_prefix;  // on every character but the first; not with byte_level
  std::string end_suffix;         // on the last character; not with byte_level
  std::vector<bool> excluded;     // ids that plain text never becomes (control tokens); empty: none
};

// Joins neighbours in the order of their rank, the leftmost first on equal rank, while any pair has
// one. Immutable; thread-safe. Keeps no reference to the table it was made from.
class BpeModel {
 public:
  BpeModel(const BpeModel&) = delete;
  BpeModel& operator=(const BpeModel&) = delete;

  // Working memory of one thread.
  struct Scratch {
    struct Candidate {
      std::uint32_t rank, position;
      std::int32_t left, right;
    };
    std::vector<std::int32_t> symbols;
    std::vector<std::uint32_t> ranks;
    std::vector<std::int32_t> wholes, next, previous;
    std::vector<Candidate> heap;
    std::string affixed;
  };

  // A merge's rank is its place in the list. InvalidArgument names a merge whose parts or whole is
  // no token. Of equal merges the first counts, or the last (`last_wins`), which only broken files
  // tell apart.
  static absl::StatusOr<std::unique_ptr<const BpeModel>> FromMerges(
      const TokenTable& tokens, const std::vector<std::pair<std::string, std::string>>& merges,
      BpeOptions options, bool last_wins);
  // SentencePiece's: any two neighbours whose text together is a token join, higher scores first.
  // REQUIRES: a score an id.
  static absl::StatusOr<std::unique_ptr<const BpeModel>> FromScores(
      const TokenTable& tokens, const std::vector<float>& scores, BpeOptions options);

  // Appends the ids of `piece`. REQUIRES: valid UTF-8, below 2^31 bytes.
  void Encode(absl::string_view piece, Scratch& scratch, std::vector<std::int32_t>* ids) const;

  std::int64_t memory_bytes() const;

 private:
  struct Merge {
    std::uint32_t rank;
    std::int32_t whole;
  };
  class PieceEncoder;

  BpeModel() = default;
  absl::Status Init(const TokenTable& tokens, BpeOptions options);
  void AddMerge(std::int32_t left, std::int32_t right, Merge merge, bool overwrite);
  void AddJoint(absl::string_view left, absl::string_view right);
  void FindWholes(const TokenTable& tokens);
  bool Excluded(std::int32_t id) const {
    return static_cast<std::size_t>(id) < options_.excluded.size() && options_.excluded[id];
  }

  // Encode without looking up the whole piece.
  void EncodeByMerging(absl::string_view piece, Scratch& scratch,
                       std::vector<std::int32_t>* ids) const;
  bool HasBytes(absl::string_view character) const;  // <0xHH> tokens for all its bytes

  void MergeSegment(Scratch& scratch) const;
  void MergeShort(Scratch& scratch) const;
  void MergeLong(Scratch& scratch) const;

  const Merge* Find(std::int32_t left, std::int32_t right) const {
    const auto found =
        merges_.find(Pair(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right)));
    return found == merges_.end() ? nullptr : &found->second;
  }
  static std::uint64_t Pair(std::uint32_t a, std::uint32_t b) {
    return (std::uint64_t{a} << 32) | b;
  }
  static std::size_t JointBit(std::uint32_t a, std::uint32_t b) {
    return static_cast<std::size_t>((Pair(a, b) * 0x9E3779B97F4A7C15u) >> 44);  // 20 bits
  }
  bool MayJoin(std::uint32_t a, std::uint32_t b) const {
    const std::size_t bit = JointBit(a, b);
    return !cuts_ || ((joints_[bit / 64] >> (bit % 64)) & 1) != 0;
  }

  BpeOptions options_;
  absl::flat_hash_map<std::uint64_t, Merge> merges_;
  // Symbols are token ids and, from loose_base_ on, characters that are no token but part of one.
  std::vector<std::int32_t> byte_symbols_;                  // [256]: the byte alphabet's, or <0xHH>
  absl::flat_hash_map<char32_t, std::int32_t> characters_;  // a symbol a character
  std::int32_t loose_base_ = 0;
  std::vector<std::string> loose_characters_;
  absl::flat_hash_map<std::string, std::int32_t>
      affixed_;  // tokens by text, where characters carry affixes
  // Which neighbours (last character of a part, first of the next) some merge joins, as a set of
  // hashes: where the bit is clear a piece can be cut without changing anything. Whole texts are
  // then cut into words.
  std::vector<std::uint64_t> joints_;
  bool cuts_ = true;
  std::vector<char> whole_texts_;  // never reallocated: wholes_ points into it
  absl::flat_hash_map<absl::string_view, std::int32_t>
      wholes_;  // raw texts that encode to one token
  std::size_t longest_whole_ = 0;
};

}  // namespace nibble
