// How a BpeModel is made from merges or from scores.
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "runtime/text/bpe_model.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxMerges = 16 << 20;
constexpr std::size_t kMaxScoredTokenBytes = 1024;  // every split of a token is tried at load

bool IsOneCharacter(absl::string_view text) {
  return !text.empty() && static_cast<std::size_t>(
                              CharacterLength(static_cast<unsigned char>(text[0]))) == text.size();
}

// The text that a token stands for in the input: bytes, for a byte-level one. Empty when there is
// none.
std::string RawText(absl::string_view text, bool byte_level) {
  if (!IsValidUtf8(text)) return "";
  if (!byte_level) return std::string(text);
  return FromByteAlphabet(text).value_or("");
}

}  // namespace

absl::Status BpeModel::Init(const TokenTable& tokens, BpeOptions options) {
  options_ = std::move(options);
  const bool affixes = !options_.continuing_prefix.empty() || !options_.end_suffix.empty();
  if (options_.byte_level && affixes) return absl::InternalError("affixes on bytes");
  byte_symbols_.assign(256, kNoToken);
  int missing = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string spelled(1, static_cast<char>(byte));
    const std::int32_t id = tokens.Find(options_.byte_level ? ToByteAlphabet(spelled)
                                                            : absl::StrFormat("<0x%02X>", byte));
    byte_symbols_[byte] = id;
    missing += id == kNoToken ? 1 : 0;
  }
  if (options_.byte_level && options_.byte_fallback && missing > 0) {
    return absl::UnimplementedError(
        absl::StrCat("vocabulary: byte_fallback together with ByteLevel, but ", missing,
                     " bytes have no token"));
  }
  // Text never becomes a token that is not UTF-8; nothing below has to read one.
  options_.excluded.resize(static_cast<std::size_t>(tokens.id_limit()));
  for (std::int32_t id = 0; id < tokens.id_limit(); ++id) {
    const absl::string_view text = tokens.Text(id);
    if (!IsValidUtf8(text)) options_.excluded[static_cast<std::size_t>(id)] = true;
    if (affixes) {
      if (!text.empty()) affixed_.emplace(text, id);
    } else if (!options_.byte_level && IsOneCharacter(text) && !Excluded(id)) {
      std::size_t position = 0;
      characters_.emplace(NextCharacter(text, &position), id);
    }
  }
  cuts_ = !affixes;
  loose_base_ = tokens.id_limit();
  joints_.assign((std::size_t{1} << 20) / 64, 0);
  return absl::OkStatus();
}

void BpeModel::AddMerge(std::int32_t left, std::int32_t right, Merge merge, bool overwrite) {
  const std::uint64_t pair =
      Pair(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right));
  const auto [found, inserted] = merges_.try_emplace(pair, merge);
  if (!inserted && overwrite) found->second = merge;
}

// `left` and `right` are raw texts of two parts that a merge joins.
void BpeModel::AddJoint(absl::string_view left, absl::string_view right) {
  if (left.empty() || right.empty()) {
    cuts_ = false;  // a part that is not made of the text's own characters
    return;
  }
  std::uint32_t last = static_cast<unsigned char>(left.back());
  std::uint32_t first = static_cast<unsigned char>(right.front());
  if (!options_.byte_level) {
    std::size_t position = left.size() - 1;
    while ((static_cast<unsigned char>(left[position]) & 0xC0) == 0x80) --position;
    last = NextCharacter(left, &position);
    position = 0;
    first = NextCharacter(right, &position);
  }
  const std::size_t bit = JointBit(last, first);
  joints_[bit / 64] |= std::uint64_t{1} << (bit % 64);
}

absl::StatusOr<std::unique_ptr<const BpeModel>> BpeModel::FromMerges(
    const TokenTable& tokens, const std::vector<std::pair<std::string, std::string>>& merges,
    BpeOptions options, bool last_wins) {
  std::unique_ptr<BpeModel> owned(new BpeModel);
  BpeModel& model = *owned;
  RETURN_IF_ERROR(model.Init(tokens, std::move(options)));
  if (merges.size() > kMaxMerges) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocabulary: ", merges.size(), " merges; the limit is ", kMaxMerges));
  }
  const std::string& prefix = model.options_.continuing_prefix;
  model.merges_.reserve(merges.size());
  std::vector<bool> no_text(
      static_cast<std::size_t>(tokens.id_limit()));  // stand for what they do not spell
  if (model.options_.unk != kNoToken) no_text[model.options_.unk] = true;
  if (!model.options_.byte_level) {
    for (const std::int32_t id : model.byte_symbols_) {
      if (id != kNoToken) no_text[id] = true;
    }
  }
  std::uint32_t rank = 0;
  for (const auto& [left_text, right_text] : merges) {
    const std::int32_t left = tokens.Find(left_text);
    const std::int32_t right = tokens.Find(right_text);
    const std::string joined =
        left_text + right_text.substr(std::min(prefix.size(), right_text.size()));
    const std::int32_t whole = tokens.Find(joined);
    if (left == kNoToken || right == kNoToken || whole == kNoToken) {
      const absl::string_view missing = left == kNoToken    ? left_text
                                        : right == kNoToken ? right_text
                                                            : joined;
      return absl::InvalidArgumentError(
          absl::StrCat("vocabulary: merge ", rank, " (\"", absl::CHexEscape(left_text), "\" and \"",
                       absl::CHexEscape(right_text), "\") needs \"", absl::CHexEscape(missing),
                       "\", which is no token"));
    }
    model.AddMerge(left, right, {rank++, whole}, last_wins);
    if (no_text[left] || no_text[right]) {
      model.cuts_ = false;
    } else {
      model.AddJoint(RawText(left_text, model.options_.byte_level),
                     RawText(right_text, model.options_.byte_level));
    }
  }
  model.FindWholes(tokens);
  return owned;
}

absl::StatusOr<std::unique_ptr<const BpeModel>> BpeModel::FromScores(
    const TokenTable& tokens, const std::vector<float>& scores, BpeOptions options) {
  std::unique_ptr<BpeModel> owned(new BpeModel);
  BpeModel& model = *owned;
  RETURN_IF_ERROR(model.Init(tokens, std::move(options)));
  std::vector<float> distinct;
  for (std::int32_t id = 0; id < tokens.id_limit(); ++id) {
    if (std::isnan(scores[id])) {
      return absl::InvalidArgumentError(
          absl::StrCat("vocabulary: the score of token ", id, " is not a number"));
    }
    distinct.push_back(scores[id]);
  }
  std::sort(distinct.begin(), distinct.end(), std::greater<>());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto rank_of = [&](float score) {
    return static_cast<std::uint32_t>(
        std::lower_bound(distinct.begin(), distinct.end(), score, std::greater<>()) -
        distinct.begin());
  };
  // A part of a token: a token, or a single character that is none.
  const auto find = [&](absl::string_view text) {
    const std::int32_t id = tokens.Find(text);
    return id == kNoToken || model.Excluded(id) ? kNoToken : id;
  };
  const auto is_part = [&](absl::string_view text) {
    return IsOneCharacter(text) || find(text) != kNoToken;
  };
  const auto part = [&](absl::string_view text) {
    if (IsOneCharacter(text)) {
      std::size_t position = 0;
      const auto [found, inserted] = model.characters_.try_emplace(
          NextCharacter(text, &position),
          model.loose_base_ + static_cast<std::int32_t>(model.loose_characters_.size()));
      if (inserted) model.loose_characters_.emplace_back(text);
      return found->second;
    }
    return find(text);
  };
  for (std::int32_t id = 0; id < tokens.id_limit(); ++id) {
    const absl::string_view text = tokens.Text(id);
    if (text.empty() || model.Excluded(id)) continue;
    if (text.size() > kMaxScoredTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat("vocabulary: token ", id, " has ", text.size(),
                                                     " bytes; the limit is ",
                                                     kMaxScoredTokenBytes));
    }
    const Merge merge{rank_of(scores[id]), id};
    for (std::size_t at = CharacterLength(static_cast<unsigned char>(text[0])); at < text.size();
         at += CharacterLength(static_cast<unsigned char>(text[at]))) {
      if (!is_part(text.substr(0, at)) || !is_part(text.substr(at))) continue;
      const std::int32_t left = part(text.substr(0, at));
      const std::int32_t right = part(text.substr(at));
      model.AddMerge(left, right, merge, /*overwrite=*/false);
      model.AddJoint(text.substr(0, at), text.substr(at));
    }
  }
  model.FindWholes(tokens);
  return owned;
}

// Most words are one token. That a token's text does become that token is found out here, by
// encoding it.
void BpeModel::FindWholes(const TokenTable& tokens) {
  std::vector<std::pair<std::string, std::int32_t>> found;
  Scratch scratch;
  std::vector<std::int32_t> ids;
  std::size_t bytes = 0;
  for (std::int32_t id = 0; id < tokens.id_limit(); ++id) {
    if (Excluded(id)) continue;
    std::string raw = RawText(tokens.Text(id), options_.byte_level);
    if (raw.empty()) continue;
    ids.clear();
    if (!options_.ignore_merges) EncodeByMerging(raw, scratch, &ids);
    if (!options_.ignore_merges && (ids.size() != 1 || ids[0] != id)) continue;
    bytes += raw.size();
    longest_whole_ = std::max(longest_whole_, raw.size());
    found.emplace_back(std::move(raw), id);
  }
  options_.excluded = {};
  whole_texts_.reserve(bytes);
  wholes_.reserve(found.size());
  for (const auto& [raw, id] : found) {
    const std::size_t offset = whole_texts_.size();
    whole_texts_.insert(whole_texts_.end(), raw.begin(), raw.end());
    wholes_.emplace(absl::string_view(whole_texts_.data() + offset, raw.size()), id);
  }
}

}  // namespace nibble
