#include "runtime/text/chat_template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/text/jinja_eval.h"
#include "runtime/text/jinja_parser.h"

namespace nibble {
namespace {

class JinjaTemplate final : public ChatTemplate {
 public:
  JinjaTemplate(jinja::Body body, const TemplateLimits& limits)
      : body_(std::move(body)), limits_(limits) {}

  absl::StatusOr<std::string> Render(const Json& variables, absl::Time now) const override {
    jinja::Runtime runtime(limits_, now);
    return jinja::RenderTemplate(runtime, body_, variables);
  }

 private:
  const jinja::Body body_;
  const TemplateLimits limits_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view source,
                                                                  const TemplateLimits& limits) {
  if (static_cast<std::int64_t>(source.size()) > limits.max_source_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("chat template has ", source.size(),
                                                   " bytes, more than ", limits.max_source_bytes));
  }
  ASSIGN_OR_RETURN(jinja::Body body,
                   jinja::ParseTemplate(source, jinja::ParseLimits{limits.max_nesting}));
  return std::unique_ptr<ChatTemplate>(std::make_unique<JinjaTemplate>(std::move(body), limits));
}

}  // namespace nibble
