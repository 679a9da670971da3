// Text to token ids and back, for tokenizer.json and GGUF vocabularies.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"

namespace nibble {

struct EncodeOptions {
  bool parse_special = false;       // text that spells a special token becomes that token
  std::optional<bool> add_special;  // bos/eos as the tokenizer says when unset
};

// The vocabulary keys of a GGUF file, filled by the loader (text knows no checkpoint).
struct GgufVocabulary {
  std::string model;  // tokenizer.ggml.model: "llama" | "gpt2"
  std::string pre;    // tokenizer.ggml.pre, "default" when absent
  std::string name;   // general.name: Phi-3's special tokens swallow white space after them
  std::vector<std::string> tokens;
  std::vector<float> scores;        // may be empty
  std::vector<std::int32_t> types;  // may be empty: all normal
  std::vector<std::string> merges;
  std::optional<std::int32_t> bos, eos, eot, eom, unk, pad;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

// Immutable after construction; every method is thread-safe and bounded: O(n log n) in the text.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `json` is tokenizer.json; `config_json` is tokenizer_config.json or empty. Refuses
  // (Unimplemented) a component it cannot run exactly, naming it; never approximates.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(absl::string_view json,
                                                             absl::string_view config_json);
  // vocab.json and merges.txt of a byte-level BPE (Qwen2, GPT-2 style repositories without
  // tokenizer.json).
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromVocabAndMerges(
      absl::string_view vocab_json, absl::string_view merges, absl::string_view config_json);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufVocabulary& vocabulary);

  // REQUIRES: valid UTF-8 (InvalidArgument otherwise).
  virtual absl::StatusOr<std::vector<std::int32_t>> Encode(absl::string_view text,
                                                           const EncodeOptions& options) const = 0;

  // The whole text of `ids`; ids outside the vocabulary are skipped, special ones too when asked.
  // Always valid UTF-8: each maximal invalid sequence becomes U+FFFD (byte-fallback runs: see
  // JoinsByteRun).
  virtual std::string Decode(const std::vector<std::int32_t>& ids, bool skip_special) const = 0;

  // The bytes one token stands for in the middle of a text (" the", "\xe3"): for log-probabilities,
  // stop strings and the incremental detokenizer. Empty for ids outside the vocabulary.
  virtual std::string TokenBytes(std::int32_t id) const = 0;
  // The same for the first token of a text, where a decoder shows it differently (Metaspace); the
  // leading space that StripsLeadingSpace speaks of is still there.
  virtual std::string FirstTokenBytes(std::int32_t id) const { return TokenBytes(id); }
  // Whether TokenBytes(id) is one byte of a byte-fallback run: of a run that is not valid UTF-8
  // every byte becomes U+FFFD. False for all tokens whose bytes simply join.
  virtual bool JoinsByteRun(std::int32_t /*id*/) const { return false; }

  // The token as its vocabulary spells it ("<|im_end|>"); empty for ids outside the vocabulary.
  virtual std::string Spelling(std::int32_t id) const = 0;
  virtual bool IsSpecial(std::int32_t id) const = 0;  // hidden by skip_special
  virtual std::int32_t vocab_size() const = 0;        // largest id + 1
  // Whether Decode strips one leading space of the whole text (SentencePiece style).
  virtual bool StripsLeadingSpace() const = 0;

  virtual std::optional<std::int32_t> bos() const = 0;
  virtual std::vector<std::int32_t> end_ids() const = 0;  // eos, eot, eom
  virtual std::optional<std::int32_t> TokenId(
      absl::string_view content) const = 0;  // of an added or plain token
  // bos_token, eos_token, ... by name, for chat templates.
  virtual const std::map<std::string, std::string>& special_token_names() const = 0;

  virtual std::int64_t memory_bytes() const = 0;  // held by the tables, for the memory ledger
};

}  // namespace nibble
