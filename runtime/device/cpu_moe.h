// Mixture-of-experts layers on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/device/cpu_products.h"
#include "runtime/device/program.h"

namespace nibble {

// Owns the scratch of expert layers; one thread calls it. Tokens are taken a block at a time, so
// that the scratch does not grow with the step; each token's experts are summed in the order of
// their router weight.
class CpuMoe {
 public:
  CpuMoe(const CpuContext& context, const Program& program, MemoryLayout& layout);
  void Bind(const HostMemory& memory);

  void Run(const MoeOp& op, const CpuLinear& router, const CpuLinear& gate_up,
           const CpuLinear& down, const float* in, std::int64_t in_stride, float* out,
           std::int64_t out_stride, std::int64_t tokens, CpuProducts& products);

  // What its products take, for the plan of their scratch.
  static void Include(const Program& program, ProductLimits& limits);

 private:
  static constexpr std::int64_t kBlockTokens = 32;
  struct Choice {
    std::int32_t expert;
    float weight;
    std::int64_t row;  // in the gathered inputs, which are sorted by expert
  };

  void Route(const MoeOp& op, std::int64_t tokens);
  void RunExperts(const MoeOp& op, const CpuLinear& linear, const float* x, std::int64_t x_stride,
                  float* y, std::int64_t y_stride, CpuProducts& products);

  const CpuContext& context_;
  std::int64_t router_stride_ = 0, hidden_stride_ = 0, wide_stride_ = 0,
               narrow_stride_ = 0;  // floats a row
  std::int64_t router_at_ = 0, inputs_at_ = 0, gate_up_at_ = 0, activated_at_ = 0, down_at_ = 0;
  float* router_ = nullptr;
  float* inputs_ = nullptr;
  float* gate_up_ = nullptr;
  float* activated_ = nullptr;
  float* down_ = nullptr;
  std::vector<Choice> choices_;            // [block tokens, top_k], best first
  std::vector<std::int64_t> expert_rows_;  // [experts + 1]: where an expert's rows begin
  std::vector<std::int64_t> next_row_;     // [experts]
  std::vector<ProductJob> jobs_;
};

}  // namespace nibble
