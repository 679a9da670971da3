#include "runtime/weights/module_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxPatternBytes = 4096;
constexpr std::uint32_t kMaxSteps = 1'000'000;

std::string MessageOf(int error) {
  unsigned char text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct ModulePattern::Code {
  explicit Code(pcre2_code* compiled)
      : code(compiled), limits(pcre2_match_context_create(nullptr)) {
    pcre2_set_match_limit(limits, kMaxSteps);
  }
  ~Code() {
    pcre2_match_context_free(limits);
    pcre2_code_free(code);
  }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  pcre2_code* code;
  pcre2_match_context* limits;
};

absl::StatusOr<ModulePattern> ModulePattern::Compile(absl::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a module pattern has ", pattern.size(),
                                                   " bytes, the limit is ", kMaxPatternBytes));
  }
  int error = 0;
  std::size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_ANCHORED | PCRE2_UTF, &error, &offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("module pattern \"", pattern.substr(0, 128),
                                                   "\", byte ", offset, ": ", MessageOf(error)));
  }
  return ModulePattern(std::make_shared<const Code>(code));
}

absl::StatusOr<bool> ModulePattern::Matches(absl::string_view path) const {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  const int found = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(path.data()), path.size(),
                                0, 0, data, code_->limits);
  pcre2_match_data_free(data);
  if (found >= 0) return true;
  if (found == PCRE2_ERROR_NOMATCH) return false;
  return absl::InvalidArgumentError(absl::StrCat("a module pattern cannot be matched to \"",
                                                 path.substr(0, 128), "\": ", MessageOf(found)));
}

}  // namespace nibble
