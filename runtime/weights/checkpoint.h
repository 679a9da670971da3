// A checkpoint on disk: named tensors, configuration, and the format that turns them into linear
// weights.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/json.h"
#include "runtime/weights/gguf.h"
#include "runtime/weights/linear_weight.h"
#include "runtime/weights/tensor.h"

namespace nibble {

enum class CheckpointKind { kHuggingFace, kGguf };

// Asked before a file is opened, with its path: gives the path to open instead, with symbolic links
// resolved, or a status that refuses it. NotFound when nothing is there.
using PathCheck = std::function<absl::StatusOr<std::string>(const std::string& path)>;

// Immutable once open; thread-safe.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // PATH is a Hugging Face directory, a .safetensors file or a .gguf file (the first of a split
  // one). Refuses pickles (.bin, .pt) by extension and by magic. `check`, if any, is asked for PATH
  // and for every file that is opened, now or later.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path,
                                                          PathCheck check = nullptr);

  virtual CheckpointKind kind() const = 0;
  virtual const std::string& path() const = 0;

  // config.json (Hugging Face) or an empty object.
  virtual const Json& config() const = 0;
  // The GGUF key-values, or null for Hugging Face.
  virtual const GgufMetadata* gguf() const = 0;
  // A side file of a Hugging Face directory ("tokenizer.json", "generation_config.json"); NotFound
  // for GGUF.
  virtual absl::StatusOr<std::string> ReadSideFile(absl::string_view name) const = 0;

  virtual const std::vector<TensorInfo>& tensors() const = 0;  // sorted by name
  virtual const TensorInfo* Find(absl::string_view name) const = 0;
  // Reads the bytes of one tensor; concurrent calls are fine.
  virtual absl::Status Read(const TensorInfo& tensor, std::span<std::byte> out) const = 0;

  // What the kernel cached of the files is not needed any more: the weights are loaded.
  virtual void DropCachedPages() const {}

  // The same content gives the same revision, wherever it lies: a hash over all that decides an
  // answer. The names, shapes, types, sizes and sampled bytes of the tensors; all of the
  // configuration, tokenizer, chat templates and generation defaults. Hex.
  virtual absl::StatusOr<std::string> Revision() const = 0;
};

// "F16", "Q4_K": what people read.
std::string TypeName(const TensorInfo& tensor);

// A tensor of floats (norm, bias, router), widened to f32. NotFound names the tensor.
absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint, absl::string_view name);

}  // namespace nibble
