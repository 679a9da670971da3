// Tokenizers. The first byte says what the rest is: a tokenizer.json, the lines of a GGUF
// vocabulary, text, ids, or a regular expression and a text (a line feed between).
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/regex.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

using Ids = std::vector<std::int32_t>;

void Require(bool condition) {
  if (!condition) std::abort();
}

std::unique_ptr<Tokenizer> Built(const GgufVocabulary& vocabulary) {
  auto tokenizer = Tokenizer::FromGguf(vocabulary);
  Require(tokenizer.ok());
  return *std::move(tokenizer);
}

// Byte-level, with a pre-tokenizer's expression and a special token.
std::unique_ptr<Tokenizer> ByteLevel() {
  GgufVocabulary v;
  v.model = "gpt2";
  v.pre = "llama-bpe";
  for (int byte = 0; byte < 256; ++byte) {
    v.tokens.push_back(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
  }
  for (const char* token : {"aa", "aaaa", "Ġa", "ĊĊ", "<|end|>"}) v.tokens.push_back(token);
  v.merges = {"a a", "aa aa", "Ġ a", "Ċ Ċ"};
  v.types.assign(v.tokens.size(), 1);
  v.types.back() = 3;
  v.bos = static_cast<std::int32_t>(v.tokens.size()) - 1;
  return Built(v);
}

// Scored, with some byte tokens.
std::unique_ptr<Tokenizer> Scored() {
  GgufVocabulary v;
  v.model = "llama";
  v.tokens = {"<unk>", "<s>", "</s>"};
  v.types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char kHex[] = "0123456789ABCDEF";
    v.tokens.push_back(std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">");
    v.types.push_back(6);
  }
  for (const char* token : {"▁", "a", "b", "ab", "ba", "▁a", "▁▁", "aba"}) {
    v.tokens.push_back(token);
    v.types.push_back(1);
  }
  for (std::size_t i = 0; i < v.tokens.size(); ++i)
    v.scores.push_back(static_cast<float>(i % 5) - 4.0f);
  return Built(v);
}

// What is shown piece by piece is what is decoded at once, and always UTF-8.
void CheckDecoding(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  const std::string whole = tokenizer.Decode(ids, skip_special);
  Require(IsValidUtf8(whole));
  Detokenizer detokenizer(tokenizer, !skip_special);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string piece = detokenizer.Push(id);
    Require(IsValidUtf8(piece));
    text += piece;
  }
  Require(text + detokenizer.Finish() == whole);
}

void CheckEncoding(const Tokenizer& tokenizer, absl::string_view text, bool lossless) {
  for (const bool parse_special : {false, true}) {
    const auto ids = tokenizer.Encode(text, {.parse_special = parse_special, .add_special = false});
    if (!ids.ok()) {
      Require(!IsValidUtf8(text) || !lossless);
      continue;
    }
    for (const std::int32_t id : *ids) Require(id >= 0 && id < tokenizer.vocab_size());
    if (lossless) Require(tokenizer.Decode(*ids, false) == text);
    CheckDecoding(tokenizer, *ids, parse_special);
  }
}

void FuzzJson(absl::string_view data) {
  const auto tokenizer = Tokenizer::FromJson(data, "");
  if (!tokenizer.ok()) return;
  CheckEncoding(**tokenizer, "a ab  <s>b \xE4\xBD\xA0\n\n1234 it's", /*lossless=*/false);
  CheckDecoding(**tokenizer, {0, 1, 2, 3, 4, 5, 6, 7, 1, 0}, false);
  Require((*tokenizer)->memory_bytes() > 0);
}

void FuzzGguf(absl::string_view data) {
  GgufVocabulary v;
  bool merges = false;
  for (const absl::string_view line : absl::StrSplit(data, '\n')) {
    if (line == "--") {
      merges = true;
    } else if (merges) {
      v.merges.emplace_back(line);
    } else {
      v.types.push_back(line.empty() ? 1 : 1 + static_cast<unsigned char>(line[0]) % 6);
      v.scores.push_back(line.empty() ? 0.0f : static_cast<float>(line.back()));
      v.tokens.emplace_back(line);
    }
  }
  for (const char* model : {"llama", "gpt2"}) {
    v.model = model;
    v.pre = "default";
    v.add_bos = false;
    const auto tokenizer = Tokenizer::FromGguf(v);
    if (!tokenizer.ok()) continue;
    CheckEncoding(**tokenizer, data.substr(0, 200), /*lossless=*/false);
    CheckDecoding(**tokenizer, {0, 1, 2, 3, 4, 5, 1, 1, 0}, true);
  }
}

void FuzzIds(absl::string_view data) {
  static const std::unique_ptr<Tokenizer> byte_level = ByteLevel();
  static const std::unique_ptr<Tokenizer> scored = Scored();
  Ids ids;
  for (std::size_t i = 0; i + 1 < data.size(); i += 2) {
    ids.push_back(static_cast<unsigned char>(data[i]) + (data[i + 1] & 1) * 256 -
                  (data[i + 1] & 2));
  }
  for (const bool skip_special : {false, true}) {
    CheckDecoding(*byte_level, ids, skip_special);
    CheckDecoding(*scored, ids, skip_special);
  }
}

void FuzzText(absl::string_view text) {
  static const std::unique_ptr<Tokenizer> byte_level = ByteLevel();
  static const std::unique_ptr<Tokenizer> scored = Scored();
  CheckEncoding(*byte_level, text, /*lossless=*/true);
  CheckEncoding(*scored, text, /*lossless=*/false);
}

void FuzzRegex(absl::string_view data) {
  const std::size_t line = data.find('\n');
  if (line == absl::string_view::npos || !IsValidUtf8(data.substr(line + 1))) return;
  const auto regex = Regex::Compile(data.substr(0, line));
  if (!regex.ok()) return;
  RegexScratch scratch;
  std::size_t last = 0;
  const absl::string_view subject = data.substr(line + 1);
  (void)(*regex)->ForEachMatch(subject, scratch, [&](std::size_t begin, std::size_t end) {
    Require(last <= begin && begin <= end && end <= subject.size());
    Require(IsValidUtf8(subject.substr(begin, end - begin)));
    last = end;
  });
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const absl::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0: nibble::FuzzJson(rest); break;
    case 1: nibble::FuzzGguf(rest); break;
    case 2: nibble::FuzzText(rest); break;
    case 3: nibble::FuzzIds(rest); break;
    default: nibble::FuzzRegex(rest); break;
  }
  return 0;
}
