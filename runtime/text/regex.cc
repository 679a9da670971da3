#include "runtime/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/regex_dialect.h"
#include "runtime/text/unicode.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxPatternBytes = 32 << 10;
// Steps of one match attempt, as PCRE2 counts them, and more for each byte of a long window.
constexpr std::uint64_t kMatchLimit = 100'000;
constexpr std::uint64_t kMatchLimitPerByte = 32;
constexpr std::uint32_t kHeapLimitKib = 64 << 10;
constexpr std::size_t kJitStackBytes = 4 << 20;
// A match is first tried on this much text. Few need more, and those that do are charged for it.
constexpr std::size_t kWindowBytes = 256;
constexpr std::uint64_t kFreeBytes = 16 << 20;  // of longer windows a subject, and per byte of it:
constexpr std::uint64_t kFreeBytesPerByte = 32;

// At least `bytes` from `begin`, to the end of a character.
std::size_t WindowEnd(absl::string_view subject, std::size_t begin, std::size_t bytes) {
  if (subject.size() - begin <= bytes) return subject.size();
  std::size_t end = begin + bytes;
  while (end < subject.size() && (static_cast<unsigned char>(subject[end]) & 0xC0) == 0x80) ++end;
  return end;
}

}  // namespace

struct RegexScratch::State {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);

  State() {
    pcre2_set_heap_limit(context, kHeapLimitKib);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~State() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

RegexScratch::RegexScratch() = default;
RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }

  // PCRE2's result: at least 0 for a match, whose bounds are in the scratch. What needs more stack
  // than the compiled code has goes to the interpreter, which has a heap.
  int Match(absl::string_view subject, std::size_t begin, std::uint32_t options,
            const RegexScratch::State& state) const {
    const std::uint64_t steps = kMatchLimit + kMatchLimitPerByte * (subject.size() - begin);
    pcre2_set_match_limit(state.context,
                          static_cast<std::uint32_t>(std::min<std::uint64_t>(steps, UINT32_MAX)));
    options |= PCRE2_NO_UTF_CHECK;
    const auto text = reinterpret_cast<PCRE2_SPTR>(subject.data());
    const int result =
        pcre2_match(code, text, subject.size(), begin, options, state.data, state.context);
    if (result != PCRE2_ERROR_JIT_STACKLIMIT) return result;
    return pcre2_match(code, text, subject.size(), begin, options | PCRE2_NO_JIT, state.data,
                       state.context);
  }

  // Every attempt sees a short window of the subject first. PCRE2 says when it looked at the
  // window's end, and then the attempt at that one position is repeated on longer windows, whose
  // bytes come off a budget. So patterns that look far ahead from everywhere (quadratic time) end
  // with a status, and others never notice. Returns a match, an error, NOMATCH for none up to the
  // new *position, or PARTIAL when the budget is spent.
  int MatchInWindows(absl::string_view subject, std::size_t* position, std::uint64_t* budget,
                     const RegexScratch::State& state) const {
    std::size_t end = WindowEnd(subject, *position, kWindowBytes);
    const auto partial = [&] { return end < subject.size() ? PCRE2_PARTIAL_HARD : 0u; };
    int result = Match(subject.substr(0, end), *position, partial(), state);
    if (result == PCRE2_ERROR_NOMATCH) *position = end;
    if (result != PCRE2_ERROR_PARTIAL) return result;
    *position = pcre2_get_ovector_pointer(state.data)[0];  // no earlier start can match
    for (std::size_t bytes = 2 * kWindowBytes; result == PCRE2_ERROR_PARTIAL; bytes *= 2) {
      end = WindowEnd(subject, *position, bytes);
      if (end - *position > *budget) return PCRE2_ERROR_PARTIAL;
      *budget -= end - *position;
      result = Match(subject.substr(0, end), *position, PCRE2_ANCHORED | partial(), state);
    }
    if (result == PCRE2_ERROR_NOMATCH) {
      *position += CharacterLength(static_cast<unsigned char>(subject[*position]));
    }
    return result;
  }
};

Regex::Regex(std::string pattern, std::unique_ptr<Code> code)
    : pattern_(std::move(pattern)), code_(std::move(code)) {}
Regex::~Regex() = default;

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Literal(absl::string_view text) {
  if (text.empty()) return absl::InvalidArgumentError("a text to split at is empty");
  return std::shared_ptr<const Regex>(new Regex(std::string(text), nullptr));
}

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Compile(absl::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a regular expression has ", pattern.size(),
                                                   " bytes; the limit is ", kMaxPatternBytes));
  }
  ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern));
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_unique<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &error, &offset, context.get());
  if (code->code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::UnimplementedError(
        absl::StrCat("regular expression \"", pattern.substr(0, 200),
                     "\" cannot be run: ", reinterpret_cast<const char*>(message)));
  }
  // Where the processor has no JIT the interpreter gives the same answers.
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  return std::shared_ptr<const Regex>(new Regex(std::string(pattern), std::move(code)));
}

std::int64_t Regex::memory_bytes() const {
  std::size_t program = 0;
  std::size_t machine = 0;
  if (code_) {
    pcre2_pattern_info(code_->code, PCRE2_INFO_SIZE, &program);
    pcre2_pattern_info(code_->code, PCRE2_INFO_JITSIZE, &machine);
  }
  return static_cast<std::int64_t>(sizeof(*this) + pattern_.capacity() + program + machine);
}

absl::Status Regex::ForEachMatch(absl::string_view subject, RegexScratch& scratch,
                                 absl::FunctionRef<void(std::size_t, std::size_t)> found) const {
  if (code_ == nullptr) {
    for (std::size_t at = subject.find(pattern_); at != absl::string_view::npos;
         at = subject.find(pattern_, at + pattern_.size())) {
      found(at, at + pattern_.size());
    }
    return absl::OkStatus();
  }
  if (scratch.state_ == nullptr) scratch.state_ = std::make_unique<RegexScratch::State>();
  const RegexScratch::State& state = *scratch.state_;
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state.data);
  std::uint64_t budget = kFreeBytes + kFreeBytesPerByte * subject.size();
  std::size_t last_end = absl::string_view::npos;
  std::size_t position = 0;
  while (position < subject.size()) {
    const int result = code_->MatchInWindows(subject, &position, &budget, state);
    if (result == PCRE2_ERROR_NOMATCH) continue;
    if (result < 0) return GaveUp(subject, position, result);
    const std::size_t begin = bounds[0];
    const std::size_t end = bounds[1];
    if (begin < end) {
      found(begin, end);
      position = last_end = end;
      continue;
    }
    // An empty match counts unless it touches the one before; then the search moves on by a
    // character.
    if (begin >= subject.size()) break;
    if (begin != last_end) found(begin, begin);
    last_end = begin;
    position = begin + CharacterLength(static_cast<unsigned char>(subject[begin]));
  }
  return absl::OkStatus();
}

absl::Status Regex::GaveUp(absl::string_view subject, std::size_t position, int result) const {
  PCRE2_UCHAR message[256] = {};
  pcre2_get_error_message(result, message, sizeof(message));
  const absl::string_view reason = result == PCRE2_ERROR_PARTIAL
                                       ? "it looks far ahead from too many places"
                                       : reinterpret_cast<const char*>(message);
  return absl::ResourceExhaustedError(
      absl::StrCat("the pre-tokenizer's expression \"", absl::string_view(pattern_).substr(0, 200),
                   "\" gave up at byte ", position, " of ", subject.size(), ": ", reason,
                   "; shorten or split the text"));
}

}  // namespace nibble
