#include "runtime/device/program.h"

#include <algorithm>

namespace nibble {

std::vector<LinearId> TokenLinears(const Program& program) {
  std::vector<LinearId> tokens, others;
  for (const Op& op : program.ops) {
    if (const auto* linear = std::get_if<LinearOp>(&op)) {
      const BufferSpec& out = program.buffers[static_cast<std::size_t>(linear->out)];
      (out.per_logit_row ? others : tokens).push_back(linear->weight);
    } else if (const auto* embed = std::get_if<EmbedOp>(&op)) {
      others.push_back(embed->table);
    } else if (const auto* moe = std::get_if<MoeOp>(&op)) {
      others.insert(others.end(), {moe->router, moe->gate_up, moe->down});
    }
  }
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  std::erase_if(tokens, [&](LinearId id) {
    return std::find(others.begin(), others.end(), id) != others.end();
  });
  return tokens;
}

}  // namespace nibble
