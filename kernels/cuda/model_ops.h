// Launchers of what a whole model needs around the products of ops.h: inputs that a format rounds
// or reorders, embeddings that stay packed, expansion at load, the slots of running sequences, and
// mixtures of experts one expert at a time. The rules of ops.h hold.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/ops.h"

namespace nibble::cuda {

// How a layer rounds its inputs, a token at a time, as kernels/cpu/pointwise.h has it.
enum class InputRounding : std::uint8_t {
  kNone,
  kInt8Dynamic,   // 255 steps over [-absmax, absmax]
  kInt8Static,    // (code - zero) * scale
  kE4m3Dynamic,   // absmax is 448
  kE4m3Static,    // scale
  kOutlierSplit,  // int8 of what is below the threshold, by its own absmax; the rest in f16
};

// out T[tokens, k] = round(in[t, order[j]]); rows of `in` are ld_in apart. in != out.
struct PrepareInputsArgs {
  DType dtype = DType::kF16;
  void* out = nullptr;
  const void* in = nullptr;
  std::int64_t ld_in = 0;
  int tokens = 0, k = 0;
  const std::int32_t* order = nullptr;  // [k]; null: as they are
  InputRounding rounding = InputRounding::kNone;
  float scale = 1.0f, zero = 0.0f, threshold = 0.0f;
};
cudaError_t PrepareInputs(const PrepareInputsArgs& args, LaunchOptions options);

// As Embed, from a packed table without alternating halves.
cudaError_t EmbedPacked(float* out, const PackedMatrix& table, const std::int32_t* tokens,
                        const std::int32_t* last_tokens, const std::int32_t* token_slots, int count,
                        float scale, LaunchOptions options);

// out[i] = in[i]; f32, f16 or bf16 to any of them.
cudaError_t Convert(DType to, void* out, DType from, const void* in, std::int64_t count,
                    LaunchOptions options);

// out T[rows, k] = scales[row] * e4m3 codes[rows, k].
cudaError_t ExpandE4m3(DType to, void* out, const std::uint8_t* codes, const float* scales,
                       std::int64_t rows, std::int64_t k, LaunchOptions options);

// ---- Slots

// What a new sequence tells its slot; begins and counts are of SlotArgs::data.
struct SlotUpdate {
  std::int32_t slot = 0;
  std::int32_t begins = 0;       // 1: parameters and lists are written; 0: only more history
  std::int32_t penalties = 0;    // 1: the history is kept; cleared where it begins
  std::int32_t last_token = -1;  // negative: none yet
  SamplingParams params;
  std::int32_t prompt = 0, prompt_count = 0;
  std::int32_t outputs = 0, output_count = 0;
  std::int32_t bias_ids = 0, bias_values = 0, bias_count = 0;  // the values are f32 bits
  std::int32_t banned = 0, banned_count = 0;
};

struct SlotArgs {
  const SlotUpdate* updates = nullptr;  // [count]
  const std::int32_t* data = nullptr;
  int count = 0;
  int vocab = 0;
  SamplingParams* params = nullptr;     // [slots]
  SlotLists* lists = nullptr;           // [slots]
  std::int32_t* last_tokens = nullptr;  // [slots]
  std::uint16_t* history = nullptr;     // [slots, vocab]
  std::int32_t* bias_ids = nullptr;     // [slots, bias_capacity]
  float* bias_values = nullptr;         // [slots, bias_capacity]
  std::int32_t* banned = nullptr;       // [slots, banned_capacity]
  int bias_capacity = 0, banned_capacity = 0;
};
cudaError_t UpdateSlots(const SlotArgs& args, LaunchOptions options);

// ---- Mixtures of experts

// weights f32[tokens, experts]: softmax over all of logits f32[tokens, experts], kept for the top_k
// best (the smaller id of equals), renormalised to sum 1 if asked, 0 for the others. experts <=
// 512.
cudaError_t RouteExperts(const float* logits, float* weights, int tokens, int experts, int top_k,
                         bool renormalize, LaunchOptions options);

// sum f32[tokens, dim] = (first ? 0 : sum) + weights[t, expert] * y T[t, dim].
cudaError_t AddExpert(DType dtype, float* sum, const void* y, const float* weights, int experts,
                      int expert, bool first, int tokens, int dim, LaunchOptions options);

}  // namespace nibble::cuda
