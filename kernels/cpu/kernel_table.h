// The vector kernels, once an instruction set. The same sources are compiled for each
// (kernels_<isa>.cc); the table is chosen once, by cpuid. A further set (AMX) is a further row.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/pointwise.h"

namespace nibble::cpu {

struct KernelTable {
  const char* name;

  void (*linear_f32)(const LinearArgs& args);
  void (*quantize_row)(const QuantizeArgs& args);
  void (*pack_dense)(const PackDenseArgs& args);
  void (*linear_integer)(const IntegerArgs& args);
  void (*embed_row)(const EmbedArgs& args);

  // One chunk of keys folded into `state`; a fresh state has max = -inf, sum = 0, out = 0.
  void (*attend_chunk)(const AttentionArgs& args, const AttentionState& state);
  // into = into combined with next, `next` being later in position.
  void (*attend_merge)(const AttentionState& into, const AttentionState& next, std::int32_t rows,
                       std::int32_t head_dim);
  // out[head_dim] = state of `row`, with an optional sink logit, divided by its sum.
  void (*attend_finish)(const AttentionState& state, std::int32_t row, std::int32_t head_dim,
                        const float* sink, float* out);

  // out = in / sqrt(mean(in^2) + eps) * weight; in == out allowed; weight may be null (ones).
  void (*rms_norm)(float* out, const float* in, const float* weight, std::int64_t dim, float eps);
  // residual += delta.
  void (*add)(float* residual, const float* delta, std::int64_t n);
  // out = act(in[i]) * in[dim + i].
  void (*glu_silu)(float* out, const float* in, std::int64_t dim);
  void (*glu_gelu_tanh)(float* out, const float* in, std::int64_t dim);
  void (*softcap)(float* x, std::int64_t n, float cap);
  void (*rope)(const RopeArgs& args);
  // To the KV pool's dtype: kF32, kF16 or kBF16.
  void (*convert)(void* out, const float* in, std::int64_t n, DType dtype);
  void (*fake_quant)(const FakeQuantArgs& args);
  // out += weight * in.
  void (*axpy)(float* out, const float* in, float weight, std::int64_t n);

  MaxResult (*max_of)(const float* x, std::int64_t n);
  // sum of e^(x - max), in double over fixed blocks.
  double (*sum_exp)(const float* x, std::int64_t n, float max);
  // out = e^((x - max) * factor); in place allowed.
  void (*exp_shifted)(float* out, const float* x, std::int64_t n, float max, float factor);
};

enum class Isa : std::uint8_t { kBaseline, kAvx2, kAvxVnni, kAvx512Vnni };
inline constexpr Isa kAllIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni};

extern const KernelTable kBaselineKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvx512VnniKernels;

// Whether this machine runs it, and the best it runs.
bool Supported(Isa isa);
Isa BestIsa();
const KernelTable& KernelsOf(Isa isa);

}  // namespace nibble::cpu
