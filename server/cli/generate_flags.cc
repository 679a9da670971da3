#include "server/cli/generate_flags.h"

#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "server/cli/chat_file.h"

namespace nibble {
namespace {

absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat(flag, ": cannot read ", path));
  return text.str();
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

std::string ReadAll(std::istream& in) {
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!text.empty() && text.back() == '\n') text.pop_back();  // what echo and editors add
  return text;
}

void AddMessage(v1::Chat* chat, const char* role, const std::string& content) {
  v1::ChatMessage* message = chat->add_messages();
  message->set_role(role);
  message->set_content(content);
}

}  // namespace

void GenerateFlags::AddTo(CLI::App& app) {
  app.add_option("PROMPT", prompt,
                 "the text to continue, or the user's message; - or nothing: from standard input");
  const char* group = "Prompt";
  app.add_flag("--chat", chat, "PROMPT is a user's message: use the model's chat template")
      ->group(group);
  app.add_option("--system", system, "a system message before it (implies --chat)")->group(group);
  app.add_option("--messages", messages_file, "a JSON file of messages before it, or instead of it")
      ->group(group);
  app.add_option("--tools", tools_file, "a JSON file of the tools that the model may call")
      ->group(group);
  app.add_option("--template-variables", template_variables, "JSON object for the chat template")
      ->group(group);
  app.add_flag("--parse-special-tokens", parse_special_tokens,
               "text that spells a special token is one")
      ->group(group);
  group = "Sampling";
  app.add_option("--temperature", temperature,
                 "0: always the likeliest token (the model's, else 1)")
      ->group(group);
  app.add_option("--top-k", top_k, "choose among so many tokens; 0: all")->group(group);
  app.add_option("--top-p", top_p, "choose among the likeliest tokens of this share")->group(group);
  app.add_option("--min-p", min_p, "leave out what is less likely than this share of the likeliest")
      ->group(group);
  app.add_option("--repetition-penalty", repetition_penalty, "above 1: repeat less")->group(group);
  app.add_option("--presence-penalty", presence_penalty, "from every token that is there")
      ->group(group);
  app.add_option("--frequency-penalty", frequency_penalty, "for each time it is there")
      ->group(group);
  app.add_option("--seed", seed, "the same seed gives the same answer")->group(group);
  group = "Output";
  app.add_option("--max-tokens", max_tokens, "end after so many (unset: at the end of the context)")
      ->group(group);
  app.add_option("--min-tokens", min_tokens, "do not end before so many")->group(group);
  app.add_option("--stop", stop, "end where this text appears; may be given several times")
      ->allow_extra_args(false)
      ->group(group);
  app.add_flag("--ignore-eos", ignore_eos, "go on after the model ends")->group(group);
  app.add_option("-n,--num-outputs", num_outputs, "so many answers")->group(group);
  app.add_option("--logprobs", top_logprobs,
                 "with --json: log-probabilities of so many tokens a step")
      ->group(group);
  app.add_flag("--keep-special-tokens", keep_special_tokens, "print special tokens too")
      ->group(group);
  group = "Request";
  app.add_option("--priority", priority, "higher goes first")->group(group);
  app.add_option("--request-id", request_id, "a label for logs")->group(group);
  app.add_option("--tenant", tenant, "whom fair sharing counts the tokens for")->group(group);
}

absl::StatusOr<v1::GenerateRequest> GenerateFlags::ToRequest(std::istream& standard_input) const {
  v1::GenerateRequest request;
  const bool is_chat = chat || !system.empty() || !messages_file.empty() || !tools_file.empty() ||
                       !template_variables.empty();
  const bool needs_text = prompt == "-" || (prompt.empty() && messages_file.empty());
  const std::string text = needs_text ? ReadAll(standard_input) : prompt;
  if (text.empty() && messages_file.empty())
    return absl::InvalidArgumentError("the prompt is empty");
  if (is_chat) {
    v1::Chat* const wanted = request.mutable_chat();
    if (!system.empty()) AddMessage(wanted, "system", system);
    if (!messages_file.empty()) {
      ASSIGN_OR_RETURN(const std::string json, ReadFile("--messages", messages_file));
      RETURN_IF_ERROR(InFile(messages_file, AddMessages(json, wanted)));
    }
    if (!text.empty()) AddMessage(wanted, "user", text);
    if (!tools_file.empty()) {
      ASSIGN_OR_RETURN(const std::string json, ReadFile("--tools", tools_file));
      RETURN_IF_ERROR(InFile(tools_file, AddTools(json, wanted)));
    }
    wanted->set_template_variables_json(template_variables);
  } else {
    request.set_text(text);
  }
  request.set_parse_special_tokens(parse_special_tokens);
  request.set_priority(priority);
  request.set_request_id(request_id);
  request.set_tenant(tenant);

  v1::SamplingOptions* const sampling = request.mutable_sampling();
  if (temperature) sampling->set_temperature(*temperature);
  if (top_k) sampling->set_top_k(*top_k);
  if (top_p) sampling->set_top_p(*top_p);
  if (min_p) sampling->set_min_p(*min_p);
  if (repetition_penalty) sampling->set_repetition_penalty(*repetition_penalty);
  if (presence_penalty) sampling->set_presence_penalty(*presence_penalty);
  if (frequency_penalty) sampling->set_frequency_penalty(*frequency_penalty);
  if (seed) sampling->set_seed(*seed);

  v1::StoppingOptions* const stopping = request.mutable_stopping();
  if (max_tokens) stopping->set_max_tokens(*max_tokens);
  stopping->set_min_tokens(min_tokens);
  for (const std::string& one : stop) stopping->add_stop_strings(one);
  stopping->set_ignore_eos(ignore_eos);

  v1::OutputOptions* const output = request.mutable_output();
  if (num_outputs) output->set_num_outputs(*num_outputs);
  if (top_logprobs) output->set_top_logprobs(*top_logprobs);
  output->set_keep_special_tokens(keep_special_tokens);
  output->set_final_only(num_outputs.value_or(1) > 1);  // else their pieces would be mixed
  return request;
}

}  // namespace nibble
