#include "runtime/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/byte_run.h"
#include "runtime/text/pipeline.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;
// A step of a file is run over every text; tokenizers in use have up to eight.
constexpr std::size_t kMaxSteps = 32;

// What the normalizers, and then the pre-tokenizers, may make of a text: a file can ask for steps
// that each double it. NFKC makes at most 11 times as much.
std::size_t MostBytes(std::size_t text_bytes) { return 16 * text_bytes + (64 << 10); }

class PipelineTokenizer final : public Tokenizer {
 public:
  PipelineTokenizer(TokenizerParts parts, TokenTable tokens, std::vector<bool> special,
                    TokenDecoder decoder, AddedTokenMatcher raw_matcher,
                    AddedTokenMatcher normalized_matcher)
      : normalizers_(std::move(parts.normalizers)),
        pre_tokenizers_(std::move(parts.pre_tokenizers)),
        model_(std::move(parts.model)),
        prefix_(std::move(parts.prefix)),
        suffix_(std::move(parts.suffix)),
        bos_(parts.bos),
        end_ids_(std::move(parts.end_ids)),
        special_names_(std::move(parts.special_names)),
        tokens_(std::move(tokens)),
        special_(std::move(special)),
        decoder_(std::move(decoder)),
        raw_matcher_(std::move(raw_matcher)),
        normalized_matcher_(std::move(normalized_matcher)) {}

  absl::StatusOr<std::vector<std::int32_t>> Encode(absl::string_view text,
                                                   const EncodeOptions& options) const override;
  std::string Decode(const std::vector<std::int32_t>& ids, bool skip_special) const override;

  std::string TokenBytes(std::int32_t id) const override { return std::string(decoder_.Bytes(id)); }
  std::string FirstTokenBytes(std::int32_t id) const override {
    return std::string(decoder_.FirstBytes(id));
  }
  bool JoinsByteRun(std::int32_t id) const override { return decoder_.JoinsByteRun(id); }

  std::string Spelling(std::int32_t id) const override { return std::string(tokens_.Text(id)); }
  bool IsSpecial(std::int32_t id) const override {
    return id >= 0 && static_cast<std::size_t>(id) < special_.size() &&
           special_[static_cast<std::size_t>(id)];
  }
  std::int32_t vocab_size() const override { return tokens_.id_limit(); }
  bool StripsLeadingSpace() const override { return decoder_.strips_leading_space(); }
  std::optional<std::int32_t> bos() const override { return bos_; }
  std::vector<std::int32_t> end_ids() const override { return end_ids_; }
  std::optional<std::int32_t> TokenId(absl::string_view content) const override {
    const std::int32_t id = tokens_.Find(content);
    return id == kNoToken ? std::nullopt : std::optional<std::int32_t>(id);
  }
  const std::map<std::string, std::string>& special_token_names() const override {
    return special_names_;
  }
  std::int64_t memory_bytes() const override;

 private:
  struct Scratch {
    PreTokenizeScratch pre;
    BpeModel::Scratch model;
    std::vector<TextPiece> pieces, next_pieces;
  };

  absl::Status EncodeUnmatched(absl::string_view text, bool begins_text, bool parse_special,
                               Scratch& scratch, std::vector<std::int32_t>* ids) const;
  absl::Status EncodePiece(const TextPiece& piece, Scratch& scratch,
                           std::vector<std::int32_t>* ids) const;

  const Normalizers normalizers_;
  const PreTokenizers pre_tokenizers_;
  const std::unique_ptr<const BpeModel> model_;
  const std::vector<std::int32_t> prefix_, suffix_;
  const std::optional<std::int32_t> bos_;
  const std::vector<std::int32_t> end_ids_;
  const std::map<std::string, std::string> special_names_;
  const TokenTable tokens_;
  const std::vector<bool> special_;
  const TokenDecoder decoder_;
  const AddedTokenMatcher raw_matcher_;         // on the text as it is
  const AddedTokenMatcher normalized_matcher_;  // on the normalized text between
};

absl::StatusOr<std::vector<std::int32_t>> PipelineTokenizer::Encode(
    absl::string_view text, const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes; the limit is ", kMaxTextBytes));
  }
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("text is not valid UTF-8");
  const bool add_special = options.add_special.value_or(true);
  std::vector<std::int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special) ids = prefix_;
  Scratch scratch;
  absl::Status status;
  raw_matcher_.Split(text, options.parse_special, [&](std::int32_t id, absl::string_view part) {
    if (id != kNoToken) {
      ids.push_back(id);
    } else if (status.ok()) {
      status =
          EncodeUnmatched(part, part.data() == text.data(), options.parse_special, scratch, &ids);
    }
  });
  RETURN_IF_ERROR(status);
  if (add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

absl::Status PipelineTokenizer::EncodeUnmatched(absl::string_view text, bool begins_text,
                                                bool parse_special, Scratch& scratch,
                                                std::vector<std::int32_t>* ids) const {
  std::string normalized;
  if (!normalizers_.empty()) {
    normalized.assign(text.data(), text.size());
    RETURN_IF_ERROR(
        Normalize(normalizers_, scratch.pre.regex, MostBytes(text.size()), &normalized));
    text = normalized;
  }
  absl::Status status;
  normalized_matcher_.Split(text, parse_special, [&](std::int32_t id, absl::string_view part) {
    if (id != kNoToken) {
      ids->push_back(id);
    } else if (status.ok()) {
      status = EncodePiece({part, begins_text && part.data() == text.data()}, scratch, ids);
    }
  });
  return status;
}

absl::Status PipelineTokenizer::EncodePiece(const TextPiece& piece, Scratch& scratch,
                                            std::vector<std::int32_t>* ids) const {
  scratch.pieces.assign(1, piece);
  for (const auto& step : pre_tokenizers_) {
    scratch.next_pieces.clear();
    for (const TextPiece& whole : scratch.pieces) {
      RETURN_IF_ERROR(step->Split(whole, scratch.pre, &scratch.next_pieces));
    }
    std::size_t bytes = 0;
    for (const TextPiece& part : scratch.next_pieces) bytes += part.text.size();
    if (const std::size_t most = MostBytes(piece.text.size()); bytes > most) {
      return absl::ResourceExhaustedError(absl::StrCat("the pre-tokenizer would make ", bytes,
                                                       " bytes of ", piece.text.size(),
                                                       ", more than ", most, "; shorten the text"));
    }
    std::swap(scratch.pieces, scratch.next_pieces);
  }
  for (const TextPiece& part : scratch.pieces) model_->Encode(part.text, scratch.model, ids);
  scratch.pre.storage.clear();
  return absl::OkStatus();
}

std::string PipelineTokenizer::Decode(const std::vector<std::int32_t>& ids,
                                      bool skip_special) const {
  std::string bytes;
  ByteRun run;
  bool first = true;
  for (const std::int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    if (decoder_.Bytes(id).empty()) continue;
    const absl::string_view shown = first ? decoder_.FirstBytes(id) : decoder_.Bytes(id);
    first = false;
    if (decoder_.JoinsByteRun(id)) {
      run.Push(shown, &bytes);
    } else {
      run.End(&bytes);
      bytes.append(shown.data(), shown.size());
    }
  }
  run.End(&bytes);
  std::string text;
  text.reserve(bytes.size());
  AppendLossyUtf8(bytes, &text);
  if (decoder_.strips_leading_space() && !text.empty() && text[0] == ' ') text.erase(0, 1);
  return text;
}

std::int64_t PipelineTokenizer::memory_bytes() const {
  std::int64_t bytes = static_cast<std::int64_t>(sizeof(*this)) + model_->memory_bytes() +
                       tokens_.memory_bytes() + decoder_.memory_bytes() +
                       raw_matcher_.memory_bytes() + normalized_matcher_.memory_bytes() +
                       static_cast<std::int64_t>(special_.capacity() / 8);
  for (const auto& normalizer : normalizers_) bytes += normalizer->memory_bytes();
  for (const auto& step : pre_tokenizers_) bytes += step->memory_bytes();
  return bytes;
}

absl::Status CheckSteps(absl::string_view what, std::size_t count) {
  if (count <= kMaxSteps) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("tokenizer: ", count, " ", what, " are not supported, at most ", kMaxSteps));
}

// One table of the model's tokens and the added ones.
absl::StatusOr<TokenTable> JoinTables(const TokenizerParts& parts) {
  std::int64_t bytes = 0;
  std::int64_t limit = parts.model_tokens.id_limit();
  for (std::int32_t id = 0; id < parts.model_tokens.id_limit(); ++id) {
    bytes += static_cast<std::int64_t>(parts.model_tokens.Text(id).size());
  }
  for (const AddedToken& token : parts.added) {
    bytes += static_cast<std::int64_t>(token.content.size());
    limit = std::max<std::int64_t>(limit, std::int64_t{token.id} + 1);
  }
  TokenTable tokens;
  const std::int64_t count =
      parts.model_tokens.count() + static_cast<std::int64_t>(parts.added.size());
  RETURN_IF_ERROR(tokens.Reserve(count, bytes, limit));
  for (std::int32_t id = 0; id < parts.model_tokens.id_limit(); ++id) {
    if (parts.model_tokens.Has(id)) RETURN_IF_ERROR(tokens.Add(id, parts.model_tokens.Text(id)));
  }
  for (const AddedToken& token : parts.added) {
    if (tokens.Has(token.id) && tokens.Text(token.id) == token.content) continue;
    RETURN_IF_ERROR(tokens.Add(token.id, token.content));
  }
  return tokens;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(TokenizerParts parts) {
  RETURN_IF_ERROR(CheckSteps("normalizers", parts.normalizers.size()));
  RETURN_IF_ERROR(CheckSteps("pre_tokenizers", parts.pre_tokenizers.size()));
  RETURN_IF_ERROR(CheckSteps("replacements of the decoder", parts.decoder.replacements.size()));
  ASSIGN_OR_RETURN(TokenTable tokens, JoinTables(parts));
  AddedTokenMatcher raw_matcher;
  AddedTokenMatcher normalized_matcher;
  std::vector<bool> special(static_cast<std::size_t>(tokens.id_limit()));
  std::vector<bool> raw(static_cast<std::size_t>(tokens.id_limit()));
  RegexScratch scratch;
  for (const AddedToken& token : parts.added) {
    if (token.special) special[static_cast<std::size_t>(token.id)] = true;
    if (parts.raw_added) raw[static_cast<std::size_t>(token.id)] = true;
    if (!token.normalized) {
      RETURN_IF_ERROR(raw_matcher.Add(token, token.content));
      continue;
    }
    std::string content = token.content;
    RETURN_IF_ERROR(Normalize(parts.normalizers, scratch, MostBytes(content.size()), &content));
    RETURN_IF_ERROR(normalized_matcher.Add(token, content));
  }
  for (const std::vector<std::int32_t>* ids : {&parts.prefix, &parts.suffix, &parts.end_ids}) {
    for (const std::int32_t id : *ids) {
      if (!tokens.Has(id)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokenizer: special token id ", id, " is not in the vocabulary"));
      }
    }
  }
  ASSIGN_OR_RETURN(TokenDecoder decoder,
                   TokenDecoder::Make(tokens, std::move(parts.decoder), [&](std::int32_t id) {
                     return raw[static_cast<std::size_t>(id)];
                   }));
  parts.model_tokens = TokenTable();
  parts.added.clear();
  return std::make_unique<PipelineTokenizer>(std::move(parts), std::move(tokens),
                                             std::move(special), std::move(decoder),
                                             std::move(raw_matcher), std::move(normalized_matcher));
}

}  // namespace nibble
