// The names of one checkpoint's tensors, from the templates of its architecture.
#pragma once

#include <string>

#include "runtime/model/architectures.h"
#include "runtime/model/config.h"
#include "runtime/weights/checkpoint.h"

namespace nibble {

class NameResolver {
 public:
  // REQUIRES: config.architecture is a row of the table.
  NameResolver(const ModelConfig& config, const Checkpoint& checkpoint);

  const TensorNames& table() const { return table_; }

  std::string Get(const char* name, int layer = 0, int expert = 0) const;

 private:
  const TensorNames& table_;
  std::string prefix_ =
      "model.";  // what "model." is called here: multimodal files nest the language model
};

}  // namespace nibble
