// The table of checkpoint formats. One row and one file a format; each turns named tensors into
// LinearWeight.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/linear_weight.h"

namespace nibble {

// The reader of one checkpoint's linear layers. `layer` is the module path as the file spells it:
// "model.layers.3.mlp.down_proj" (Hugging Face; the format appends ".weight", ".qweight", ...) or
// "blk.3.ffn_down" (GGUF). One matrix of a stack of experts [experts, n, k] is named by its number:
// "blk.3.ffn_gate_exps#5"; Checkpoint::Find on the stack tells how many there are. An embedding
// table is a linear layer [vocab, hidden] like any other. Thread-safe.
class WeightFormat {
 public:
  virtual ~WeightFormat() = default;

  // "gptq int4 g128 act-order", "gguf Q4_1", "bf16": what people read in `inspect` and ListModels.
  virtual std::string Name() const = 0;

  // From headers, and at most from the small tensors that decide the encoding (GPTQ's g_idx and
  // qzeros, the quant_state of bitsandbytes). Unimplemented names the tensor, the reason and the
  // remedy.
  virtual absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const = 0;
  // SpecOf(Load(layer)) == Describe(layer).
  virtual absl::StatusOr<LinearWeight> Load(absl::string_view layer) const = 0;
  // Whether the layer exists in any spelling.
  virtual bool Has(absl::string_view layer) const = 0;
};

// What --quantize asks of 16-bit layers at load.
enum class LoadQuantization { kNone, kNf4, kFp4, kInt8, kInt4 };

// Picks the row whose test matches; refuses by name what no row can read. `checkpoint` must outlive
// the result.
absl::StatusOr<std::unique_ptr<WeightFormat>> OpenFormat(
    const Checkpoint& checkpoint, LoadQuantization quantize = LoadQuantization::kNone);

}  // namespace nibble
