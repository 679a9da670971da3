// The flags of `nibble generate` that say what to ask.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "nibble/v1/generation.pb.h"

namespace nibble {

struct GenerateFlags {
  std::string prompt;  // empty or "-": standard input
  bool chat = false;
  std::string system, messages_file, tools_file, template_variables;
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<std::uint32_t> top_k, max_tokens, num_outputs, top_logprobs;
  std::optional<std::uint64_t> seed;
  std::uint32_t min_tokens = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false, parse_special_tokens = false, keep_special_tokens = false;
  std::int32_t priority = 0;
  std::string request_id, tenant;

  void AddTo(CLI::App& app);
  // Reads the files and, for a prompt that is not given, `standard_input`. InvalidArgument or
  // NotFound says what to change.
  absl::StatusOr<v1::GenerateRequest> ToRequest(std::istream& standard_input) const;
};

}  // namespace nibble
