// What every product kernel is told of its matrix and of its epilogue, from a launcher's arguments.
#pragma once

#include <algorithm>

#include "kernels/cuda/ops.h"

namespace nibble::cuda {

inline bool Aligned(const void* pointer) {  // to 16 bytes
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

// A packed matrix; of experts the first, the others follow it.
struct PackedParams {
  const std::uint8_t* blocks;
  std::int64_t expert_bytes;
  int block_bytes, scale_bytes;  // scale_bytes: of the scales in a block, or of the offsets
  int units, tiles;
  int group_steps;  // k-steps a group
  OffsetMode offset;
  float zero;  // of OffsetMode::kConstant and kBias, otherwise 0
  float multiplier;
  float table[16];

  __device__ bool HasOffsets() const { return offset != OffsetMode::kConstant; }
};
inline PackedParams PackedParamsOf(const PackedMatrix& w) {
  const PackedShape& shape = w.shape;
  PackedParams p = {};
  p.blocks = w.blocks;
  p.expert_bytes = shape.Bytes();
  p.block_bytes = shape.BlockBytes();
  p.scale_bytes = shape.TableBytes();
  p.units = static_cast<int>(shape.Units());
  p.tiles = static_cast<int>(shape.Tiles());
  p.group_steps = shape.group / 16;
  p.offset = shape.offset;
  p.zero = static_cast<float>(shape.offset == OffsetMode::kZeros ? 0 : w.zero);
  p.multiplier = w.multiplier;
  std::copy(w.table.begin(), w.table.end(), p.table);
  return p;
}

// Whether every row of the outputs can be read and written `elements` at a time, 16 bytes at most.
inline bool AllowsVectors(const ProductArgs& args, int elements) {
  if (!Aligned(args.bias)) return false;
  if (args.output != Output::kResidual) return Aligned(args.out) && args.ldo % elements == 0;
  return Aligned(args.residual) && Aligned(args.norm_out.normed) && Aligned(args.norm_out.weight) &&
         args.w.shape.n % elements == 0;
}

// ProductArgs' fields of these names.
struct EpilogueParams {
  int m, n;
  bool vector;  // AllowsVectors
  NormInput norm_in;
  const float* bias;
  Output output;
  Gate gate;
  void* out;
  std::int64_t ldo;
  float* residual;
  NormOutput norm_out;
};
inline EpilogueParams EpilogueParamsOf(const ProductArgs& args, int vector_elements) {
  return {.m = args.m,
          .n = static_cast<int>(args.w.shape.n),
          .vector = AllowsVectors(args, vector_elements),
          .norm_in = args.norm_in,
          .bias = args.bias,
          .output = args.output,
          .gate = args.gate,
          .out = args.out,
          .ldo = args.ldo,
          .residual = args.residual,
          .norm_out = args.norm_out};
}

}  // namespace nibble::cuda
