#include "runtime/text/pre_patterns.h"

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"

namespace nibble {
namespace {

// Cased letters as DeepSeek LLM's file lists them.
#define NIBBLE_DEEPSEEK_LETTERS                                                             \
  R"(A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293})"   \
  R"(\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386})"            \
  R"(\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f})"   \
  R"(\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba})"  \
  R"(\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a})"                 \
  R"(\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d})"                 \
  R"(\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4})"          \
  R"(\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3})"         \
  R"(\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107})" \
  R"(\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d})"  \
  R"(\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184})"  \
  R"(\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d})" \
  R"(\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e})"                 \
  R"(\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a})"                 \
  R"(\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb})"           \
  R"(\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943})"

#define NIBBLE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NIBBLE_WORD R"([^\r\n\p{L}\p{N}]?\p{L}+)"
#define NIBBLE_SYMBOLS R"( ?[^\s\p{L}\p{N}]+[\r\n]*)"
#define NIBBLE_SPACES R"(\s*[\r\n]+|\s+(?!\S)|\s+)"
#define NIBBLE_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_LEAD R"([^\r\n\p{L}\p{N}]?)"
#define NIBBLE_CJK_DEEPSEEK R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)"
#define NIBBLE_CJK_DEEPSEEK3 R"([\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+)"
#define NIBBLE_ASCII_SYMBOL R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~])"

constexpr absl::string_view kLlama3 =
    NIBBLE_CONTRACTIONS "|" NIBBLE_WORD "|\\p{N}{1,3}|" NIBBLE_SYMBOLS "|" NIBBLE_SPACES;
constexpr absl::string_view kQwen2 =
    NIBBLE_CONTRACTIONS "|" NIBBLE_WORD "|\\p{N}|" NIBBLE_SYMBOLS "|" NIBBLE_SPACES;
// Words as runs of upper and then lower case.
constexpr absl::string_view kGpt4o =
    NIBBLE_LEAD NIBBLE_UPPER "*" NIBBLE_LOWER "+" NIBBLE_CONTRACTIONS "?|" NIBBLE_LEAD NIBBLE_UPPER
                             "+" NIBBLE_LOWER "*" NIBBLE_CONTRACTIONS
                             "?|"
                             R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" NIBBLE_SPACES;
constexpr absl::string_view kTekken =
    NIBBLE_LEAD NIBBLE_UPPER "*" NIBBLE_LOWER "+|" NIBBLE_LEAD NIBBLE_UPPER "+" NIBBLE_LOWER
                             "*|"
                             R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" NIBBLE_SPACES;
constexpr absl::string_view kDeepseek3Words = NIBBLE_ASCII_SYMBOL
    R"([A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|)" NIBBLE_SPACES;
constexpr absl::string_view kBloom =
    R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+)";
const std::vector<PreKind>& Kinds() {
  static const std::vector<PreKind> kinds = {
      {{"default", ""}, {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Pattern, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {{"gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais", "trillion",
        "exaone4", "granite-docling"},
       {kGpt2Pattern}},
      {{"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
       {kLlama3},
       /*ignore_merges=*/true,
       /*add_bos=*/true},
      {{"dbrx", "smaug-bpe"}, {kLlama3}},
      {{"glm4", "chatglm-bpe"}, {kLlama3}, false, false, /*no_bos=*/true},
      {{"qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open",
        "grok-2"},
       {kQwen2}},
      {{"qwen35"},
       {NIBBLE_CONTRACTIONS
        R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)" NIBBLE_SPACES}},
      {{"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b",
        "mellum2"},
       {R"(\p{N})", kGpt2Pattern}},
      {{"falcon"}, {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2Pattern, "[0-9][0-9][0-9]"}},
      // The reference ends a run of spaces with \s+$, which takes quadratic time from every space;
      // the run that reaches the end is the one that nothing but white space follows.
      {{"deepseek-llm"},
       {R"([\r\n])", R"(\s?[)" NIBBLE_DEEPSEEK_LETTERS "]+",
        R"(\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+)",
        R"((?<!\s)\s++\z)", NIBBLE_CJK_DEEPSEEK, R"(\p{N}+)"}},
      {{"deepseek-coder"},
       {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", NIBBLE_CJK_DEEPSEEK, R"(\p{N})"}},
      {{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
       {R"(\p{N}{1,3})", NIBBLE_CJK_DEEPSEEK3, kDeepseek3Words}},
      {{"gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"}, {kGpt4o}},
      {{"tekken"}, {kTekken}, /*ignore_merges=*/true, /*add_bos=*/true},
      {{"poro-chat", "bloom", "gpt3-finnish"}, {kBloom}},
      {{"viking"}, {kBloom, R"(\p{N})"}},
      {{"bailingmoe", "bailingmoe2", "llada-moe"},
       {R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"}},
      {{"seed-coder"},
       {NIBBLE_CONTRACTIONS "|" NIBBLE_WORD R"(|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|)" NIBBLE_SPACES}},
      {{"ufakzeka"}, {NIBBLE_WORD "|\\p{N}|" NIBBLE_SYMBOLS "|" NIBBLE_SPACES}},
      {{"laguna"}, {R"([^\n]+|[\n]+)", kQwen2}},
      {{"minicpm5"},
       {R"(\p{N}{1,3})",
        NIBBLE_CONTRACTIONS "|" NIBBLE_WORD "|\\p{N}+|" NIBBLE_SYMBOLS "|" NIBBLE_SPACES},
       /*ignore_merges=*/true},
      // Digits in threes from the right: a long run of them looks far ahead, and is refused past
      // some 10,000.
      {{"tiny_aya", "cohere2moe"}, {R"(\d{1,3}(?=(?:\d{3})*\b))", kGpt4o}},
      {{"superbpe"}, {R"(\p{N}+)", R"((?=(\d{3})+(?!\d)))"}},
  };
  return kinds;
}

}  // namespace

const PreKind* FindPreKind(absl::string_view name) {
  for (const PreKind& kind : Kinds()) {
    if (std::find(kind.names.begin(), kind.names.end(), name) != kind.names.end()) return &kind;
  }
  return nullptr;
}

absl::Status AppendPrePatterns(const PreKind& kind, PreTokenizers* out) {
  for (const absl::string_view pattern : kind.patterns) {
    ASSIGN_OR_RETURN(auto regex, Regex::Compile(pattern));
    out->push_back(MakeSplit(std::move(regex), SplitBehavior::kIsolated));
  }
  return absl::OkStatus();
}

}  // namespace nibble
