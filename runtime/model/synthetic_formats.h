// The table behind synthetic models' formats: which encoding each layer has.
#pragma once

#include <array>

#include "absl/strings/string_view.h"
#include "kernels/dtype.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

struct SyntheticEncoding {
  LinearSpec spec;
  std::array<float, 16> table{};  // of a codebook

  bool operator==(const SyntheticEncoding&) const = default;
};

// A Hugging Face format says `body`: embeddings, head and routers stay of `dtype`. A GGUF one says
// ggml types.
struct SyntheticFormatRow {
  const char* name;
  DType dtype = DType::kF16;  // the model was made in
  SyntheticEncoding body;
  int ggml_body = -1;      // -1: not GGUF
  int ggml_head = -1;      // of the head, and of an embedding that is the head too
  bool more_bits = false;  // the sensitive layers of some depths take Q6_K
};

// kSensitive: v and down, to which the mixed GGUF types give more bits in some layers.
enum class SyntheticRole { kEmbedding, kHead, kRouter, kBody, kSensitive };

struct SyntheticPlace {
  SyntheticRole role = SyntheticRole::kBody;
  int layer = 0, layers = 0;
  bool tied_head = false;
  std::int64_t k = 0;
};

// Null when the table has no such row.
const SyntheticFormatRow* FindSyntheticFormat(absl::string_view name);

// Without n, k and bias.
SyntheticEncoding EncodingOf(const SyntheticFormatRow& row, const SyntheticPlace& place);

}  // namespace nibble
