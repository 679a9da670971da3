#include "runtime/text/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

// A match costs up to this much at each position of a text.
constexpr std::size_t kMaxContentBytes = 1024;

// The first byte of the last character of `text`. REQUIRES: not empty.
std::size_t LastCharacter(absl::string_view text) {
  std::size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool EndsWithWord(absl::string_view text) {
  if (text.empty()) return false;
  std::size_t at = LastCharacter(text);
  return IsWordCharacter(NextCharacter(text, &at));
}

bool StartsWithWord(absl::string_view text) {
  std::size_t at = 0;
  return !text.empty() && IsWordCharacter(NextCharacter(text, &at));
}

}  // namespace

absl::Status AddedTokenMatcher::Add(const AddedToken& token, absl::string_view text) {
  if (text.empty() || text.size() > kMaxContentBytes) {
    return absl::InvalidArgumentError(absl::StrCat("added token ", token.id, " has ", text.size(),
                                                   " bytes; it needs 1 to ", kMaxContentBytes));
  }
  // Found in a text of whole characters, it would cut one.
  if (!IsValidUtf8(text)) return absl::OkStatus();
  std::uint32_t node = 0;
  for (const char byte : text) {
    const auto [edge, inserted] =
        edges_.try_emplace(Edge(node, byte), static_cast<std::uint32_t>(ends_.size()));
    if (inserted) ends_.push_back(kNoToken);
    node = edge->second;
  }
  if (ends_[node] != kNoToken) return absl::OkStatus();
  ends_[node] = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip, token.special});
  first_bytes_[static_cast<unsigned char>(text[0])] = true;
  return absl::OkStatus();
}

const AddedTokenMatcher::Token* AddedTokenMatcher::Longest(absl::string_view text,
                                                           bool parse_special,
                                                           std::size_t* length) const {
  const Token* best = nullptr;
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(Edge(node, text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (ends_[node] == kNoToken) continue;
    const Token& token = tokens_[static_cast<std::size_t>(ends_[node])];
    if (token.special && !parse_special) continue;
    best = &token;
    *length = i + 1;
  }
  return best;
}

void AddedTokenMatcher::Split(absl::string_view text, bool parse_special,
                              absl::FunctionRef<void(std::int32_t, absl::string_view)> emit) const {
  std::size_t done = 0;  // everything before it is emitted
  std::size_t at = 0;
  while (at < text.size()) {
    if (!first_bytes_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    std::size_t length = 0;
    const Token* token = Longest(text.substr(at), parse_special, &length);
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + length;
    at = end;
    if (token->single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end))))
      continue;
    if (token->lstrip) {
      while (begin > done) {
        std::size_t last = LastCharacter(text.substr(0, begin));
        const std::size_t start = last;
        if (!IsWhiteSpace(NextCharacter(text, &last))) break;
        begin = start;
      }
    }
    if (token->rstrip) {
      while (end < text.size()) {
        std::size_t next = end;
        if (!IsWhiteSpace(NextCharacter(text, &next))) break;
        end = next;
      }
    }
    if (done < begin) emit(kNoToken, text.substr(done, begin - done));
    emit(token->id, text.substr(begin, end - begin));
    done = at = end;
  }
  if (done < text.size()) emit(kNoToken, text.substr(done));
}

std::int64_t AddedTokenMatcher::memory_bytes() const {
  return static_cast<std::int64_t>(tokens_.capacity() * sizeof(Token) +
                                   ends_.capacity() * sizeof(std::int32_t) +
                                   edges_.capacity() * 17);
}

}  // namespace nibble
