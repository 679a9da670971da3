// The validator over arbitrary bytes: whatever it lets through is within every limit, and whatever
// it refuses makes an error that fits the trailers.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "google/protobuf/stubs/logging.h"
#include "server/errors.h"
#include "server/wire.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

const ServedModel& Model() {
  static const ServedModel* model = [] {
    google::protobuf::SetLogHandler(nullptr);
    auto* made = new ServedModel;
    made->info.name = "tiny";
    made->info.vocab = kTinyVocab;
    made->info.context = kTinyContext;
    auto tokenizer = Tokenizer::FromJson(DumpJson(TinyTokenizer()), "");
    Check(tokenizer.ok());
    made->tokenizer = *std::move(tokenizer);
    auto chat_template = ChatTemplate::Parse(
        "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}{{ m | tojson }}{% endfor %}"
        "{{ tools }}");
    Check(chat_template.ok());
    made->chat_template = *std::move(chat_template);
    for (std::int32_t id = 256; id < kTinyVocab; ++id) {
      const std::string spelling = made->tokenizer->Spelling(id);
      Check(made->special_spellings.Add({.id = id, .content = spelling}, spelling).ok());
    }
    return made;
  }();
  return *model;
}

void CheckError(const absl::Status& status) {
  if (status.ok()) return;
  Check(!absl::IsInternal(status) && !absl::IsUnknown(status));
  Check(ToRpcStatus(status).ByteSizeLong() < kMaxErrorBytes);
}

void CheckLimits(const Request& request) {
  const SamplingParams& sampling = request.sampling;
  Check(std::isfinite(sampling.temperature) && sampling.temperature >= 0);
  Check(sampling.top_k >= 0 && sampling.top_k < kTinyVocab);
  Check(sampling.top_p > 0 && sampling.top_p <= 1 && sampling.min_p >= 0 && sampling.min_p <= 1);
  Check(sampling.repetition_penalty > 0 && std::isfinite(sampling.repetition_penalty));
  Check(std::isfinite(sampling.presence_penalty) && std::isfinite(sampling.frequency_penalty));
  Check(sampling.top_logprobs >= -1 && sampling.top_logprobs <= kMaxTopLogprobs);
  Check(request.logit_bias.size() <= kMaxLogitBias);
  for (const auto& [id, bias] : request.logit_bias)
    Check(id >= 0 && id < kTinyVocab && std::isfinite(bias));
  for (const std::int32_t id : request.prompt) Check(id >= 0 && id < kTinyVocab);
  Check(request.output.num_outputs >= 1 && request.output.num_outputs <= kMaxNumOutputs);
  const Stopping& stopping = request.stopping;
  Check(stopping.min_tokens <= kTinyContext);
  Check(!stopping.max_tokens.has_value() || *stopping.max_tokens <= kTinyContext);
  Check(stopping.stop_strings.size() <= kMaxStopStrings &&
        stopping.stop_token_ids.size() <= kMaxStopTokenIds);
  for (const std::string& stop : stopping.stop_strings)
    Check(!stop.empty() && stop.size() <= kMaxStopStringBytes);
  Check(!stopping.max_duration.has_value() || *stopping.max_duration > absl::ZeroDuration());
}

void FuzzGenerate(absl::string_view bytes) {
  v1::GenerateRequest proto;
  if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    CheckError(MalformedMessage(*proto.GetDescriptor(), bytes));
    return;
  }
  const absl::StatusOr<Request> request = ValidateGenerate(proto, Model());
  CheckError(request.status());
  if (!request.ok()) return;
  CheckLimits(*request);
  const auto prompt = PreparePrompt(proto, Model(), absl::UnixEpoch());
  CheckError(prompt.status());
  Check(!prompt.ok() || !prompt->empty());
}

void FuzzTokenize(absl::string_view bytes) {
  v1::TokenizeRequest proto;
  if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  const auto ids = Tokenize(proto, Model(), absl::UnixEpoch());
  CheckError(ids.status());
}

void FuzzLoadOptions(absl::string_view bytes) {
  v1::LoadOptions proto;
  LoadSpec spec;
  if (proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    CheckError(ApplyLoadOptions(proto, &spec));
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0: nibble::FuzzTokenize(bytes); break;
    case 1: nibble::FuzzLoadOptions(bytes); break;
    default: nibble::FuzzGenerate(bytes); break;
  }
  return 0;
}
