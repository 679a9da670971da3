// Templates from anywhere: parsing and rendering end in text or a status, within their budgets.
#include <cstddef>
#include <cstdint>

#include "runtime/base/json.h"
#include "runtime/text/chat_template.h"

namespace {

const nibble::Json& Variables() {
  static const nibble::Json* const kVariables = new nibble::Json(*nibble::ParseJson(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße \"x\"\n"},
                 {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5]}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "l": [3, 1, 2], "d": {"k": "v", "n": 1}, "n": 7, "s": "a b"
  })"));
  return *kVariables;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const nibble::TemplateLimits limits{.max_source_bytes = 1 << 16,
                                      .max_nesting = 64,
                                      .max_steps = 20'000,
                                      .max_output_bytes = 1 << 18};
  const auto parsed = nibble::ChatTemplate::Parse(
      absl::string_view(reinterpret_cast<const char*>(data), size), limits);
  if (parsed.ok()) (void)(*parsed)->Render(Variables(), absl::UnixEpoch());
  return 0;
}
