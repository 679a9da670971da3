// Checks step inputs before they reach a device, the same way for every backend.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kv_layout.h"
#include "runtime/device/backend.h"
#include "runtime/device/step.h"

namespace nibble {

// Remembers, in launch order, which slots were begun and have a last token. One thread calls it.
class StepChecker {
 public:
  StepChecker(const StepLimits& limits, std::int32_t vocab, const KvLayout& kv)
      : limits_(limits),
        vocab_(vocab),
        kv_(kv),
        slots_(static_cast<std::size_t>(limits.max_slots)) {}

  // InvalidArgument names the field, the value and the limit. A step that passes is taken as
  // launched.
  absl::Status Accept(const StepInput& input);

 private:
  struct SlotState {
    bool begun = false;
    bool has_token = false;     // sampled in an earlier step, or given with its outputs
    std::uint64_t used_by = 0;  // the last step (its count) that named the slot
  };

  absl::Status CheckSizes(const StepInput& input) const;
  absl::Status CheckSlotInit(const SlotInit& init) const;
  absl::Status CheckSequence(const StepInput& input, std::size_t sequence, std::size_t first_token);
  absl::Status CheckLogitRow(const StepInput& input, const LogitRow& row, std::size_t index) const;
  absl::Status CheckId(const char* what, std::int32_t id) const;
  SlotState* FindSlot(std::int32_t slot);

  const StepLimits limits_;
  const std::int32_t vocab_;
  const KvLayout kv_;
  std::vector<SlotState> slots_;
  std::vector<SlotState> next_;        // slots_ as this step leaves them
  std::vector<std::int32_t> slot_of_;  // [tokens] of the step
  std::uint64_t steps_ = 0;
};

}  // namespace nibble
