// A device that computes nothing but checks everything: what it says is a function of the tokens it
// was really given, through the pages it was really given.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "runtime/device/backend.h"

namespace nibble {

// The history of a sequence as one number.
inline std::uint64_t ChainHash(std::uint64_t before, std::int32_t token) {
  std::uint64_t hash =
      (before ^ static_cast<std::uint64_t>(token)) * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
  hash ^= hash >> 29;
  hash *= 0xBF58476D1CE4E5B9u;
  return hash ^ (hash >> 32);
}
inline constexpr std::uint64_t kEmptyHistory = 0x243F6A8885A308D3u;

struct FakeModel {
  std::int32_t vocab = 310;
  std::int32_t eos = 300;
  int eos_one_in = 0;        // 0: never says eos
  std::int32_t poison = -1;  // a history with this token has bad logits
  double seconds_base = 1e-3, seconds_per_token = 1e-5, seconds_per_key = 0;

  // The token after a history, for these parameters.
  std::int32_t Next(std::uint64_t history, const SamplingParams& sampling, std::int32_t position,
                    const std::vector<std::int32_t>& banned) const {
    std::uint64_t draw = ChainHash(history, static_cast<std::int32_t>(sampling.seed));
    if (!IsGreedy(sampling))
      draw = ChainHash(draw, static_cast<std::int32_t>(sampling.output_index * 1000 + position));
    const bool may_end = eos_one_in > 0 && draw % static_cast<std::uint64_t>(eos_one_in) == 0;
    auto token = static_cast<std::int32_t>((draw >> 20) % 200);
    if (may_end) token = eos;
    const auto is_banned = [&](std::int32_t id) {
      return position < sampling.min_tokens &&
             std::find(banned.begin(), banned.end(), id) != banned.end();
    };
    while (is_banned(token)) token = (token + 1) % 200;
    return token;
  }
  float Logprob(std::uint64_t history, std::int32_t token) const {
    return -static_cast<float>(ChainHash(history, token) % 1000) / 100.0f;
  }
};

// Steps run when they are launched; their results wait for Collect. Fails, stickily, on anything a
// real device would silently compute garbage from. One thread.
class FakeRunner : public Runner {
 public:
  struct Options {
    int depth = 0;
    int num_pages = 64;
    int page_tokens = 4;
    StepLimits limits;
    FakeModel model;
  };
  explicit FakeRunner(Options options)
      : options_(std::move(options)), pages_(static_cast<std::size_t>(options_.num_pages)) {
    for (auto& page : pages_) page.resize(static_cast<std::size_t>(options_.page_tokens));
  }

  int depth() const override { return options_.depth; }
  int in_flight() const override { return static_cast<int>(steps_.size()); }

  absl::Status Launch(const StepInput& input) override {
    if (!failure_.ok()) return failure_;
    failure_ = Run(input);
    if (!failure_.ok()) violation_ = failure_;
    if (failure_.ok() && fail_launch_at == ++launches_)
      failure_ = absl::InternalError("injected: the device is lost");
    return failure_;
  }

  absl::StatusOr<StepResult> Collect() override {
    if (!failure_.ok()) return failure_;
    if (on_collect) on_collect();
    if (steps_.empty())
      return violation_ = failure_ = absl::InternalError("Collect with nothing in flight");
    StepResult result = std::move(steps_.front().result);
    steps_.pop_front();
    if (fail_collect_at == ++collects_)
      return failure_ = absl::InternalError("injected: the device is lost");
    return result;
  }

  // Faults to inject, and hooks. Set before use.
  std::int64_t fail_launch_at = 0, fail_collect_at = 0;
  std::function<void()> on_collect;  // before a result is handed over
  std::function<void(const StepInput&)> on_launch;
  std::function<void(double seconds)> on_seconds;  // what the step cost, when it is launched

  // OK unless the engine did something a device would have suffered from.
  const absl::Status& violation() const { return violation_; }
  std::int64_t launches() const { return launches_; }

 private:
  struct Cell {
    std::int32_t position = -1;
    std::uint64_t before = 0, after = 0;  // history without and with this token
    bool poisoned = false;
  };
  struct Slot {
    SamplingParams sampling;
    std::vector<std::int32_t> banned;
    std::uint64_t history =
        kEmptyHistory;  // prompt and outputs as the slot was told and has sampled
    std::int32_t outputs = 0;
    std::int32_t last_token = -1;
    bool written = false;
  };
  struct Use {
    std::set<std::int32_t> read, written;
  };
  struct Launched {
    StepResult result;
    std::map<std::int32_t, Use> uses;  // by slot
  };

  static absl::Status Broken(std::string what) {
    return absl::InternalError("engine fault: " + what);
  }

  absl::Status Run(const StepInput& input) {
    if (on_launch) on_launch(input);
    const StepLimits& limits = options_.limits;
    if (static_cast<int>(steps_.size()) > options_.depth) return Broken("too many steps in flight");
    if (input.id <= last_id_) return Broken("step ids do not increase");
    last_id_ = input.id;
    if (input.tokens.empty()) return Broken("an empty step");
    if (static_cast<std::int32_t>(input.tokens.size()) > limits.max_tokens)
      return Broken("too many tokens");
    if (static_cast<std::int32_t>(input.slots.size()) > limits.max_sequences)
      return Broken("too many sequences");
    if (static_cast<std::int32_t>(input.logit_rows.size()) > limits.max_logit_rows)
      return Broken("too many rows");

    Launched step;
    step.result.id = input.id;
    for (const SlotInit& init : input.slot_inits) {
      for (const Launched& earlier : steps_) {
        if (earlier.uses.count(init.slot))
          return Broken("a slot is written while a launched step uses it");
      }
      Slot& slot = slots_[init.slot];
      slot = {.sampling = init.sampling,
              .banned = {init.banned_until_min_tokens.begin(), init.banned_until_min_tokens.end()},
              .outputs = static_cast<std::int32_t>(init.outputs.size()),
              .written = true};
      for (std::int32_t token : init.prompt) slot.history = ChainHash(slot.history, token);
      for (std::int32_t token : init.outputs) slot.history = ChainHash(slot.history, token);
    }

    std::vector<Cell> cells;  // of each token of the step
    std::set<std::int32_t> seen_slots;
    std::int64_t keys = 0;
    std::size_t token = 0;
    for (std::size_t sequence = 0; sequence < input.slots.size(); ++sequence) {
      const std::int32_t slot_id = input.slots[sequence];
      if (slot_id < 0 || slot_id >= limits.max_slots) return Broken("no such slot");
      if (!seen_slots.insert(slot_id).second) return Broken("a slot twice in a step");
      if (!slots_[slot_id].written) return Broken("a slot that was never written");
      const auto table = input.block_tables.subspan(
          static_cast<std::size_t>(input.block_table_offsets[sequence]),
          static_cast<std::size_t>(input.block_table_offsets[sequence + 1] -
                                   input.block_table_offsets[sequence]));
      absl::Status status =
          RunSequence(input, sequence, slot_id, table, token, step.uses[slot_id], cells);
      if (!status.ok()) return status;
      for (std::int32_t i = 0; i < input.query_lengths[sequence]; ++i)
        keys += input.positions[token + i] + 1;
      token += static_cast<std::size_t>(input.query_lengths[sequence]);
    }
    if (token != input.tokens.size()) return Broken("query lengths and tokens disagree");
    if (absl::Status status = CheckPages(step); !status.ok()) return status;
    for (const LogitRow& row : input.logit_rows) {
      absl::StatusOr<RowResult> result = RunRow(row, cells);
      if (!result.ok()) return result.status();
      step.result.rows.push_back(*std::move(result));
    }
    const FakeModel& model = options_.model;
    step.result.seconds = model.seconds_base +
                          model.seconds_per_token * static_cast<double>(input.tokens.size()) +
                          model.seconds_per_key * static_cast<double>(keys);
    if (on_seconds) on_seconds(step.result.seconds);
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }

  absl::Status RunSequence(const StepInput& input, std::size_t sequence, std::int32_t slot_id,
                           std::span<const std::int32_t> table, std::size_t first_token, Use& use,
                           std::vector<Cell>& cells) {
    const std::int32_t count = input.query_lengths[sequence];
    const std::int32_t context = input.context_lengths[sequence];
    const std::int32_t begin = context - count;
    const std::int32_t page_tokens = options_.page_tokens;
    if (count < 1 || begin < 0 || context > options_.limits.max_context)
      return Broken("impossible lengths");
    if (static_cast<std::int32_t>(table.size()) * page_tokens < context)
      return Broken("too few pages");
    for (std::int32_t page : table) {
      if (page < 0 || page >= options_.num_pages) return Broken("no such page");
    }
    const auto cell_at = [&](std::int32_t position) -> Cell& {
      return pages_[static_cast<std::size_t>(table[position / page_tokens])]
                   [static_cast<std::size_t>(position % page_tokens)];
    };
    std::uint64_t history = kEmptyHistory;
    bool poisoned = false;
    for (std::int32_t position = 0; position < begin; ++position) {
      const Cell& cell = cell_at(position);
      if (cell.position != position || cell.before != history) {
        return Broken(absl::StrCat("page ", table[position / page_tokens],
                                   " does not hold position ", position,
                                   " of the sequence in slot ", slot_id, ", step ", input.id));
      }
      history = cell.after;
      poisoned |= cell.poisoned;
      use.read.insert(table[position / page_tokens]);
    }
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t position = begin + i;
      if (input.positions[first_token + i] != position)
        return Broken("positions do not follow the context");
      std::int32_t token = input.tokens[first_token + i];
      if (token == StepInput::kFromSlot) token = slots_[slot_id].last_token;
      if (token < 0 || token >= options_.model.vocab)
        return Broken(absl::StrCat("no such token ", token));
      poisoned |= token == options_.model.poison;
      Cell& cell = cell_at(position);
      cell = {position, history, ChainHash(history, token), poisoned};
      history = cell.after;
      use.written.insert(table[position / page_tokens]);
      cells.push_back(cell);
    }
    return absl::OkStatus();
  }

  // A page that a launched, uncollected step uses is not written for anybody else, nor by two
  // sequences at once.
  absl::Status CheckPages(const Launched& step) const {
    for (const auto& [slot, use] : step.uses) {
      for (std::int32_t page : use.written) {
        for (const auto& [other, other_use] : step.uses) {
          if (other != slot && (other_use.written.count(page) || other_use.read.count(page))) {
            return Broken(absl::StrCat("page ", page, " is written by slot ", slot,
                                       " and used by slot ", other));
          }
        }
        for (const Launched& earlier : steps_) {
          for (const auto& [other, other_use] : earlier.uses) {
            if (other != slot && (other_use.written.count(page) || other_use.read.count(page))) {
              return Broken(absl::StrCat("page ", page, " is written while step ",
                                         earlier.result.id, " uses it"));
            }
          }
        }
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<RowResult> RunRow(const LogitRow& row, const std::vector<Cell>& cells) {
    const Cell& cell = cells.at(static_cast<std::size_t>(row.token_index));
    Slot& slot = slots_[row.slot];
    RowResult result;
    result.bad_logits = cell.poisoned;
    if (row.sample) {
      if (slot.history != cell.after)
        return Broken("the slot's prompt and outputs are not what the pages hold");
      if (row.output_position != slot.outputs)
        return Broken("the random key is not the output's position");
      result.token =
          options_.model.Next(cell.after, slot.sampling, row.output_position, slot.banned);
      slot.last_token = result.token;
      slot.history = ChainHash(slot.history, result.token);
      ++slot.outputs;
    } else {
      if (row.score_token < 0) return Broken("a row that neither samples nor scores");
      result.token = row.score_token;
    }
    result.logprob = options_.model.Logprob(cell.after, result.token);
    for (std::int32_t i = 0; i < row.top_logprobs; ++i) {
      result.top.push_back({i, options_.model.Logprob(cell.after, i)});
    }
    return result;
  }

  const Options options_;
  std::vector<std::vector<Cell>> pages_;
  std::map<std::int32_t, Slot> slots_;
  std::deque<Launched> steps_;
  absl::Status failure_, violation_;
  std::uint64_t last_id_ = 0;
  std::int64_t launches_ = 0, collects_ = 0;
};

}  // namespace nibble
