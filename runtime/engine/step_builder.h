// From a Batch to the plain spans of a StepInput.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/device/step.h"
#include "runtime/engine/batch.h"

namespace nibble {

// Owns the arrays that StepInput points into, and uses them again. One thread.
class StepBuilder {
 public:
  explicit StepBuilder(std::int32_t page_tokens) : page_tokens_(page_tokens) {}

  // Valid until the next call; Launch copies.
  StepInput Build(const Batch& batch);

 private:
  void AddSequence(const ScheduledSequence& entry);
  void AddRows(const ScheduledSequence& entry, std::int32_t first_token);

  const std::int32_t page_tokens_;
  std::vector<std::int32_t> tokens_, positions_, slots_, query_lengths_, context_lengths_,
      table_offsets_, tables_;
  std::vector<SlotInit> slot_inits_;
  std::vector<LogitRow> rows_;
};

}  // namespace nibble
