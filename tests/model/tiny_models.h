// Tiny models of every family with weights made from their names, as a Hugging Face directory and
// as GGUF, and what an independent implementation computes from them (architecture_cases.json).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/base/json.h"
#include "tests/support/float_tensor.h"
#include "tests/support/temp_dir.h"

namespace nibble {

struct TinyModel {
  std::string name;
  bool has_gguf = false;  // GGUF has keys for all that is special about it
  Json config;
  std::vector<std::int32_t> prompt;
  std::vector<FloatTensor> tensors;            // with Hugging Face's names and values
  std::map<int, std::vector<float>> logprobs;  // of every id, after that index of the prompt
};

// Every case; aborts when the file that belongs to the tests is not there.
std::vector<TinyModel> TinyModels();
TinyModel FindTinyModel(const std::string& name);

// Both return the path to open.
std::string WriteHuggingFace(const TinyModel& model, const TempDir& dir);
// The same model as a converter would write it: names, keys, q and k rows interleaved where llama's
// are, Gemma's norms plus one, experts stacked. REQUIRES: has_gguf.
std::string WriteGguf(const TinyModel& model, const TempDir& dir);

}  // namespace nibble
