#include "runtime/device/cuda_slots.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

bool HasPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace

CudaSlots::CudaSlots(std::int32_t vocab, const StepLimits& limits, CudaLayout& layout)
    : slots_(limits.max_slots) {
  args_.vocab = vocab;
  args_.bias_capacity = kMaxBias;
  args_.banned_capacity = kMaxBanned;
  const std::int64_t slots = slots_;
  params_at_ = layout.Take(slots * std::int64_t{sizeof(SamplingParams)});
  lists_at_ = layout.Take(slots * std::int64_t{sizeof(cuda::SlotLists)});
  last_tokens_at_ = layout.Take(slots * 4);
  history_at_ = layout.Take(slots * vocab * 2);
  bias_ids_at_ = layout.Take(slots * kMaxBias * 4);
  bias_values_at_ = layout.Take(slots * kMaxBias * 4);
  banned_at_ = layout.Take(slots * kMaxBanned * 4);
  staged_at_ = layout.Take(kSetBytes);
}

absl::Status CudaSlots::Bind(const CudaMemory& memory, cudaStream_t stream) {
  args_.params = memory.At<SamplingParams>(params_at_);
  args_.lists = memory.At<cuda::SlotLists>(lists_at_);
  args_.last_tokens = memory.At<std::int32_t>(last_tokens_at_);
  args_.history = memory.At<std::uint16_t>(history_at_);
  args_.bias_ids = memory.At<std::int32_t>(bias_ids_at_);
  args_.bias_values = memory.At<float>(bias_values_at_);
  args_.banned = memory.At<std::int32_t>(banned_at_);
  staged_ = memory.data() + staged_at_;
  args_.updates = reinterpret_cast<const cuda::SlotUpdate*>(staged_);
  args_.data = reinterpret_cast<const std::int32_t*>(
      staged_ + kUpdates * std::int64_t{sizeof(cuda::SlotUpdate)});
  // Slots that were never begun are read by padding rows.
  RETURN_IF_ERROR(
      CudaError(cudaMemsetAsync(memory.data() + params_at_, 0,
                                static_cast<std::size_t>(staged_at_ - params_at_), stream),
                "clearing the slots"));
  ASSIGN_OR_RETURN(pinned_, CudaMemory::Allocate(CudaMemory::Kind::kPinned, kSets * kSetBytes,
                                                 "slots of new sequences"));
  return absl::OkStatus();
}

absl::Status CudaSlots::Begin(std::span<const SlotInit> inits, int set, cudaStream_t stream) {
  for (const SlotInit& init : inits) {
    if (init.logit_bias.size() > kMaxBias || init.banned_until_min_tokens.size() > kMaxBanned) {
      return absl::InvalidArgumentError(
          absl::StrCat("slot ", init.slot, " has ", init.logit_bias.size(), " biased and ",
                       init.banned_until_min_tokens.size(), " banned ids; the limits are ",
                       kMaxBias, " and ", kMaxBanned));
    }
    const auto lists =
        static_cast<std::int64_t>(2 * init.logit_bias.size() + init.banned_until_min_tokens.size());
    if (count_ == kUpdates || used_ + lists > kData)
      RETURN_IF_ERROR(Flush(set, stream, /*wait=*/true));
    cuda::SlotUpdate update;
    update.slot = init.slot;
    update.begins = 1;
    update.params = init.sampling;
    update.penalties = HasPenalties(init.sampling) ? 1 : 0;
    if (!init.outputs.empty()) update.last_token = init.outputs.back();
    update.bias_count = static_cast<std::int32_t>(init.logit_bias.size());
    update.bias_ids = static_cast<std::int32_t>(used_);
    update.bias_values = update.bias_ids + update.bias_count;
    for (const auto& [id, bias] : init.logit_bias) {
      data(set)[used_] = id;
      data(set)[used_ + update.bias_count] = std::bit_cast<std::int32_t>(bias);
      ++used_;
    }
    used_ += update.bias_count;
    update.banned_count = static_cast<std::int32_t>(init.banned_until_min_tokens.size());
    update.banned = Append(set, init.banned_until_min_tokens);

    // The history, in as many updates as it takes.
    auto prompt = update.penalties ? init.prompt : std::span<const std::int32_t>();
    auto outputs = update.penalties ? init.outputs : std::span<const std::int32_t>();
    for (;;) {
      const auto room = [&] { return static_cast<std::size_t>(kData - used_); };
      const auto some_prompt = prompt.first(std::min(prompt.size(), room()));
      update.prompt_count = static_cast<std::int32_t>(some_prompt.size());
      update.prompt = Append(set, some_prompt);
      prompt = prompt.subspan(some_prompt.size());
      const auto some_outputs = outputs.first(std::min(outputs.size(), room()));
      update.output_count = static_cast<std::int32_t>(some_outputs.size());
      update.outputs = Append(set, some_outputs);
      outputs = outputs.subspan(some_outputs.size());
      updates(set)[count_++] = update;
      if (prompt.empty() && outputs.empty()) break;
      RETURN_IF_ERROR(Flush(set, stream, /*wait=*/true));
      cuda::SlotUpdate more;
      more.slot = init.slot;
      more.penalties = 1;
      update = more;
    }
  }
  return Flush(set, stream, /*wait=*/false);
}

std::int32_t CudaSlots::Append(int set, std::span<const std::int32_t> ids) {
  std::copy(ids.begin(), ids.end(), data(set) + used_);
  const auto at = static_cast<std::int32_t>(used_);
  used_ += static_cast<std::int64_t>(ids.size());
  return at;
}

absl::Status CudaSlots::Flush(int set, cudaStream_t stream, bool wait) {
  if (count_ == 0) return absl::OkStatus();
  const std::int64_t head = kUpdates * std::int64_t{sizeof(cuda::SlotUpdate)};
  RETURN_IF_ERROR(
      CudaError(cudaMemcpyAsync(staged_, updates(set), static_cast<std::size_t>(head + used_ * 4),
                                cudaMemcpyHostToDevice, stream),
                "copying new slots"));
  args_.count = count_;
  RETURN_IF_ERROR(CudaError(cuda::UpdateSlots(args_, {stream, false}), "updating slots"));
  count_ = 0;
  used_ = 0;
  // The next piece overwrites what was just sent.
  return wait ? CudaError(cudaStreamSynchronize(stream), "updating slots") : absl::OkStatus();
}

}  // namespace nibble
