// What each token stands for in the output, and how tokens join into a text.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/text/token_table.h"

namespace nibble {

// The decoder of a tokenizer as a plan: every supported chain ends in this.
struct DecodePlan {
  struct Replacement {
    std::string from, to;
  };
  enum class ByteRuns {
    kNone,          // <0xHH> is text like any other
    kLossy,         // <0xHH> is a byte among the others
    kAllOrNothing,  // a run of <0xHH> that is not valid UTF-8 is one U+FFFD a byte
  };
  bool byte_alphabet = false;             // a token spells bytes, or else its own text
  std::vector<Replacement> replacements;  // in every token, in order
  ByteRuns byte_runs = ByteRuns::kNone;
  bool strip_leading_space = false;  // one, of the whole text
  std::string first_without;  // removed from the first token before the replacements (Metaspace)
  std::string separator;      // before every token but the first, where a file names no decoder
};

// The "decoder" of tokenizer.json (null: tokens joined by spaces). Unimplemented names a type or an
// order of types that the plan cannot express.
absl::StatusOr<DecodePlan> ParseDecoder(const Json& json);

// The plan applied to a vocabulary. Immutable; thread-safe.
class TokenDecoder {
 public:
  // `raw(id)`: the token's text is shown as it is (special and user-defined tokens of GGUF).
  // InvalidArgument when the replacements make too much of a token or of all.
  static absl::StatusOr<TokenDecoder> Make(const TokenTable& tokens, DecodePlan plan,
                                           absl::FunctionRef<bool(std::int32_t)> raw);

  // Bytes in the middle of a text; empty for ids that are not there.
  absl::string_view Bytes(std::int32_t id) const;
  // The same for the first token of a text; StripsLeadingSpace comes after.
  absl::string_view FirstBytes(std::int32_t id) const;
  // Whether it belongs to a run of bytes that is judged as a whole.
  bool JoinsByteRun(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < in_run_.size() &&
           in_run_[static_cast<std::size_t>(id)];
  }
  bool strips_leading_space() const { return plan_.strip_leading_space; }
  std::int64_t memory_bytes() const;

 private:
  struct Table {
    struct Span {
      std::uint32_t offset = 0;
      std::uint32_t length = 0;
    };
    std::string bytes;
    std::vector<Span> spans;  // by id
    absl::string_view Find(std::int32_t id) const;
    void Append(absl::string_view text);
  };
  explicit TokenDecoder(DecodePlan plan) : plan_(std::move(plan)) {}
  absl::Status Fill(const TokenTable& tokens, absl::FunctionRef<bool(std::int32_t)> raw);
  absl::StatusOr<std::string> Shown(absl::string_view text) const;

  DecodePlan plan_;
  Table bytes_;
  Table first_;  // empty where the first token is like any other
  std::vector<bool> in_run_;
};

}  // namespace nibble
