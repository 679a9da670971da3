#include "server/cli/answer_printer.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "server/cli/units.h"

namespace nibble {
namespace {

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

std::string Reason(const v1::OutputFinished& finished) {
  switch (finished.stopped_by_case()) {
    case v1::OutputFinished::kStopString:
      return absl::StrCat("ended by \"", finished.stop_string(), "\"");
    case v1::OutputFinished::kStopTokenId:
      return absl::StrCat("ended by token ", finished.stop_token_id());
    case v1::OutputFinished::kEosTokenId:
      return absl::StrCat("ended by token ", finished.eos_token_id());
    default: break;
  }
  switch (finished.reason()) {
    case v1::FINISH_REASON_LENGTH: return "cut at the most tokens asked for";
    case v1::FINISH_REASON_CONTEXT: return "cut where the context is full";
    case v1::FINISH_REASON_TIME_LIMIT: return "cut by the time limit";
    default: return "ended";
  }
}

std::string ToJsonLine(const v1::GenerateResponse& response) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string line;
  const auto status = google::protobuf::util::MessageToJsonString(response, &line, options);
  return status.ok() ? line : absl::StrCat("{\"error\": \"", std::string(status.message()), "\"}");
}

class Printer {
 public:
  Printer(const PrintStyle& style, std::FILE* out, std::FILE* err)
      : style_(style), out_(out), err_(err) {}

  void Print(const v1::GenerateResponse& response) {
    if (style_.json) {
      Write(absl::StrCat(ToJsonLine(response), "\n"));
    } else if (response.has_started()) {
      prompt_tokens_ = response.started().prompt_tokens();
    } else if (response.has_chunk()) {
      if (style_.headings && output_ != static_cast<int>(response.chunk().output_index())) {
        output_ = static_cast<int>(response.chunk().output_index());
        EndLine();
        Write(absl::StrCat("--- output ", output_, "\n"));
      }
      Write(response.chunk().text());
    } else if (response.has_finished() && style_.statistics) {
      if (style_.end_of_line) EndLine();
      std::fprintf(err_, "[%s]\n", ShowFinish(response.finished(), prompt_tokens_).c_str());
    }
  }

  void End() {
    if (style_.end_of_line) EndLine();
  }

 private:
  void Write(const std::string& text) {
    if (text.empty()) return;
    std::fwrite(text.data(), 1, text.size(), out_);
    std::fflush(out_);
    in_line_ = text.back() != '\n';
  }

  void EndLine() {
    if (in_line_) Write("\n");
  }

  const PrintStyle style_;
  std::FILE* const out_;
  std::FILE* const err_;
  std::uint32_t prompt_tokens_ = 0;
  int output_ = -1;
  bool in_line_ = false;
};

}  // namespace

std::string ShowFinish(const v1::OutputFinished& finished, std::uint32_t prompt_tokens) {
  const v1::Timing& timing = finished.timing();
  std::string line = absl::StrCat(ShowCount(finished.completion_tokens()), " tokens after ",
                                  ShowCount(prompt_tokens), ", the first in ",
                                  ShowTime(ToDuration(timing.time_to_first_token())));
  const double seconds = absl::ToDoubleSeconds(ToDuration(timing.decode()));
  if (finished.completion_tokens() > 1 && seconds > 0) {
    absl::StrAppend(&line, ", then ", ShowRate((finished.completion_tokens() - 1) / seconds),
                    " tok/s");
  }
  return absl::StrCat(line, "; ", Reason(finished));
}

absl::Status PrintAnswer(AnswerSource& answer, const PrintStyle& style, std::FILE* out,
                         std::FILE* err) {
  Printer printer(style, out, err);
  v1::GenerateResponse response;
  while (answer.Next(&response)) {
    printer.Print(response);
    response.Clear();
  }
  printer.End();
  return answer.Finish();
}

}  // namespace nibble
