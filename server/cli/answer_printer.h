// An answer on the terminal.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "nibble/v1/generation.pb.h"
#include "server/cli/answer_source.h"

namespace nibble {

struct PrintStyle {
  bool json = false;         // one event a line, spelled as the protos are
  bool statistics = false;   // a line on `err` behind each output
  bool headings = false;     // name the outputs: there are several
  bool end_of_line = false;  // always end with one: a terminal's prompt follows
};

// Prints events as they come until there are no more. What comes back is how the answer ended.
absl::Status PrintAnswer(AnswerSource& answer, const PrintStyle& style, std::FILE* out,
                         std::FILE* err);

// "12 tokens after 37, the first in 56 ms, then 34.1 tok/s; ended by token 2"
std::string ShowFinish(const v1::OutputFinished& finished, std::uint32_t prompt_tokens);

}  // namespace nibble
